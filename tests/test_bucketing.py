"Buckets, preprocessing and batches: the acceptance table and properties on random input"
import dataclasses as dc, itertools, json
from fractions import Fraction
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from vaetag_nb.bucketing import INCOMPLETE, Buckets, Groups, Preprocess, batches_by_bucket, kept_size, nearest_bucket
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.data.images import crop_box

# --- the table of the specification ------------------------------------------------------------------------------------
def test_the_default_grid():
    b = Buckets(512, 1024, 64)
    assert len(b) == 81 and len({Fraction(int(w), int(h)) for w, h in b.sizes}) == 67
    assert b.sizes.tolist() == sorted(map(list, itertools.product(range(512, 1025, 64), repeat=2)))

@pytest.mark.parametrize('image, bucket', [((512, 512), (512, 512)), ((1024, 1024), (1024, 1024)), ((1920, 1080), (1024, 576)),
                                           ((1024, 768), (1024, 768)), ((1000, 667), (960, 640)), ((3000, 1000), (1024, 512))])
def test_acceptance(image, bucket):
    b = Buckets(512, 1024, 64)
    assert tuple(b.sizes[b.assign([image[0]], [image[1]])[0]]) == bucket

def test_acceptance_crops():
    assert [x.tolist() for x in kept_size([1000, 3000], [667, 1000], [960, 1024], [640, 512])] == [[1000, 2000], [666, 1000]]
    a, box = Preprocess().apply(np.zeros((1080, 1920, 3), np.uint8))
    assert a.shape == (576, 1024, 3) and (a.shape[0]//8, a.shape[1]//8) == (72, 128) and box == (0, 0, 1920, 1080)

# --- assignment against an exact, independent rule ---------------------------------------------------------------------
def exact_bucket(w, h, sizes):
    "The rule in exact fractions: the quotient of two ratios, at least 1, stands for the distance of their logarithms"
    far = [max(q := Fraction(int(bw)*h, int(bh)*w), 1/q) for bw, bh in sizes]
    tied = [i for i, f in enumerate(far) if f == min(far)]
    area = lambda i: int(sizes[i][0])*int(sizes[i][1])
    filled = [i for i in tied if area(i) <= w*h]
    if filled: return max(filled, key=lambda i: (area(i), sizes[i][0]))
    return max(tied, key=lambda i: (-area(i), sizes[i][0]))

@st.composite
def grids(draw):
    "base, max, step, max_area of a small grid"
    step = draw(st.sampled_from([8, 16, 32, 64, 96, 128]))
    base = draw(st.integers(1, 8))*step
    top = base + draw(st.integers(0, 8))*step
    return base, top, step, draw(st.none() | st.integers(base*base, top*top))

@given(grids(), st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=30), st.data())
def test_assignment_is_the_rule(grid, images, data):
    b = Buckets(*grid)
    images += [tuple(int(x)*k for x in b.sizes[i]) for i, k in data.draw(st.lists(st.tuples(st.integers(0, len(b)-1), st.integers(1, 3)), max_size=5))]
    w, h = np.array(images, dtype=np.int64).reshape(-1, 2).T
    want = [exact_bucket(x, y, b.sizes) for x, y in images]
    assert b.assign(w, h).tolist() == want == [nearest_bucket(x, y, b.sizes) for x, y in images]
    assert b.assign(w.astype(np.int32), h.astype(np.uint16)).tolist() == want

@given(st.integers(1, 6), st.sampled_from([4, 9, 16]), st.integers(1, 2000), st.integers(1, 3))
def test_two_ratios_tie(base, square, size, k):
    "Sides b and s*b with s a square: a picture of sqrt(s):1 is as far from 1:1 as from s:1"
    b = Buckets(base, base*square, base*(square - 1))
    r = int(square**.5)
    for w, h in [(size*r*k, size*k), (size*k, size*r*k)]: assert b.assign([w], [h])[0] == exact_bucket(w, h, b.sizes)

def test_portrait_and_landscape_are_alike():
    b, rng = Buckets(), np.random.default_rng(0)
    w, h = rng.integers(100, 4000, (2, 5000))
    assert (b.sizes[b.assign(w, h)] == b.sizes[b.assign(h, w)][:, ::-1]).all(1).mean() > .999  # the wider of two that tie

def test_blocks_and_extremes_change_nothing(monkeypatch):
    b, rng = Buckets(64, 2048, 32), np.random.default_rng(1)
    w, h = rng.integers(1, 70_000, (2, 3000))
    w[:4], h[:4] = [1, 65_535, 2**31 - 1, 1], [65_535, 1, 1, 2**31 - 1]
    want = b.assign(w, h)
    monkeypatch.setattr('vaetag_nb.bucketing.BLOCK', 7)
    assert (b.assign(w, h) == want).all() and want.dtype == np.uint16
    assert [tuple(s) for s in b.sizes[want[:4]]] == [(64, 2048), (2048, 64), (2048, 64), (64, 2048)]

@given(grids(), st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=30))
def test_the_table_counts_every_picture(grid, images):
    b = Buckets(*grid)
    w, h = np.array(images).T
    t, f, r = b.table(w, h), b.fate(w, h), b.crop_report(w, h)
    assert t.images.sum() == r['images'] == len(images) and t.upscaled.sum() == r['upscaled'] == f.upscaled.sum() and abs(t.share.sum() - 1) < 1e-9
    assert ((0 < f.kept) & (f.kept <= 1)).all() and f.kept[r['worst'][0]] == f.kept.min() == r['kept_min']
    for (x, y), i, kept in zip(images, f.bucket, f.kept):
        x0, y0, x1, y1 = crop_box(x, y, *map(int, b.sizes[i]))
        assert abs(kept - (x1 - x0)*(y1 - y0)/(x*y)) < 1e-12

@pytest.mark.parametrize('kw, says', [
    (dict(base=0), 'base = 0'), (dict(base=-64), 'base = -64'), (dict(step=0), 'step = 0'), (dict(step=-8), 'step = -8'), (dict(max=448), 'max = 448'),
    (dict(base=512.), 'base = 512.0'), (dict(max_area=100), 'max_area = 100'), (dict(max_area=2**40), 'max_area'), (dict(base=500, multiple=8), 'take 496 or 504'),
    (dict(step=4, multiple=8), 'step = 4 is no multiple of 8, which the model needs: take 8'), (dict(max=1020, multiple=16), 'take 1008 or 1024'), (dict(base=8, max=4096, step=8), 'buckets: 65536 at most')])
def test_wrong_grids(kw, says):
    with pytest.raises(UsageError) as e: Buckets(**kw)
    assert says in str(e.value) and '\n' not in str(e.value) and e.value.exit_code == 2

@pytest.mark.parametrize('w, h', [([1, 2], [1]), ([[1]], [[1]])])
def test_sizes_that_do_not_fit(w, h):
    with pytest.raises(UsageError): Buckets().assign(w, h)

# --- preprocessing ---------------------------------------------------------------------------------------------------
pre = st.builds(Preprocess, bucketing=st.booleans(), base=st.sampled_from([64, 128]), max=st.sampled_from([128, 256]), step=st.sampled_from([32, 64]), max_area=st.none() | st.integers(128**2, 128**2),
                resolution=st.integers(8, 300), fit=st.sampled_from(['crop', 'pad', 'squash']), crop=st.sampled_from(['center', 'random', 'top', 'bottom']),
                filter=st.sampled_from(['lanczos', 'bicubic', 'bilinear']), background=st.tuples(*[st.integers(0, 255)]*3))

@given(pre)
def test_preprocess_survives_json(p):
    assert Preprocess.from_dict(json.loads(json.dumps(p.to_dict()))) == p

@settings(max_examples=40)
@given(pre, st.integers(1, 400), st.integers(1, 400), st.none() | st.floats(0, 1, exclude_max=True))
def test_one_picture_and_a_batch_agree(p, w, h, u):
    im = Image.effect_noise((w, h), 60).convert('RGB')
    a, box = p.apply(im, u)
    (tw,), (th,) = p.assign([w], [h])
    b = p.load([im, im], (tw, th), us=[u, u], threads=2)
    assert a.shape == (th, tw, 3) and not b.errors and b.boxes.tolist() == [list(box)]*2
    assert all((x.permute(1, 2, 0).numpy() == a).all() for x in b.images)

@given(pre, pre)
def test_effective_settings_are_those_that_count(p, q):
    "Different effective settings are different keys; equal ones give equal pixels"
    if p.effective() == q.effective():
        im = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
        assert (p.apply(im)[0] == q.apply(im)[0]).all()
    assert p.effective() == dc.replace(p, **({'resolution': 77} if p.bucketing else {'step': 16})).effective()

@pytest.mark.parametrize('change', [dict(bucketing='yes'), dict(base='x'), dict(fit='fill'), dict(background=[1, 2]), dict(background=[1, 2, 999]), dict(extra=1), dict(resolution=0), dict(crop=None)])
def test_wrong_preprocess(change):
    with pytest.raises(VaetagError) as e: Preprocess.from_dict(Preprocess().to_dict() | change)
    assert next(iter(change)) in str(e.value) and '\n' not in str(e.value)

# --- batches ---------------------------------------------------------------------------------------------------------
some_ids = st.lists(st.integers(0, 6), max_size=120) | st.lists(st.sampled_from([-3, 70_000, 2**40]), max_size=20)

@given(some_ids, st.integers(1, 20), st.sampled_from(INCOMPLETE), st.integers(0, 3), st.integers(0, 3))
def test_batches(ids, size, policy, seed, epoch):
    b, ids = batches_by_bucket(np.array(ids, np.int64), size, seed, epoch, policy), np.array(ids, np.int64)
    n, counts = len(ids), np.unique(ids, return_counts=True)[1]
    seen = np.concatenate([*b]) if len(b) else np.zeros(0, np.int32)
    times = np.bincount(seen, minlength=n)
    assert all(len(x) and len(set(ids[x])) == 1 and ids[x[0]] == k for x, k in zip(b, b.bucket))  # no mixed shapes
    assert seen.dtype == np.int32 and [x.tolist() for x in b] == [b[i].tolist() for i in range(len(b))]
    full = [len(x) == size for x in b]
    if policy in ('short', 'merge'): assert (times == 1).all()                      # every sample exactly once
    if policy == 'short': assert len(b) == sum(-(-c//size) for c in counts) and all(len(x) <= size for x in b)
    if policy == 'merge': assert len(b) == sum(max(1, c//size) for c in counts) and all(min(size, counts.min(initial=size)) <= len(x) < 2*size for x in b)
    if policy == 'drop': assert all(full) and (times <= 1).all() and len(b) == sum(c//size for c in counts)
    if policy == 'repeat': assert all(full) and (times >= 1).all() and all(np.ptp(times[ids == k]) <= 1 for k in set(ids.tolist()))
    r = b.report
    assert r['kept'] == (times > 0).sum() == n - r['dropped'] and r['repeated'] == (times - 1).clip(0).sum() and r['short'] == sum(len(x) < size for x in b)

@given(st.lists(st.integers(0, 4), min_size=30, max_size=80), st.integers(2, 8), st.sampled_from(INCOMPLETE))
def test_an_epoch_is_a_function_of_seed_and_number(ids, size, policy):
    lists = lambda *a: [x.tolist() for x in batches_by_bucket(*a, policy)]
    g = Groups(ids)
    first = lists(g, size, 1, 1)
    assert first == lists(ids, size, 1, 1) == lists(g, size, 1, 1)
    assert first != lists(g, size, 1, 2) or first != lists(g, size, 2, 1)

def test_dropped_samples_change_with_the_epoch():
    ids = [0]*10
    assert len({tuple(sorted(np.concatenate([*batches_by_bucket(ids, 4, 0, e, 'drop')]))) for e in range(20)}) > 5

def test_shuffling_is_even():
    "Every sample comes first about as often"
    first = np.bincount([batches_by_bucket([0]*20, 5, 0, e).order[0] for e in range(4000)], minlength=20)
    assert abs(first - 200).max() < 60

@pytest.mark.parametrize('call', [lambda: batches_by_bucket([0, 1], 0), lambda: batches_by_bucket([0], 2.5), lambda: batches_by_bucket([0], 2, incomplete='pad'),
                                  lambda: batches_by_bucket([.5], 2), lambda: batches_by_bucket([[1]], 2)])
def test_wrong_batches(call):
    with pytest.raises(UsageError) as e: call()
    assert '\n' not in str(e.value)
