"Users end to end: `train diffusion` goes on bit by bit wherever it was killed, `generate` repeats itself, and what is wrong is said in one line."
import os, shutil, signal
import numpy as np, pytest, torch
from PIL import Image
from engine_toys import processes
from vaetag_nb.core.io import load_tensors, read_json, read_jsonl, write_json
from vaetag_nb.generate import load_generator
from vaetag_nb.losses import gaussian_kl, spectral
from vaetag_nb.latents.codec import Codec
from vaetag_nb.latents.store import LatentStore
from vaetag_nb.models.diffusion_folder import load_diffusion
from vaetag_nb.models.latent_diffusion import UNetSettings
from vaetag_nb.trainers.diffusion import train_diffusion
from vaetag_nb.trainers.diffusion_settings import diffusion_config, vae_config
from vaetag_nb.trainers.diffusion_task import DiffusionTask
from vaetag_nb.trainers.identity import IdentityConfig, IdentityTask, train_identity
from vaetag_nb.trainers.joint import JointTask
from vaetag_nb.trainers.user_data import FolderData
from vaetag_nb.trainers.optim import cosine
from vaetag_nb.trainers.vae import VaeTask, train_vae
from vaetag_nb.verbs import models, sets, train, train_users  # noqa: F401 (registers the verbs)
from vaetag_nb.verbs.base import shell

torch.set_num_threads(1)
GREYS = {1: 40, 7: 128, 9: 220}
TINY = dict(preset='tiny', image=dict(resolution=32), vae=dict(block_out_channels=(8, 16, 16), groups=4, steps=4, batch_size=4), unet=dict(block_out_channels=(32, 32)), steps=6, batch_size=4,
            ema=dict(decay=.9, power_stds=[.05, .1]), sample=dict(every=3, steps=2), eval_every='3 steps', save_every='1 steps', log_every=2, device='cpu')

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('VAETAG_QUIET', '1')

def drawn(folder, users=GREYS, recordings=4, pictures=2):
    "Users of one grey each"
    for u, v in users.items():
        for r in range(recordings):
            (folder/f'ID_{u}/r{r}').mkdir(parents=True, exist_ok=True)
            for k in range(pictures): Image.fromarray(np.random.default_rng([u, r, k]).normal(v, 4, (32, 32)).clip(0, 255).astype(np.uint8)).save(folder/f'ID_{u}/r{r}/w{k}.png')
    return folder

@pytest.fixture(scope='module')
def home(tmp_path_factory): return drawn(tmp_path_factory.mktemp('users')/'set').parent

def config(home, out, **more): return diffusion_config(TINY, dict(out=str(out), data=dict(folders=str(home/'set'))), more)

@pytest.fixture(scope='module')
def straight(home):
    os.environ['VAETAG_QUIET'] = '1'
    train_diffusion(config(home, home/'straight'))
    return home/'straight'

def result(out):
    "All that must be the same: both model folders and both logs, without times and memory"
    times = ('img_s', 'mem_mb')
    files = {p.relative_to(out).as_posix(): p.read_bytes() for d in ('best', 'vae/best', 'samples', 'power') for p in sorted((out/d).rglob('*')) if p.is_file()}
    m = read_json(out/'best/model.json')
    assert m['train'].pop('peak_memory_mb') > 100 and m['train'].pop('seconds') > 0 and m['train'].pop('peak_memory_of') == 'the process'
    files['best/model.json'] = m
    return files, [[{k: v for k, v in l.items() if k not in times} for l in read_jsonl(out/d/'log.jsonl')] for d in ('.', 'vae')]

def struck(cfg, task, loss, step, train=train_diffusion):
    "Train, and be killed in a step of one of the stages"
    real = getattr(task, loss)
    def strike(self, batch, ctx):
        if ctx.step == step: os.kill(os.getpid(), signal.SIGKILL)
        return real(self, batch, ctx)
    setattr(task, loss, strike)
    train(cfg)

# --- training ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('task, loss, step', [(VaeTask, 'loss_vae', 2), (DiffusionTask, 'loss_net', 4)])
def test_killed_and_resumed_is_never_stopped(home, straight, tmp_path, task, loss, step):
    assert processes(lambda: struck(config(home, tmp_path/'run'), task, loss, step)) == [-signal.SIGKILL]
    train_diffusion(config(home, tmp_path/'run'))
    (files, logs), (files_, logs_) = result(straight), result(tmp_path/'run')
    assert files.keys() == files_.keys() and [k for k in files if files[k] != files_[k]] == [] and logs == logs_

@pytest.mark.slow
def test_joint_fine_tuning_killed_and_resumed_is_never_stopped(home, straight, tmp_path):
    cfg = lambda out: config(home, tmp_path/out, init=str(straight/'best'), joint=dict(steps=6))
    train_diffusion(cfg('whole'))
    assert processes(lambda: struck(cfg('run'), JointTask, 'loss_net', 4)) == [-signal.SIGKILL]
    train_diffusion(cfg('run'))
    files = [{p.relative_to(tmp_path/o).as_posix(): p.read_bytes() for d in ('best', 'samples') for p in sorted((tmp_path/o/d).rglob('*')) if p.is_file() and p.name != 'model.json'} for o in ('whole', 'run')]
    assert files[0].keys() == files[1].keys() and [k for k in files[0] if files[0][k] != files[1][k]] == []
    was, now = load_diffusion(straight/'best'), load_diffusion(tmp_path/'run/best')
    assert was.codec.fingerprint != now.codec.fingerprint and now.meta['latent']['scale'] == now.codec.convention.scale
    assert LatentStore(straight/'latents').meta['fingerprint'] != now.codec.fingerprint     # an old store is not taken for one of the new VAE

def test_before_its_start_a_critic_changes_nothing(home, straight, tmp_path):
    cfg = config(home, tmp_path/'run', loss=dict(recon=dict(adv=.5, adv_start=.99)))
    train_vae(vae_config(cfg, tmp_path/'vae', straight/'split.json'))
    assert (straight/'vae/best/vae/diffusion_pytorch_model.safetensors').read_bytes() == (tmp_path/'vae/best/vae/diffusion_pytorch_model.safetensors').read_bytes()

def test_without_joint_steps_the_vae_keeps_its_bytes(straight):
    assert load_diffusion(straight/'best').codec.fingerprint == Codec.load(straight/'vae/best/vae').fingerprint

def test_an_average_of_another_length(straight, tmp_path):
    status, out, err = shell('models', 'ema', str(straight), '--std', '.1', '--out', str(tmp_path/'m'))
    assert status == 0, err
    m, kept = load_diffusion(tmp_path/'m'), load_tensors(straight/'power/step_00000006.safetensors')[0]
    assert m.meta['weights']['power_std'] == .1 and all(torch.allclose(v, kept[f'0.1/net.{k}'], atol=1e-5) for k, v in m.net.state_dict().items())

# --- two processes -----------------------------------------------------------------------------------------------------

def judge_config(home, out): return IdentityConfig(out=str(out), data=FolderData(str(home/'set'), split=str(home/'straight/split.json')), resolution=32, backbone='test_resnet', users=3, per_user=3, steps=6, roll=True,
                                                   eval_every='3 steps', save_every='1 steps', device='cpu')

def weights_in(out): return {p.relative_to(out).as_posix(): load_tensors(p)[0] for p in sorted((out/'best').rglob('*.safetensors'))}

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['diffusion', 'identity'])
def test_two_processes_learn_killed_and_resumed(home, straight, tmp_path, monkeypatch, kind):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    cfg, train, task = (config, train_diffusion, DiffusionTask) if kind == 'diffusion' else (judge_config, train_identity, IdentityTask)
    assert processes(lambda: train(cfg(home, tmp_path/'two')) and 0, 2) == [0, 0]
    assert processes(lambda: struck(cfg(home, tmp_path/'run'), task, 'loss_net', 4, train), 2) == [-signal.SIGKILL]*2
    assert processes(lambda: train(cfg(home, tmp_path/'run')) and 0, 2) == [0, 0]
    whole, again = weights_in(tmp_path/'two'), weights_in(tmp_path/'run')
    assert whole.keys() == again.keys() and all(torch.equal(v, again[f][k]) for f, x in whole.items() for k, v in x.items())
    if kind == 'identity': return   # batch norms see the pictures of a process
    alone = weights_in(straight)
    assert max(float((v - alone[f][k]).abs().max()) for f, x in whole.items() for k, v in x.items()) < 1e-4

def test_the_map_of_users_is_part_of_the_model(home, straight, tmp_path):
    m = load_diffusion(straight)
    assert m.users.ids == (1, 7, 9) and [u['index'] for u in read_json(straight/'best/users.json')['users']] == [0, 1, 2] and m.net.rows == 4
    g = load_generator(straight, batch_size=4).generate([7], per_user=2).pictures
    shutil.copytree(straight/'best', tmp_path/'alone')                 # without data, without run
    assert (load_generator(tmp_path/'alone', batch_size=4).generate([7], per_user=2).pictures == g).all()
    assert (load_generator(straight, 'raw', batch_size=4).generate([7], per_user=2).pictures != g).any()

def test_the_scale_is_measured(straight):
    cfg = read_json(straight/'best/vae/config.json')
    std = read_json(straight/'best/model.json')['latent']['measured_std']
    assert abs(cfg['scaling_factor']*std - 1) < 1e-6 and cfg['scaling_factor'] != .18215
    z = load_diffusion(straight).codec
    assert z.convention.scale == cfg['scaling_factor'] and z.convention.shift == cfg['shift_factor']

def test_a_split_that_is_named_serves_all_stages(home, straight, tmp_path):
    cfg = config(home, tmp_path/'named', steps=1)
    cfg.data.split, cfg.vae.steps = str(straight/'split.json'), 1
    train_diffusion(cfg)
    assert read_json(tmp_path/'named/best/split.json') == read_json(straight/'split.json')

def test_a_vae_alone_by_preset(home, tmp_path):
    s, out, err = shell('train', 'vae', '--preset', 'tiny', '--data', str(home/'set'), '--out', str(tmp_path/'vae'), '--image.resolution', '32', '--vae.block-out-channels', '8', '16', '--vae.groups', '4', '--steps', '3', '--batch-size', '4', '--device', 'cpu')
    cfg = read_json(tmp_path/'vae/best/vae/config.json')
    assert s == 0 and cfg['in_channels'] == 1 and cfg['scaling_factor'] not in (1., .18215), err
    assert shell('train', 'vae', '--preset', 'huge')[0] == 2

@pytest.mark.slow
def test_before_its_start_a_critic_changes_no_byte_of_the_vae(home, tmp_path):
    for name, adv in (('none', 0.), ('later', .5)):
        train_vae(vae_config(config(home, tmp_path/name, loss=dict(recon=dict(adv=adv, adv_start=.99))), tmp_path/name))
    (a, b) = ((tmp_path/n/'best/vae/diffusion_pytorch_model.safetensors').read_bytes() for n in ('none', 'later'))
    assert a == b

def test_worked_numbers():
    one, zero = torch.ones(1, 4096, 1, 1), torch.zeros(1, 4096, 1, 1)
    assert gaussian_kl(one, zero, reduce='sum').item() == 2048 and gaussian_kl(one, zero).item() == .5
    x = torch.zeros(1, 1, 8, 8); x[..., 3, 4] = 1
    assert abs(spectral(x, torch.zeros_like(x)).item() - 1/64) < 1e-7
    assert [abs(1e-4*cosine(100, 10, .1)(s) - v) < 1e-9 for s, v in ((0, 1e-5), (9, 1e-4), (55, 5.5e-5), (99, 1.00274e-5))] == [True]*4
    with torch.device('meta'): net = UNetSettings('cross', (128, 256, 512, 512), 2, (1, 2, 3), 32).make(4, 16, 31)
    assert sum(p.numel() for p in net.unet.parameters()) == 139_680_132

# --- generation --------------------------------------------------------------------------------------------------------

def test_generate_makes_what_is_asked_for_and_repeats_it(straight, tmp_path):
    run = lambda out, *a: shell('generate', str(straight), '--out', str(tmp_path/out), '--batch-size', '4', *a)
    assert run('ten', '--users', '7', '9', '--per-user', '6')[0] == 0
    assert run('half', '--users', '7', '--per-user', '3', '--start', '3')[0] == 0
    for k in (3, 4, 5): assert (tmp_path/f'ten/ID_7/ID_7_{k:04d}.png').read_bytes() == (tmp_path/f'half/ID_7/ID_7_{k:04d}.png').read_bytes()
    lines = read_jsonl(tmp_path/'ten/manifest.jsonl')
    assert len(lines) == 12 and {l['user'] for l in lines} == {'7', '9'} and Image.open(tmp_path/'ten/grid.png').size == (6*34 - 2, 2*34 - 2)
    assert run('mix', '--mix', '1=0.5', '9=0.5')[0] == 0 and run('way', '--interpolate', '1', '9', '--points', '3')[0] == 0 and run('null', '--null')[0] == 0
    assert sorted(p.name for p in (tmp_path/'way/interpolate_1_9').iterdir()) == ['point_00.png', 'point_01.png', 'point_02.png']

def test_the_model_says_what_it_is(straight):
    m = read_json(straight/'best/model.json')
    assert {'format', 'kind', 'resolution', 'channels', 'pixel_range', 'latent', 'condition', 'noise', 'sampling', 'weights', 'data', 'licence', 'train', 'fingerprints'} <= m.keys()
    for k, want in dict(latent='channels height width scale shift measured_std', condition='kind rows null_index dropout', noise='prediction schedule beta_start beta_end train_timesteps zero_terminal_snr',
                        sampling='sampler steps guidance interval rescale', weights='default ema_decay', data='source fingerprint colormap radar', train='preset steps seed version', fingerprints='vae unet').items():
        assert set(want.split()) <= m[k].keys(), k

def test_a_folder_of_data_is_never_taken_for_pictures(home, straight, tmp_path):
    shutil.copytree(home/'set', tmp_path/'set')
    for args, status, words in [(['--out', str(tmp_path/'set'), '--overwrite'], 1, 'holds other files'), (['--out', str(tmp_path/'x'), '--interpolate', '1', '9', '--per-user', '3'], 2, '--per-user and --start do not go'),
                                (['--out', str(tmp_path/'x'), '--null', '--start', '-3'], 2, 'start: -3 is below 0'), (['--out', str(tmp_path/'x'), '--mix', '1=inf'], 2, 'weights of at least 0')]:
        s, out, err = shell('generate', str(straight), *args)
        assert s == status and words in err and err.count('\n') == 1, (args, err)
    assert not (tmp_path/'set/generation.json').exists() and not (tmp_path/'x').exists()

def test_what_is_wrong_is_one_line(home, straight, tmp_path):
    drawn(tmp_path/'twice', {1: 40}); (tmp_path/'twice/ID_01').mkdir(); shutil.copy(tmp_path/'twice/ID_1/r0/w0.png', tmp_path/'twice/ID_01')
    drawn(tmp_path/'torn'); (tmp_path/'torn/ID_1/r0/w0.png').write_bytes(b'x')
    drawn(tmp_path/'other', {1: 40, 2: 50}); (tmp_path/'empty').mkdir()
    shutil.copytree(straight/'best', tmp_path/'lost'); (tmp_path/'lost/unet/diffusion_pytorch_model.safetensors').unlink()
    shutil.copytree(straight/'best', tmp_path/'mixed'); write_json(tmp_path/'mixed/model.json', read_json(tmp_path/'mixed/model.json') | dict(fingerprints=dict(vae='0'*64)))
    shell('generate', str(straight), '--out', str(tmp_path/'made'), '--users', '7')
    t = lambda d, *a: ['train', 'diffusion', '--preset', 'tiny', '--data', str(tmp_path/d if not os.path.isabs(d) else d), '--out', str(tmp_path/'run'), '--resolution', '32', *a]
    g = lambda d, *a: ['generate', str(d), '--out', str(tmp_path/'g'), *a]
    ours = str(home/'set')
    for args, status, words in [(t('none'), 1, 'none'), (t('empty'), 1, 'no image in it'), (t('twice'), 1, 'two folders are one user'), (t(ours, '--num-users', '31'), 2, '31, but'), (t('torn'), 1, 'w0.png'), (t('made'), 1, 'marked as generated'),
                                (t(ours, '--resolution', '30'), 2, 'image.resolution: 30'), (t(ours, '--precision', 'fp16', '--device', 'cpu'), 2, 'precision: fp16 needs a GPU'), (t(ours, '--condition.dropout', '1'), 2, 'condition.dropout'), (t(ours, '--optim.name', 'bogus'), 2, "optim.name: 'bogus' is no optimiser"), (t(ours, '--data.val', '0'), 2, 'data.val: 0.0: no recording'), (t(ours, '--sample.users', '4'), 2, 'user 4: not among'), (t(ours, '--noise.prediction', 'epsilon'), 2, 'zero_terminal_snr'),
                                (t(ours, '--sample.sampler', 'heun'), 2, 'sample.sampler: heun'), (t(ours, '--loss.recon.perceptual', '.1'), 1, 'vgg16-397923af.pth'), (t('other', '--data.split', str(straight/'split.json')), 1, 'of other data'),
                                (g(straight, '--users', '4'), 2, 'user 4: not among the users of this model: 1, 7, 9'), (g(straight, '--sampler', 'flow'), 2, 'sampler: flow'), (g(tmp_path/'lost'), 1, 'lacks unet/'),
                                (g(tmp_path/'mixed'), 1, 'is not the part that was trained'), (['generate', str(straight), '--out', str(tmp_path/'made'), '--users', '7', '--guidance', '3'], 1, 'guidance: 1.5 there, 3.0 now')]:
        s, out, err = shell(*args)
        last = err.strip().splitlines()[-1] if err.strip() else ''
        assert s == status and words in last, (args, s, err[-400:])
    assert not (tmp_path/'g').exists() and sorted(p.name for p in (tmp_path/'made').iterdir()) == ['ID_7', 'generation.json', 'grid.png', 'manifest.jsonl']

def test_a_model_is_judged_by_its_run(home, straight, tmp_path):
    s, out, err = shell('train', 'identity', '--data', str(home/'set'), '--split', str(straight/'split.json'), '--out', str(tmp_path/'judge'), '--resolution', '32', '--backbone', 'test_resnet', '--steps', '4', '--eval-every', '2 steps', '--device', 'cpu')
    assert s == 0 and 'baseline_nearest_mean' in out, err
    s, out, err = shell('eval', 'generation', '--gen', str(straight), '--ref', str(home/'set'), '--identity', str(tmp_path/'judge'), '--run', str(straight), '--tstr-steps', '1', '--bootstrap', '20', '--out', str(tmp_path/'r'), '--device', 'cpu', '--json')
    d = read_json(tmp_path/'r/report.json')
    assert s == 1 and d['verdict'] == 'FAIL' and d['counts']['n_gen'] == 30 and {c['id'] for c in d['criteria']} >= {'stability', 'tstr', 'target.psnr'}, err
    assert d['cost']['train_seconds'] > 0 and d['cost']['peak_memory_mb'] > 0 and d['stability']['logged'] == 3 and next(c for c in d['criteria'] if c['id'] == 'target.psnr')['value'] > 0
    assert len([*(tmp_path/'r/generated').glob('ID_*/*.png')]) == 30
    s, out, err = shell('train', 'identity', '--data', str(home/'set'), '--out', str(tmp_path/'open'), '--holdout-users', '.5', '--resolution', '32')
    assert s == 2 and 'at least 2 must be left' in err

# --- slow --------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_three_users_of_constant_greys(home, tmp_path):
    cfg = diffusion_config(dict(preset='tiny', out=str(tmp_path/'run'), data=dict(folders=str(drawn(tmp_path/'set', recordings=6, pictures=4))), image=dict(resolution=32), vae=dict(block_out_channels=(16, 32, 32), steps=200, lr=2e-3),
                                steps=700, optim=dict(lr=1e-3), ema=dict(decay=.98), sample=dict(every=0), eval_every='150 steps', device='cpu'))
    run = train_diffusion(cfg)
    x = load_generator(run.out).generate(per_user=8).pictures.mean((1, 2, 3)).reshape(3, 8)
    near = np.abs(x[..., None] - np.array([*GREYS.values()])).argmin(-1)
    assert (near == np.arange(3)[:, None]).all(), x
