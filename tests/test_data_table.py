"Tables of tagged pictures: round trips on random input, every layout, every error that a file can cause"
import json, os, re
from pathlib import Path
import fsspec, numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy import sparse
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.data.audit import clean_tags, faults, make_testset, tag_stats, validate, write_cleaned
from vaetag_nb.data.decode import load_image
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import Pairs, Vocab, parse_tags

characters = st.characters(blacklist_categories=('Cs',))
names = st.text(characters, min_size=1, max_size=8).map(str.strip).filter(bool) | st.sampled_from(
    ['null', 'nan', '2024', '1e5', ':d', 're', 're:zero', 're:1.0', 're:0.5', 'a,b', 'a:1', 'a', '"', 'a\nb', 'x:', 'x', '\ufeffa', '猫'])
paths = st.text(st.characters(blacklist_categories=('Cs',), blacklist_characters='\\\0'), min_size=1, max_size=10).filter(lambda p: ':' not in p)

def same(a, b):
    "Are two label matrices equal to the bit, explicit negatives included?"
    return a.shape == b.shape and all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ('data', 'indices', 'indptr'))

@st.composite
def tables(draw):
    vocab = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    ids = draw(st.lists(paths, max_size=6, unique=True))
    rows = [draw(st.dictionaries(st.integers(0, len(vocab)-1), st.floats(0, 1, width=32), max_size=4)) for _ in ids]
    r, c, w = (list(x) for x in zip(*[(i, c, w) for i, row in enumerate(rows) for c, w in sorted(row.items())])) if any(rows) else ([], [], [])
    x = sparse.csr_matrix((np.array(w, np.float32), (r, c)), shape=(len(ids), len(vocab)))
    ints = lambda lo, hi: draw(st.lists(st.integers(lo, hi), min_size=len(ids), max_size=len(ids)))
    v = Vocab(vocab, draw(st.lists(st.sampled_from([0, 1, 3, 4, 5, 9]), min_size=len(vocab), max_size=len(vocab))), range(len(vocab)))
    return TagTable(ids, [f'/data/{i}' for i in ids], x, v, ints(0, 9000), ints(0, 9000), draw(st.none() | st.just([f's{k}' for k in ints(0, 2)])),
                    draw(st.none() | st.just(ints(-2**60, 2**60))), labelled=[bool(row) or draw(st.booleans()) for row in rows])

@given(tables(), st.integers(1, 4))
@settings(max_examples=50)
def test_parquet_keeps_everything(tmp_path_factory, t, chunk):
    p = tmp_path_factory.mktemp('t')/'t.parquet'
    t.to_parquet(p, chunk)
    if not len(t):
        with pytest.raises(VaetagError, match='holds no record'): TagTable.read(p)
        return
    b = TagTable.read(p, check_images=False)
    assert b.ids == t.ids and b.paths == t.paths and b.vocab == t.vocab and same(b.labels, t.labels)
    for k in ('width', 'height', 'split', 'group', 'labelled'):
        assert np.array_equal(getattr(b, k), getattr(t, k)) if getattr(t, k) is not None else getattr(b, k) is None
    assert pq.read_table(p).column('tags').to_pylist() == [[t.vocab[c] for c in r.indices] for r in t.labels]

@given(tables())
@settings(max_examples=60)
def test_json_keeps_labels(tmp_path_factory, t):
    p = tmp_path_factory.mktemp('t')/'t.json'
    t.to_json(p, keys='id')
    if not len(t): return
    b = TagTable.read(p, t.vocab, check_images=False, max_bad=None)
    assert b.ids == t.ids and same(b.labels, t.labels) and not b.report.counts['unknown_tags'] and not b.report.counts['duplicate_tags']
    assert np.array_equal(b.labelled, np.diff(t.labels.indptr) > 0)
    again = p.with_name('u.json'); b.to_json(again, keys='id')
    assert again.read_bytes() == p.read_bytes()

@given(tables(), st.data())
@settings(max_examples=60)
def test_parts_agree_with_dense(t, data):
    if not len(t): return
    dense, rows = t.labels.toarray(), data.draw(st.lists(st.integers(0, len(t)-1), max_size=8))
    s = t.select(np.array(rows, int))
    assert np.array_equal(s.labels.toarray(), dense[rows]) and s.ids == [t.ids[i] for i in rows]
    assert np.array_equal(t.targets(rows).numpy(), dense[rows]) and np.array_equal(t.counts(), (dense > 0).sum(0))
    assert [t.tags(i) for i in range(len(t))] == [t.tags(i-len(t)) for i in range(len(t))]
    other = data.draw(st.lists(st.sampled_from(t.vocab.names) | names, unique=True, max_size=6))
    u = t.with_vocab(Vocab(other))
    assert np.array_equal(u.labels.toarray(), np.stack([dense[:, t.vocab.index[n]] if n in t.vocab else np.zeros(len(t)) for n in other], 1) if other else dense[:, :0])
    n = tag_stats(t)
    assert n.tags['count'].sum() == (dense > 0).sum() and n.per_image.sum() == t.labelled.sum()
    for _, r in n.pairs.iterrows(): assert r.both == ((dense[:, t.vocab.index[r.tag]] > 0) & (dense[:, t.vocab.index[r.other]] > 0)).sum()

# --- metadata JSON: what validate --fix writes is clean ------------------------------------------------------------------
values = st.none() | st.booleans() | st.integers(-1, 2) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(['.5', '0.50', 'x', '', 'nan'])
entries = st.lists(st.sampled_from(['cat', 'dog', 're', 're:1.0', 're:zero', 'bird', ':d', 'cat:.50', 'dog:nan', 'cat:2', 'cat:', ' dog : 0.25 ', '', 're:zero:1e-1', 'well, well']), max_size=5)
contents = st.none() | entries.map(', '.join) | entries | st.dictionaries(st.sampled_from(['cat', 'dog', 're', 're:1.0', 'bird', ' cat ', '', 'well, well']), values, max_size=4) \
    | st.integers() | st.booleans() | st.lists(st.integers(), min_size=1, max_size=1)
KNOWN = Vocab(['cat', 'dog', 're', 're:1.0', 're:zero', ':d', 'well, well'])

@given(contents)
def test_clean_tags_means_the_same(tags):
    try: before = parse_tags(tags, KNOWN)
    except VaetagError: return
    after = clean_tags(tags, KNOWN)
    p = parse_tags(after, KNOWN)
    assert p.tags == before.tags and (after is not None) == bool(before.tags)
    assert not (p.unknown or p.bad_weights or p.duplicates or p.empty_weights)
    assert clean_tags(after, KNOWN) == after

@given(st.dictionaries(st.sampled_from([f'{c}.png' for c in 'abcdef']), contents, min_size=1))
@settings(max_examples=40)
def test_fixed_files_validate_clean(tmp_path_factory, doc):
    d = tmp_path_factory.mktemp('fix')
    for c in 'abcd': Image.new('RGB', (4, 4)).save(d/f'{c}.png')
    (d/'d.png').write_bytes(b'torn')
    (d/'data.json').write_text(json.dumps(doc))
    s = validate(d/'data.json', KNOWN, d/'out', fix=True)
    assert s['total_images'] == s['existing_images'] + s['missing_images'] + s['bad_records'] == len(doc)
    fixed = json.loads((d/'data.cleaned.json').read_text())
    assert list(fixed) == [k for k in doc if k in fixed]
    want = {k: p.tags for k, t in doc.items() if k in ('a.png', 'b.png', 'c.png') and not (isinstance(t, (bool, int)) or isinstance(t, list) and t and isinstance(t[0], int))
            and (p := parse_tags(t, KNOWN)).tags}
    assert {k: parse_tags(t, KNOWN).tags for k, t in fixed.items()} == want
    if fixed: assert faults(validate(d/'data.cleaned.json', KNOWN)) == {}

# --- a test set is a partition, the same every time ----------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(['cat', 'cat:.5, dog', 'dog:0', '', 'x:y'])), min_size=2, max_size=14),
       st.floats(.01, .99), st.booleans(), st.integers(0, 3))
@settings(max_examples=40)
def test_testset_is_a_partition(tmp_path_factory, records, ratio, by_tags, seed):
    d = tmp_path_factory.mktemp('set')
    for i, (content, _) in enumerate(records): Image.new('L', (4, 4), content).save(d/f'{i}.png')
    (d/'s.json').write_text(json.dumps({f'{i}.png': t for i, (_, t) in enumerate(records)}))
    make = lambda: make_testset(d/'s.json', d/'out', ratio, seed=seed, by_tags=by_tags)
    try: made = make()
    except VaetagError as e: assert 'same content' in str(e) or 'leave none' in str(e) or 'groups' in str(e); return
    files = {p.name: p.read_bytes() for p in (d/'out').iterdir()}
    data, train, test = (json.loads(files[f'{n}.json']) for n in ('data', 'train', 'test'))
    assert list(data) == [f'../{i}.png' for i in range(len(records))] and not set(train) & set(test) and data == train | test
    assert train and test and (made['train'], made['test']) == (len(train), len(test))
    side = [f'../{i}.png' in test for i in range(len(records))]
    assert all(side[i] == side[j] for i in range(len(side)) for j in range(i) if records[i][0] == records[j][0])
    assert {k: parse_tags(t).tags for k, t in data.items()} == {f'../{i}.png': parse_tags(t).tags for i, (_, t) in enumerate(records)}
    make(); assert {p.name: p.read_bytes() for p in (d/'out').iterdir()} == files

# --- every layout says the same ------------------------------------------------------------------------------------------
@pytest.fixture
def scenes(tmp_path):
    "Three pictures, tags with colons, and the layouts that hold them"
    for i, n in enumerate(('x/a', 'x/b', 'y[1]/c')):
        p = tmp_path/f'images/{n}.png'; p.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (10+i, 20)).save(p)
    tags = {'images/x/a.png': ['re:zero', 'cat'], 'images/x/b.png': ['cat', '2024'], 'images/y[1]/c.png': ['null', ':d']}
    (tmp_path/'data.json').write_text(json.dumps({k: ', '.join(v) for k, v in tags.items()}))
    (tmp_path/'list.json').write_text(json.dumps(tags))
    (tmp_path/'map.json').write_text(json.dumps({k: dict.fromkeys(v, 1) for k, v in tags.items()}))
    (tmp_path/'data.jsonl').write_text(''.join(json.dumps(dict(file_name=k, tags=v)) + '\n' for k, v in tags.items()))
    df = pd.DataFrame(dict(path=list(tags), tags=list(tags.values())))
    df.to_parquet(tmp_path/'data.parquet')
    df.assign(tags=df.tags.map(', '.join)).to_csv(tmp_path/'data.csv', index=False)
    df.assign(tags=df.tags.map(', '.join)).to_parquet(tmp_path/'text.parquet')
    pq.write_table(pa.table(dict(path=list(tags), tags=pa.array([[(t, 1.) for t in v] for v in tags.values()], pa.map_(pa.string(), pa.float32())))), tmp_path/'map.parquet')
    pq.write_table(pa.table(dict(path=list(tags), tags=pa.array([{t: 1. for t in v} for v in tags.values()]))), tmp_path/'struct.parquet')
    for k, v in tags.items():
        p = (tmp_path/'side'/k).with_suffix('.txt'); p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text('\ufeff' + ',\r\n'.join(v) if 'a' in k else ', '.join(v), encoding='utf-8')
    Vocab(['cat', 're:zero', '2024', 'null', ':d']).write(tmp_path/'tags.csv')
    return tmp_path

LAYOUTS = {'data.json': {}, 'list.json': {}, 'map.json': {}, 'data.jsonl': {}, 'data.parquet': {}, 'data.csv': {}, 'text.parquet': {}, 'map.parquet': {}, 'struct.parquet': {},
           'images': dict(layout='sidecars', tags_dir='side/images')}

@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('known', [True, False])
def test_layouts_agree(scenes, name, known):
    options = {k: str(scenes/v) if k == 'tags_dir' else v for k, v in LAYOUTS[name].items()}
    t = TagTable.read(scenes/name, scenes/'tags.csv' if known else None, **options)
    want = TagTable.read(scenes/'data.json', t.vocab)
    assert same(t.labels, want.labels) and t.paths == want.paths and t.report.bad == 0 and t.labelled.all()
    assert [Path(i).name for i in t.ids] == ['a.png', 'b.png', 'c.png'] and all(load_image(p) for p in t.paths)
    assert t.with_sizes().width.tolist() == [10, 11, 12]
    if not known: assert t.vocab.names == ['cat', '2024', ':d', 'null', 're:zero']

def test_layouts_agree_far_away(scenes):
    fs = fsspec.filesystem('memory')
    for p in scenes.rglob('*'):
        if p.is_file(): fs.pipe(f'/far/{p.relative_to(scenes).as_posix()}', p.read_bytes())
    want = TagTable.read(scenes/'data.json')
    for name, options in LAYOUTS.items():
        t = TagTable.read(f'memory://far/{name}', want.vocab, **{k: f'memory://far/{v}' if k == 'tags_dir' else v for k, v in options.items()})
        assert same(t.labels, want.labels) and t.with_sizes().width.tolist() == [10, 11, 12]
    with fs.open('/far/short.json', 'w') as f: f.write('{"images/x/a.png": "cat", "images/none.png": "cat"}')
    assert TagTable.read('memory://far/short.json', max_bad=1).report.counts['missing_images'] == 1

def test_class_folders(scenes):
    t = TagTable.read(scenes/'images', layout='folders', columns=dict(group='folder'))
    assert t.vocab.names == ['x', 'y[1]'] and t.labels.toarray().tolist() == [[1, 0], [1, 0], [0, 1]]
    assert t.group.tolist() == [0, 0, 1] and t.group_names == ['x', 'y[1]'] and t.ids == ['x/a.png', 'x/b.png', 'y[1]/c.png']

def test_users_in_the_order_of_their_numbers(tmp_path):
    for u in ('ID_10', 'ID_2', 'id-003', 'other'): (tmp_path/u).mkdir(); Image.new('L', (4, 4)).save(tmp_path/u/'1.png')
    (tmp_path/'ID_7').mkdir()
    t = TagTable.read(tmp_path, columns=dict(group='folder'))
    assert t.ids == ['ID_2/1.png', 'id-003/1.png', 'ID_10/1.png'] and t.report.counts['skipped_folders'] == 2
    assert len(TagTable.read(tmp_path, layout='folders-any')) == 4
    (tmp_path/'id-003/generation.json').write_text('{"generated": true}')
    assert len(TagTable.read(tmp_path)) == 2 and len(TagTable.read(tmp_path, allow_generated=True)) == 3
    (tmp_path/'user02').mkdir(); Image.new('L', (4, 4)).save(tmp_path/'user02/1.png')
    with pytest.raises(VaetagError, match='user 2: ID_2, user02: two folders are one user'): TagTable.read(tmp_path)

# --- where relative paths lead ---------------------------------------------------------------------------------------------
def test_relative_paths(tmp_path, monkeypatch):
    for d in ('beside', 'root', 'cwd'): (tmp_path/d).mkdir(); Image.new('L', (4, 4)).save(tmp_path/d/f'{d}.png')
    Image.new('L', (4, 4)).save(tmp_path/'cwd/beside.png')
    (tmp_path/'beside/data.json').write_text(json.dumps({'beside.png': 'a', 'cwd.png': 'a', '.\\beside.png': 'a', str(tmp_path/'root/root.png'): 'a', 'root.png': 'a'}))
    monkeypatch.chdir(tmp_path/'cwd')
    t = TagTable.read(tmp_path/'beside/data.json', max_bad=1)
    assert t.paths == [f'{tmp_path}/{p}' for p in ('beside/beside.png', 'cwd/cwd.png', 'beside/./beside.png', 'root/root.png')]
    assert t.report.rows['missing_images'] == [('root.png', '', 'image not found')]
    r = TagTable.read(tmp_path/'beside/data.json', image_root='../root', max_bad=1)
    assert r.paths == [str(tmp_path/'root/root.png')]*2 and r.report.counts['missing_images'] == 3

# --- errors: one line each ------------------------------------------------------------------------------------------------
def put(folder, name, content):
    p = folder/name; p.parent.mkdir(parents=True, exist_ok=True)
    p.write_bytes(content if isinstance(content, bytes) else content.encode()); return p

@pytest.mark.parametrize('name, content, says', [
    ('d.json', '', 'not JSON: line 1, column 1'), ('d.json', '{"a": "x",}', 'not JSON: line 1'), ('d.json', '{"a":\n"x"\n"b": 1}', 'not JSON: line 3, column 1'),
    ('d.json', '[]', 'found a list'), ('d.json', '"x"', 'found str'), ('d.json', '{}', 'holds no record'), ('d.json', b'{"a": "\xff"}', 'not UTF-8 at byte 7'),
    ('d.json', '{"a":' * 100_000, 'not usable JSON'), ('d.json', '{"a": ' + '1'*5000 + '}', 'not usable JSON'), ('d.json', '{"a.png": 3}', 'no usable record of 1: 1 bad records'),
    ('d.json', '{"a.png": "cat"}', 'no usable record of 1: 1 missing images'), ('d.json', '{"": "cat", "\\u0000": "cat", "..": "cat"}', '3 missing images'),
    ('d.jsonl', '', 'no column for path'), ('d.jsonl', 'x\ny\n', 'no column for path'), ('d.jsonl', '{"file": "a.png", "tags": "x"}\nx\n', 'no usable record of 2: 1 missing images, 1 bad records'),
    ('d.csv', '', 'no column for path'), ('d.csv', 'path,tags\n', 'holds no record'), ('d.csv', 'img,tags\na,b\n', "no column for path; looked for path, file, file_name, filename, image, image_path; found 'img', 'tags'"),
    ('d.csv', b'path,tags\n\xe9,a\n', 'not UTF-8'), ('d.csv', 'path,tags\n"' + 'x'*200_000, 'not CSV: line'), ('d.parquet', b'PAR1', 'not a Parquet file'), ('d.parquet', b'', 'not a Parquet file'),
    ('d.txt', 'x', 'the ending says no layout')])
def test_wrong_metadata_is_one_line(tmp_path, name, content, says):
    p = put(tmp_path, name, content)
    with pytest.raises(VaetagError) as e: TagTable.read(p)
    text = str(e.value)
    assert says in text and text.startswith(str(p)) and '\n' not in text and '\0' not in text and e.value.exit_code == 1

def test_torn_parquet(scenes):
    raw = (scenes/'data.parquet').read_bytes()
    for cut in (len(raw)//2, len(raw)-4, 6):
        with pytest.raises(VaetagError, match='not a Parquet file, or a torn one'): TagTable.read(put(scenes, 'torn.parquet', raw[:cut]))
    hurt = bytearray(raw); hurt[4:200] = b'\xff'*196
    with pytest.raises(VaetagError, match='not a Parquet file, or a torn one'): TagTable.read(put(scenes, 'hurt.parquet', bytes(hurt)))
    pq.write_table(pa.table(dict(path=['a'], tags=[[1, 2]])), scenes/'ints.parquet')
    with pytest.raises(VaetagError, match='the tags are list<.*int64>; expected lists of texts'): TagTable.read(scenes/'ints.parquet')
    pq.write_table(pa.table(dict(path=['a', 'b'], tags=[['x'], ['y']], weights=[[1.], [1., .5]])), scenes/'w.parquet')
    with pytest.raises(VaetagError, match='record b: 1 tags, but 2 weights'): TagTable.read(scenes/'w.parquet')

@pytest.mark.parametrize('record, says', [('"cat:1.5"', 'a.png: cat:1.5: weight is not'), ('"cat:nan, dog"', 'a.png: cat:nan'), ('"cat, bird:0.9"', 'a.png: bird:0.9: tag is not in the vocabulary'),
    ('7', 'a.png: tags must be a text, a list or a mapping, not int'), ('{"cat": [1]}', "a.png: the weight of 'cat' is a list"), ('"cat，dog"', "it holds a full-width comma")])
def test_strict_names_image_and_entry(tmp_path, record, says):
    Image.new('L', (4, 4)).save(tmp_path/'a.png'); Image.new('L', (4, 4)).save(tmp_path/'b.png')
    p = put(tmp_path, 'd.json', '{"b.png": "dog:, dog", "a.png": %s}' % record)
    vocab = Vocab(['cat', 'dog'])
    with pytest.raises(VaetagError) as e: TagTable.read(p, vocab, strict=True)
    assert says in str(e.value) and 'strict' in str(e.value)
    assert len(TagTable.read(p, vocab, max_bad=.5)) in (1, 2)

def test_bad_records_up_to_max_bad(tmp_path):
    for i in range(19): Image.new('L', (4, 4)).save(tmp_path/f'{i}.png')
    p = put(tmp_path, 'd.json', json.dumps({f'{i}.png': 'cat' for i in range(20)}))
    assert len(TagTable.read(p)) == 19 and len(TagTable.read(p, max_bad=.05)) == 19
    with pytest.raises(VaetagError, match=re.escape('1 of 20 records are bad, 5.0% where max_bad allows 4.0%: 19.png: image not found')): TagTable.read(p, max_bad=.04)
    (tmp_path/'3.png').write_bytes(b'')
    t = TagTable.read(p, max_bad=.2)
    with pytest.raises(VaetagError, match='2 of 20 records are bad.*3.png: empty file'): t.with_sizes()
    assert len(t.with_sizes(max_bad=.1)) == 18

def test_duplicate_keys_last_wins(tmp_path):
    for c in 'abc': Image.new('L', (4, 4)).save(tmp_path/f'{c}.png')
    p = put(tmp_path, 'd.json', '{"a.png": 7, "b.png": "dog", "a.png": "cat", "b.png": "hat", "c.png": {"cat": 1, "cat": 0.5}}')
    t = TagTable.read(p, strict=True)
    assert t.ids == ['a.png', 'b.png', 'c.png'] and [t.tags(i) for i in range(3)] == [dict(cat=1.), dict(hat=1.), dict(cat=.5)]
    assert (t.report.counts['duplicate_keys'], t.report.counts['duplicate_tags'], t.report.total) == (2, 1, 3)
    c = put(tmp_path, 'd.csv', 'path,tags\na.png,cat\nb.png,dog\na.png,hat\n')
    t = TagTable.read(c)
    assert t.ids == ['a.png', 'b.png'] and t.tags(0) == dict(hat=1.) and t.report.counts['duplicate_keys'] == 1 and 'cat' not in t.vocab

def test_wrong_arguments(scenes):
    for kw, says in ((dict(layout='jsn'), "layout 'jsn' is none of"), (dict(sep=';'), "has no option 'sep'"), (dict(columns=dict(path='file')), "has no option 'columns'")):
        with pytest.raises(UsageError, match=re.escape(says)): TagTable.read(scenes/'data.json', **kw)
    for kw, says in ((dict(image_root='x'), 'image_root is for metadata files'), (dict(columns=dict(path='x')), "possible is {'group': 'folder'}"), (dict(sep=''), 'separates nothing')):
        with pytest.raises(UsageError, match=re.escape(says)): TagTable.read(scenes/'images', layout='sidecars', tags_dir=scenes/'side/images', **kw)
    with pytest.raises(UsageError, match='is none of path, tags'): TagTable.read(scenes/'data.csv', columns=dict(file='x'))
    with pytest.raises(VaetagError, match='0 sidecars'): TagTable.read(scenes/'images', layout='sidecars')
    with pytest.raises(VaetagError, match='none.csv: cannot read'): TagTable.read(scenes/'none.json', tags=scenes/'none.csv', layout='json')
    with pytest.raises(VaetagError, match='none.json: cannot read: No such file'): TagTable.read(scenes/'none.json')
    with pytest.raises(VaetagError, match='images: cannot read: Is a directory'): TagTable.read(scenes/'images', layout='json')

def test_sidecars(tmp_path):
    for n in ('a', 'b', 'c', 'd.e'): (tmp_path/'s').mkdir(exist_ok=True); Image.new('L', (4, 4)).save(tmp_path/f's/{n}.PNG')
    put(tmp_path, 's/a.txt', 'solo:0.5, cat'); put(tmp_path, 's/b.TXT', ' \r\n'); put(tmp_path, 's/d.e.txt', 'rem \\(re:zero\\)\nsolo, solo')
    vocab = Vocab(['solo', 'cat', 'rem_(re:zero)'])
    t = TagTable.read(tmp_path/'s', vocab)
    assert t.ids == ['a.PNG', 'b.PNG', 'd.e.PNG'] and t.labels.toarray().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]] and t.labelled.all()
    assert dict(t.report.counts) | dict(images_without_sidecar=1, unknown_tags=1, duplicate_tags=1, empty_label_images=1) == dict(t.report.counts)
    w = TagTable.read(tmp_path/'s', vocab, weights=True)
    assert w.tags(0) == dict(solo=.5, cat=1.) and w.tags(2) == t.tags(2) and not w.report.unknown          # escaped names are found beside weights, too
    assert TagTable.read(tmp_path/'s', vocab, exact=True).report.counts['unknown_tags'] == 2 and len(TagTable.read(tmp_path/'s', vocab, drop_empty=True)) == 2
    put(tmp_path, 's/a.txt', b'solo, \xff')
    with pytest.raises(VaetagError, match='a.txt: not UTF-8 at byte 6'): TagTable.read(tmp_path/'s', vocab)

@pytest.mark.skipif(os.name == 'nt', reason='names of any bytes are a thing of POSIX')
def test_names_that_are_no_text(tmp_path):
    for n in (b'a.png', b'\xff.png'): Image.new('L', (4, 4)).save(os.fsdecode(os.fsencode(tmp_path) + b'/' + n))
    for n in (b'a.txt', b'\xff.txt'): Path(os.fsdecode(os.fsencode(tmp_path) + b'/' + n)).write_text('cat')
    t = TagTable.read(tmp_path, max_bad=.5)
    assert t.ids == ['a.png'] and t.report.rows['bad_records'] == [('\\udcff.png', '', 'the name is not valid Unicode')]
    t.to_parquet(tmp_path/'t.parquet')

def test_half_characters(tmp_path):
    "Lone surrogates, which JSON can spell and no file can hold"
    for n in 'ab': Image.new('L', (4, 4)).save(tmp_path/f'{n}.png')
    p = put(tmp_path, 'd.json', '{"a.png": "cat, \\ud800", "b.png": ["\\udc00:.5", "cat"], "\\ud800.png": "cat"}')
    t = TagTable.read(p, max_bad=.5)
    assert t.vocab.names == ['cat'] and t.report.unknown == {'\\ud800': 1, '\\udc00': 1} and t.ids == ['a.png', 'b.png']
    for vocab in (None, Vocab(['cat'])):
        s = validate(p, vocab, tmp_path/'out', fix=True)
        assert s['bad_records'] == 1 and json.loads((tmp_path/'out/bad_records.json').read_text()) == {'\\ud800.png': 'the name is not valid Unicode'}
    t.vocab.write(tmp_path/'v.csv'); t.to_parquet(tmp_path/'t.parquet'); t.to_json(tmp_path/'t.json'); str(t.report), t.report._repr_html_()
    with pytest.raises(VaetagError, match='is no tag name'): Vocab(['\ud800'])

# --- writing -----------------------------------------------------------------------------------------------------------------
def test_nothing_half_written(scenes, monkeypatch):
    t = TagTable.read(scenes/'data.json')
    t.to_parquet(scenes/'out/t.parquet'); t.to_json(scenes/'out/t.json')
    content = lambda: {p.relative_to(scenes): p.read_bytes() for p in (scenes/'out').rglob('*') if p.is_file()}
    before = content()
    full = lambda *a, **k: (_ for _ in ()).throw(OSError(28, 'No space left on device'))
    monkeypatch.setattr(os, 'fsync', full)
    for write in (lambda: t.to_parquet(scenes/'out/t.parquet'), lambda: t.to_json(scenes/'out/t.json'), lambda: t.vocab.write(scenes/'out/t.csv'),
                  lambda: tag_stats(t).write(scenes/'out/stats'), lambda: write_cleaned(scenes/'data.json', [], None)):
        with pytest.raises(VaetagError, match='cannot write: No space left'): write()
    assert content() == before

def test_paths_in_json_work_from_anywhere(scenes, monkeypatch):
    t = TagTable.read(scenes/'data.json')
    t.to_json(scenes/'deep/er/t.json')
    monkeypatch.chdir('/')
    b = TagTable.read(scenes/'deep/er/t.json', t.vocab)
    assert b.ids[0] == '../../images/x/a.png' and [os.path.normpath(p) for p in b.paths] == t.paths and same(b.labels, t.labels)

def test_moved_folder_with_parquet(scenes):
    TagTable.read(scenes/'data.json').with_sizes().to_parquet(scenes/'t.parquet')
    moved = scenes.with_name('moved'); scenes.rename(moved)
    t = TagTable.read(moved/'t.parquet', strict=True)
    assert t.width.tolist() == [10, 11, 12] and t.paths[0] == str(moved/'images/x/a.png')

# --- real and nasty data -----------------------------------------------------------------------------------------------------
def test_real_metadata(shared):
    t = TagTable.read(shared/'fashion/metadata.jsonl', shared/'fashion/selected_tags.csv', strict=True)
    assert len(t) == 5000 and np.array_equal(t.counts(), t.vocab.counts) and t.ids[0] == '1544'
    c = TagTable.read(shared/'clothing_cc0/metadata.jsonl', columns=dict(group='sender_id'), strict=True)
    assert len(c) == 1000 and len(set(c.group)) == len(c.group_names) == 190
    assert TagTable.read(shared/'fashion', strict=True).ids == t.ids

def test_nasty_files_are_reported(shared, tmp_path, capfd):
    known = {f['file']: f for f in json.loads((shared/'nasty/manifest.json').read_text())}
    (tmp_path/'d.json').write_text(json.dumps({str(shared/'nasty/files'/f): 'cat' for f in known} | {'nowhere.png': 'cat'}))
    s = validate(tmp_path/'d.json', out=tmp_path/'out', fix=True)
    unreadable = json.loads((tmp_path/'out/unreadable_images.json').read_text())
    assert s['total_images'] == len(known)+1 and s['missing_images'] == 1 and s['unreadable_images'] == len(unreadable) > 5
    assert all(reason and '\n' not in reason for reason in unreadable.values())
    assert not faults(validate(tmp_path/'d.cleaned.json'))

def test_pairs_see_what_dicts_do_not():
    assert parse_tags(Pairs([('cat', 1), ('cat', '0.5')])).duplicates == ['cat']
