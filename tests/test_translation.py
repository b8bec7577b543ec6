"Translating and measuring a translator, by the command: what sections 5 to 8 of the contract ask"
import csv, importlib, json
from dataclasses import fields
import numpy as np, pytest
from PIL import Image
from vaetag_nb.core.config import build, nested
from vaetag_nb.data.synth import scene
from vaetag_nb.eval.images import Rule
from vaetag_nb.latents.codec import Codec
from vaetag_nb.migrate_cyclegan import DEFAULTS, GAN_SCRIPTS, MOVED
from vaetag_nb.models.cyclegan import generator
from vaetag_nb.models.cyclegan_folder import CycleGan, save_cyclegan
from vaetag_nb.recon import check_picture
from vaetag_nb.trainers.cyclegan_settings import CycleGanConfig
from vaetag_nb.verbs.base import VERBS, shell

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

def measure(place, *more): return shell('eval', 'translation', str(place/'m'), *map(str, more), '--device', 'cpu', '--cache', 'off')

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

def test_an_unreadable_picture_counts_nowhere(place, tmp_path):
    scene(0, 5, (32, 32)).image.save(tmp_path/'1.png'); (tmp_path/'2.png').write_bytes((tmp_path/'1.png').read_bytes()[:200])
    status, _, err = measure(place, '--test-a', tmp_path, '--out', tmp_path/'o', '--no-clip')
    s = json.loads((tmp_path/'o/summary.json').read_text())
    assert status == 1 and s['A2B']['count'] == 1 and '2.png' in err and any('2.png: left out' in n for n in s['notes'])

def test_two_summaries_are_compared(place, tmp_path):
    for d in 'ab': assert measure(place, '--test-a', place/'A', '--out', tmp_path/d, '--no-clip', '--no-lpips')[0] == 0
    assert measure(place, '--test-a', place/'A', '--out', tmp_path/'c', '--no-clip', '--no-lpips', '--image-size', '64')[0] == 0
    status, out, err = shell('eval', 'compare', str(tmp_path/'a/summary.json'), str(tmp_path/'b/summary.json'))
    assert status == 0 and 'A2B.cycle_l1' in out, err
    status, _, err = shell('eval', 'compare', str(tmp_path/'a/summary.json'), str(tmp_path/'c/summary.json'))
    assert status == 1 and 'rule.size' in err

def flags_of(words): return {'--' + f.name.replace('_', '-') for f in fields(VERBS[words])}

@pytest.mark.parametrize('name', [n for n in GAN_SCRIPTS if GAN_SCRIPTS[n].verb.startswith('eval')])
def test_every_flag_of_the_original_has_one_here(name):
    s = GAN_SCRIPTS[name]
    ours = {f.to.replace('--no-', '--') for f in s.flags.values() if f.to and f.to.startswith('--')}
    assert ours <= flags_of(s.verb), ours - flags_of(s.verb)

def test_every_setting_of_the_original_has_one_here():
    values = {'precision': 'auto', 'codec.family': 'sd15', 'eval.lpips': True, 'eval.clip': True, 'eval.save_images': True, 'eval.compact_paths': True, 'data.latents_scaled': True, 'model.global_residual': True}
    texts = {'data.a_dir', 'data.b_dir', 'device', 'out', 'model.init', 'codec.vae', 'codec.subfolder', 'model.out_activation', *(f'eval.{k}' for k in ('test_a', 'test_b', 'model', 'out', 'device', 'clip_model', 'clip_cache'))}
    build(CycleGanConfig, nested(DEFAULTS | {k: values.get(k, 'none' if k in texts else 1) for k in MOVED.values()}), '')

def test_the_original_yaml_trains_translates_and_is_measured(place, tmp_path):
    "The vertical: pictures in two folders, the old form of the settings, a model, pictures of the other domain, figures"
    (tmp_path/'old.yaml').write_text(f"data: {{a_dir: '{place/'A'}', b_dir: '{place/'B'}'}}\nmodel: {{ngf: 8, ndf: 8, n_res_blocks: 1}}\ntrain: {{epochs: 1, batch_size: 2, checkpoint_dir: '{tmp_path/'run'}'}}\n"
                                     f"visualization: {{vae_model_name_or_path: embedded, every_epochs: 0}}\neval: {{testA_dir: '{place/'A'}', testB_dir: '{place/'B'}', image_size: 32, disable_clip: true, disable_lpips: true}}\n")
    status, out, err = shell('train', 'cyclegan', str(tmp_path/'old.yaml'), '--image.resolution', '32', '--device', 'cpu')
    assert status == 0 and 'train.checkpoint_dir -> out' in err, err
    status, out, err = shell('translate', str(place/'A'), '--model', str(tmp_path/'run'), '--direction', 'a2b', '--device', 'cpu', '--out', str(tmp_path/'o'))
    assert status == 0 and len([*(tmp_path/'o').rglob('*.png')]) == 2, err
    status, out, err = shell('eval', 'translation', '--config', str(tmp_path/'old.yaml'), '--device', 'cpu', '--cache', 'off', '--features', 'random', '--out', str(tmp_path/'e'))
    s = json.loads((tmp_path/'e/summary.json').read_text())
    assert status == 0 and s['A2B']['fd_random'] > 0 and s['settings']['rule']['fit'] == 'squash', err
