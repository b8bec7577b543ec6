"""Scenes: every tag is looked for in the pixels by means other than those that drew it; sets are pure functions of their seed."""
import functools, json, math, multiprocessing as mp
from collections import Counter
import numpy as np, pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from vaetag_nb.core.errors import UsageError
from vaetag_nb.data import synth
from vaetag_nb.data.synth import COUNTS, RGB, SHAPES, TAGS, compose, make_scenes, scene, scene_size, scene_tags
from vaetag_nb.data.tags import Vocab

N = 300
LEVEL = {'one_object': 1, 'two_objects': 2, 'three_objects': 3}

@pytest.fixture(scope='module')
def scenes(): return [scene(7, i) for i in range(N)]

@functools.cache
def nearest(pixels, shape):
    "The number of the colour that a pixel has, by its distance; 99 for none. The brightness of a colour varies by a few per cent"
    a = np.frombuffer(pixels, np.uint8).reshape(shape).astype(np.int32)
    d = np.stack([((a - np.array(rgb))**2).sum(-1) for rgb in RGB.values()])
    return np.where(d.min(0) < 20**2, d.argmin(0), 99).astype(np.uint8)

def colour_masks(a):
    "Which pixels have which of the ten colours"
    near = nearest(a.tobytes(), a.shape)
    return {c: near == i for i, c in enumerate(RGB)}

def on_plain(s):
    "One object of one colour on a background that cannot be taken for it"
    return 'one_object' in s.tags and 'filled' in s.tags and 'border' not in s.tags and 'drop_shadow' not in s.tags

def single(s):
    (colour,) = [c for c in RGB if c in s.tags]
    m = colour_masks(np.asarray(s.image))[colour]
    lab, n = ndimage.label(m)
    return ndimage.binary_closing(lab == 1+np.argmax(ndimage.sum(m, lab, range(1, n+1))))

def box(m):
    ys, xs = np.nonzero(m)
    return xs.min(), ys.min(), xs.max()+1, ys.max()+1

def test_colour_tags_are_the_colours_of_the_picture(scenes):
    for s in scenes:
        masks = colour_masks(np.asarray(s.image))
        seen = {c for c, m in masks.items() if ndimage.binary_erosion(m, np.ones((3, 3))).sum() >= 12}  # not a blurred edge
        assert seen == {c for c in RGB if c in s.tags}, s.meta

def test_number_of_objects_is_the_number_of_connected_parts(scenes):
    checked = 0
    for s in scenes:
        if 'overlapping' in s.tags or {'striped', 'dotted', 'shiny'} & set(s.tags): continue
        m = np.any(list(colour_masks(np.asarray(s.image)).values()), 0)
        lab, n = ndimage.label(m, np.ones((3, 3)))
        n = (ndimage.sum(m, lab, range(1, n+1)) >= 40).sum()
        assert n == max(LEVEL.get(t, 0) for t in s.tags), s.meta
        checked += 1
    assert checked > N/3

def test_place_and_size_of_single_objects(scenes):
    seen = Counter()
    for s in filter(on_plain, scenes):
        (w, h), (x0, y0, x1, y1) = s.image.size, box(single(s))
        x, y, half = (x0+x1)/2/w, (y0+y1)/2/h, max(x1-x0, y1-y0)/2/math.sqrt(w*h)
        want = {'on_left': x < .38, 'on_right': x > .62, 'at_top': y < .38, 'at_bottom': y > .62,
                'at_centre': .38 < x < .62 and .38 < y < .62,
                'small_object': half < .18, 'large_object': half > .18}
        for t, yes in want.items():
            assert (t in s.tags) == yes, (t, x, y, half, s.meta)
            seen[t] += yes
    assert min(seen.values()) >= 3 and len(seen) == 7

def template(shape, angle, n=96):
    "A shape drawn by Pillow's polygons and ellipses, cut to its box"
    im = Image.new('1', (3*n, 3*n)); d = ImageDraw.Draw(im); c, r = 1.5*n, n*.9
    at = lambda pts: [(c+x*r, c+y*r) for x, y in pts]
    disc = lambda x, y, q, fill=1: d.ellipse((c+(x-q)*r, c+(y-q)*r, c+(x+q)*r, c+(y+q)*r), fill=fill)
    turn = lambda k, m, q: (q*math.sin(2*math.pi*k/m), -q*math.cos(2*math.pi*k/m))
    if shape == 'circle': disc(0, 0, 1)
    if shape == 'square': d.polygon(at([(-1, -1), (1, -1), (1, 1), (-1, 1)]), fill=1)
    if shape == 'triangle': d.polygon(at([turn(k, 3, 1) for k in range(3)]), fill=1)
    if shape == 'star': d.polygon(at([turn(k, 10, 1 if k%2 == 0 else .435) for k in range(10)]), fill=1)
    if shape == 'ring': disc(0, 0, 1); disc(0, 0, .62, 0)
    if shape == 'cross':
        for a, b in ((1, .34), (.34, 1)): d.polygon(at([(-a, -b), (a, -b), (a, b), (-a, b)]), fill=1)
    if shape == 'crescent': disc(0, 0, 1); disc(.5, 0, .78, 0)
    if shape == 'heart':
        disc(-.42, -.4, .6); disc(.42, -.4, .6); d.polygon(at([(-.9, -.05), (.9, -.05), (0, 1)]), fill=1)
        d.polygon(at([(-.42, -.4), (.42, -.4), (0, .6)]), fill=1)
    return cut(np.asarray(im.rotate(angle), bool))

def cut(m, n=40):
    x0, y0, x1, y1 = box(m)
    side = max(x1-x0, y1-y0)
    out = np.zeros((side, side), bool)
    out[(side-y1+y0)//2:, (side-x1+x0)//2:][:y1-y0, :x1-x0] = m[y0:y1, x0:x1]
    return np.asarray(Image.fromarray(out).resize((n, n)))

def test_shapes_match_shapes_drawn_otherwise():
    ideal = {(s, a): template(s, a) for s in SHAPES[0] for a in range(-30, 31, 6) if abs(a) <= 6+synth.TILT.get(s, 0)}
    seen = Counter()
    for i in range(600):
        if not {'one_object', 'filled'} <= set(scene_tags(compose(8, i, 1., 1.))): continue
        s = scene(8, i, (160, 160))
        if not on_plain(s): continue
        m = cut(single(s))
        score = {k: (m & t).sum()/(m | t).sum() for k, t in ideal.items()}
        best = max(score, key=score.get)
        assert best[0] in s.tags and score[best] > .8, (best, score[best], s.meta)
        seen[best[0]] += 1
    assert set(seen) == set(SHAPES[0]) and min(seen.values()) >= 2

def test_styles_show_in_the_share_of_pale_pixels(scenes):
    seen = Counter()
    for s in scenes:
        if 'one_object' not in s.tags: continue
        a, t = np.asarray(s.image).astype(float), s.meta['things'][0]
        m = colour_masks(np.asarray(s.image))[t['colour']]
        full = ndimage.binary_fill_holes(m)
        inside = ndimage.binary_erosion(full, iterations=2)
        solid = (m & inside).sum()/inside.sum()
        rgb = np.array(RGB[t['colour']], float)
        pale = np.linalg.norm(a-(rgb+(255-rgb)*(.6 if t['colour'] == 'black' else .78)), axis=-1) < 24
        share = (pale & inside).sum()/inside.sum()
        if t['style'] == 'filled' and t['shape'] != 'ring': assert solid > .97, s.meta
        if t['style'] == 'striped': assert .15 < share < .55, (share, s.meta)
        if t['style'] == 'dotted': assert .1 < share < .4, (share, s.meta)
        seen[t['style']] += 1
    assert len(seen) == 5

def test_relations_between_objects(scenes):
    seen = Counter()
    for s in scenes:
        T = s.meta['things']
        for a, b in [(a, b) for i, a in enumerate(T) for b in T[:i]]:
            d = math.hypot(a['x']-b['x'], a['y']-b['y'])
            if 'inside' in s.tags and {a['size'], b['size']} == {'small', 'large'} and d < 1: seen['inside'] += 1; continue
            if 'overlapping' in s.tags and {id(a), id(b)} == {id(T[0]), id(T[1])}: seen['overlapping'] += 1; continue
            ma, mb = (mask(t, s.image.size) for t in (a, b))
            assert not (ndimage.binary_dilation(ma) & mb).any(), s.meta
        if 'overlapping' in s.tags:
            a, b = (mask(t, s.image.size) for t in T[:2])
            assert .05 < (a & b).sum()/a.sum() < .36 and (a & b).sum() > .05*b.sum(), s.meta
            px = colour_masks(np.asarray(s.image))
            assert px[T[1]['colour']].sum() > 60 and px[T[0]['colour']].sum() > 60
    assert seen['inside'] > 5 and seen['overlapping'] > 5

def mask(t, size):
    "The area of a thing, from its numbers only"
    w, h = size
    Y, X = np.mgrid[.5:h, .5:w]
    return synth.Thing(**t).distance(X, Y) < 0

def test_background_tags(scenes):
    for s in scenes:
        a = np.asarray(s.image).astype(float)/255
        m = np.any(list(colour_masks(np.asarray(s.image)).values()), 0)
        ring = np.ones(m.shape, bool); k = int(.08*math.sqrt(m.size)) if 'border' in s.tags else 0
        ring[k:m.shape[0]-k, k:m.shape[1]-k] = False
        bg = ~ndimage.binary_dilation(m, iterations=3) & (~ring if k else True)
        for t in s.meta['things']: bg &= ~mask(t | dict(half=t['half']*1.3), s.image.size)
        level = np.median(a[bg].mean(-1))
        assert ('light_background' in s.tags) == (level > .5), (level, s.meta)
        assert ('dark_background' in s.tags or 'night_sky' in s.tags) == (level < .5)
        if 'simple_background' in s.tags and 'drop_shadow' not in s.tags: assert a[bg].std(0).max() < .01, s.meta
        if 'gradient_background' in s.tags: assert a[bg].std(0).max() > .02, s.meta
        grounds = [g for g in synth.GROUNDS[0] if g in s.tags]
        assert len(grounds) == 1
    edges = [np.asarray(s.image)[:3].reshape(-1, 3).std(0).max() for s in scenes if 'border' in s.tags]
    assert len(edges) > 5 and max(edges) < 2

def test_frequencies_are_long_tailed_and_none_is_missing():
    freq = Counter(t for i in range(2000) for t in scene_tags(compose(0, i, 1., 1.)))
    assert set(freq) == set(TAGS) and min(freq.values()) >= 10
    n = sorted(freq.values(), reverse=True)
    assert n[0] > 1000 and n[len(n)//2] < 350 and n[-1] < 60
    assert all(sum(t in s.tags for t in COUNTS[0]) == 1 for s in (scene(0, i) for i in range(50)))

def _picture(i): return np.asarray(scene(5, i).image).tobytes()

def test_any_order_and_any_process_give_the_same_pictures():
    here = [_picture(i) for i in range(12)]
    with mp.get_context('spawn').Pool(1) as pool: there = pool.map(_picture, reversed(range(12)), chunksize=3)
    assert here == there[::-1]
    assert len(set(here)) == 12 and here != [np.asarray(scene(6, i).image).tobytes() for i in range(12)]

def test_content_does_not_depend_on_resolution():
    for i in range(30):
        assert scene(1, i, 64).tags == scene(1, i, 256).tags
        w, h = scene_size(1, i, 128)
        assert w%16 == h%16 == 0 and 15000 < w*h <= 16384

def test_a_set_on_disk(tmp_path):
    made = make_scenes(tmp_path/'s', 40, seed=3)
    d = json.loads((tmp_path/'s/data.json').read_text(encoding='utf-8'))
    vocab = Vocab.read(tmp_path/'s/tags.csv')
    assert made == dict(images=40, tags=len(vocab), made=40) and len(d) == 40
    counts = Counter(e.rsplit(':', 1)[0].strip() for v in d.values() for e in v.split(','))
    assert dict(zip(vocab.names, vocab.counts.tolist())) == counts
    assert list(vocab.counts) == sorted(vocab.counts, reverse=True) and set(vocab.categories) == {0}
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path/'s').rglob('*.png')}
    assert make_scenes(tmp_path/'s', 40, seed=3)['made'] == 0
    assert before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path/'s').rglob('*.png')}
    make_scenes(tmp_path/'t', 40, seed=3)
    for p in sorted((tmp_path/'s').rglob('*')):
        if p.is_file(): assert p.read_bytes() == (tmp_path/'t'/p.relative_to(tmp_path/'s')).read_bytes()

def test_an_interrupted_set_goes_on(tmp_path, monkeypatch):
    real, calls = synth.scene, []
    def stop(*a):
        calls.append(a)
        if len(calls) == 8: raise KeyboardInterrupt
        return real(*a)
    monkeypatch.setattr(synth, 'scene', stop)
    with pytest.raises(KeyboardInterrupt): make_scenes(tmp_path, 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['images', 'scenes.json']
    assert len(list((tmp_path/'images').iterdir())) == 7
    assert make_scenes(tmp_path, 20)['made'] == 13

@pytest.mark.parametrize('size', [0, 16, (10, 100), (400, 100)])
def test_impossible_sizes(size):
    if size == 0: assert scene(0, 0, None).image.size == scene(0, 0, 128).image.size
    else:
        with pytest.raises(UsageError): scene(0, 0, size)
