"Pictures of every kind and brokenness: decoding, sizes, batches"
import io, itertools, json, os, resource, signal, struct, threading, time, warnings, zlib
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.data import images as I
from vaetag_nb.data.decode import TURNS, quiet
from vaetag_nb.data.images import ImageError, crop_box, fit_box, image_sizes, list_images, load_batch, load_image, resize
from vaetag_nb.data.sizes import peek_size, picture_size

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8))

def saved(im, fmt, **kw): im.save(f := io.BytesIO(), fmt, **kw); return f.getvalue()
def turned(o): e = Image.Exif(); e[0x0112] = o; return e
def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

@pytest.fixture
def limit():
    "A decoder that hangs is stopped and fails the test"
    def stop(*_): raise TimeoutError('hangs')
    old = signal.signal(signal.SIGALRM, stop); signal.alarm(60)
    yield
    signal.alarm(0); signal.signal(signal.SIGALRM, old)

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10  # MB

# --- the nasty set ---------------------------------------------------------------------------------------------------
def test_nasty_files(shared, limit):
    "Each file that Pillow decodes is decoded, at the size that the header scan found; each other one is an ImageError"
    folder, before = shared/'nasty', peak()
    entries = json.loads((folder/'manifest.json').read_text(encoding='utf-8'))
    outcome = {}
    for e in entries:
        p, start = folder/'files'/e['file'], time.time()
        w, h, errors = image_sizes([p])
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            try: im = load_image(p)
            except ImageError as x:
                outcome[e['file']] = x.reason
                assert str(p) in str(x) and '\n' not in str(x) and 0 < len(x.reason) < 250
            else:
                assert im.mode == 'RGB' and (im.size, errors) == ((w[0], h[0]), {}), e['file']
        assert time.time() - start < 20, e['file']
        if e['load'] == 'ok': assert e['file'] not in outcome, outcome
    assert len(entries) > 90 and set(outcome) <= {e['file'] for e in entries if e['error']} and len(outcome) >= 14
    assert peak() - before < 1000

def test_nasty_files_turned(shared):
    "What the manifest calls orientation 5 to 8 has width and height swapped; formats where Pillow turns itself are named"
    for e in json.loads((shared/'nasty/manifest.json').read_text(encoding='utf-8')):
        if e['load'] != 'ok' or e['format'] == 'TIFF': continue
        w, h = e['size']
        assert picture_size(shared/'nasty/files'/e['file']) == ((h, w) if e['orientation'] in (5, 6, 7, 8) else (w, h)), e['file']

def test_nasty_batch(shared, limit):
    "A batch names what it leaves out, and threads change nothing"
    files = list_images(shared/'nasty')
    a, b = (load_batch(files, (64, 48), threads=n) for n in (1, 4))
    assert torch.equal(a.images, b.images) and a.errors == b.errors and (a.boxes == b.boxes).all()
    assert len(a.images) == len(files) - len(a.errors) and 8 <= len(a.errors) < 20
    for i in a.errors:
        with pytest.raises(ImageError): load_image(files[i])

def test_torchcodec_gives_the_same_pixels(shared):
    pytest.importorskip('torchcodec')
    if I.torchcodec_jpeg() is None: pytest.skip('torchcodec does not work with this torch')
    for p in [*list_images(shared/'nasty'), *list_images(shared/'clothing_cc0')[:50]]:
        data = p.read_bytes()
        try: want = np.asarray(load_image(data))
        except ImageError: continue
        assert (np.asarray(I.pixels(data)) == want).all(), p

# --- made-up hostility -----------------------------------------------------------------------------------------------
def corpus():
    "Every mode in every format that takes it, all orientations"
    ramp = Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)*32)
    modes = {m: NOISE.convert(m) for m in ('1', 'L', 'P', 'RGB', 'RGBA', 'LA', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'F')} | {'I;16': ramp}
    for fmt, (m, im) in itertools.product(('PNG', 'JPEG', 'TIFF', 'WEBP', 'GIF', 'BMP', 'PPM', 'ICO', 'JPEG2000', 'AVIF', 'TGA'), modes.items()):
        try: yield f'{fmt} {m}', saved(im, fmt)
        except (OSError, ValueError, KeyError): continue  # a mode that this format does not have
    for fmt, o in itertools.product(('PNG', 'JPEG', 'TIFF', 'WEBP', 'AVIF'), range(10)): yield f'{fmt} turned {o}', saved(NOISE, fmt, exif=turned(o))
    for fmt in ('GIF', 'WEBP', 'PNG', 'TIFF'): yield f'{fmt} animated', saved(NOISE, fmt, save_all=True, append_images=[NOISE.rotate(90)])
    for q in ('gif', 'png'):
        for t in (0, 200): yield f'{q} palette {t}', saved(NOISE.quantize(255), q, transparency=t)
    yield 'palette alphas', saved(NOISE.quantize(255), 'PNG', transparency=bytes(range(255)))
    yield 'progressive', saved(NOISE, 'JPEG', progressive=True)
    yield 'xmp', saved(NOISE, 'JPEG', xmp=b'<x tiff:Orientation="6"/>' + b' '*5000)
    yield 'xmp and exif', saved(NOISE, 'JPEG', xmp=b'<x tiff:Orientation="6"/>', exif=turned(1))
    yield 'lossless webp', saved(NOISE.convert('RGBA'), 'WEBP', lossless=True, xmp=b'<x tiff:Orientation="6"/>')

CORPUS = dict(corpus())

@pytest.mark.parametrize('name', CORPUS)
def test_size_scan_agrees_with_decoding(tmp_path, name):
    (tmp_path/'x').write_bytes(CORPUS[name])
    im = load_image(tmp_path/'x')
    assert im.mode == 'RGB' and picture_size(tmp_path/'x') == im.size
    assert im.size in ((50, 40), (40, 50)) or name.startswith('ICO')  # it holds smaller copies
    turn = name.split(' turned ')
    if len(turn) == 2: assert im.size == ((40, 50) if int(turn[1]) in (5, 6, 7, 8) else (50, 40))

@pytest.mark.parametrize('turn', TURNS)
def test_turned_pictures_stand_upright(turn):
    "Decoding undoes what a camera did, pixel by pixel (lossless format)"
    assert load_image(saved(NOISE, 'PNG', exif=turned(turn))).tobytes() == NOISE.transpose(TURNS[turn]).tobytes()

@pytest.mark.parametrize('extra, where, upright', [
    ((b'eXIf', turned(6).tobytes()[6:]), 'end', False), ((b'eXIf', turned(6).tobytes()[6:]), 'start', False),
    ((b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="8"/>'), 'end', False),
    ((b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(b'<x tiff:Orientation="8"/>')), 'start', False),
    ((b'zTXt', b'XML:com.adobe.xmp\0\0' + zlib.compress(b'<x tiff:Orientation="8"/>')), 'end', False),
    ((b'tEXt', b'Raw profile type exif\0\nexif\n8\n' + turned(6).tobytes().hex().encode()), 'start', False),
    ((b'tEXt', b'Comment\0tiff:Orientation="8"'), 'start', True), ((b'iTXt', b'parameters\0\0\0\0\0' + 'ü'.encode()*9000), 'end', True),
    ((b'eXIf', b'MM\0*junk'), 'start', True), ((b'eXIf', b''), 'end', True), ((b'prVt', b'?'*70_000), 'start', True)])
def test_png_chunks(tmp_path, extra, where, upright):
    png = saved(NOISE, 'PNG')
    at = 33 if where == 'start' else len(png) - 12
    (tmp_path/'x').write_bytes(png[:at] + chunk(*extra) + png[at:])
    assert load_image(tmp_path/'x').size == picture_size(tmp_path/'x') == ((50, 40) if upright else (40, 50))

def test_our_parsers_do_the_work():
    "If they were broken, Pillow would answer and nobody would notice"
    plain = [d for n, d in CORPUS.items() if n.split()[0] in ('PNG', 'JPEG', 'GIF') or n in ('WEBP RGB', 'WEBP RGBA', 'BMP RGB')]
    assert sum(peek_size(io.BytesIO(d)) is not None for d in plain) > .95*len(plain) > 30

@pytest.mark.parametrize('seed', range(4))
def test_damaged_files(tmp_path, limit, seed):
    "Cut, flipped, overwritten and spliced: decoded or refused, never anything else; sizes agree where it decodes"
    rng, names, before = np.random.default_rng(seed), sorted(CORPUS), peak()
    decoded = 0
    for i in range(150):
        b, kind = bytearray(CORPUS[names[rng.integers(len(names))]]), rng.integers(4)
        if kind == 0: b = b[:rng.integers(1, len(b))]
        elif kind == 1:
            for _ in range(rng.integers(1, 8)): b[rng.integers(min(len(b), 200))] = rng.integers(256)
        elif kind == 2:
            for _ in range(rng.integers(1, 30)): b[rng.integers(len(b))] = rng.integers(256)
        else: k = rng.integers(len(b)); b[k:k+rng.integers(1, 60)] = rng.bytes(rng.integers(0, 60))
        (tmp_path/'x').write_bytes(b)
        _, _, errors = w, h, _ = image_sizes([tmp_path/'x'])
        try: im = load_image(tmp_path/'x')
        except ImageError as e: assert '\n' not in str(e)
        else: decoded += 1; assert (im.size, errors) == ((w[0], h[0]), {})
    assert 20 < decoded < 130 and peak() - before < 1500

@pytest.mark.parametrize('make', [
    lambda: saved(Image.new('1', (13_500, 13_500)), 'PNG'), lambda: saved(NOISE, 'JPEG').replace(b'\0\x28\0\x32', b'\xff\xff\xff\xff'),
    lambda: saved(NOISE, 'BMP').replace(struct.pack('<ii', 50, 40), struct.pack('<ii', 90_000, 90_000)),
    lambda: saved(NOISE, 'PPM').replace(b'50 40', b'60000 60000'), lambda: saved(NOISE, 'TIFF').replace(struct.pack('<HHII', 256, 4, 1, 50), struct.pack('<HHII', 256, 4, 1, 2**31-1)),
    lambda: saved(NOISE.convert('RGBA'), 'WEBP', lossless=True)[:21] + b'\xff\xff\xff\xff' + saved(NOISE.convert('RGBA'), 'WEBP', lossless=True)[25:]])
def test_bombs_cost_nothing(tmp_path, limit, make):
    (tmp_path/'x').write_bytes(make())
    before, start = peak(), time.time()
    with pytest.raises(ImageError): load_image(tmp_path/'x')
    assert str(tmp_path/'x') in image_sizes([tmp_path/'x'])[2]
    assert peak() - before < 100 and time.time() - start < 5

def test_no_file_is_waited_for(tmp_path, limit):
    "Pipes, devices, folders, sockets of names, dead links"
    os.mkfifo(tmp_path/'pipe.png'); (tmp_path/'folder.png').mkdir(); (tmp_path/'dead.png').symlink_to('gone'); (tmp_path/'loop.png').symlink_to('loop.png')
    (tmp_path/'zero.png').symlink_to('/dev/zero'); (tmp_path/'empty.png').touch()
    files = sorted(tmp_path.iterdir())
    _, _, errors = image_sizes(files)
    assert set(errors) == set(map(str, files))
    assert set(load_batch(files, (8, 8)).errors) == set(range(len(files)))
    assert [p.name for p in list_images(tmp_path)] == ['dead.png', 'empty.png', 'loop.png', 'pipe.png', 'zero.png']
    for bad in ('a\0b', tmp_path/('n'*300), ''):
        with pytest.raises(ImageError): load_image(bad)

def test_odd_names(tmp_path):
    names = ['ü.png', 'a b.PNG', "quote'.png", 'new\nline.png', os.fsdecode(b'\xff\xfe.png')]
    for n in names: NOISE.save(tmp_path/'t.png'); os.replace(tmp_path/'t.png', tmp_path/n)
    assert {p.name for p in list_images(tmp_path)} == set(names)
    assert image_sizes(list_images(tmp_path))[0].tolist() == [50]*5 and not load_batch(list_images(tmp_path), (8, 8)).errors
    (tmp_path/names[3]).write_bytes(b'x')
    with pytest.raises(ImageError) as e: load_image(tmp_path/names[3])
    assert '\n' not in str(e.value)

def test_size_cache_survives_anything(tmp_path):
    files = [tmp_path/f'{i}.png' for i in range(5)]
    for i, p in enumerate(files): NOISE.resize((10 + i, 20)).save(p)
    for content in (None, b'', b'junk', saved(NOISE, 'PNG')):
        if content is not None: (tmp_path/'sizes').write_bytes(content)
        assert image_sizes(files, tmp_path/'sizes')[0].tolist() == [10, 11, 12, 13, 14]
    st_ = files[0].stat(); NOISE.resize((9, 9)).save(files[0]); os.utime(files[0], ns=(st_.st_atime_ns, st_.st_mtime_ns + 1))
    assert image_sizes(files, tmp_path/'sizes')[0].tolist() == [9, 11, 12, 13, 14]
    with pytest.raises(VaetagError, match='cannot write'): image_sizes(files, files[0]/'sizes')

# --- sharing a process -----------------------------------------------------------------------------------------------
def test_callers_torch_threads_stay(tmp_path):
    NOISE.save(tmp_path/'a.png')
    seen, old = {}, torch.get_num_threads()
    def inside(n):
        torch.set_num_threads(n)
        load_batch([tmp_path/'a.png']*8, (32, 32), threads=n + 1)
        seen[n] = torch.get_num_threads()
    try:
        for n in (1, 2, 3): t = threading.Thread(target=inside, args=(n,)); t.start(); t.join()
        assert seen == {1: 1, 2: 2, 3: 3} and torch.get_num_threads() == old
        torch.set_num_threads(2); load_batch([tmp_path/'a.png']*8, (32, 32), threads=5)
        late = []; t = threading.Thread(target=lambda: late.append(torch.get_num_threads())); t.start(); t.join()
        assert torch.get_num_threads() == 2 and late == [2]
    finally: torch.set_num_threads(old)

def test_a_fork_loads_too(tmp_path, limit):
    "A DataLoader's worker is a fork: it has none of its parent's threads"
    NOISE.save(tmp_path/'a.png')
    want = load_batch([tmp_path/'a.png']*4, (16, 16), threads=2).images
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # the fork of a process with threads is the point
        pid = os.fork()
    if pid == 0: os._exit(0 if torch.equal(load_batch([tmp_path/'a.png']*4, (16, 16), threads=2).images, want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def test_quiet_from_many_threads():
    before = list(warnings.filters)
    def enter():
        for _ in range(200):
            with quiet: time.sleep(0)
    ts = [threading.Thread(target=enter) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert warnings.filters == before
    with pytest.raises(KeyError):
        with quiet: raise KeyError
    assert warnings.filters == before

# --- geometry --------------------------------------------------------------------------------------------------------
side, target = st.integers(1, 20_000), st.integers(1, 2048)

@given(side, side, target, target, st.sampled_from(I.CROPS), st.none() | st.floats(0, 1, exclude_max=True))
def test_crop_is_the_largest_that_fits(w, h, tw, th, crop, u):
    x0, y0, x1, y1 = crop_box(w, h, tw, th, crop, u)
    nw, nh = x1 - x0, y1 - y0
    assert 0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h and (nw == w or nh == h)
    if nw < w: assert nw*th <= h*tw < (nw + 1)*th or nw == 1
    if nh < h: assert nh*tw <= w*th < (nh + 1)*tw or nh == 1
    if w*th == h*tw: assert (nw, nh) == (w, h)

@given(side, side, target, target)
def test_pad_holds_the_picture(w, h, tw, th):
    x0, y0, x1, y1 = fit_box(w, h, tw, th, 'pad')
    assert x0 <= 0 and y0 <= 0 and x1 >= w and y1 >= h and (x1 - x0 == w or y1 - y0 == h)
    assert abs((w - x1) - x0) <= 1 and abs((h - y1) - y0) <= 1
    assert abs((x1 - x0)*th - (y1 - y0)*tw) < max(tw, th)

@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 200), st.integers(1, 200), st.sampled_from(I.FILTERS), st.integers(0, 99))
def test_resize_is_pillows(w, h, tw, th, how, seed):
    "Within 2 of 255 on pure noise, the worst there is"
    a = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    d = resize(a, (tw, th), how).numpy().astype(int) - np.asarray(I.pillow_resize(Image.fromarray(a), (tw, th), how))
    assert np.abs(d).max() <= 2

def test_resize_without_torchs_lanczos(monkeypatch):
    "An older torch: Pillow's lanczos stands in"
    a = np.asarray(NOISE)
    new = resize(a, (23, 31))
    monkeypatch.setattr(I, 'IN_TORCH', ('bicubic', 'bilinear'))
    old = resize(a, (23, 31))
    assert old.shape == new.shape and (old.int() - new.int()).abs().max() <= 2

@pytest.mark.parametrize('shape', [(1, 70_000), (70_000, 1), (200_000, 2), (1, 1)])
@pytest.mark.parametrize('fit', I.FITS)
def test_extreme_shapes(shape, fit, limit):
    before = peak()
    out, box = I.fit_pixels(np.zeros((*shape, 3), np.uint8), (64, 48), fit)
    assert tuple(out.shape) == (48, 64, 3) and (out == 0).any() and peak() - before < 1000

@pytest.mark.parametrize('call', [lambda: load_batch([], (0, 4)), lambda: load_batch([], 8), lambda: load_batch([], (8, 8), fit='x'), lambda: load_batch([], (8, 8), crop='x'),
    lambda: load_batch([], (8, 8), filter='nearest'), lambda: load_batch([], (10**6, 10**6)), lambda: I.resize_to(np.zeros((4, 4)), (2, 2))])
def test_wrong_arguments(call):
    with pytest.raises(UsageError) as e: call()
    assert '\n' not in str(e.value)
