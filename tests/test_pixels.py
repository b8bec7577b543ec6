"Pictures as a pixel tagger sees them, the plans that choose them and the losses that judge it: what holds across notebooks"
import tarfile
import numpy as np, pytest, scipy.sparse as sp, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from vaetag_nb.data.augment import AugmentConfig, AugmentedSquares
from vaetag_nb.data.square import Square
from vaetag_nb.data.synth import scene
from vaetag_nb.losses import NAMES, TimmLoss
from vaetag_nb.trainers.plan import PlanSampler
from vaetag_nb.trainers.sampling import balanced, comb, repeat_factor
from vaetag_nb.trainers.task import load_slices

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    d = tmp_path_factory.mktemp('pixels')
    for i in range(6): scene(0, i, (40 + i, 36)).image.save(d/f'{i}.png')
    return [d/f'{i}.png' for i in range(6)]

def source(files, **more): return AugmentedSquares(files, sp.identity(len(files), np.float32, 'csr'), Square(24), AugmentConfig(rotate=10, jitter=(.2, .2, .2, .1), cutout=.05, **more), seed=3)

def test_processes_workers_and_batches_change_no_picture(files):
    "Three copies of each picture an epoch: each drawn by itself, the same for any number of processes, loading processes and rows of a batch"
    labels = sp.csr_matrix(np.ones((6, 3), np.float32))
    def seen(size, world, workers):
        out = {}
        for rank in range(world):
            for s, b in load_slices(source(files), PlanSampler(balanced(labels, batch_size=size, seed=1), rank, world, epochs=2), workers):
                out |= {(s.epoch, int(p)): (int(i), x.numpy().tobytes()) for p, i, x in zip(s.places, b['index'], b['x'])}
        return out
    one = seen(4, 1, 0)
    assert len(one) == 36 and len({x for x in one.values()}) == 36 and [i for i, _ in one.values()].count(5) == 6
    assert seen(4, 2, 0) == seen(6, 1, 1) == one

def test_members_of_archives_are_pictures(files, tmp_path):
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        for f in files[:2]: t.add(f, f.name)
    a, b = (source(paths).get(1, [1, 0])['x'] for paths in (files[:2], [f'{tmp_path}/a.tar::{f.name}' for f in files[:2]]))
    assert torch.equal(a, b)
    missing = AugmentedSquares([f'{tmp_path}/a.tar::none.png', files[0]], sp.identity(2, np.float32, 'csr'), Square(24)).get(0, [0, 1])
    assert (missing['index'].tolist(), missing['failed'].tolist(), missing['y'].tolist()) == ([1], [0], [[0., 1.]])

def test_any_kind_of_picture_is_upright_rgb_on_white(tmp_path):
    red, exif = Image.new('RGB', (30, 10), (255, 0, 0)), Image.Exif()
    exif[0x0112] = 6
    red.save(tmp_path/'turned.png', exif=exif); red.convert('CMYK').save(tmp_path/'cmyk.tif'); red.convert('P').save(tmp_path/'palette.png')
    Image.fromarray(np.full((10, 30), 65535, np.uint16)).save(tmp_path/'deep.png'); Image.new('LA', (30, 10), (0, 0)).save(tmp_path/'clear.png')
    b = Square(30).load([tmp_path/f for f in ('turned.png', 'cmyk.tif', 'palette.png', 'deep.png', 'clear.png')])
    assert not b.errors and b.boxes[0].tolist() == [-10, 0, 20, 30]      # 10 wide and 30 high
    for x in b.images[1:3]: assert x[:, 15, 15].tolist() in ([255, 0, 0], [254, 0, 0]) and x[:, 0, 0].tolist() == [255]*3
    assert b.images[3:].min() == 255

LABELS = st.integers(1, 30).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=n, max_size=n)).filter(lambda y: any(map(any, y)))

@settings(max_examples=25)
@given(LABELS, st.integers(1, 9), st.integers(0, 5))
def test_tags_are_in_balance(y, most, epoch):
    y = np.array(y, np.float32)
    plan, n = balanced(sp.csr_matrix(y), most, batch_size=4, seed=2), y.sum(0)
    entries = np.concatenate(list(plan(epoch)))
    assert len(entries) == plan.length == np.minimum(n, most).sum() and plan(epoch)[0].dtype == np.int32
    assert (y[entries].sum(0) >= np.minimum(n, most)).all() and y[entries].any(1).all()
    rounds = [np.concatenate(list(plan(e))) for e in range(-(-int(n.max())//most))]
    assert set(np.concatenate(rounds)) == set(np.flatnonzero(y.any(1)))  # a full round shows every picture that has a tag

@settings(max_examples=25)
@given(LABELS, st.floats(.01, 1), st.integers(0, 5))
def test_repeats_are_the_next_below_or_above(y, t, epoch):
    y = np.array(y, np.float32)
    f = y.mean(0)
    r = np.array([min(20, max([1, *np.sqrt(t/f[row > 0])])) for row in y])
    plan = repeat_factor(sp.csr_matrix(y), t, batch_size=4, seed=2)
    n, share = np.bincount(np.concatenate(list(plan(epoch))), minlength=len(y)), r*round(r.sum())/r.sum()
    assert n.sum() == plan.length == round(r.sum()) and (abs(n - share) < 1 + 1e-6).all()

@settings(max_examples=25)
@given(st.lists(st.floats(1, 20), min_size=1, max_size=50), st.floats(0, 1, exclude_max=True))
def test_a_comb_keeps_the_sum(r, u):
    r = np.array(r)*round(sum(r))/sum(r)
    n = comb(r, u)
    assert n.sum() == round(r.sum()) and (abs(n - r) < 1 + 1e-6).all()

@pytest.mark.parametrize('kind', NAMES)
def test_a_loss_leaves_no_graph_behind(kind):
    "Validation under `no_grad`: the mode is as before, and nothing is kept"
    f = TimmLoss(kind, detach_focus=True, counts=[3, 2, 1], num_samples=9)
    x = torch.zeros(2, 3, requires_grad=True)
    with torch.no_grad(): l = f(x, torch.eye(2, 3)); assert not torch.is_grad_enabled() and not l.requires_grad
    assert f(x, torch.eye(2, 3)).requires_grad and torch.equal(f(x, torch.eye(2, 3)).detach(), l)
    assert f(x[:0], torch.zeros(0, 3)).isfinite()                         # a batch of which nothing could be read
