"""`Tagger`, its folder runs and captions: what crosses notebooks, hostile input, kills, and properties."""
import errno, os, zipfile
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from forked import killed_in_the_middle
from toy_tagger import TINY, toy_tagger
from vaetag_nb.captions import CaptionOptions, canonical, caption, caption_tags, merge_caption
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.core.io import read_json, read_jsonl
from vaetag_nb.data.images import load_image
from vaetag_nb.data.tags import Vocab
from vaetag_nb.infer import Tagger
from vaetag_nb.latents.codec import Codec
from vaetag_nb.latents.encode import dump_latents, encode_table
from vaetag_nb.latents.store import LatentStore
from vaetag_nb.predictions import Journal
from vaetag_nb.results import Result

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "(folder, table, codec, tagger) of a toy model"
    d = tmp_path_factory.mktemp('toy')
    table, codec = toy_tagger(d)
    return d, table, codec, Tagger.load(d/'model', device='cpu')

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('VAETAG_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'

def scores(results): return np.stack([r.scores for r in results])
def logits(p): return np.log(p/(1 - p))

# the tagger

def test_batches_pixels_and_latents_agree(toy, tmp_path):
    d, table, codec, tagger = toy
    one, eight = (scores(tagger.tag(table.paths, batch_size=b)) for b in (1, 8))
    assert abs(one - eight).max() <= 1e-5
    for dtype, close in (('fp32', 1e-5), ('fp16', 2e-2)):
        encode_table(table.ids, table.paths, codec, tmp_path/dtype, tagger.preprocess, dtype=dtype)
        got = {r.path: r.scores for r in tagger.tag_latents(tmp_path/dtype)}
        cached = np.stack([got[i] for i in table.ids] if set(got) == set(table.ids) else [got[p] for p in table.paths])
        diff = abs(cached - one) if dtype == 'fp32' else abs(logits(cached) - logits(one))
        assert diff.max() <= close

def test_flipped_latents_are_left_out(toy, tmp_path):
    _, table, codec, tagger = toy
    encode_table(table.ids, table.paths, codec, tmp_path/'s', tagger.preprocess, flip=True)
    with LatentStore.open(tmp_path/'s') as store:
        assert len(store) == 2*len(table)
        assert len(tagger.tag_latents(store)) == len(table)

def test_spaces(toy):
    _, table, codec, tagger = toy
    z = tagger.latents(table.paths[0])
    want = tagger.tag_latents(z, space='model')[0].scores
    raw, c = codec.denormalize(z), codec.convention
    for space, x in dict(raw=raw, scale_shift=raw*c.scale + c.shift).items():
        assert abs(tagger.tag_latents(x, space=space)[0].scores - want).max() < 1e-5
    with pytest.raises(UsageError, match='raw or model or scale_shift'): tagger.tag_latents(z)
    with pytest.raises(UsageError, match="Did you mean 'model'"): tagger.tag_latents(z, space='modell')

def test_another_vae_is_named(toy, tmp_path):
    d, table, codec, _ = toy
    other = Codec.random(TINY, codec.convention, seed=9)
    encode_table(table.ids[:2], table.paths[:2], other, tmp_path/'s', Tagger.load(d/'model').preprocess)
    for act in (lambda: Tagger.load(d/'model', vae=other)(table.paths[0]), lambda: Tagger.load(d/'model').tag_latents(tmp_path/'s')):
        with pytest.raises(VaetagError) as e: act()
        assert codec.fingerprint in str(e.value) and other.fingerprint in str(e.value)

def test_no_vae_is_needed_for_latents(toy, tmp_path):
    import shutil
    d, table, codec, tagger = toy
    z = tagger.latents(table.paths[0])
    shutil.copytree(d/'model', tmp_path/'m'); shutil.rmtree(tmp_path/'m/vae')
    alone = Tagger.load(tmp_path/'m')
    assert abs(alone.tag_latents(z, 'model')[0].scores - tagger(table.paths[0]).scores).max() < 1e-5
    with pytest.raises(VaetagError): alone(table.paths[0])

def test_an_npz_file_says_its_space_and_its_vae(toy, tmp_path):
    d, table, codec, tagger = toy
    dump_latents(table.paths[:3], codec, tmp_path/'z.npz', tagger.preprocess, 'npz', dtype='fp32')
    assert abs(scores(tagger.tag_latents(tmp_path/'z.npz'))-scores(tagger.tag(table.paths[:3]))).max() < 1e-5
    with pytest.raises(UsageError, match='in space raw; leave out --space model'): tagger.tag_latents(tmp_path/'z.npz', 'model')
    other = Codec.random(TINY, seed=5)
    dump_latents(table.paths[:3], other, tmp_path/'o.npz', tagger.preprocess, 'npz')
    with pytest.raises(VaetagError, match=other.fingerprint): tagger.tag_latents(tmp_path/'o.npz', 'raw')
    np.savez(tmp_path/'torn.npz', latent=np.zeros((4, 2, 2), np.float32))
    with zipfile.ZipFile(tmp_path/'torn.npz', 'a') as z: z.comment = b'['
    with pytest.raises(VaetagError, match='not a whole npz file'): tagger.tag_latents(tmp_path/'torn.npz')

@pytest.mark.parametrize('lost', ['model.json', 'model.safetensors', 'selected_tags.csv'])
def test_incomplete_model_folder(toy, tmp_path, lost):
    import shutil
    shutil.copytree(toy[0]/'model', tmp_path/'m'); (tmp_path/'m'/lost).unlink()
    with pytest.raises(VaetagError) as e: Tagger.load(tmp_path/'m')
    assert all(f in str(e.value) for f in ('model.json', 'model.safetensors', 'selected_tags.csv')) and '\n' not in str(e.value)

def test_evidence_of_other_heads(tmp_path):
    table, _ = toy_tagger(tmp_path, n=4, steps=1, head='plain')
    maps = Tagger.load(tmp_path/'model').evidence(table.paths[0], table.vocab.names[:2])
    assert maps.shape[:2] == (1, 2) and maps.isfinite().all()
    with pytest.raises(VaetagError, match='no tag'): Tagger.load(tmp_path/'model').evidence(table.paths[0], ['nothing'])

def test_bf16_only_where_it_exists(toy, monkeypatch):
    import vaetag_nb.infer as infer
    d, table, _, tagger = toy
    monkeypatch.setattr(infer, 'bf16_works', lambda device: False)
    with pytest.raises(UsageError, match='bfloat16'): Tagger.load(d/'model', device='cpu', precision='bf16')
    assert Tagger.load(d/'model', device='cpu', precision='auto').precision == 'fp32'
    monkeypatch.setattr(infer, 'bf16_works', lambda device: True)
    rough = Tagger.load(d/'model', device='cpu', precision='bf16')(table.paths[0]).scores
    assert rough.dtype == np.float32 and abs(rough - tagger(table.paths[0]).scores).max() < .1

# folders

def hostile(folder, good):
    "Pictures of every bad and odd kind; returns the names that cannot be tagged"
    folder.mkdir(parents=True)
    im = load_image(good)
    im.save(folder/'fine.PNG', 'png'); im.convert('CMYK').save(folder/'cmyk.jpg'); im.convert('P').save(folder/'frames.gif', save_all=True, append_images=[im.rotate(90)])
    Image.fromarray(np.linspace(0, 65535, 64*64).reshape(64, 64).astype(np.uint16)).save(folder/'deep.png')
    rgba = im.convert('RGBA'); rgba.putalpha(128); rgba.save(folder/'sub [1] ü.png')
    exif = Image.Exif(); exif[0x0112] = 6; im.save(folder/'turned.jpg', exif=exif)
    data = Path(good).read_bytes()
    bad = {'empty.png': b'', 'text.jpg': b'no picture', 'torn.png': data[:len(data)//3], 'pickle.png': b'\x80\x04cos\nsystem\n.'}
    for n, x in bad.items(): (folder/n).write_bytes(x)
    (folder/'dir.png').mkdir()
    return sorted(bad)

def test_hostile_folder(toy, tmp_path):
    _, table, _, tagger = toy
    bad = hostile(tmp_path/'in', table.paths[0])
    with pytest.raises(VaetagError, match='4 of 10 images failed') as e: tagger.tag_folder(tmp_path/'in', tmp_path/'out')
    assert 'errors.json' in str(e.value)
    d = read_json(tmp_path/'out/predictions.json')
    assert sorted(x['path'] for x in d['images'] if x['error']) == bad == sorted(read_json(tmp_path/'out/errors.json'))
    assert [x['path'] for x in d['images']] == sorted(x['path'] for x in d['images'])
    by = {x['path']: x for x in d['images']}
    assert (by['turned.jpg']['width'], by['turned.jpg']['height']) == load_image(table.paths[0]).size[::-1]
    assert sorted(read_json(tmp_path/'out/classification_results.json')) == sorted((tmp_path/'in').as_posix() + '/' + n for n in by if n not in bad)
    report = tagger.tag_folder(tmp_path/'in', tmp_path/'out', skip_errors=True)
    assert len(report.failed) == 4 and report.tagged == 6

def test_errors_file_of_an_earlier_run_goes(toy, tmp_path):
    _, table, _, tagger = toy
    hostile(tmp_path/'in', table.paths[0])
    tagger.tag_folder(tmp_path/'in', tmp_path/'out', skip_errors=True)
    tagger.tag_folder(Path(table.paths[0]).parent, tmp_path/'out')
    assert not (tmp_path/'out/errors.json').exists()

@pytest.mark.parametrize('format', ['jsonl', pytest.param('txt', marks=pytest.mark.slow)])
def test_kill_and_go_on(toy, tmp_path, format, cache):
    "kill -9 in the middle; the same command ends with the files of an undisturbed run, and decodes at most one batch twice"
    d, table, _, tagger = toy
    images, name = Path(table.paths[0]).parent, 'predictions.jsonl'
    tagger.tag_folder(images, tmp_path/'whole', format=format, batch_size=2)
    killed_in_the_middle(lambda: Tagger.load(d/'model', device='cpu'), lambda t: t.tag_folder(images, tmp_path/'out', format=format, batch_size=2), 5)
    if format == 'jsonl': assert 0 < len(read_jsonl(tmp_path/'out'/name)) < len(table)
    report = tagger.tag_folder(images, tmp_path/'out', format=format, batch_size=2)
    assert report.reused >= 4 and report.tagged == len(table) - report.reused
    files = lambda f: {q.relative_to(f).as_posix(): q.read_bytes() for q in sorted(f.rglob('*')) if q.is_file()}
    assert files(tmp_path/'out') == files(tmp_path/'whole')
    assert not list(cache.rglob('*.jsonl')) and not list(tmp_path.rglob('*.tmp'))

def test_a_changed_picture_is_tagged_again(toy, tmp_path):
    _, table, _, tagger = toy
    (tmp_path/'in').mkdir()
    for k in range(4): (tmp_path/f'in/{k}.png').write_bytes(Path(table.paths[k]).read_bytes())
    class Stop(Exception): pass
    t, real = Tagger.load(toy[0]/'model', device='cpu'), tagger.score_images
    calls = iter([real, real])
    def score(x):
        f = next(calls, None)
        if f is None: raise Stop
        return f(x)
    t.score_images = score
    with pytest.raises(Stop): t.tag_folder(tmp_path/'in', tmp_path/'out', batch_size=1)
    (tmp_path/'in/0.png').write_bytes(Path(table.paths[5]).read_bytes())
    for f in (tmp_path/'in').iterdir(): os.utime(f, (1, 1))
    report = tagger.tag_folder(tmp_path/'in', tmp_path/'out', batch_size=1)
    assert (report.tagged, report.reused) == (4, 0)
    got = {x['path']: {t['tag'] for t in x['tags']} for x in read_json(tmp_path/'out/predictions.json')['images']}
    assert got['0.png'] == set(tagger(table.paths[5]).tags)

def test_full_disk_and_unwritable_out(toy, tmp_path, monkeypatch):
    _, table, _, tagger = toy
    images = Path(table.paths[0]).parent
    (tmp_path/'file').write_text('x', encoding='utf-8')
    with pytest.raises(VaetagError, match='cannot write'): tagger.tag_folder(images, tmp_path/'file/out')
    import vaetag_nb.core.io as io
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(io.os, 'fsync', full)
        with pytest.raises(VaetagError, match='No space left on device') as e: tagger.tag_folder(images, tmp_path/'out')
    assert 'predictions.json' in str(e.value) and not list((tmp_path/'out').iterdir())
    report = tagger.tag_folder(images, tmp_path/'out')              # with room again, nothing is computed twice
    assert (report.tagged, report.reused) == (0, len(table))

def test_captions_beside_images(toy, tmp_path):
    _, table, _, tagger = toy
    (tmp_path/'in/deep').mkdir(parents=True)
    for k, n in enumerate(('a.png', 'deep/b.png', 'c.png')): (tmp_path/'in'/n).write_bytes(Path(table.paths[k]).read_bytes())
    (tmp_path/'in/a.txt').write_text('my words\n', encoding='utf-8')
    (tmp_path/'in/c.txt').write_bytes(b'caf\xe9')
    tagger.tag_folder(tmp_path/'in', format='txt')
    assert (tmp_path/'in/a.txt').read_text(encoding='utf-8') == 'my words\n'                       # skip
    own = caption(tagger(tmp_path/'in/deep/b.png'))
    assert (tmp_path/'in/deep/b.txt').read_text(encoding='utf-8') == own
    for _ in range(2):                                                                             # a second run adds nothing
        report = tagger.tag_folder(tmp_path/'in', format='txt', existing='append', skip_errors=True)
        assert (tmp_path/'in/a.txt').read_text(encoding='utf-8') == f'my words, {caption(tagger(tmp_path/"in/a.png"))}\n'
        assert list(report.failed) == ['c.png'] and 'not UTF-8' in report.failed['c.png'] and (tmp_path/'in/c.txt').read_bytes() == b'caf\xe9'
    (tmp_path/'in/a.jpg').write_bytes(b'')
    with pytest.raises(VaetagError, match='a.jpg and a.png would share'): tagger.tag_folder(tmp_path/'in', format='txt')

def test_a_list_of_files_goes_into_a_mirror(toy, tmp_path):
    _, table, _, tagger = toy
    tagger.tag_folder(table.paths[:2], tmp_path/'captions', format='txt')
    assert sorted(p.name for p in (tmp_path/'captions').iterdir()) == [Path(p).with_suffix('.txt').name for p in table.paths[:2]]

@pytest.mark.parametrize('bad', [dict(format='xml'), dict(rule='tags'), dict(existing='apend'), dict(threshold=2), dict(threshold=.5, rule='mcut')])
def test_wrong_arguments(toy, tmp_path, bad):
    with pytest.raises(UsageError) as e: toy[3].tag_folder(Path(toy[1].paths[0]).parent, tmp_path/'o', **bad)
    assert '\n' not in str(e.value)

# names that look like something else

def test_awkward_names_survive_every_format(tmp_path):
    from vaetag_nb.predictions import journal_row, write_classic, write_predictions
    import pandas as pd
    names = ['null', 'nan', '2024', ':d', 're:zero', '<b>', 'a"b', 'x;y', '1e5', 'ünï']
    vocab = Vocab(names)
    r = Result(vocab, np.linspace(1, .6, len(names)).astype(np.float32), np.full(len(names), .5), 'a,"b".png')
    rows = [journal_row(r, tmp_path/'none')]
    for f in ('json', 'jsonl', 'csv'): write_predictions(tmp_path/f'p.{f}', rows, f)
    write_classic(tmp_path/'c.json', rows)
    assert [t['tag'] for t in read_json(tmp_path/'p.json')['images'][0]['tags']] == names == [t['tag'] for t in read_jsonl(tmp_path/'p.jsonl')[0]['tags']]
    df = pd.read_csv(tmp_path/'p.csv', dtype=str, keep_default_na=False)
    assert df.tag.tolist() == names and set(df.path) == {'a,"b".png'}
    assert [t['tag'] for t in read_json(tmp_path/'c.json')['a,"b".png']['predicted_tags']] == names
    assert caption(r) == ', '.join(names)
    assert '<b>' not in r._repr_html_().split('vt-bars"')[1]

# properties

tag = st.text('abc_ ()^:', min_size=1, max_size=6).map(str.strip).filter(lambda s: s and canonical(s))

@given(st.lists(tag, max_size=6), st.lists(tag, max_size=6), st.sampled_from(['append', 'prepend', 'replace']), st.booleans())
@settings(max_examples=200, deadline=None)
def test_merging_twice_is_merging_once(old, new, how, line_end):
    text = ', '.join(old) + '\n'*line_end
    once = merge_caption(text, new, how)
    assert merge_caption(once, new, how) == once
    assert once.endswith('\n') == line_end
    if how == 'append' and old: assert once.startswith(', '.join(old))

@given(st.dictionaries(tag, st.floats(0, 1, width=32), min_size=1, max_size=8), st.integers(0, 9), st.sampled_from(['score', 'vocab', 'name']),
       st.sampled_from(['keep', 'spaces']), st.lists(tag, max_size=2), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_captions_hold_what_was_predicted(given_scores, most, order, underscores, blacklist, level):
    if len({canonical(n) for n in given_scores}) < len(given_scores): return
    vocab = Vocab(list(given_scores))
    r = Result(vocab, np.float32(list(given_scores.values())), np.full(len(vocab), level, np.float32))
    out = caption_tags(r, CaptionOptions(max_tags=most, sort=order, underscores=underscores, blacklist=blacklist))
    assert len(out) <= most and len(set(out)) == len(out)
    said = {canonical(x) for x in out}
    assert said <= {canonical(n) for n in r.tags}
    if '*' not in ''.join(blacklist): assert not said & {canonical(b) for b in blacklist}

@given(st.lists(st.tuples(st.sampled_from('abcdef'), st.integers(0, 99)), max_size=20), st.binary(max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_torn_journal_keeps_its_whole_lines(tmp_path_factory, entries, torn):
    d = tmp_path_factory.mktemp('j')
    j = Journal({}, d)
    for p, n in entries: j.add([dict(record=dict(path=p), n=n, stamp=(0, 0))])
    j.file.write(torn.replace(b'\n', b'')); j.close()
    again = Journal({}, d)
    last = dict(entries)
    assert {r['record']['path']: r['n'] for r in again.rows(sorted(last))} == last
    again.close()
