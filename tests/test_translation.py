"Translating and measuring a translator, by the command: what sections 5 to 8 of the contract ask"
import csv, importlib, json
from dataclasses import fields
import numpy as np, pytest, torch, yaml
from PIL import Image
from test_migrate import parsed
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.core.config import build
from vaetag_nb.core.rng import seeded
from vaetag_nb.data.synth import scene
from vaetag_nb.data.tags import Vocab
from vaetag_nb.eval.features import KINDS, RandomFeatures
from vaetag_nb.eval.images import Rule
from vaetag_nb.eval.stats import fid_stats
from vaetag_nb.latents.codec import Codec
from vaetag_nb.migrate_cyclegan import DROPPED, GAN_SCRIPTS, MOVED, any_config, cyclegan_settings, gan_command
from vaetag_nb.models.cyclegan import generator
from vaetag_nb.models.cyclegan_folder import CycleGan, save_cyclegan
from vaetag_nb.models.latent_tagger import build_head, save_model
from vaetag_nb.models.timm_folder import save_timm
from vaetag_nb.models.timm_tagger import create, square_of
from vaetag_nb.recon import check_picture
from vaetag_nb.trainers.cyclegan_settings import CycleGanConfig, GanEval
from vaetag_nb.translate import Translator
from vaetag_nb.verbs.base import VERBS, shell
from vaetag_nb.verbs.translate import GONE, EvalTranslation

importlib.import_module('vaetag_nb.cli')   # registers the verbs

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "An untrained default model on the shipped VAE, and two folders of pictures"
    tmp, codec = tmp_path_factory.mktemp('translation'), Codec.embedded()
    nets = [generator('residual', codec.channels, seed=0, name=n, ngf=8, n_res_blocks=1) for n in 'GF']
    save_cyclegan(tmp/'m', CycleGan(*nets, 'model', codec=codec.spec(), preprocess=Rule(32).to_dict()))
    for d, names in (('A', ('x/1.png', 'y/1.jpg')), ('B', ('1.png', '2.png'))):
        for i, n in enumerate(names):
            (tmp/d/n).parent.mkdir(parents=True, exist_ok=True)
            scene(d == 'B', i, (32, 32)).image.save(tmp/d/n)
    return tmp

@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    for k in ('VAETAG_WEIGHTS', 'TORCH_HOME', 'HF_HUB_CACHE'): monkeypatch.setenv(k, str(tmp_path/'none'))
    monkeypatch.setitem(KINDS, 'toy', lambda *_: RandomFeatures('toy'))   # quick; `random` itself is refused for reports

def measure(place, *more): return shell('eval', 'translation', str(place/'m'), *map(str, more), '--device', 'cpu', '--cache', 'off')

def test_random_features_are_not_reported(place, tmp_path):
    status, _, err = measure(place, '--test-a', place/'A', '--features', 'random', '--out', tmp_path/'o')
    assert status == 2 and err == 'vaetag: features random: is for tests and is not reported\n' and not (tmp_path/'o').exists()

def test_kid_subsets_are_checked_before_the_work(place, tmp_path):
    status, _, err = measure(place, '--test-a', place/'A', '--test-b', place/'B', '--no-lpips', '--no-clip', '--features', 'toy', '--kid-subset-size', 3, '--out', tmp_path/'o')
    assert status == 2 and err == 'vaetag: kid subset size 3: from 2 to 2, the pictures of the smaller side\n'

def test_an_untrained_model_writes_the_reconstruction(place, tmp_path):
    status, *_ = shell('translate', str(place/'A'), '--model', str(place/'m'), '--direction', 'a2b', '--device', 'cpu', '--out', str(tmp_path/'o'))
    want = check_picture(Codec.embedded(), place/'A/x/1.png', 32).reconstructed.permute(1, 2, 0).numpy()
    assert status == 0 and np.array_equal(np.asarray(Image.open(tmp_path/'o/x/1.png')), want)
    assert (tmp_path/'o/y/1.png').exists()

def test_offline_twice_the_same_bytes_and_a_row_for_every_file(place, tmp_path):
    seen = []
    for _ in range(2):
        status, _, err = measure(place, '--test-a', place/'A', '--test-b', place/'B', '--out', tmp_path/'e', '--no-clip')
        assert status == 0, err
        seen.append({p.relative_to(tmp_path): p.read_bytes() for p in sorted(tmp_path.rglob('*')) if p.is_file()})
    assert seen[0] == seen[1]
    s, rows = json.loads((tmp_path/'e/summary.json').read_text()), list(csv.DictReader(open(tmp_path/'e/metrics.csv')))
    nulls = {f'{w}.{k}' for w in ('A2B', 'B2A') for k, v in s[w].items() if v is None}
    assert nulls == set(s['reasons']) and s['A2B']['cycle_l1'] == 0
    a = [r for r in rows if r['direction'] == 'A2B']
    assert len({r['gen_path'] for r in a}) == 2 and [r['fid'] for r in rows] == ['']*4
    assert list(s)[:4] == ['checkpoint', 'fingerprint', 'out_dir', 'testA'] and {'compact_paths', 'src_root', 'gen_root', 'latents_scaled', 'latent_divisor', 'vae_model', 'vae_subfolder', 'vae_scaling_factor'} <= s.keys()

def test_one_picture(place, tmp_path):
    status, *_ = measure(place, '--image', place/'A/x/1.png', '--out', tmp_path/'one')
    s = json.loads((tmp_path/'one/summary.json').read_text())
    assert status == 0 and s['A2B']['fid'] is None and 'got 1' in s['reasons']['A2B.fid'] and (tmp_path/'one/metrics.csv').exists()
    assert Image.open(tmp_path/'one/images/A2B/1_A2B.png').size == (64, 32 + 28 + 88)

@pytest.mark.parametrize('args,status,said', [
    (['--test-a', 'A/none'], 1, 'A/none: no such folder'), ([], 2, 'give --test-a and --test-b, or --image'), (['--image', 'x.png'], 1, 'x.png: no such picture'),
    (['--test-a', 'empty'], 1, 'no image in it'), (['--test-a', 'A', '--strict'], 1, '(strict)'), (['--test-a', 'A', '--pairs', 'name'], 2, '--pairs: needs both test folders'),
    (['--test-a', 'A', '--panels', '4'], 2, '--panels'), (['--test-a', 'A', '--ignore-tags', 'x'], 2, 'goes with --tagger'), (['--test-a', 'A', '--image-size', '30'], 2, 'size: 30 is no multiple of 8'),
    (['--test-a', 'A', '--features', 'x'], 2, "features 'x'")], ids=lambda v: ' '.join(v) if isinstance(v, list) else None)
def test_what_is_refused_in_one_line(place, tmp_path, monkeypatch, args, status, said):
    monkeypatch.chdir(place)
    (place/'empty').mkdir(exist_ok=True)
    got, out, err = measure(place, *args, '--out', tmp_path/'o')
    assert (got, err.count('\n')) == (status, 1) and said in err and not (tmp_path/'o').exists()

def models(place, at):
    "Models that cannot be used as they are, and what is said of them"
    four, own = ([generator('residual', c, seed=0, name=n, ngf=8, n_res_blocks=1) for n in 'GF'] for c in (4, Codec.embedded().channels))
    save_cyclegan(at/'unnamed', CycleGan(*own)); save_cyclegan(at/'four', CycleGan(*four))
    save_cyclegan(at/'other', CycleGan(*own, 'model', codec=Codec.embedded().spec() | dict(fingerprint='ab'*32)))
    for n in ('cut', 'half'): save_cyclegan(at/n, CycleGan(*own))
    (at/'cut/F.safetensors').unlink(); (at/'half/G.safetensors').write_bytes(b'half')
    for n, x in dict(bare=dict(G={}, F={}), wide=dict(cfg={}, G={'net.1.weight': torch.zeros(4, 4, 9, 9)}, F={}), down=dict(cfg={}, G={'down.0.weight': torch.zeros(4)}, F={}), row=[1]).items(): torch.save(x, at/f'{n}.pt')

UNFIT = [('unnamed', (), 'give the VAE with --vae (in training: codec.vae)'), ('four', ('--vae', 'embedded'), 'latents of 4 channels, the VAE embedded has 8'),
    ('other', ('--vae', 'embedded'), 'expected is abababab'), ('unnamed', ('--vae', 'runwayml/stable-diffusion-v1-5'), 'was removed from the hub; give a local folder, or hub:stable-diffusion-v1-5/stable-diffusion-v1-5'),
    ('cut', ('--vae', 'embedded'), 'lacks F.safetensors'), ('half', ('--vae', 'embedded'), 'G.safetensors: not a whole safetensors file'), ('nowhere', (), 'no such model folder'),
    ('bare.pt', (), 'lacks cfg (has G, F)'), ('wide.pt', (), 'unknown layout (first unknown key net.1.weight)'), ('down.pt', (), 'unknown layout (first unknown key down.0.weight)'), ('row.pt', (), 'holds a list')]

@pytest.mark.parametrize('name,flags,said', UNFIT, ids=range(len(UNFIT)))
def test_models_that_cannot_be_used_are_said_in_one_line(place, tmp_path, name, flags, said):
    models(place, tmp_path)
    for verb in (('translate', str(place/'A'), '--model', str(tmp_path/name), '--direction', 'a2b'), ('eval', 'translation', str(tmp_path/name), '--test-a', str(place/'A'), '--cache', 'off')):
        status, _, err = shell(*verb, *flags, '--device', 'cpu', '--out', str(tmp_path/'o'))
        assert (status, err.count('\n')) == (1, 1) and said in err and not (tmp_path/'o').exists(), err

def test_an_unreadable_picture_counts_nowhere(place, tmp_path):
    scene(0, 5, (32, 32)).image.save(tmp_path/'1.png'); (tmp_path/'2.png').write_bytes((tmp_path/'1.png').read_bytes()[:200])
    status, _, err = measure(place, '--test-a', tmp_path, '--out', tmp_path/'o', '--no-clip')
    s = json.loads((tmp_path/'o/summary.json').read_text())
    assert status == 1 and s['A2B']['count'] == 1 and '2.png' in err and any('2.png: left out' in n for n in s['notes'])

def test_latent_files_are_translated_and_measured_like_the_pictures_behind_them(place, tmp_path):
    t = Translator.load(place/'m', device='cpu')
    for d in 'AB':
        for p in sorted((place/d).rglob('*.*')):
            z = t.encode(Rule(32).load([p], (32, 32)).images)[0]
            for kind, x in (('raw', z), ('scaled', dict(latent=t.codec.normalize(z)[None]))):
                (f := tmp_path/kind/d/p.relative_to(place/d).with_suffix('.pt')).parent.mkdir(parents=True, exist_ok=True)
                torch.save(x, f)
    (tmp_path/'raw/A/torn.pt').write_bytes(b'half')
    status, _, err = shell('translate', *(str(tmp_path/'raw'/f) for f in ('A/x/1.pt', 'A/torn.pt')), '--model', str(place/'m'), '--direction', 'a2b', '--device', 'cpu', '--out', str(tmp_path/'o'))
    assert status == 1 and 'torn.pt: not a torch file' in err and [p.name for p in (tmp_path/'o').glob('*.png')] == ['1.png']
    assert np.array_equal(np.asarray(Image.open(tmp_path/'o/1.png')), t([place/'A/x/1.png'])[0].permute(1, 2, 0).numpy())
    (tmp_path/'raw/A/torn.pt').unlink()
    def of(name, a, b, *more):
        status, _, err = measure(place, '--test-a', a, '--test-b', b, '--no-lpips', '--no-clip', *more, '--out', tmp_path/name)
        return json.loads((tmp_path/name/'summary.json').read_text()) if status == 0 else err
    raw, scaled = of('r', tmp_path/'raw/A', tmp_path/'raw/B'), of('s', tmp_path/'scaled/A', tmp_path/'scaled/B', '--latents-scaled')
    assert raw['A2B']['count'] == 2 and raw['A2B']['cycle_l1'] == scaled['A2B']['cycle_l1'] == 0 and any('sources are latents' in n for n in raw['notes'])
    assert sorted(p.name for p in (tmp_path/'r/gen').rglob('*.png')) == ['1_A2B.png', '1_A2B.png', '1_B2A.png', '2_B2A.png']
    assert '--latents-scaled' in of('w', tmp_path/'scaled/A', tmp_path/'scaled/B') and not (tmp_path/'w/summary.json').exists()

def test_two_summaries_are_compared(place, tmp_path):
    for d in 'ab': assert measure(place, '--test-a', place/'A', '--out', tmp_path/d, '--no-clip', '--no-lpips')[0] == 0
    assert measure(place, '--test-a', place/'A', '--out', tmp_path/'c', '--no-clip', '--no-lpips', '--image-size', '64')[0] == 0
    status, out, err = shell('eval', 'compare', str(tmp_path/'a/summary.json'), str(tmp_path/'b/summary.json'))
    assert status == 0 and 'A2B.cycle_l1' in out, err
    status, _, err = shell('eval', 'compare', str(tmp_path/'a/summary.json'), str(tmp_path/'c/summary.json'))
    assert status == 1 and 'rule.size' in err

def test_clip_says_what_is_kept_and_which_way_it_goes(place, tmp_path):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8, projection_dim=16)
    with seeded(0, 'clip'): CLIPVisionModelWithProjection(CLIPVisionConfig(**size)).save_pretrained(tmp_path/'clip')
    CLIPImageProcessor(size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32}).save_pretrained(tmp_path/'clip')
    status, _, err = measure(place, '--test-a', place/'A', '--test-b', place/'B', '--no-lpips', '--clip-model', tmp_path/'clip', '--features', 'toy', '--out', tmp_path/'o')
    s = json.loads((tmp_path/'o/summary.json').read_text())
    assert status == 0, err
    for d in (s['A2B'], s['B2A']):                          # the model is untrained: a result is the reconstruction
        assert d['content_clip'] == d['recon_clip'] and 0 < d['content_clip'] < 1
        assert d['clip_direction'] == d['clip_direction_vae'] and -1 <= d['clip_direction'] <= 1

def test_statistics_stand_for_the_pictures(place, tmp_path):
    fid_stats(place/'B', Rule(32), 'toy', tmp_path/'b.npz')
    way = ['--direction', 'a2b', '--test-a', place/'A', '--no-lpips', '--no-clip', '--features', 'toy']
    of = lambda name, *more: (measure(place, *way, *more, '--out', tmp_path/name), json.loads((tmp_path/name/'summary.json').read_text())['A2B'])[1]
    whole, stats = of('1', '--test-b', place/'B'), of('2', '--fid-stats-b', tmp_path/'b.npz')
    assert stats['fd_toy'] == pytest.approx(whole['fd_toy'], rel=1e-5) and stats['n_ref'] == 2 and stats['kid_toy'] is None is not whole['kid_toy']
    status, _, err = measure(place, *way, '--fid-stats-b', tmp_path/'b.npz', '--image-size', '64', '--out', tmp_path/'3')
    assert status == 1 and 'size is 32, not 64' in err and '--recompute' in err and not (tmp_path/'3').exists()     # said before any work

def test_taggers_of_both_kinds_say_what_became_of_the_tags(place, tmp_path):
    vocab, codec = Vocab.from_counts({f'tag {i}': 9 for i in range(6)}), Codec.embedded()
    with seeded(0, 'taggers'): head, net = build_head(dict(kind='pool', channels=codec.channels, num_tags=6, d=16, depth=1, heads=2)), create('test_resnet', 6, 32)
    net.get_classifier().weight.data.mul_(30)
    save_model(tmp_path/'latent', head.eval(), vocab, codec.spec(), Preprocess(bucketing=False, resolution=32).to_dict())
    save_timm(tmp_path/'pixel', net, vocab, square_of(net, 32))
    for kind in ('latent', 'pixel'):
        status, _, err = measure(place, '--test-a', place/'A', '--test-b', place/'B', '--no-lpips', '--no-clip', '--features', 'toy', '--tagger', tmp_path/kind, '--out', tmp_path/f'{kind}_o')
        assert status == 0, err
        d, rows = json.loads((tmp_path/f'{kind}_o/summary.json').read_text())['A2B'], [*csv.DictReader(open(tmp_path/f'{kind}_o/tags.csv'))]
        assert len(rows) == 12 and {r['direction'] for r in rows} == {'A2B', 'B2A'}
        assert d['tag_f1'] == d['tag_f1_vae'] and d['tag_jaccard'] == d['tag_jaccard_vae'] > 0       # untrained: the VAE alone
        if kind == 'latent': assert d['tag_jaccard'] == 1 and d['n_lost'] == d['n_gained'] == 0         # it reads the same latents

def test_strict_asks_for_enough_pictures(place, tmp_path):
    status, _, err = measure(place, '--test-a', place/'A', '--test-b', place/'B', '--no-lpips', '--no-clip', '--features', 'toy', '--strict', '--out', tmp_path/'o')
    assert status == 1 and 'needs at least' in err and '(strict)' in err and not (tmp_path/'o/summary.json').exists()

def flags_of(words): return {'--' + f.name.replace('_', '-') for f in fields(EvalTranslation if words == 'eval translation' else VERBS[words])}

def test_every_flag_is_a_key_of_the_yaml_with_the_same_default():
    ours, keys = ({f.name: tuple(v) if isinstance(v := getattr(c(), f.name), list) else v for f in fields(c)} for c in (EvalTranslation, GanEval))
    assert {k: v for k, v in ours.items() if k not in ('config', *GONE)} == {k: v or () if k == 'ignore_tags' else v for k, v in keys.items() if k not in ('best', 'every_epochs')}

def test_a_flag_beats_the_yaml_also_with_the_default(place, tmp_path):
    (tmp_path/'c.yaml').write_text(f"out: '{place/'m'}'\neval: {{test_a: '{place/'A'}', out: '{tmp_path/'o'}', k: 2, lpips: false, clip: true, image_size: 16, device: cpu, cache: 'off'}}\n")
    assert shell('eval', 'translation', '--config', str(tmp_path/'c.yaml'), '--no-clip', '--k', '5', '--image-size', '32')[0] == 0
    s = json.loads((tmp_path/'o/summary.json').read_text())['settings']
    assert (s['k'], s['clip'], s['lpips'], s['rule']['size']) == (5, False, False, 32)
    assert shell('eval', 'translation', '--config', str(tmp_path/'c.yaml'), '--image', str(place/'B/1.png'), '--out', str(tmp_path/'one'))[0] == 0    # it stands for the folders
    for text, said in (('eval: {test_q: 1}', 'eval.test_q: no such setting'), ('[1]', 'expected a mapping'), ('eval: {lpips: "false"}', 'eval.lpips: expected bool')):
        (tmp_path/'bad.yaml').write_text(text)
        status, _, err = shell('eval', 'translation', '--config', str(tmp_path/'bad.yaml'))
        assert status == 2 and 'bad.yaml' in err and said in err, err

@pytest.mark.parametrize('name', [n for n in GAN_SCRIPTS if GAN_SCRIPTS[n].verb.startswith(('eval', 'latents info'))])
def test_every_flag_of_the_original_has_one_here(name):
    s = GAN_SCRIPTS[name]
    ours = {f.to.replace('--no-', '--') for f in s.flags.values() if f.to and f.to.startswith('--')}
    assert ours <= flags_of(s.verb), ours - flags_of(s.verb)

@pytest.mark.parametrize('old', ['--resolution 32', ''])
def test_latents_are_made_by_the_command_that_is_said(place, tmp_path, old):
    words = gan_command(f'python make_pt_dataset_sd15_vae.py --dataset_dir {place} --out_dir {tmp_path} --splits A {old} --vae_model embedded --device cpu --batch_size 2').commands
    status, out, err = shell(*words[0][1:])
    assert (status, len(words)) == (0, 1) and '2 encoded' in out, err

OLD = """
data: {a_dir: la, b_dir: lb, latents_scaled: true, latent_divisor: 10}
model: {in_channels: 4, ngf: 48, ndf: 24, n_res_blocks: 5, d_layers: 3, out_activation: tanh}
train: {epochs: 20, batch_size: 3, seed: 7, num_workers: 2, device: cpu, amp: false, lr: 0.001, beta1: 0.4, beta2: 0.99, lr_constant_epochs: 9, lr_decay_epochs: 12, lambda_cyc: 8, lambda_id: 0.3,
        d_loss_scale: 0.25, fake_buffer_size: 40, fake_buffer_prob: 0.6, checkpoint_dir: outputs/model, resume: true, resume_path: last.pt, resume_restore_rng: true}
logging: {log_dir: outputs/logs, log_file: train_log.jsonl, tqdm_ncols: 100, tqdm_bar_len: 20}
visualization: {every_epochs: 3, out_dir: outputs/vis, num_samples: 2, vae_model_name_or_path: stable-diffusion-v1-5/stable-diffusion-v1-5, vae_subfolder: vae, vae_scaling_factor: 0.18215}
eval: {testA_dir: ta, testB_dir: tb, checkpoint_path: last.pt, out_dir: outputs/eval, image_size: 128, batch_size: 5, max_src_samples: 6, save_images: true, disable_lpips: true, disable_clip: true,
       clip_model_id: openai/clip, clip_cache_dir: cc, compact_paths: true, device: cpu, amp_bf16: true, clip_local_files_only: true, clip_use_safetensors: true, max_ref_cache: 1, max_ref_compare: 1,
       cache_dir: c, force_regen_cache: true}
cyclegan_eval: {whatever: 1}
"""
OURS = {'data': dict(a_dir='la', b_dir='lb', latents_scaled=True, latent_divisor=10., val=0.), 'model': dict(in_channels=4, ngf=48, ndf=24, n_res_blocks=5, d_layers=3, out_activation='tanh', init='last.pt',
        generator='classic', discriminator='classic'), 'optim': dict(lr=.001, beta1=.4, beta2=.99), 'schedule': dict(rule='original', constant_epochs=9, decay_epochs=12),
        'loss': dict(lambda_cyc=8., lambda_id=.3, d_scale=.25), 'buffer': dict(size=40, prob=.6), 'progress': dict(ncols=100, bar_len=20), 'preview': dict(every_epochs=3, num_samples=2),
        'codec': dict(vae='hub:stable-diffusion-v1-5/stable-diffusion-v1-5', subfolder='vae', family='sd15'),
        'eval': dict(test_a='ta', test_b='tb', model='last.pt', out='outputs/eval', image_size=128, fit='squash', filter='bicubic', batch_size=5, max_images=6, save_images=True, lpips=False, clip=False,
                     clip_model='openai/clip', clip_cache='cc', compact_paths=True, device='cpu'),
        None: dict(epochs=20, batch_size=3, seed=7, workers=2, device='cpu', precision='fp32', out='outputs/model', keep_every=1)}

def test_every_setting_of_the_original_has_one_here(tmp_path):
    (tmp_path/'old.yaml').write_text(OLD)
    old, (ours, notes) = yaml.safe_load(OLD), any_config(tmp_path/'old.yaml')
    asked = {f'{s}.{k}' for s, d in old.items() for k in d if s != 'cyclegan_eval'}
    assert asked == (MOVED.keys() | DROPPED.keys()) - {'model.global_residual'}
    cfg = build(CycleGanConfig, ours, '')
    for section, want in OURS.items():
        got = cfg if section is None else getattr(cfg, section)
        assert {k: getattr(got, k) for k in want} == want, section
    renamed = {k: v for k, v in MOVED.items() if k != v}
    assert all(sum(n.startswith((f'{k} -> {v}', f'{k}: ')) for n in notes) == 1 for k, v in (renamed | DROPPED).items())      # each one said, and said once
    bare = build(CycleGanConfig, cyclegan_settings(dict(train={}))[0], '')
    assert (bare.epochs, bare.seed, bare.model.ngf, bare.model.ndf, bare.model.n_res_blocks, bare.schedule.constant_epochs, bare.schedule.decay_epochs, bare.eval.image_size, bare.eval.batch_size) == (50, 42, 32, 32, 6, 100, 100, 256, 8)
    scale = lambda x: cyclegan_settings(dict(visualization=dict(vae_scaling_factor=x)))[0]['codec']
    assert scale(.13025) == dict(family='sdxl') and scale(.5) == dict(config=dict(scaling_factor=.5))

@pytest.mark.parametrize('old,said', [(dict(train=dict(amp='false')), "train.amp: expected bool, got 'false'"), (dict(eval=dict(disable_clip='no', testA_dir='a')), 'eval.disable_clip: expected bool'),
    (dict(visualization=dict(vae_scaling_factor='x')), 'visualization.vae_scaling_factor: expected float'), (dict(train=dict(resume='yes', resume_path='a')), 'train.resume: expected bool'),
    (dict(train=dict(batchsize=3)), "train.batchsize: unknown key. Did you mean 'train.batch_size'"), (dict(train=[1]), 'train: not a section'), (dict(train=dict(epochs='many')), 'epochs: expected'),
    (dict(train={}, data=dict(a_dir='x', b_dir=None)), 'data.b_dir: not given'), (dict(train=dict(epochs=300), data=dict(a_dir='x', b_dir='y')), '101 of 300 epochs would train at rate 0')])
def test_wrong_settings_of_the_original_are_wrong_arguments(tmp_path, old, said):
    (tmp_path/'old.yaml').write_text(yaml.safe_dump(old))
    status, _, err = shell('train', 'cyclegan', str(tmp_path/'old.yaml'))
    last = err.splitlines()[-1]
    assert status == 2 and last.startswith('vaetag: ') and said in last, err

COMMANDS = [('train_latent_cyclegan.py --config X', ['train cyclegan X']),
    ('eval_latent_cyclegan.py --config c --checkpoint m.pt --testA a --testB b --out_dir o --fid_statsA fa --fid_statsB fb --image_size 64 --batch_size 2 --max_src_samples 3',
     ['eval translation m.pt --config c --test-a a --test-b b --out o --fid-stats-a fa --fid-stats-b fb --image-size 64 --batch-size 2 --max-images 3']),
    ('eval_latent_cyclegan.py --disable_lpips --disable_clip --clip_model_id i --clip_cache_dir d --clip_local_files_only --compact_paths --device cpu --no_amp_bf16 --save_images --vae_model v --vae_subfolder s '
     '--vae_scaling_factor 0.18215 --max_ref_cache 1 --max_ref_compare 1 --cache_dir d --force_regen_cache',
     ['eval translation --no-lpips --no-clip --clip-model i --clip-cache d --compact-paths --device cpu --save-images --vae v --vae-subfolder s --vae-scaling-factor 0.18215']),
    ('eval_single_image.py --image p --checkpoint m', ['eval translation m --image p']), ('eval_single_image.py --imageA p --imageB q --no_save_images', ['eval translation --image-a p --image-b q --no-save-images']),
    ('precompute_fid_vectors.py D', ['eval fid-stats D --vectors']),
    ('make_pt_dataset_sd15_vae.py --dataset_dir D --out_dir O --splits trainA,testB --resolution 256', [f'latents encode D/{s} --out O/{s} --resolution 256 --fit squash --filter bicubic' for s in ('trainA', 'testB')]),
    ('make_pt_dataset_sd15_vae.py --dataset_dir D --out_dir O', ['latents encode D --out O --fit floor']),
    ('make_pt_dataset_sd15_vae.py --dataset_dir D --out_dir O --no_auto_resize_to_multiple_of_8', ['latents encode D --out O --fit none']),
    ('utils/size.py D', ['latents info D']), ('utils/stats.py D --limit 9', ['latents info D --limit 9'])]

@pytest.mark.parametrize('old,ours', COMMANDS, ids=range(len(COMMANDS)))
def test_every_command_of_the_original_has_one_here(old, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'c').write_text('eval: {k: 3}')
    got = gan_command(f'python {old}').commands
    assert [sorted(c) for c in got] == [sorted(['vaetag', *o.split()]) for o in ours]
    for c in got: parsed(c[1:], monkeypatch)      # each is understood

def test_the_original_yaml_trains_translates_and_is_measured(place, tmp_path):
    "The vertical: pictures in two folders, the old form of the settings, a model, pictures of the other domain, figures"
    (tmp_path/'old.yaml').write_text(f"data: {{a_dir: '{place/'A'}', b_dir: '{place/'B'}'}}\nmodel: {{ngf: 8, ndf: 8, n_res_blocks: 1}}\ntrain: {{epochs: 1, batch_size: 2, checkpoint_dir: '{tmp_path/'run'}'}}\n"
                                     f"visualization: {{vae_model_name_or_path: embedded, every_epochs: 0}}\neval: {{testA_dir: '{place/'A'}', testB_dir: '{place/'B'}', image_size: 32, disable_clip: true, disable_lpips: true}}\n")
    status, out, err = shell('train', 'cyclegan', str(tmp_path/'old.yaml'), '--image.resolution', '32', '--device', 'cpu')
    assert status == 0 and 'train.checkpoint_dir -> out' in err, err
    status, out, err = shell('translate', str(place/'A'), '--model', str(tmp_path/'run'), '--direction', 'a2b', '--device', 'cpu', '--out', str(tmp_path/'o'))
    assert status == 0 and len([*(tmp_path/'o').rglob('*.png')]) == 2, err
    status, out, err = shell('eval', 'translation', '--config', str(tmp_path/'old.yaml'), '--device', 'cpu', '--cache', 'off', '--features', 'toy', '--out', str(tmp_path/'e'))
    s = json.loads((tmp_path/'e/summary.json').read_text())
    assert status == 0 and s['A2B']['fd_toy'] > 0 and s['settings']['rule']['fit'] == 'squash', err
