"Checks as commands: each deliberate mismatch of a trained model has its own line and exit status 1; what a VAE gives back; plans that write nothing."
import json, shutil
import numpy as np, pytest, torch
from PIL import Image
from vaetag_nb.core.io import load_tensors, read_json, save_tensors, write_json
from vaetag_nb.doctor import check_model
from vaetag_nb.doctor_config import check_preset, check_settings
from vaetag_nb.trainers.diffusion import train_diffusion
from vaetag_nb.trainers.diffusion_settings import PRESETS, diffusion_config
from vaetag_nb.trainers.dry_run import first_codec, plan_diffusion
from vaetag_nb.verbs import about, data, latents, train, train_users  # noqa: F401 (registers the verbs)
from vaetag_nb.verbs.base import shell

torch.set_num_threads(1)
WEIGHTS = 'diffusion_pytorch_model.safetensors'

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('VAETAG_QUIET', '1')

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Three users, one of arrays, and a diffusion model of them, hardly trained"
    home = tmp_path_factory.mktemp('checks')
    for u, grey in {1: 40, 7: 128, 9: 220}.items():
        for r in range(4):
            (f := home/f'set/ID_{u}/r{r}').mkdir(parents=True)
            for k in range(2):
                x = np.random.default_rng([u, r, k]).normal(grey, 4, (32, 32)).clip(0, 255)
                if u == 9: np.save(f/f'w{k}.npy', (x/255).astype(np.float32))
                else: Image.fromarray(x.astype(np.uint8)).save(f/f'w{k}.png')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('VAETAG_QUIET', '1')
        train_diffusion(diffusion_config(dict(preset='tiny', out=str(home/'run'), data=dict(folders=str(home/'set')), image=dict(resolution=32), vae=dict(block_out_channels=(8, 16, 16), groups=4, steps=4, batch_size=4),
                                              unet=dict(block_out_channels=(32, 32)), steps=4, batch_size=4, ema=dict(decay=.9), sample=dict(every=0), eval_every='4 steps', save_every='4 steps', device='cpu')))
    return home

# --- doctor MODEL --------------------------------------------------------------------------------------------------------

def edited(part, **new):
    "A change of a JSON file; mappings are merged"
    def change(m): write_json(m/part, (d := read_json(m/part)) | {k: d[k] | v if isinstance(v, dict) else v for k, v in new.items()})
    return change

def without(part): return lambda m: (m/part).unlink()

def tensor(part, change):
    "A change of the weights of a part"
    def f(m):
        t, _ = load_tensors(m/part)
        save_tensors(m/part, {k: change(k, v) for k, v in t.items()})
    return f

def swapped(k, v): return v*1.5 if k == 'conv_in.bias' else v
def huge(k, v): return v*1e38 if k == 'time_embedding.linear_1.weight' else v
def torn(k, v): return torch.full_like(v, float('nan')) if k == 'decoder.conv_out.bias' else v
def users_lost(m): write_json(m/'users.json', dict(users=read_json(m/'users.json')['users'][:2], null_index=2))
def users_twice(m): d = read_json(m/'users.json'); d['users'][1]['index'] = 0; write_json(m/'users.json', d)
def no_scale(m): d = read_json(m/'vae/config.json'); d.pop('scaling_factor'); d.pop('shift_factor'); write_json(m/'vae/config.json', d)

BROKEN = {
    'channels': (edited('model.json', latent=dict(channels=8)), 'latent channels', ('vae 4', 'model.json 8')), 'unet in': (edited('unet/config.json', in_channels=8), 'latent channels', ('vae 4', 'unet_in 8')),
    'side': (edited('unet/config.json', sample_size=16), 'latent side', ('8.0', 'unet 16.0')), 'users': (users_lost, 'users', ('table 4', 'users.json_plus_1 3')), 'twice': (users_twice, 'users', ('indices [0, 0, 2]',)),
    'null': (edited('model.json', condition=dict(null_index=0)), 'null row', ('users.json 3', 'model.json 0')), 'prediction': (edited('scheduler/scheduler_config.json', prediction_type='epsilon'), 'scheduler', ('says epsilon', 'means v_prediction')),
    'spacing': (edited('scheduler/scheduler_config.json', timestep_spacing='leading'), 'scheduler', ('leading', 'trailing')), 'schedule': (edited('model.json', noise=dict(schedule='linear')), 'scheduler', ('scaled_linear', 'linear')),
    'no scale': (no_scale, 'vae', ('scal',)), 'default scale': (edited('vae/config.json', scaling_factor=.18215), 'latent scale', ('0.18215',)), 'spread': (edited('model.json', latent=dict(measured_std=9.)), 'scaled std', ('expected .9 to 1.1',)),
    'other unet': (tensor(f'unet/{WEIGHTS}', swapped), 'fingerprint', ('unet_now', 'model.json')), 'other vae': (tensor(f'vae/{WEIGHTS}', lambda k, v: v*2 if k == 'quant_conv.bias' else v), 'fingerprint', ('vae_now', 'model.json')),
    'torn': (tensor(f'vae/{WEIGHTS}', torn), 'vae', ('decoder.conv_out.bias', 'not finite')), 'huge': (tensor(f'unet/{WEIGHTS}', huge), 'run', ('UNet', 'not finite')), 'file': (without(f'unet/{WEIGHTS}'), 'files', (f'unet/{WEIGHTS}',)), 'split': (edited('split.json', data_fingerprint='0'*64), 'data', ('0'*16,)), 'key': (edited('model.json', noise=3), 'model.json', ('noise is missing',))}

@pytest.mark.parametrize('name', BROKEN)
def test_each_mismatch_has_its_own_line(home, tmp_path, name):
    change, check, words = BROKEN[name]
    shutil.copytree(home/'run/best', tmp_path/'m')
    change(tmp_path/'m')
    f = check_model(tmp_path/'m')
    assert not f.ok and any(c.name == check and all(w in c.words for w in words) for c in f.wrong), [str(c) for c in f.wrong]

def test_doctor_says_what_a_model_is(home, tmp_path):
    s, out, _ = shell('doctor', str(home/'run'))
    assert s == 0 and 'all' in out and 'WRONG' not in out and '32 pixels to 4x8x8 and back' in out, out
    shutil.copytree(home/'run/best', tmp_path/'m'); edited('model.json', condition=dict(null_index=0))(tmp_path/'m')
    s, out, _ = shell('doctor', str(tmp_path/'m'), '--json')
    d = json.loads(out)
    assert s == 1 and [c['name'] for c in d['checks'] if c['ok'] is False] == ['null row']
    s, out, _ = shell('doctor', str(home/'run'), '--data', str(home/'set'), '--num', '6', '--device', 'cpu')
    assert s == 1 and 'held-out images' in out and 'advice: blurred or blocky pictures' in out, out      # a VAE of four steps

# --- latents check --------------------------------------------------------------------------------------------------------

def test_a_vae_on_class_folders(home, tmp_path):
    ask = lambda *a: shell('latents', 'check', *map(str, a), '--device', 'cpu', '--out', str(tmp_path))
    s, out, _ = ask(home/'run', '--data', home/'set', '--json')
    d = json.loads(out)
    held = read_json(home/'run/split.json')['counts']
    assert s == 1 and d['images'] == held['val'] + held['test'] == len(d['psnr']) and d['of'] == 'held-out images' and d['verdict'] == 'poor'
    assert abs(np.mean([*d['psnr'].values()]) - d['psnr_mean']) < 1e-6 and d['latent'] == d['expected'] == [4, 8, 8] and any(k.endswith('.npy') for k in d['psnr']) and .8 < d['scaled_std'] < 1.2
    assert Image.open(tmp_path/'vae_reconstruction.png').height > 60
    s, out, _ = ask(home/'run/vae/best/vae', '--data', home/'set', '--side', '32', '--num', '5', '--min-psnr', '1')
    assert 'training images (no split is known)' in out and '5' in out
    s, out, _ = ask(home/'run', home/'run/vae', '--data', home/'set', '--num', '3', '--side', '32', '--min-psnr', '1')
    assert 'psnr_mean' in out and sorted(p.name for p in tmp_path.glob('comparison_*.png')) == ['comparison_00.png', 'comparison_01.png', 'comparison_02.png'], out
    for args, status, why in [((home/'run', 'embedded'), 2, 'pictures of --data'), (('embedded', '--data', tmp_path/'none'), 1, 'no such folder of pictures'), ((home/'run', '--data', home/'set', '--side', '33'), 2, '33'), ((home/'run', '--data', home/'set', '--num', '0'), 2, '--num 0')]:
        s, _, err = ask(*args)
        assert s == status and why in err, (args, s, err)

# --- configurations, plans ---------------------------------------------------------------------------------------------------

def test_settings_are_checked_without_a_run(tmp_path):
    p = tmp_path/'run.yaml'
    p.write_text('preset: tiny\nunet: {attention: [3], head_dims: 4}\nsteps: 0\n')
    s, out, _ = shell('doctor', str(p))
    assert s == 1 and 'unet.head_dims: no such setting' in out and 'steps: 0 is not at least 1' in out and 'unet.attention: level 3 of 2' in out, out
    for said, word in [(dict(image=dict(resolution=66)), '66 is no multiple of 8'), (dict(unet=dict(block_out_channels=[32]*5)), 'unet.block_out_channels: 5 levels'), (dict(vae=dict(groups=3)), 'vae.groups: 3'), (dict(noise=dict(predicton='v')), 'noise.predicton'),
                       (dict(preset='huge'), "'huge' is none of"), (dict(batch_size='many'), 'batch_size: expected int')]:
        f = check_settings('x', 'train diffusion', dict(preset='tiny') | said)
        assert not f.ok and any(word in c.words for c in f.wrong), (said, str(f))
    (tmp_path/'judge.yaml').write_text('backbone: resnet18\nusers: 1\n')
    s, out, _ = shell('doctor', str(tmp_path/'judge.yaml'))
    assert s == 1 and 'settings of train identity' in out and 'users: 1 is not at least 2' in out

def test_plans_write_nothing(home, tmp_path):
    d = ['--data', str(home/'set'), '--out', str(tmp_path/'run'), '--resolution', '32', '--dry-run']
    for verb, words in [(('train', 'diffusion', '--preset', 'tiny', '--vae.block-out-channels', '8', '16', '--vae.groups', '4'), ('effective_batch', 'learning_rate', '4x16x16')), (('train', 'vae', '--preset', 'tiny', '--device', 'cpu'), ('1x32x32', '977525')), (('train', 'identity', '--backbone', 'resnet10t'), ('1x32x32', '"steps": 1500'))]:
        s, out, err = shell(*verb, *d, '--json')
        assert s == 0 and all(w in out for w in words), (verb, out, err)
    assert not (tmp_path/'run').exists()

def test_the_end_of_a_run_says_what_it_took(home):
    t = read_json(home/'run/best/model.json')['train']
    assert t['peak_memory_mb'] > 100 and t['peak_memory_of'] == 'the process' and t['seconds'] > 0

@pytest.mark.slow
def test_parameters_of_the_presets():
    "The table of the contract: VAEs of one and of three channels, UNets for 31 users"
    for preset, (one, three, unet) in dict(standard=(10_755_237, 10_757_543, 42_867_460), quality=(55_321_317, 55_325_927, 96_385_156)).items():
        c = diffusion_config(preset=preset)
        assert [first_codec(c, grey).num_parameters for grey in (True, False)] == [one, three] and sum(p.numel() for p in c.unet.make(4, 32, 31).parameters()) == unet

@pytest.mark.slow
@pytest.mark.parametrize('preset', PRESETS)
def test_every_preset_passes(preset):
    assert check_preset(preset).ok and plan_diffusion(diffusion_config(preset=preset))['memory_mb'] < dict(standard=8, memory=4).get(preset, 16)*1024
