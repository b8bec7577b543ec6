"Validation of generated users end to end: real pictures pass, another user's and noise fail, and a judge that may not judge is refused."
import dataclasses as dc, json, os, re, shutil
import numpy as np, pytest, torch
from PIL import Image
from vaetag_nb.core.config import load
from vaetag_nb.core.io import append_jsonl, read_json, write_json
from vaetag_nb.data.radar import simulate_dataset
from vaetag_nb.data.users import UserSplit, read_users
from vaetag_nb.generate import load_generator
from vaetag_nb.models.identity import load_identity
from vaetag_nb.trainers.diffusion import train_diffusion
from vaetag_nb.trainers.diffusion_settings import diffusion_config, vae_config
from vaetag_nb.trainers.identity import IdentityConfig, train_identity
from vaetag_nb.trainers.identity_data import held
from vaetag_nb.trainers.vae import train_vae
from vaetag_nb.verbs import compare, sets, train_users  # noqa: F401 (registers the verbs)
from vaetag_nb.verbs.base import shell

torch.set_num_threads(1)

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('VAETAG_QUIET', '1')

def stripes(folder, seed=0, recs=10, n=4, users=3):
    "Users with stripes of their own"
    for u in range(users):
        for r in range(recs):
            (folder/f'ID_{u+1}/r{r}').mkdir(parents=True)
            for k in range(n):
                g = np.random.default_rng([seed, u, r, k])
                a = 128 + 60*np.sin(np.arange(32)*(.4 + .3*u) + g.uniform(0, 6))[:, None] + g.normal(0, 20, (32, 32))
                Image.fromarray(a.clip(0, 255).astype(np.uint8)).save(folder/f'ID_{u+1}/r{r}/w{k}.png')
    return folder

def settings(home, out, **more): return load(IdentityConfig, dict(out=str(out), data=dict(folders=str(home/'real'), val=.3, test=.3), resolution=32, backbone='test_resnet', steps=60, eval_every='30 steps', users=3, lr=2e-3), more)

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    os.environ['VAETAG_QUIET'] = '1'
    home = tmp_path_factory.mktemp('validation')
    stripes(home/'real')
    train_identity(settings(home, home/'judge'))
    split = UserSplit.read(home/'judge/best/split.json')
    for u in (1, 2, 3):       # what the judge has not learned from; the same with the users exchanged; noise
        for r in split.users[str(u)]['val']:
            for k in range(4):
                for name, to in (('heldout', u), ('exchanged', u % 3 + 1)):
                    (home/f'{name}/ID_{to}').mkdir(parents=True, exist_ok=True)
                    shutil.copy(home/f'real/ID_{u}/{r}/w{k}.png', home/f'{name}/ID_{to}/{r}_{k}.png')
        (home/f'noise/ID_{u}').mkdir(parents=True)
        for k in range(12): Image.fromarray(np.random.default_rng([u, k]).integers(0, 256, (32, 32), np.uint8)).save(home/f'noise/ID_{u}/{k}.png')
    return home

def judge(home, gen, *args): return shell('eval', 'generation', '--gen', str(home/gen), '--ref', str(home/'real'), '--identity', str(home/'judge'), *args)

def test_held_out_real_pictures_pass(home):
    status, out, err = judge(home, 'heldout', '--tstr-steps', '50', '--bootstrap', '100', '--out', str(home/'report'), '--json')
    d = json.loads(out)
    assert status == 0 and d['verdict'] == 'PASS', ([c for c in d['criteria'] if not c['pass']], err)
    assert all(c['pass'] and c['interval'] for c in d['criteria'] if c['required'])
    page = (home/'report/report.html').read_text()
    assert {*re.findall(r'src="([a-z]+:)', page)} == {'data:'} and not re.findall(r'https?://', page) and page.count('<img') == 4
    assert (home/'report/report.md').read_text().startswith('DATA OF UNKNOWN ORIGIN')

@pytest.mark.parametrize('gen, failed', [('exchanged', {'identity.top1', 'identity.accept'}), ('noise', {'identity.top1', 'fd.ratio', 'coverage.precision'})])
def test_another_user_and_noise_fail(home, gen, failed):
    status, out, err = judge(home, gen, '--tstr-steps', '0', '--bootstrap', '0', '--json')
    d = json.loads(out)
    assert status == 1 and d['verdict'] == 'FAIL' and failed <= {c['id'] for c in d['criteria'] if not c['pass']}, err

def test_what_cannot_be_judged_is_one_line(home, tmp_path):
    j = load_identity(home/'judge')
    for name, guide in (('guided', dict(guide=dict(fingerprint=j.fingerprint))), ('marked', {})): shutil.copytree(home/'heldout', tmp_path/name); write_json(tmp_path/name/'generation.json', dict(generated=True) | guide)
    users = read_users(home/'real'); users.split(.3, .3, seed=7).write(tmp_path/'other.json')
    dc.replace(users.split(.3, .3), data_fingerprint='f'*64).write(tmp_path/'foreign.json')
    (tmp_path/'torn').mkdir(); shutil.copytree(home/'judge/best', tmp_path/'broken'); (tmp_path/'broken/users.json').write_text('{}')
    shutil.copytree(home/'heldout', tmp_path/'two'); shutil.rmtree(tmp_path/'two/ID_2')
    shutil.copytree(home/'heldout', tmp_path/'more'); shutil.copytree(home/'heldout/ID_1', tmp_path/'more/ID_9')
    shutil.copytree(home/'judge/best', tmp_path/'taught'); write_json(tmp_path/'taught/model.json', (m := read_json(tmp_path/'taught/model.json')) | dict(data=m['data'] | dict(generated=['made'])))
    print_ = j.fingerprint[:16]
    for change, status, words in [(dict(gen='guided'), 1, ['guided by this very judge', print_, '--allow-same-classifier']), (dict(ref='marked'), 1, ['marked', 'generated', 'allow']), (dict(split='other.json'), 1, ['another split', j.split.data_fingerprint[:16]]),
                                  (dict(split='foreign.json'), 1, ['f'*16, j.split.data_fingerprint[:16]]), (dict(identity='taught'), 1, ['trained on generated pictures', print_]), (dict(identity='broken'), 1, ['users.json']), (dict(identity='torn'), 1, ['torn']),
                                  (dict(gen='two'), 1, ['no picture of the users 2', '--users']), (dict(gen='more'), 2, ['user 9', '1, 2, 3']), (dict(users='5'), 2, ['user 5', '1, 2, 3']), (dict(run='torn'), 1, ['log.jsonl']), (dict(gen='torn'), 1, ['torn', 'no image'])]:
        a = dict(gen='heldout', ref='real', identity='judge') | change
        at = lambda v: str(tmp_path/v if (tmp_path/v).exists() else home/v)
        s, out, err = shell('eval', 'generation', *(x for k, v in a.items() for x in (f'--{k}', v if k == 'users' else at(v))), '--tstr-steps', '0', '--out', str(tmp_path/'out'))
        assert s == status and not out and all(w in err.strip().splitlines()[-1] for w in words), (change, s, err)
    assert not (tmp_path/'out/report.json').exists()

def test_one_user_of_many_and_a_run(home, tmp_path):
    (tmp_path/'run').mkdir()
    for s, v in ((1, 3.), (10, 2.), (100, 1.)): append_jsonl(tmp_path/'run/log.jsonl', dict(kind='step', step=s, loss=v, grad_norm=1., img_s=20.)); append_jsonl(tmp_path/'run/log.jsonl', dict(kind='eval', step=s, val_loss=v))
    status, out, _ = judge(home, 'heldout', '--users', '2', '--tstr-steps', '0', '--bootstrap', '0', '--run', str(tmp_path/'run'), '--strict-targets', '--json')
    d = json.loads(out)
    wrong = {c['id']: c.get('reason', '') for c in d['criteria'] if not c['pass']}
    assert status == 1 and [p['user'] for p in d['per_user']] == [2] and d['stability']['val_loss_last'] == 1. and d['cost']['images_per_second'] == 20.
    assert wrong.keys() >= {'tstr', 'target.fid', 'target.psnr', 'memorised'} and 'not there' in wrong['target.psnr'] and 'got 12' in wrong['memorised']

def test_reports_stand_beside_each_other(home, tmp_path):
    for name, gen in (('a', 'heldout'), ('b', 'noise')): judge(home, gen, '--tstr-steps', '0', '--bootstrap', '0', '--out', str(tmp_path/name))
    status, out, err = shell('eval', 'compare', str(tmp_path/'a/report.json'), str(tmp_path/'b/report.json'))
    assert status == 0 and re.search(r'identity.top1 +1\.0', out) and re.search(r'train_seconds +N/A +N/A', out) and 'only pictures were given' in out, (out, err)
    first = (tmp_path/'a/report.json').read_bytes()
    judge(home, 'heldout', '--tstr-steps', '0', '--bootstrap', '0', '--out', str(tmp_path/'a'))
    assert (tmp_path/'a/report.json').read_bytes() == first
    write_json(tmp_path/'c.json', (d := json.loads(first)) | dict(settings=d['settings'] | dict(k=4)))
    status, out, err = shell('eval', 'compare', str(tmp_path/'a/report.json'), str(tmp_path/'c.json'))
    assert status == 1 and 'settings.k' in err

def test_nobody_learns_from_generated_pictures_unaware(home, tmp_path):
    shutil.copytree(home/'real', tmp_path/'made'); write_json(tmp_path/'made/generation.json', dict(generated=True))
    s, out, err = shell('train', 'identity', '--data', str(tmp_path/'made'), '--out', str(tmp_path/'x'))
    assert s == 1 and 'generated' in err and not (tmp_path/'x/best').exists()
    run = train_identity(settings(home, tmp_path/'x', steps=2, eval_every='2 steps', data=dict(folders=str(tmp_path/'made'), allow_generated=True)))
    assert load_identity(run.out).data['generated'] == [str(tmp_path/'made')]

def test_users_who_cannot_be_learned_are_named(home, tmp_path):
    shutil.copytree(home/'real', tmp_path/'few'); (tmp_path/'few/ID_7/r0').mkdir(parents=True); shutil.copy(home/'real/ID_1/r0/w0.png', tmp_path/'few/ID_7/r0')
    s, out, err = shell('train', 'identity', '--data', str(tmp_path/'few'), '--out', str(tmp_path/'x'))
    assert s == 1 and 'fewer than the 2 training pictures' in err and '7 (1)' in err
    read_users(home/'real').split(.34, .34, unit='user').write(tmp_path/'strangers.json')
    for verb, more in (('identity', []), ('diffusion', ['--preset', 'tiny'])):
        s, out, err = shell('train', verb, *more, '--data', str(home/'real'), '--data.split', str(tmp_path/'strangers.json'), '--out', str(tmp_path/verb))
        assert s == 1 and 'strangers.json: holds out whole users' in err and not (tmp_path/verb/'best').exists()

@pytest.mark.parametrize('kind', ['contrastive', 'triplet'])
def test_the_other_losses_learn_as_well(home, tmp_path, kind):
    run = train_identity(settings(home, tmp_path/kind, loss=dict(kind=kind), steps=50))
    assert run.metrics['test_accuracy'] > .8 and run.metrics['test_auc'] > .7 and {'baseline_majority', 'baseline_nearest_mean', 'baseline_untrained'} <= run.metrics.keys()

# --- slow --------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_simulated_walkers_drawn_and_judged(tmp_path):
    "Six simulated walkers at the size of the tutorial, and less: drawings are recognised twice as often as by chance, the report is complete, and sets whose answer is known get it"
    simulate_dataset(tmp_path/'walkers', users=6, recordings=20)
    users = read_users(tmp_path/'walkers')
    split = users.split(.2, .2, 0)
    split.write(tmp_path/'split.json')
    cfg = diffusion_config(dict(preset='tiny', out=str(tmp_path/'run'), device='cpu', steps=700, data=dict(folders=str(tmp_path/'walkers'), split=str(tmp_path/'split.json')), codec=dict(vae=str(tmp_path/'vae/best/vae')), optim=dict(lr=1e-3), sample=dict(every=0)))
    own = vae_config(cfg, str(tmp_path/'vae'), str(tmp_path/'split.json'))
    train_vae(dc.replace(own, steps=300, batch_size=8, codec=dc.replace(own.codec, vae='embedded', init=None), vae=type(own.vae)()))
    train_diffusion(cfg)
    train_identity(load(IdentityConfig, dict(out=str(tmp_path/'judge'), data=dict(folders=str(tmp_path/'walkers'), split=str(tmp_path/'split.json')), resolution=64, backbone='test_resnet', steps=500, augment=dict(noise=.08, brightness=.1, blur=1.5), device='cpu')))
    load_generator(tmp_path/'run').to_folder(tmp_path/'made', per_user=10, guidance=3.)
    val = held(users, np.flatnonzero(users.sides_of(split) == 'val'), 64, grey=True)
    for i, (x, u) in enumerate(zip(val['x'][:, 0].numpy(), val['user'].tolist())):
        for name, who, a in (('heldout', u, x), ('exchanged', (u + 1) % 6, x), ('noise', u, np.random.default_rng(i).integers(0, 256, x.shape, np.uint8))):
            (tmp_path/f'{name}/ID_{users.users.ids[who]}').mkdir(parents=True, exist_ok=True)
            Image.fromarray(a).save(tmp_path/f'{name}/ID_{users.users.ids[who]}/{i}.png')
    def judged(gen, tstr):
        status, out, err = shell('eval', 'generation', '--gen', str(tmp_path/gen), '--ref', str(tmp_path/'walkers'), '--identity', str(tmp_path/'judge'), '--tstr-steps', str(tstr), '--bootstrap', '100', '--out', str(tmp_path/f'report_{gen}'), '--json')
        d = json.loads(out)
        print(gen, status, d['identity']['top1'], {c['id']: (c['value'], c['pass']) for c in d['criteria'] if c['required']})
        return status, d, {c['id'] for c in d['criteria'] if c['required'] and not c['pass']}
    _, d, _ = judged('made', 80)
    assert d['identity']['top1'] >= 2/6 and d['data']['source'] == 'simulated'
    names = 'fd_own fd_own_real kid_own is_own precision recall density coverage diversity memorised kinematics_inside texture_ratio'.split()
    assert all(d['metrics'][k] is not None for k in names) and d['reasons'].get('fid') and (tmp_path/'report_made/report.md').read_text().startswith('SIMULATED')
    assert judged('heldout', 200)[0] == 0
    status, _, failed = judged('exchanged', 0); assert status == 1 and {'identity.top1', 'identity.accept'} <= failed
    status, _, failed = judged('noise', 0); assert status == 1 and {'identity.top1', 'fd.ratio', 'coverage.precision'} <= failed
