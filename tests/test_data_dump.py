"Public dumps, archives and ids on random input: nothing is lost, nothing counted twice, an archive may lie"
import io, json, os, tarfile
from concurrent.futures import ThreadPoolExecutor
import fsspec, numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.data import danbooru
from vaetag_nb.data.danbooru import DumpFilter, prepare
from vaetag_nb.data.dump import Dump
from vaetag_nb.data.files import open_member, read_bytes
from vaetag_nb.data.ids import IdRanges, parse_ids
from vaetag_nb.data.phash import near
from vaetag_nb.data.split import make
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import Vocab
from vaetag_nb.data.vocab import build_vocab

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('VAETAG_CACHE', str(tmp_path/'cache'))

def png(i):
    f = io.BytesIO(); Image.new('RGB', (8, 8 + i % 5), (i % 256, 40, 90)).save(f, 'PNG'); return f.getvalue()

def tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name); info.size = len(data); t.addfile(info, io.BytesIO(data))

def posts(ids, **columns):
    return pd.DataFrame(dict(id=ids, rating=['g']*len(ids), tag_string=[f'tag_{i % 3} common' for i in ids]) | columns)

# --- ids -------------------------------------------------------------------------------------------------------------
pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda p: (p[0], sum(p))), min_size=1, max_size=8)

@given(pairs)
def test_ranges_are_their_union(pairs):
    want = {i for a, b in pairs for i in range(a, b+1)}
    text = ','.join(str(a) if a == b else f'{a}-{b}' for a, b in pairs)
    r, all_ids = parse_ids(text), np.arange(80)
    assert set(all_ids[r.contains(all_ids)]) == want
    assert str(parse_ids(str(r))) == str(r) == str(IdRanges.of(np.array(sorted(want))))
    assert all(r.meets(a, a+3) == bool(want & set(range(a, a+4))) for a in range(70))

@given(st.lists(st.integers(0, 2**64-1) | st.integers(0, 300), min_size=1, max_size=40), st.integers(0, 16))
def test_near_is_what_comparing_all_pairs_gives(hashes, k):
    group = list(range(len(hashes)))
    for i, a in enumerate(hashes):
        for j, b in enumerate(hashes[:i]):
            if (a ^ b).bit_count() <= k: group = [group[j] if g == group[i] else g for g in group]
    got = near(np.array(hashes, np.uint64), k)
    assert ((got[:, None] == got) == (np.array(group)[:, None] == np.array(group))).all()

# --- the metadata ----------------------------------------------------------------------------------------------------
@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 9), st.sampled_from(['int64', 'float64', 'string', 'int32']))
def test_every_post_is_kept_once_or_dropped_for_one_reason(ids, group, kind):
    f = io.BytesIO()
    t = pa.table(dict(id=pa.array(ids, pa.int64()).cast(kind if kind != 'float64' else pa.float64()), rating=pa.array(['g', 'x'][i % 2] for i in ids),
                      score=pa.array([i % 7 for i in ids], pa.int64()), tag_string=pa.array([f'tag_{i % 3}' for i in ids], pa.string())))
    pq.write_table(t, f, row_group_size=group)
    fsspec.filesystem('memory').pipe('/prop/meta.parquet', f.getvalue())
    d = Dump('memory://prop/meta.parquet', parse_ids('5-30'), DumpFilter(min_score=2))
    kept = [i for p in d for i in p.ids.tolist()]
    assert kept == list(dict.fromkeys(i for i in ids if 5 <= i <= 30 and i % 7 >= 2))
    assert d.kept + sum(d.dropped.values()) == len(ids)

def test_caption_of_the_contract(tmp_path):
    tar(tmp_path/'a/x.tar', {'sub/000000000007.PNG': png(7)})
    posts([7], tag_string=['1girl hatsune_miku highres solo vocaloid']).to_parquet(tmp_path/'m.parquet')
    prepare(tmp_path/'m.parquet', tmp_path/'D', tmp_path/'a')
    assert (tmp_path/'D/images/7.txt').read_bytes() == b'1girl,hatsune_miku,highres,solo,vocaloid,general'
    assert (tmp_path/'D/images/7.png').read_bytes() == png(7)
    t = TagTable.read(tmp_path/'D/images', layout='sidecars', tags=tmp_path/'D/selected_tags.csv')
    assert t.labels.nnz == 6 and not t.report.unknown

def test_five_columns_alone(tmp_path):
    df = pd.DataFrame(dict(id=['5', '6'], rating=['E', None], tag_string_meta=['highres', None], tag_string_general=['  a  null ', ''], tag_string_artist=['nan', '']))
    df.to_parquet(tmp_path/'m.parquet')
    r = prepare(tmp_path/'m.parquet', tmp_path/'D', images=False)
    assert r.kept == 2 and r.odd_ratings == 1
    rows = pd.read_parquet(tmp_path/'D/table.parquet')
    assert [list(x) for x in rows.tags] == [['a', 'null', 'nan', 'highres', 'explicit'], []]   # general, artist, meta, the rating last
    v = Vocab.read(tmp_path/'D/selected_tags.csv')
    assert dict(zip(v.names, v.categories.tolist())) == dict(explicit=9, a=0, null=0, nan=1, highres=5)

# --- archives that are wrong -----------------------------------------------------------------------------------------
@pytest.fixture
def dump(tmp_path):
    for n in range(3): tar(tmp_path/f'dump/{n:04}.tar', {f'{i}.png': png(i) for i in range(n, 30, 3)})
    posts(list(range(33))).to_parquet(tmp_path/'m.parquet')
    return tmp_path

def test_damage_is_one_picture_less(dump):
    from hashlib import sha256
    prepare(dump/'m.parquet', dump/'look', dump/'dump', dry_run=True)                       # makes the indexes
    index = json.loads((dump/'dump/0001.json').read_text())
    for k, v in index['files'].items(): v['sha256'] = sha256(png(int(k[:-4])) if k != '4.png' else b'?').hexdigest()
    (dump/'dump/0001.json').write_text(json.dumps(index)); os.utime(dump/'dump/0001.tar')
    r = prepare(dump/'m.parquet', dump/'D', dump/'dump')
    assert (r.found, r.fetched, r.missing, r.first_missing, len(r.damaged)) == (30, 29, 3, [30, 31, 32], 1) and '0001.tar::4.png' in r.damaged[0]
    assert '4' not in TagTable.read(dump/'D/table.parquet').ids and not (dump/'D/images/4.txt').exists()
    with pytest.raises(VaetagError, match=r'3 pictures are missing, first: 30, 31, 32; 1 damaged \(strict\)'): prepare(dump/'m.parquet', dump/'D', dump/'dump', strict=True)

def test_an_index_that_reaches_over_the_end(dump):
    (dump/'dump/0002.json').write_text(json.dumps(dict(files={'2.png': dict(offset=10**9, size=5)})))
    with pytest.raises(VaetagError, match='2.png lies outside of the'): prepare(dump/'m.parquet', dump/'D', dump/'dump')
    assert not (dump/'D/table.parquet').exists()

def test_ids_of_no_post_leave_nothing(dump):
    import vaetag_nb.cli  # noqa: F401 (registers all verbs)
    from vaetag_nb.verbs.base import shell
    (dump/'ids.txt').write_text('1000-2000\n')
    before = sorted(dump.rglob('*'))
    say = ['data', 'danbooru', f'{dump}/m.parquet', '--ids-file', f'{dump}/ids.txt', '--out', f'{dump}/new/D']
    for more in (['--archives', f'{dump}/dump'], ['--no-images']):
        status, out, err = shell(*say, *more)
        assert status == 1 and err.endswith(f'vaetag: {dump}/m.parquet: none of its 33 posts is left; dropped: 33 ids\n')
        assert [p for p in sorted(dump.rglob('*')) if p not in before and dump/'dump' not in p.parents and dump/'cache' not in (p, *p.parents)] == []

def test_interrupted_and_run_again_is_the_same(dump, monkeypatch):
    whole = prepare(dump/'m.parquet', dump/'A', dump/'dump')
    from vaetag_nb.data import tars
    read, n = tars.read_range, []
    def torn(*a): n.append(1); return read(*a) if len(n) < 12 else (_ for _ in ()).throw(KeyboardInterrupt())
    monkeypatch.setattr(tars, 'read_range', torn)
    with pytest.raises(KeyboardInterrupt): prepare(dump/'m.parquet', dump/'B', dump/'dump')
    monkeypatch.setattr(tars, 'read_range', read)
    assert not (dump/'B/table.parquet').exists()
    r = prepare(dump/'m.parquet', dump/'B', dump/'dump')
    assert r.there >= 4 and r.there + r.fetched == whole.fetched
    files = lambda d: {p.relative_to(d).as_posix(): p.read_bytes() for p in sorted(d.rglob('*')) if p.is_file()}
    assert files(dump/'A') == files(dump/'B')

def test_in_place_is_the_same_data(dump):
    prepare(dump/'m.parquet', dump/'A', dump/'dump'); prepare(dump/'m.parquet', dump/'P', dump/'dump', in_place=True)
    a, p = (TagTable.read(dump/x/'table.parquet') for x in 'AP')
    assert a.ids == p.ids and (a.labels != p.labels).nnz == 0 and a.vocab == p.vocab
    assert [read_bytes(x) for x in a.paths] == [open_member(x) for x in p.paths]
    assert make(a).fingerprint == make(p).fingerprint
    assert (p.with_sizes().height == [8 + int(i) % 5 for i in p.ids]).all()

def test_a_tar_without_a_place_for_its_index(dump, monkeypatch):
    from vaetag_nb.data import files
    real = files.write_json
    def refuse(path, *a):
        if not str(path).startswith(str(dump/'cache')): raise VaetagError(f'{path}: cannot write: Read-only file system')
        real(path, *a)
    monkeypatch.setattr(files, 'write_json', refuse)
    assert prepare(dump/'m.parquet', dump/'D', dump/'dump', ids='3').fetched == 1
    assert not list((dump/'dump').glob('*.json')) and len(list((dump/'cache/tars').iterdir())) == 3

def test_parents_keep_together(tmp_path):
    ids = list(range(1, 61))
    tar(tmp_path/'a/x.tar', {f'{i}.png': png(i) for i in ids})
    posts(ids, parent_id=[None if i % 3 == 0 else float(i - i % 3 or 1000) for i in ids]).to_parquet(tmp_path/'m.parquet')
    prepare(tmp_path/'m.parquet', tmp_path/'D', tmp_path/'a', in_place=True)
    t = TagTable.read(tmp_path/'D/table.parquet')
    s = make(t, group_by=('parent',))
    side = dict(zip(map(int, s.ids), s.side))
    assert all(side[i] == side[i - i % 3] for i in ids if i > 3)
    t.to_parquet(tmp_path/'again.parquet')
    assert (TagTable.read(tmp_path/'again.parquet').parent == t.parent).all()

# --- tag lists -------------------------------------------------------------------------------------------------------
def test_list_of_the_contract(tmp_path):
    rows = '1girl 150000, solo 120000, long_hair 95000, short_hair 80000, red_eyes 45, blue_eyes 60000, original 2000, touhou 100'
    (tmp_path/'c.csv').write_text('\ufeffname,count\n' + ''.join(f"{r.split()[0]},{r.split()[1]}\n" for r in rows.split(', ')), encoding='utf-8')
    want = ['1girl', 'solo', 'long_hair', 'short_hair', 'blue_eyes', 'original', 'touhou']
    assert Vocab.read(tmp_path/'c.csv', min_count=50).names == want
    assert build_vocab([tmp_path/'c.csv'], min_count=50, order='file')[0].names == want
    assert build_vocab([tmp_path/'c.csv'], min_count=50, order='name')[0].names == sorted(want)
    (tmp_path/'d.csv').write_text('name,count\na,100\na,5\nb,7\n')
    assert Vocab.read(tmp_path/'d.csv', min_count=10, duplicates='merge').names == build_vocab([tmp_path/'d.csv'], min_count=10)[0].names == ['a']
    with pytest.raises(VaetagError, match='lines 2, 3'): Vocab.read(tmp_path/'d.csv', min_count=10)
    v = Vocab(['general', '1girl', 'solo', 'hatsune_miku'], [9, 0, 0, 4])
    assert v.sha256 == 'a4d2407c977474cc5af32f9a8914084e4aab710a568ede7881f3f1da8ffa32a8'

def test_aliases_and_implications_give_the_same_from_every_source(dump):
    "The dump itself, the table made of it, and its captions"
    (dump/'a.csv').write_text('alias,canonical\ntag_1,first\n'); (dump/'i.csv').write_text('antecedent,consequent\nfirst,any\ntag_2,any\n')
    prepare(dump/'m.parquet', dump/'D', dump/'dump', ids='0-29')
    rules = dict(aliases=dump/'a.csv', implications=dump/'i.csv')
    one, two, three = (build_vocab([s], **rules, **more)[0] for s, more in [(dump/'m.parquet', dict(ids='0-29')), (dump/'D/table.parquet', {}), (dump/'D/images', dict(layout='sidecars'))])
    assert dict(zip(one.names, one.counts.tolist())) == dict(general=30, common=30, any=20, first=10, tag_0=10, tag_2=10)
    assert one == two and dict(zip(three.names, three.counts)) == dict(zip(one.names, one.counts))
    t = TagTable.read(dump/'D/table.parquet', **rules)
    assert t.report.counts['aliased_tags'] == 10 and t.report.counts['implied_tags'] == 20
    (dump/'l.csv').write_text('name,category\ntag_1,0\nfirst,0\ncommon,0\n')      # a list that has the alias for a tag: it is one
    two = [build_vocab([s], dump/'l.csv', aliases=dump/'a.csv', **more)[0] for s, more in [(dump/'m.parquet', dict(ids='0-29')), (dump/'D/table.parquet', {})]]
    assert two[0] == two[1] and dict(zip(two[0].names, two[0].counts.tolist())) == dict(common=30, tag_1=10)

def test_pictures_are_read_in_the_order_in_which_they_lie(tmp_path, monkeypatch):
    ids = [5, 10, 1, 200, 30]
    tar(tmp_path/'dump/a.tar', {f'{i}.png': png(i) for i in ids})                     # sorted as names: 1, 10, 200, 30, 5
    posts(sorted(ids)).to_parquet(tmp_path/'m.parquet')
    read = []
    monkeypatch.setattr(danbooru.Archives, 'read', lambda self, place, f=danbooru.Archives.read: read.append(int(self.number[place])) or f(self, place))
    monkeypatch.setattr(danbooru, 'ThreadPoolExecutor', lambda n: ThreadPoolExecutor(1))
    assert prepare(tmp_path/'m.parquet', tmp_path/'D', tmp_path/'dump').fetched == 5 and read == ids
