"Hostile files and names through the command line: every verb agrees on what can be used, and says the rest in one line"
import csv, json, os, shutil, struct, zlib
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from toy_tagger import toy_tagger
from vaetag_nb.core.io import load_tensors
from vaetag_nb.data.tags import Vocab
from vaetag_nb.latents.codec import Codec
from vaetag_nb.models.latent_tagger import build_head, load_model, save_model
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

SMALL = '--image.no-bucketing', '--image.resolution', '64'

def png(w, h, bits=8, kind=2):
    "A PNG that claims to be `w` x `h` and holds a few bytes of pixels"
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, kind, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')

def picture(w=96, h=64, seed=0):
    x = np.random.default_rng(seed).integers(0, 255, (h//8, w//8, 3), np.uint8)
    return Image.fromarray(x).resize((w, h), Image.Resampling.BICUBIC)

def hostile(d):
    "Write one file of each kind; those that cannot be used, and the size each of the others has upright"
    d.mkdir(parents=True); p = picture(); im = lambda n, x, **kw: x.save(d/n, **kw)
    im('whole.jpg', p); data = (d/'whole.jpg').read_bytes()
    (d/'truncated.jpg').write_bytes(data[:len(data)//2]); (d/'head_only.jpg').write_bytes(data[:200]); (d/'zero.png').write_bytes(b'')
    (d/'huge.png').write_bytes(png(60_000, 60_000)); (d/'text.png').write_text('<html>404</html>'); (d/'hollow.png').write_bytes(png(64, 64))
    im('jpeg_inside.png', p, format='JPEG'); im('cmyk.jpg', p.convert('CMYK'))
    im('deep.png', Image.fromarray((np.asarray(p.convert('L')).astype(np.uint16)*257)))
    im('animated.gif', p, save_all=True, append_images=[picture(seed=1)]*3); im('animated.webp', p, save_all=True, append_images=[picture(seed=1)]*3); im('apng.png', p, save_all=True, append_images=[picture(seed=1)])
    pal = p.quantize(16); im('palette.png', pal, transparency=3); im('palette_bytes.png', pal, transparency=bytes(range(0, 256, 16)))
    im('alpha.png', p.convert('RGBA')); im('grey_alpha.png', p.convert('LA')); im('one_bit.png', p.convert('1')); im('UPPER.PNG', p); im('dot.pixel.png', Image.new('RGB', (1, 1)))
    for turn in (3, 6): im(f'turned{turn}.jpg', p, exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0' + struct.pack('<HHIHH', 0x112, 3, 1, turn, 0) + bytes(4))
    bad = {'truncated.jpg', 'head_only.jpg', 'zero.png', 'huge.png', 'text.png', 'hollow.png'}
    sizes = {f.name: (96, 64) for f in d.iterdir() if f.name not in bad} | {'turned6.jpg': (64, 96), 'dot.pixel.png': (1, 1)}
    return bad, sizes

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    d = tmp_path_factory.mktemp('hostile')
    toy_tagger(d, 6, 1)
    bad, sizes = hostile(d/'pics')
    (d/'data.json').write_text(json.dumps({f'pics/{n}': 'red' for n in sorted(bad | set(sizes))}))
    old = os.getcwd(); os.chdir(d)
    yield bad, sizes
    os.chdir(old)

def run(*args):
    status, out, err = shell(*map(str, args), '--json')
    assert 'Traceback' not in err and len(out.splitlines()) > 0
    return status, json.loads(out)

def test_validate_finds_exactly_the_broken_ones(home):
    bad, sizes = home
    assert run('data', 'validate', '--json-path', 'data.json', '--output-dir', 'v')[1]['unreadable_images'] == len(bad)
    reasons = json.loads(Path('v/unreadable_images.json').read_text())
    assert {Path(k).name for k in reasons} == bad and all(r and '\n' not in r for r in reasons.values())
    assert 'limit' in reasons['pics/huge.png'] and reasons['pics/zero.png'] == 'empty file'

def test_fix_leaves_what_validates_clean(home):
    bad, sizes = home
    assert run('data', 'validate', '--json-path', 'data.json', '--output-dir', 'v', '--fix')[0] == 1
    status, s = run('data', 'validate', '--json-path', 'data.cleaned.json', '--output-dir', 'v2')
    assert (status, s['total_images'], s['unreadable_images']) == (0, len(sizes), 0)

def test_sizes_are_those_of_the_upright_picture(home):
    bad, sizes = home
    status, d = run('data', 'resolutions', '--json-path', 'pics', '--output-dir', 'r')
    late = {'truncated.jpg', 'hollow.png'}     # their headers are whole, only decoding shows
    rows = pd.read_csv('r/resolutions.csv')
    assert (status, d['count'], d['unreadable']) == (0, len(sizes) + len(late), len(bad - late))
    assert dict(zip(zip(rows.width, rows.height), rows.images)) == {(96, 64): len(sizes) - 2 + 1, (64, 96): 1, (1, 1): 1, (64, 64): 1}

def test_encode_leaves_out_exactly_the_broken_ones(home):
    bad, sizes = home
    status, d = run('latents', 'encode', '--data', 'data.json', '--vae', 'model/vae', '--out', 'store', *SMALL, '--max-bad', '1')
    assert (status, d['encoded'], {Path(k).name for k in d['failed']}) == (1, len(sizes), bad)
    for form in ('safetensors', 'npz', 'json'):
        status, d = run('latents', 'encode', 'pics', '--vae', 'model/vae', '--out', f'dump.{form}', '--format', form, *SMALL, '--max-bad', '1')
        assert (status, d['encoded'], {Path(k).name for k in d['failed']}) == (1, len(sizes), bad)
    z, flat, arrays = load_tensors('dump.safetensors')[0], json.loads(Path('dump.json').read_text()), np.load('dump.npz')
    assert {Path(k).name for k in z} == {Path(k).name for k in flat} == {Path(k).name for k in arrays} == set(sizes)
    assert all(v.shape == (4, 16, 16) and v.isfinite().all() for v in z.values()) and all((arrays[k] == z[k].numpy()).all() and len(flat[k]) == 4*16*16 for k in z)
    assert run('latents', 'check', 'store') == (0, dict(latents=len(sizes), problems=[]))

def test_tag_leaves_out_exactly_the_broken_ones(home):
    bad, sizes = home
    assert run('tag', 'pics', '--model', 'model', '--out', 't')[0] == 1
    assert set(json.loads(Path('t/errors.json').read_text())) == bad
    got = json.loads(Path('t/classification_results.json').read_text())
    assert list(got) == sorted(f'pics/{n}' for n in sizes)
    for form in ('jsonl', 'csv'): assert run('tag', 'pics', '--model', 'model', '--out', f't_{form}', '--format', form, '--skip-errors')[0] == 0

NAMES = ['null', 'nan', 'NA', '2024', '1e5', ':d', 're:zero', 're', 'None', 'true', "it's", '"quoted"', '=1+1', '猫耳', ':3']

def test_names_that_look_like_something_else_stay_names(home, tmp_path):
    for i in range(8): picture(seed=i).save(tmp_path/f'{i}.png')
    (tmp_path/'data.json').write_text(json.dumps({f'{i}.png': ', '.join(f'{n}:1.0' for n in NAMES[i % 3::2]) for i in range(8)}))
    assert run('data', 'vocab', tmp_path/'data.json', '--out', tmp_path/'voc.csv', '--order', 'name')[1]['tags'] == len(NAMES)
    assert [r['name'] for r in csv.DictReader(open(tmp_path/'voc.csv', newline='', encoding='utf-8'))] == sorted(NAMES)
    assert run('data', 'validate', '--json-path', tmp_path/'data.json', '--tags-csv-path', tmp_path/'voc.csv', '--output-dir', tmp_path/'v')[0] == 0
    assert run('data', 'testset', '--source-json', tmp_path/'data.json', '--output-dir', tmp_path/'parts', '--test-ratio', '.25')[0] == 0
    assert set(Vocab.read(tmp_path/'parts/tags.csv').names) == set(NAMES)
    for part in ('data', 'train', 'test'): assert run('data', 'validate', '--json-path', tmp_path/f'parts/{part}.json', '--tags-csv-path', tmp_path/'parts/tags.csv', '--output-dir', tmp_path/'v')[0] == 0
    assert {t['tag'] for t in run('data', 'stats', tmp_path/'data.json')[1]['tags']} == set(NAMES)
    net, like, vocab = build_head(dict(kind='plain', channels=4, num_tags=len(NAMES))), load_model('model'), Vocab.read(tmp_path/'voc.csv')
    save_model(tmp_path/'m', net.eval(), vocab, like.codec | dict(source='vae'), like.preprocess, more=lambda d: shutil.copytree('model/vae', d/'vae'))
    for form in ('json', 'jsonl', 'csv'): assert run('tag', tmp_path/'0.png', '--model', tmp_path/'m', '--threshold', '0', '--out', tmp_path/'t', '--format', form)[0] == 0
    assert {x['tag'] for x in json.loads((tmp_path/'t/predictions.json').read_text())['images'][0]['tags']} == set(NAMES)
    assert {r['tag'] for r in csv.DictReader(open(tmp_path/'t/predictions.csv', newline='', encoding='utf-8'))} == set(NAMES)
    assert run('eval', 'tagger', '--model', tmp_path/'m', '--data', tmp_path/'data.json', '--out', tmp_path/'e', '--fit-thresholds', '--min-positives', '1')[0] == 0
    assert pd.read_csv(tmp_path/'e/evaluation_results.csv', dtype=str, keep_default_na=False).class_name.tolist() == vocab.names
    assert list(json.loads((tmp_path/'e/optimal_thresholds.json').read_text())['per_class_thresholds']) == vocab.names

FULL = ['data synth --num-images 1 --resolution 64 --output-dir {}', 'data testset --source-json scenes/data.json --test-ratio .3 --output-dir {}', 'data validate --json-path scenes/data.json --output-dir {}',
        'data stats scenes/data.json --out {}', 'data split scenes/data.json --val .2 --test .2 --out {}/s.parquet', 'data vocab scenes/data.json --out {}/t.csv', 'data resolutions --json-path scenes --output-dir {}',
        *[f'latents encode scenes/images --vae model/vae --format {f} --out {{}}/z {" ".join(SMALL)}' for f in ('store', 'safetensors', 'npz', 'json')],
        *[f'tag scenes/images --model model --format {f} --out {{}}' for f in ('json', 'jsonl', 'csv')], 'eval tagger --model model --data scenes/data.json --out {}']

@pytest.mark.parametrize('command', FULL)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(home, tmp_path, monkeypatch, command):
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    status, out, err = shell(*command.format(tmp_path/'out').split())
    lines = [l for l in err.replace('\r', '\n').splitlines() if l.startswith('vaetag: ')]
    assert status == 1 and len(lines) == 1 and str(tmp_path/'out') in lines[0] and 'cannot write: No space left on device' in lines[0], err
    left = [p for p in (tmp_path/'out').rglob('*') if p.is_file() and p.suffix != '.jsonl']  # the live file of a run that goes on
    assert left == []

def test_numbers_that_are_not_finite_are_refused_when_encoding(home, monkeypatch):
    monkeypatch.setattr(Codec, 'encode_raw', lambda self, x: (torch.full((len(x), 4, 16, 16), torch.nan), None))
    status, d = run('latents', 'encode', 'scenes/images', '--vae', 'model/vae', '--out', 'nan', *SMALL)
    assert status == 1 and 'scenes/images/000000.png' in d['error']
