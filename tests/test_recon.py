"Reconstruction and its metrics on real weights and pictures, through functions and through the command line"
import json, shutil
import numpy as np, pandas as pd, pytest, torch
from vaetag_nb.core.io import load_tensors
from vaetag_nb.core.rng import np_rng, seeded
from PIL import Image
from vaetag_nb.cli import run
from vaetag_nb.data.images import load_batch
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.eval.frechet import Inception, frechet_distance
from vaetag_nb.eval.images import Lpips, lpips_network, psnr, ssim
from vaetag_nb.eval.weights import WEIGHTS, Unavailable, find_weights
from vaetag_nb.latents.codec import Codec
from vaetag_nb.recon import FILES, check_picture, evaluate_recon, reconstruct

TAPS = (1, 4, 7, 9, 10, 11, 12)

@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    "No weights but those that a test gives"
    monkeypatch.delenv('VAETAG_WEIGHTS', raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    d = tmp_path_factory.mktemp('scenes')
    make_scenes(d/'s', 6, seed=3, resolution=64)
    return d/'s'

@pytest.fixture
def trunk(shared): return shared/'weights/squeezenet/squeezenet1_1_caffe_fp16.pth'

def by_hand(x, y, trunk, heads):
    "LPIPS as its paper says it, with torchvision's network and the heads of a file of their own"
    from torchvision.models import squeezenet1_1
    net, total = squeezenet1_1().eval(), 0.
    net.load_state_dict({k: v.float() for k, v in torch.load(trunk, weights_only=True).items()})
    heads = torch.load(heads, weights_only=True, map_location='cpu')
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ([-.030, -.088, -.188], [.458, .448, .450]))
    x, y = ((v[None].float()/127.5 - 1 - shift)/scale for v in (x, y))
    with torch.no_grad():
        for i, f in enumerate(net.features):
            x, y = f(x), f(y)
            if i not in TAPS: continue
            u, v = (t/(t.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for t in (x, y))
            total += float(((u - v)**2*heads[f'lin{TAPS.index(i)}.model.1.weight']).sum(1).mean())
    return total

def test_lpips_is_what_the_paper_says(shared, trunk):
    lp = Lpips('squeeze', trunk)
    ref, p0, p1 = (torch.from_numpy(np.array(Image.open(shared/f'weights/lpips_lin/imgs/ex_{n}.png').convert('RGB'))).permute(2, 0, 1) for n in ('ref', 'p0', 'p1'))
    d = lp([ref, ref, ref], [p0, p1, ref])
    heads = shared/'weights/lpips_lin/v0.1/squeeze.pth'
    np.testing.assert_allclose(d[:2], [by_hand(ref, p, trunk, heads) for p in (p0, p1)], atol=1e-6)
    assert d[2] == 0 and d[1] < d[0]                       # people find p1 nearer, as the example of its authors says

def test_the_folder_of_the_environment_is_searched(shared, trunk, tmp_path, monkeypatch):
    with pytest.raises(Unavailable, match='not given by --lpips-weights, not in .VAETAG_WEIGHTS .not set., not in .TORCH_HOME/hub/checkpoints'): find_weights('squeeze')
    shutil.copy(trunk, tmp_path/WEIGHTS['squeeze'].file)
    monkeypatch.setenv('VAETAG_WEIGHTS', str(tmp_path))
    assert lpips_network('squeeze').vaetag_weights == tmp_path/WEIGHTS['squeeze'].file

def test_emoji_of_two_vendors(shared, trunk):
    "Partners are nearer than strangers, in every metric"
    names = sorted({p.name for p in (shared/'emoji/noto').iterdir()} & {p.name for p in (shared/'emoji/twemoji').iterdir()})[:240:10]
    a, b = (load_batch([shared/'emoji'/v/n for n in names], (64, 64)).images for v in ('noto', 'twemoji'))
    lp = Lpips('squeeze', trunk)
    assert lp(a, b).mean() < lp(a, b.roll(5, 0)).mean() - .05
    assert ssim(a, b).mean() > ssim(a, b.roll(5, 0)).mean()

def test_taef2_gives_photos_back(shared):
    codec = Codec.load(shared/'weights/taef2')
    files = sorted((shared/'fashion').rglob('*.jpg'))[:8]
    got = evaluate_recon(codec, files)
    assert 25 < got.result.metrics['psnr_mean'] < 40 and not got.failed     # without its residual branches it gives 15 dB
    r = check_picture(codec, files[0], 64)
    assert r.figures['compression'] == 3*64*64/r.latent.numel()

def test_latents_recon(scenes, tmp_path, capsys):
    picture = next((scenes/'images').iterdir())
    assert run(['latents', 'recon', str(picture), '--out', str(tmp_path/'a'), '--resolution', '64', '--json']) == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in (tmp_path/'a').iterdir()) == sorted(FILES)
    a, b = (torch.from_numpy(np.array(Image.open(tmp_path/'a'/n))).permute(2, 0, 1)[None] for n in ('original.png', 'reconstructed.png'))
    assert psnr(a, b)[0] == pytest.approx(said['figures']['psnr'], abs=1e-6) and ssim(a, b)[0] == pytest.approx(said['figures']['ssim'], abs=1e-6)
    from safetensors.torch import load_file
    y, raw = reconstruct(Codec.embedded(), a)
    torch.testing.assert_close(load_file(tmp_path/'a/latent_vector.safetensors')['latent'], raw[0])
    about = load_tensors(tmp_path/'a/latent_vector.safetensors')[1]
    assert (about['space'], about['codec']['fingerprint']) == ('raw', Codec.embedded().fingerprint)
    assert 'alexnet-owt-7be5be79.pth' in said['reasons']['lpips']
    drawn = lambda seed: (run(['latents', 'recon', str(picture), '--out', str(tmp_path/'b'), '--resolution', '64', '--sample', '--seed', seed]), (tmp_path/'b/reconstructed.png').read_bytes())[1]
    assert drawn('1') == drawn('1') != drawn('2') and drawn('1') != (tmp_path/'a/reconstructed.png').read_bytes()

def test_recon_show(scenes, tmp_path, capsys, monkeypatch):
    "--show hands the comparison to this machine's picture viewer; without one, it says which file to open"
    from PIL import ImageShow
    class Keeps(ImageShow.Viewer):
        format = 'PNG'
        def show_file(self, path, **options): return bool(shutil.copy(path, tmp_path/'shown.png'))
    args = ['latents', 'recon', str(next((scenes/'images').iterdir())), '--out', str(tmp_path/'a'), '--resolution', '64', '--show']
    monkeypatch.setattr(ImageShow, '_viewers', [Keeps()])
    assert run(args) == 0 and 'no picture viewer' not in capsys.readouterr().err
    shown = Image.open(tmp_path/'shown.png')
    assert shown.width >= 3*64 and len(shown.convert('RGB').getcolors(1 << 20)) > 100
    monkeypatch.setattr(ImageShow, '_viewers', [])
    assert run(args) == 0
    said = capsys.readouterr().err
    assert 'no picture viewer on this machine; see ' in said and str(tmp_path/'a') in said

def test_eval_recon_without_any_weights(scenes, tmp_path, capsys):
    data, out = str(scenes/'data.json'), tmp_path/'out'
    args = ['eval', 'recon', '--data', data, '--out', str(out), '--bootstrap', '50']
    assert run([*args, '--json']) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said['format'] == 'vaetag-eval/1' and said['metrics']['psnr_mean'] > 25 and .5 < said['metrics']['ssim_p5'] < 1
    assert said['metrics']['lpips_mean'] is None and '--lpips-weights' in said['reasons']['lpips_mean']
    assert said['metrics']['rfid'] is None and 'inception-2015-12-05.pt' in said['reasons']['rfid'] and '--inception-weights' in said['reasons']['rfid']
    assert set(said['reasons']) == {k for k, v in said['metrics'].items() if v is None}
    table = pd.read_csv(out/'reconstruction.csv')
    assert len(table) == 6 and table['psnr'].mean() == pytest.approx(said['metrics']['psnr_mean']) and table['lpips'].isna().all()
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    assert run(args) == 0 and {p.name: p.read_bytes() for p in out.iterdir()} == files
    assert run([*args, '--size', '64']) == 1 and 'holds the result of another run' in capsys.readouterr().err
    assert run([*args, '--size', '64', '--overwrite']) == 0
    assert run(['eval', 'recon', '--data', data, '--strict']) == 1 and '(strict)' in capsys.readouterr().err

def test_a_broken_file_is_listed_and_nothing_else(scenes, tmp_path, capsys):
    shutil.copytree(scenes/'images', tmp_path/'pics')
    (tmp_path/'pics/torn.png').write_bytes(next((scenes/'images').iterdir()).read_bytes()[:300])
    data = {f'pics/{p.name}': 'x' for p in (tmp_path/'pics').iterdir()}
    (tmp_path/'data.json').write_text(json.dumps(data), encoding='utf-8')
    assert run(['eval', 'recon', '--data', str(tmp_path/'data.json'), '--out', str(tmp_path/'out'), '--metrics', 'psnr', '--json']) == 1
    said = json.loads(capsys.readouterr().out)
    assert said['counts'] == dict(n=6, n_identical=0, failed=1) and any('torn.png' in n for n in said['notes'])
    assert list(json.loads((tmp_path/'out/errors.json').read_text(encoding='utf-8'))) == ['pics/torn.png']
    assert 'ssim_mean' not in said['metrics']

def test_batches_change_nothing(scenes):
    """oneDNN takes another kernel for another batch size: latents differ by some 1e-5 and pixels by 1e-6 before rounding, so that an 8-bit
    value flips by one level only where it lies that near a boundary, one in thousands"""
    from vaetag_nb.recon import ReconSettings
    files, codec = sorted((scenes/'images').iterdir()), Codec.embedded()
    x = load_batch(files, (64, 64)).images
    one = torch.cat([reconstruct(codec, x[i:i+1])[0] for i in range(len(x))]).int()
    for n in (2, 3, 6):
        off = (torch.cat([reconstruct(codec, x[i:i+n])[0] for i in range(0, len(x), n)]).int() - one).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 1e-3
    a, b = (evaluate_recon(codec, files, settings=ReconSettings(('psnr', 'ssim'), batch_size=n, bootstrap=0, shown=1)).table for n in (1, 4))
    np.testing.assert_allclose(a['psnr'], b['psnr'], atol=1e-3)
    np.testing.assert_allclose(a['ssim'], b['ssim'], atol=1e-5)

def test_strictly_the_weights_count(scenes, tmp_path, capsys):
    data = str(scenes/'data.json')
    assert run(['eval', 'recon', '--data', data, '--metrics', 'psnr', 'ssim', 'rfid', '--strict']) == 1 and 'inception-2015-12-05.pt' in capsys.readouterr().err
    assert run(['eval', 'recon', '--data', data, '--strict']) == 1 and 'alexnet-owt-7be5be79.pth' in capsys.readouterr().err
    assert run(['eval', 'recon', '--data', data, '--metrics', 'rfid', '--inception-weights', str(tmp_path/'typo.pt')]) == 1 and 'typo.pt' in capsys.readouterr().err

class StandIn(torch.nn.Module):
    "In the place of the Inception network, which is on no machine of ours: the same form, other values"
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(6), torch.nn.Flatten(), torch.nn.Linear(108, 2048), torch.nn.Tanh())
    def forward(self, x): return self.layers(x)

def test_rfid_is_the_distance_of_the_sets(scenes, tmp_path, capsys):
    with seeded(1, 'stand-in'): torch.jit.script(StandIn()).save(str(tmp_path/'inception-2015-12-05.pt'))
    args = ['eval', 'recon', '--data', str(scenes/'data.json'), '--metrics', 'psnr', 'rfid', '--size', '64', '--bootstrap', '0', '--inception-weights', str(tmp_path), '--strict', '--json']
    got = []
    for n in ('1', '4'):
        assert run([*args, '--batch-size', n]) == 0
        got.append(json.loads(capsys.readouterr().out))
    a, b = got
    assert a['metrics']['rfid'] == pytest.approx(b['metrics']['rfid'], rel=1e-3) and a['metrics']['rfid'] > 0 and 'rfid' not in a['reasons']
    assert a['settings']['fid_mode'] == 'clean' and len(a['settings']['inception_weights_sha256']) == 64 and any(n.startswith('rfid: N=6 < 2048') for n in a['notes'])
    x, net = load_batch(sorted((scenes/'images').iterdir()), (64, 64)).images, Inception(tmp_path)
    f, g = (net(i).astype(float) for i in (x, reconstruct(Codec.embedded(), x)[0]))
    s, t = (np.cov(i.T) for i in (f, g))
    want = ((f.mean(0) - g.mean(0))**2).sum() + np.trace(s) + np.trace(t) - 2*np.sqrt(np.clip(np.linalg.eigvals(s@t).real, 0, None)).sum()
    assert a['metrics']['rfid'] == pytest.approx(want, rel=1e-2)    # bytes may flip by one where batches differ

@pytest.mark.parametrize('n,m', [(40, 300), (300, 40), (60, 60), (300, 200)])
def test_the_distance_is_that_of_the_matrix_root(n, m):
    from scipy.linalg import sqrtm
    rng = np_rng(0, 'frechet', n, m)
    mix = rng.standard_normal((2, 64, 64))
    a, b = rng.standard_normal((n, 64))@mix[0], rng.standard_normal((m, 64))@mix[1] + 1
    s, t = np.cov(a.T), np.cov(b.T)
    want = ((a.mean(0) - b.mean(0))**2).sum() + np.trace(s) + np.trace(t) - 2*np.trace(sqrtm(s@t)).real
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-9 if min(n, m) > 64 else 1e-4)

def test_a_plain_folder(scenes, tmp_path, capsys):
    "Pictures without tags, in sub-folders or not"
    (tmp_path/'p/x').mkdir(parents=True)
    for i, f in enumerate(sorted((scenes/'images').iterdir())[:3]): shutil.copy(f, tmp_path/('p/x' if i else 'p')/f.name)
    args = ['eval', 'recon', '--metrics', 'psnr', '--bootstrap', '0', '--data']
    assert run([*args, str(tmp_path/'p'), '--out', str(tmp_path/'o')]) == 0
    assert pd.read_csv(tmp_path/'o/reconstruction.csv')['id'].tolist() == ['000000.png', 'x/000001.png', 'x/000002.png']
    (tmp_path/'q').mkdir(); capsys.readouterr()
    assert run([*args, str(tmp_path/'q')]) == 1 and 'no images found under' in capsys.readouterr().err
    assert run(['eval', 'recon', '--data', str(tmp_path/'p'), '--metrics']) == 2
