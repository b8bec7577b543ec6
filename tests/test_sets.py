"Sets of pictures: distances against hand, 60 digits and other programs; statistics, features and the verbs from end to end"
import importlib, json, shutil, sys
import mpmath as mp, numpy as np, pytest, timm
import cleanfid.fid, scipy.linalg
from PIL import Image
from vaetag_nb.cli import run
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.core.io import save_tensors
from vaetag_nb.core.rng import np_rng, seeded
from vaetag_nb.data.images import list_images
from vaetag_nb.eval import distribution as dist
from vaetag_nb.eval.distribution import extrapolate, fd_floor, fid, inception_score, kid, mmd, prdc, set_metrics
from vaetag_nb.eval.features import FeatureCache, extractor, features_of
from vaetag_nb.eval.frechet import FeatureStats, frechet_distance, moments
from vaetag_nb.eval.images import Rule
from vaetag_nb.eval.stats import load_stats, save_stats
from vaetag_nb.eval.weights import Unavailable

normal = FeatureStats.of_moments
RNG = lambda *what: np_rng(0, 'test sets', *what)

@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    "No weights but those that a test gives, and a cache of its own"
    monkeypatch.delenv('VAETAG_WEIGHTS', raising=False)
    for k in ('TORCH_HOME', 'VAETAG_CACHE', 'HF_HOME'): monkeypatch.setenv(k, str(tmp_path/k))

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Real and made pictures in two classes each, and a folder of a timm network"
    d = tmp_path_factory.mktemp('sets')
    for side, tint, n in (('real', 0, 14), ('made', 60, 12)):
        for c in ('cat', 'dog'):
            (d/side/c).mkdir(parents=True)
            for i in range(n): Image.fromarray((RNG(side, c, i).integers(0, 150, (24, 24, 3)) + [tint, 40, 90]).astype(np.uint8)).save(d/side/c/f'{i}.png')
    with seeded(0, 'timm'): net = timm.create_model('test_efficientnet', num_classes=5)
    (d/'net').mkdir()
    save_tensors(d/'net/model.safetensors', net.state_dict())
    (d/'net/config.json').write_text(json.dumps(dict(architecture='test_efficientnet', num_classes=5, pretrained_cfg=dict(input_size=[3, 32, 32], crop_pct=1.0, mean=[.5]*3, std=[.5]*3))))
    return d

SQRTM = scipy.linalg.sqrtm
def old_sqrtm(a, disp=True): return SQRTM(a) if disp else (SQRTM(a), 0.)   # scipy 1.18 has no disp

@pytest.mark.parametrize('a, b, want', [
    (normal([0, 0], np.eye(2)), normal([3, 4], np.eye(2)), 25), (normal([0], [[1]]), normal([0], [[4]]), 1),
    ([[0, 0], [2, 0]], [[0, 0], [0, 2]], 6), (normal(np.zeros(256), np.eye(256)), normal(np.ones(256), np.eye(256)), 256),
    pytest.param(normal(np.zeros(2048), np.eye(2048)), normal(np.ones(2048), np.eye(2048)), 2048, marks=pytest.mark.slow)], ids=['moved', 'spread', 'points', '256', '2048'])
def test_frechet_by_hand(a, b, want): assert frechet_distance(a, b) == pytest.approx(want, abs=1e-6)

def test_a_set_is_no_way_from_itself_and_one_picture_has_no_distance():
    x = RNG('self').standard_normal((40, 64))
    assert frechet_distance(x, x) <= 1e-10
    d = fid(x[:1], x[:10])
    assert d.value is None and d.n == (1, 10) and d.reason == 'fid needs at least 2 images on each side, got 1'

@pytest.mark.parametrize('n, m, d', [(5, 6, 12), (20, 25, 6), (4, 30, 6)], ids=['few', 'many', 'one of each'])
def test_frechet_against_sixty_digits(n, m, d):
    x, y = RNG('mp', n).standard_normal((n, d))**3, RNG('mp', m, 1).standard_normal((m, d)) + 1
    with mp.workdps(60):
        centred = lambda a: mp.matrix([[v - mp.fsum(c)/len(c) for v, c in zip(r, zip(*a))] for r in a])/mp.sqrt(len(a) - 1)
        a, b = ([[mp.mpf(float(v)) for v in r] for r in z] for z in (x, y))
        A, B = centred(a), centred(b)
        C = A*B.T
        cross = mp.fsum(mp.sqrt(max(v, 0)) for v in mp.eigsy(C*C.T, eigvals_only=True))
        means = mp.fsum((mp.fsum(p)/n - mp.fsum(q)/m)**2 for p, q in zip(zip(*a), zip(*b)))
        want = means + mp.fsum(v*v for v in A) + mp.fsum(v*v for v in B) - 2*cross
        assert abs(frechet_distance(x, y)/want - 1) <= 1e-9

def test_frechet_at_full_rank_is_clean_fids(monkeypatch):
    monkeypatch.setattr(cleanfid.fid.linalg, 'sqrtm', old_sqrtm) if scipy.__version__ >= '1.18' else None
    x, y = RNG('clean', 0).standard_normal((900, 64))@RNG('m').standard_normal((64, 64)), RNG('clean', 1).standard_normal((700, 64)) + .5
    s = [(z.mean(0), np.cov(z.T)) for z in (x, y)]
    with np.errstate(all='ignore'): want = cleanfid.fid.frechet_distance(*s[0], *s[1])
    assert frechet_distance(normal(*s[0], 900), normal(*s[1], 700)) == pytest.approx(want, rel=1e-9)

@pytest.mark.parametrize('n', (10, 32, 33, 200))
def test_statistics_and_features_are_one_distance(n, tmp_path):
    x, y = RNG('sf', n).standard_normal((n, 32)), RNG('sf', 1).standard_normal((50, 32)) + .3
    save_stats(tmp_path/'s.npz', x, dict(extractor='e', fingerprint='f'))
    assert frechet_distance(load_stats(tmp_path/'s.npz'), y) == pytest.approx(frechet_distance(x, y), rel=1e-6)
    np.testing.assert_allclose(moments(FeatureStats().update(x))[1], np.cov(x.T), atol=1e-12)

def test_an_impossible_distance_is_a_bug(monkeypatch):
    svd = np.linalg.svd
    monkeypatch.setattr(np.linalg, 'svd', lambda m, **kw: 1.01*svd(m, **kw))
    x = RNG('bug').standard_normal((5, 9))
    with pytest.raises(AssertionError, match='Fréchet distance of -'): frechet_distance(x, x)

def test_without_scipy(monkeypatch):
    for k in [k for k in sys.modules if k.split('.')[0] == 'scipy']: monkeypatch.setitem(sys.modules, k, None)
    for k in ('frechet', 'distribution'): monkeypatch.delitem(sys.modules, f'vaetag_nb.eval.{k}')
    with pytest.raises(ImportError): import scipy.sparse  # noqa: F401
    fresh = importlib.import_module('vaetag_nb.eval.distribution')
    m, why, _ = fresh.set_metrics(RNG('a').standard_normal((210, 8)), RNG('b').standard_normal((60, 8)))
    assert not why and all(np.isfinite(v) for v in m.values())
    assert fresh.frechet_distance(RNG('a').standard_normal((210, 300)), RNG('b').standard_normal((60, 300))) > 0

def naive_kid(x, y, biased=False):
    k = lambda a, b: (sum(p*q for p, q in zip(a, b))/len(a) + 1)**3
    inner = lambda z: sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if biased or i != j)/(len(z)**2 if biased else len(z)*(len(z) - 1))
    return inner(x) + inner(y) - 2*sum(k(a, b) for a in x for b in y)/(len(x)*len(y))

def test_kid():
    a, b = [[0, 0], [1, 1]], [[2, 2], [3, 3]]
    assert kid(a, b).value == pytest.approx(297.5, abs=1e-6) and mmd(a, b, biased=True)[0] == pytest.approx(409, abs=1e-6)
    x, y = RNG('kid', 0).standard_normal((23, 5)), RNG('kid', 1).standard_normal((17, 5)) + .2
    assert kid(x, y).value == pytest.approx(naive_kid(x, y), rel=1e-9)
    assert mmd(x, y, biased=True)[0] == pytest.approx(naive_kid(x, y, True), rel=1e-9)
    def drawn(i, m): r = np_rng(0, 'eval', 'kid', i); return x[r.choice(23, m, replace=False)], y[r.choice(17, m, replace=False)]
    v = [naive_kid(*drawn(i, 8)) for i in range(100)]
    assert kid(x, y).std == pytest.approx(np.std(v), rel=1e-9)
    got = kid(x, y, subsets=100, subset_size=8)
    assert (got.value, got.std) == pytest.approx((np.mean(v), np.std(v)), rel=1e-9)

def test_kid_of_many_pictures_is_a_mean_over_subsets(monkeypatch):
    x, y = RNG('many', 0).standard_normal((60, 5)), RNG('many', 1).standard_normal((50, 5))
    blocks = kid(x, y, 100, 20)
    monkeypatch.setattr(dist, 'WHOLE', 40)
    assert kid(x, y, 100, 20) == pytest.approx(blocks, rel=1e-9)
    assert kid(x, y) == pytest.approx(kid(x, y, 100, 50), rel=1e-9)
    for bad in (dict(subset_size=51), dict(subset_size=1), dict(subsets=0)):
        with pytest.raises(UsageError): kid(x, y, **bad)

def test_inception_score():
    assert inception_score(np.full((20, 7), 1/7))[0] == pytest.approx(1, abs=1e-6)
    assert inception_score(np.repeat(np.eye(31), 3, 0), 1)[0] == pytest.approx(31, abs=1e-6)
    assert inception_score([[.9, .1], [.1, .9]], 1) == (pytest.approx(1.4449348, abs=1e-6), 0)
    p = RNG('is').dirichlet(np.ones(6), 53)
    parts = np.array_split(p[np_rng(0, 'eval', 'is', 0).permutation(53)], 10)
    want = [np.exp(np.mean([sum(v*(np.log(v) - np.log(m)) for v, m in zip(r, q.mean(0))) for r in q])) for q in parts]
    assert inception_score(p) == pytest.approx((np.mean(want), np.std(want)), rel=1e-9)
    with pytest.raises(Unavailable, match='got 9'): inception_score(p[:9])

def naive_prdc(real, gen, k):
    d = lambda a, b: np.sqrt(((a - b)**2).sum())
    radius = lambda z: [sorted(d(p, q) for j, q in enumerate(z) if j != i)[k - 1] for i, p in enumerate(z)]
    r, g = radius(real), radius(gen)
    return (np.mean([any(d(x, y) < t for y, t in zip(real, r)) for x in gen]), np.mean([any(d(x, y) < t for y, t in zip(gen, g)) for x in real]),
            np.mean([sum(d(x, y) < t for y, t in zip(real, r)) for x in gen])/k, np.mean([min(d(x, y) for y in gen) < t for x, t in zip(real, r)]))

def test_prdc():
    column = lambda *v: np.array(v, float)[:, None]
    assert prdc(column(0, 1, 2, 3), column(.5, 1.5, 10, 11), 1) == (.5, .75, 1, .75)
    for k in (1, 3, 5):
        x, y = RNG('prdc', 0, k).standard_normal((31, 4)), RNG('prdc', 1, k).standard_normal((27, 4))*1.3
        y[:3] = x[:3]                                             # equal points are at a distance of exactly 0
        assert prdc(x, y, k) == pytest.approx(naive_prdc(x, y, k), abs=1e-12)
    with pytest.raises(Unavailable, match='more than 5 images on each side, got 5'): prdc(x, y[:5])
    with pytest.raises(UsageError): prdc(x, y, 0)

def test_against_torchmetrics():
    "KID and IS as torchmetrics has them, where it is installed"
    tm = pytest.importorskip('torchmetrics.image.kid')
    import torch
    x, y = RNG('tm', 0).standard_normal((40, 16)), RNG('tm', 1).standard_normal((40, 16)) + .3
    assert kid(x, y).value == pytest.approx(float(tm.poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-9)

def test_infinity_and_floor():
    assert extrapolate((100, 200, 400), (5, 4.5, 4.25)) == pytest.approx(4, abs=1e-6)
    x = RNG('floor').standard_normal((300, 8))
    at = np_rng(0, 'eval', 'floor', 0).permutation(300)
    assert fd_floor(x) == (frechet_distance(x[at[:150]], x[at[150:]]), 150)
    m, why, _ = set_metrics(x[:199], x)
    assert list(why) == ['fid_inf'] and '200' in why['fid_inf'] and m['fid'] < m['fid_floor']

def test_image_lists(tmp_path):
    for n in ('a.JPG', 'a.png', 'b.Webp', 'x/1.bmp'):
        (tmp_path/n).parent.mkdir(exist_ok=True); Image.new('RGB', (9, 9)).save(tmp_path/n)
    (tmp_path/'notes.npy').write_bytes(b''); (tmp_path/'link.gif').symlink_to(tmp_path/'a.png')
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ['a.JPG', 'a.png', 'b.Webp', 'link.gif', 'x/1.bmp']
    got = features_of(extractor('random'), list_images(tmp_path), None, FeatureCache(tmp_path/'cache'))
    assert got.x.shape == (5, 32) and not got.errors and (got.x[1] == got.x[3]).all()

def test_a_batch_changes_nothing(home):
    ex, files = extractor(f'timm:{home/"net"}'), list_images(home/'real')[:9]
    whole, parts = (features_of(ex, files, Rule(20), None, b).x for b in (9, 2))
    np.testing.assert_allclose(whole, parts, atol=1e-5)

def test_networks_keep_no_graph(home):
    "Extractors run in float32, in eval mode, without autocast and without gradients"
    import torch
    ex, seen = extractor(f'timm:{home/"net"}'), []
    ex.network.register_forward_pre_hook(lambda m, x: seen.append(m.training)); ex.network.conv_stem.register_forward_hook(
        lambda m, x, y: seen.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled('cpu'), m.training, y.dtype, y.requires_grad)))
    features_of(ex, list_images(home/'real')[:2])
    assert seen == [(True, False, False, torch.float32, False)]

FOREIGN = dict(mu=np.zeros(4), sigma=np.eye(4))
@pytest.mark.parametrize('fields, said', [
    (dict(mu=np.zeros(4)), 'it has no sigma'), (FOREIGN | dict(dim=5), 'says dim 5, but mu has 4 numbers'), (FOREIGN | dict(mode='legacy'), "mode is 'legacy', not 'clean'"),
    (FOREIGN | dict(extractor='clip', weights_sha256='a'), "extractor is 'clip', not 'inception'; weights_sha256 is 'a', not 'w'"), (FOREIGN | dict(mu=np.array([{}], object)), 'objects'),
    (dict(mu=np.zeros(4), sigma=np.eye(3)), 'are needed'), (FOREIGN | dict(sigma=np.full((4, 4), np.nan)), 'not finite'),
    (FOREIGN | dict(preprocess=json.dumps(dict(size=64, fit='crop'))), "preprocess size is 64, not 32; preprocess fit is 'crop', not 'pad'")],
    ids=['sigma', 'dim', 'mode', 'extractor', 'objects', 'shape', 'nan', 'preprocess'])
def test_statistics_that_do_not_fit(tmp_path, fields, said):
    np.savez(tmp_path/'s.npz', **fields)
    with pytest.raises(VaetagError) as e: load_stats(tmp_path/'s.npz', dict(extractor='inception', mode='clean', weights_sha256='w', preprocess=dict(size=32, fit='pad'), fingerprint='f'))
    assert said in str(e.value) and str(tmp_path/'s.npz') in str(e.value)

def test_statistics_of_other_programs(tmp_path):
    "mu and sigma alone, and with count, dim and mode as the latent CycleGAN has them"
    for name, more in (('pytorch-fid', {}), ('cyclegan', dict(count=100, dim=4, mode='clean'))):
        np.savez(tmp_path/f'{name}.npz', **FOREIGN, **more)
        s = load_stats(tmp_path/f'{name}.npz', dict(mode='clean', fingerprint='f'))
        assert s.n == more.get('count') and 'no fingerprint' in s.notes[0]
        assert frechet_distance(s, normal(np.ones(4), np.eye(4))) == pytest.approx(4, abs=1e-9)
        with pytest.raises(VaetagError, match='strict'): load_stats(tmp_path/f'{name}.npz', strict=True)

def test_fid_stats_and_a_changed_picture(home, tmp_path, capsys):
    ref, flags = tmp_path/'ref', ['--features', f'timm:{home/"net"}', '--size', '24']
    shutil.copytree(home/'real', ref)
    stats = ['eval', 'fid-stats', str(ref), *flags, '--json']
    seen = []
    for again in range(2): assert run(stats) == 0; seen.append(json.loads(capsys.readouterr().out))
    assert [s['computed'] for s in seen] == [True, False] and seen[0]['n'] == 28
    gen = ['eval', 'generation', '--gen', str(home/'made'), '--features', f'timm:{home/"net"}', '--json']
    assert run([*gen, '--ref', str(ref/'fid_stats.npz')]) == 0
    by_stats = json.loads(capsys.readouterr().out)
    assert run([*gen, '--ref', str(ref)]) == 0
    by_pictures = json.loads(capsys.readouterr().out)
    assert by_stats['metrics']['fd_timm'] == pytest.approx(by_pictures['metrics']['fd_timm'], rel=1e-6)
    assert by_stats['settings']['ref_fingerprint'] == by_pictures['settings']['ref_fingerprint']
    with open(ref/'cat/0.png', 'ab') as f: f.write(b'\0')
    for r in (ref, ref/'fid_stats.npz'):
        assert run([*gen, '--ref', str(r)]) == 1
        assert 'does not fit: fingerprint is' in capsys.readouterr().err
    assert run(stats) == 1 and run([*stats, '--recompute']) == 0
    assert run([*gen, '--ref', str(ref/'fid_stats.npz'), '--size', '16']) == 1
    assert 'preprocess size is 24, not 16' in capsys.readouterr().err

def test_statistics_elsewhere(home, tmp_path, capsys):
    "A file beside other pictures is used; one beside its own is checked, whatever it is called"
    shutil.copytree(home/'real', tmp_path/'real'); shutil.copytree(home/'made', tmp_path/'made')
    for out in ('ref.npz', 'real/mine.npz'): assert run(['eval', 'fid-stats', str(tmp_path/'real'), '--features', f'timm:{home/"net"}', '--size', '24', '--out', str(tmp_path/out)]) == 0
    gen = ['eval', 'generation', '--gen', str(tmp_path/'made'), '--features', f'timm:{home/"net"}', '--metrics', 'fid', '--json', '--ref']
    capsys.readouterr()
    said = []
    for out in ('ref.npz', 'real/mine.npz'): assert run([*gen, str(tmp_path/out)]) == 0; said.append(json.loads(capsys.readouterr().out))
    assert said[0]['metrics'] == said[1]['metrics'] and said[0]['settings'] == said[1]['settings']
    assert ['its pictures are not beside it' in s['notes'][0] for s in said] == [True, False]
    Image.new('RGB', (24, 24)).save(tmp_path/'real/cat/0.png')
    assert [run([*gen, str(tmp_path/out)]) for out in ('ref.npz', 'real/mine.npz')] == [0, 1] and 'fingerprint is' in capsys.readouterr().err

def test_small_classes_and_results_among_the_pictures(home, tmp_path, capsys):
    base = ['eval', 'generation', '--gen', str(home/'made'), '--ref', str(home/'real'), '--features', f'timm:{home/"net"}', '--json']
    assert run([*base, '--metrics', 'kid', '--kid-subset-size', '20', '--per-class']) == 0
    r = json.loads(capsys.readouterr().out)
    assert r['metrics']['kid_timm'] is not None and r['classes']['cat']['reasons']['kid_timm'] == 'kid in subsets of 20 needs as many images on each side, got 12'
    assert run([*base, '--metrics', 'fid', '--train', str(home/'real'), '--test', str(home/'real'), '--out', str(home/'made/out')]) == 2
    assert 'lies in' in capsys.readouterr().err and not (home/'made/out').exists()

def test_generation_without_inception(home, tmp_path, capsys, monkeypatch):
    args = ['eval', 'generation', '--gen', str(home/'made'), '--ref', str(home/'real'), '--features', 'inception', '--features', f'timm:{home/"net"}', '--per-class']
    seen = []
    for folder in ('a', 'b'):
        assert run([*args, '--out', str(tmp_path/folder)]) == 0
        seen.append({p.name: p.read_bytes() for p in (tmp_path/folder).iterdir()})
    assert seen[0] == seen[1] and sorted(seen[0]) == ['generation.csv', 'generation.json']          # the second run has all its features from the cache
    r = json.loads(seen[0]['generation.json'], parse_constant=pytest.fail)
    assert r['metrics']['fid'] is None and 'inception-2015-12-05.pt' in r['reasons']['fid'] and '--inception-weights' in r['reasons']['fid']
    assert r['metrics']['fd_timm'] > 0 and sorted(r['reasons']) == sorted(k for k, v in r['metrics'].items() if v is None)
    assert r['counts'] | dict(n_gen=24, n_ref=28, n_floor=14) == r['counts'] and r['settings']['rule']['size'] == 24
    assert any(n.startswith('fd_timm: N=24 <') and 'biased upward' in n for n in r['notes'])
    assert .25 < r['metrics']['brightness_mean_ref'] < r['metrics']['brightness_mean_gen'] < 1 and r['metrics']['brightness_diff'] == pytest.approx(r['metrics']['brightness_mean_gen'] - r['metrics']['brightness_mean_ref'])
    assert .9 < r['metrics']['freq_similarity'] < 1 and r['classes']['dog']['counts'] == dict(n_gen=12, n_ref=14)
    for c in r['classes'].values(): assert c['metrics']['fd_timm'] > 0 and sorted(c['reasons']) == sorted(k for k, v in c['metrics'].items() if v is None) == ['fd_timm_inf']
    rows = seen[0]['generation.csv'].decode().splitlines()
    assert len(rows) == 3 and rows[0].startswith('class,n_gen,n_ref,fd_timm') and rows[1].startswith('cat,12,14,')
    capsys.readouterr()
    from vaetag_nb.eval import features
    monkeypatch.setattr(features, 'load_images', lambda *a, **k: pytest.fail('a picture was read'))
    assert run([*args, '--strict', '--cache', 'off']) == 1
    assert 'FID needs inception-2015-12-05.pt' in (said := capsys.readouterr().err) and 'needs at least 200 generated images, got 24' in said

def test_generation_and_unreadable_pictures(home, tmp_path, capsys):
    shutil.copytree(home/'made', tmp_path/'made'); (tmp_path/'made/cat/torn.png').write_bytes(b'torn')
    (tmp_path/'made/cat/gone.png').symlink_to('nothing.png')
    out = tmp_path/'out'
    assert run(['eval', 'fid-stats', str(tmp_path/'made'), '--features', f'timm:{home/"net"}', '--json']) == 1
    assert list(json.loads(capsys.readouterr().out)['errors']) == ['cat/gone.png', 'cat/torn.png']
    assert run(['eval', 'generation', '--gen', str(tmp_path/'made'), '--ref', str(home/'real'), '--features', f'timm:{home/"net"}', '--metrics', 'fid', 'is', '--out', str(out)]) == 1
    r = json.loads((out/'generation.json').read_text())
    assert r['counts']['failed'] == 2 and r['counts']['n_gen'] == 24 and sorted(json.loads((out/'errors.json').read_text())) == ['gen/cat/gone.png', 'gen/cat/torn.png']
    assert 1 <= r['metrics']['is_timm'] <= 5 and list(r['metrics']) == ['fd_timm', 'is_timm', 'is_std_timm']
    capsys.readouterr()
    (tmp_path/'empty').mkdir()
    assert run(['eval', 'generation', '--gen', str(tmp_path/'empty'), '--ref', str(home/'real')]) == 1
    assert 'no images found under' in capsys.readouterr().err

@pytest.mark.parametrize('flags', ['--k 0', '--splits 0', '--metrics fidd', '--features nosuch', '--features random', '--features identity', '--kid-subset-size 25', '--kid-subsets 0', '--fit pad', '--cache-max -1', '--train made'], ids=lambda f: f.split()[0][2:] + f.split()[1][:3])
def test_wrong_arguments(home, capsys, flags):
    assert run(['eval', 'generation', '--gen', str(home/'made'), '--ref', str(home/'real'), *flags.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

def test_brightness_and_frequencies_by_hand(home, tmp_path, capsys):
    "As a plain loop has them; of statistics alone, and of several sizes, what can be said"
    flags = ['--features', f'timm:{home/"net"}', '--metrics', 'brightness', 'freq_similarity', '--json']
    assert run(['eval', 'generation', '--gen', str(home/'made'), '--ref', str(home/'real'), *flags]) == 0
    m = json.loads(capsys.readouterr().out)['metrics']
    side = {}
    for k, d in (('gen', 'made'), ('ref', 'real')):
        grey = [np.asarray(Image.open(p)).astype(float)@[.299, .587, .114]/255 for p in sorted((home/d).rglob('*.png'))]
        s = [abs(np.fft.fft2(g)) for g in grey]
        side[k] = [g.mean() for g in grey], np.mean([x/x.max() for x in s], 0)
    cos = (side['gen'][1]*side['ref'][1]).sum()/np.sqrt((side['gen'][1]**2).sum()*(side['ref'][1]**2).sum())
    assert m == pytest.approx({f'brightness_{f.__name__}_{k}': f(v[0]) for k, v in side.items() for f in (np.mean, np.std)} | dict(brightness_diff=abs(np.mean(side['gen'][0]) - np.mean(side['ref'][0])), freq_similarity=cos), abs=1e-9)
    shutil.copytree(home/'made', tmp_path/'two'); Image.new('RGB', (30, 20)).save(tmp_path/'two/cat/0.png')
    assert run(['eval', 'generation', '--gen', str(tmp_path/'two'), '--ref', str(home/'real'), *flags]) == 0
    r = json.loads(capsys.readouterr().out)
    assert r['reasons'] == dict(freq_similarity='freq_similarity needs pictures of one size; give a size') and r['metrics']['brightness_diff'] > 0
    assert run(['eval', 'generation', '--gen', str(tmp_path/'two'), '--ref', str(home/'real'), *flags, '--strict']) == 1

def test_a_judge_of_persons(home, tmp_path, capsys):
    "Its embeddings measure the sets, its classifier gives the inception score; from the cache as computed, and as statistics"
    from vaetag_nb.data.users import UserMap
    from vaetag_nb.models.identity import Identity, identity_net, save_identity
    save_identity(tmp_path/'judge', Identity(identity_net(0, users=4, backbone='test_resnet', channels=3, dim=8).eval(), UserMap(['a', 'b', 'c', 'd']), 32))
    spec = f'identity:{tmp_path/"judge"}'
    gen, said = ['eval', 'generation', '--gen', str(home/'made'), '--features', spec, '--metrics', 'fid', 'is', '--per-class', '--json', '--ref', str(home/'real')], []
    for _ in range(2): assert run(gen) == 0; said.append(json.loads(capsys.readouterr().out))
    m = said[0]['metrics']
    assert said[0] == said[1] and [*m] == ['fd_identity', 'is_identity', 'is_std_identity'] and m['fd_identity'] > 0 and 1 <= m['is_identity'] <= 4
    x = [features_of(extractor(spec), list_images(home/d), Rule(24)) for d in ('made', 'real')]
    assert m['fd_identity'] == pytest.approx(frechet_distance(x[0].x, x[1].x), rel=1e-5) and x[0].x.shape[1] == 8 and x[0].rest.shape[1] == 4
    assert run(['eval', 'fid-stats', str(home/'real'), '--features', spec, '--size', '24', '--out', str(tmp_path/'s.npz')]) == 0 and load_stats(tmp_path/'s.npz').dim == 8
    assert run(['eval', 'generation', '--gen', str(home/'made'), '--ref', str(home/'real'), '--features', f'identity:{tmp_path}']) == 1 and 'no model folder of an identity model' in capsys.readouterr().err

def test_one_picture_against_many(home, tmp_path, capsys):
    (tmp_path/'one').mkdir(); Image.open(home/'made/cat/0.png').save(tmp_path/'one/0.png')
    assert run(['eval', 'generation', '--gen', str(tmp_path/'one'), '--ref', str(home/'real'), '--features', f'timm:{home/"net"}', '--json']) == 0
    r = json.loads(capsys.readouterr().out)
    assert r['metrics']['fd_timm'] is None and r['reasons']['fd_timm'] == 'fid needs at least 2 images on each side, got 1' and r['metrics']['fd_timm_floor'] > 0

@pytest.mark.slow
def test_real_vendors_are_further_apart_than_halves(shared, tmp_path):
    "SqueezeNet on emoji: the floor of so few pictures is most of the distance of as many, and yet below it"
    ex = extractor(f'squeeze:{shared/"weights/squeezenet/squeezenet1_1_caffe_fp16.pth"}')
    names = sorted({p.name for p in list_images(shared/'emoji/noto')} & {p.name for p in list_images(shared/'emoji/twemoji')})[::4]
    a, b = (features_of(ex, [shared/'emoji'/v/n for n in names], Rule(64)).x for v in ('noto', 'twemoji'))
    m, why, _ = set_metrics(a, b, 'fd_squeeze')
    assert not why and .5 < m['fd_squeeze_floor']/frechet_distance(a[::2], b[1::2]) < .9     # 1421 and 1944
    assert m['fd_squeeze_inf'] < m['fd_squeeze'] < m['fd_squeeze_floor'] and m['kid'] > 5*m['kid_std']   # halves have the larger bias

@pytest.mark.slow
def test_fid_of_the_same_features_is_clean_fids(monkeypatch):
    "2048 features, few pictures: clean-fid's root is off by less than 1e-4"
    monkeypatch.setattr(cleanfid.fid.linalg, 'sqrtm', old_sqrtm) if scipy.__version__ >= '1.18' else None
    x, y = (np.tanh(RNG('inception', i).standard_normal((n, 2048)) + .1*i).astype(np.float32) for i, n in enumerate((40, 50)))
    want = cleanfid.fid.frechet_distance(*(v for z in (x, y) for v in (z.mean(0), np.cov(z, rowvar=False))))
    assert frechet_distance(x, y) == pytest.approx(want, abs=1e-4*max(1, want))
