"Splits on random tables: nothing leaks, nothing depends on the row order, sizes and shares come out, files are kept"
import hashlib, re, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pyarrow.parquet as pq, pytest, scipy.sparse as sp
from hypothesis import given, strategies as st
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.data import groups as G, split as S
from vaetag_nb.data.stratify import numbered, quality, side_sizes, stratify
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import Vocab

def table(n, tags=6, seed=0, ids=None, **columns):
    rng = np.random.default_rng(seed)
    dense = rng.random((n, tags)) < 1/np.arange(1.5, tags+1.5)
    return TagTable(ids or [f'img {i}.png' for i in range(n)], ['missing.png']*n, sp.csr_matrix(dense.astype(np.float32)), Vocab.from_counts({f't{i}': 1 for i in range(tags)}), **columns)

def csr(dense): return sp.csr_matrix(np.asarray(dense, np.float32))

# --- numbers of the contract -----------------------------------------------------------------------------------------
def test_worked_sizes():
    Y = csr([[i < 12 for _ in range(5)] for i in range(20)])
    for seed in range(10): assert np.bincount(stratify(Y, [.8, .2, 0], seed)).tolist() == [16, 4]

@pytest.mark.parametrize('seed', range(20))
def test_one_of_each(seed):
    Y = np.repeat(np.eye(2), 5, 0)
    for ratios in ([.8, .2], [.7, .2, .1]): assert Y[stratify(csr(Y), ratios, seed) == 1].sum(0).tolist() == [1, 1]

def test_hash_is_the_published_rule():
    t = table(12, ids=[str(i) for i in range(1, 13)])
    s = S.make(t, 'hash', .1, .1, 0, ())
    assert dict(zip(s.ids, s.side)) == {str(i): 'val' if i == 7 else 'train' for i in range(1, 13)}

def test_modulo():
    t = table(4, ids=['899', 'a/900.png', '1949', '950'])
    assert S.make(t, 'modulo', group_by=()).side.tolist() == ['train', 'test', 'test', 'val']
    with pytest.raises(VaetagError, match='modulo gives train 1, val 0, test 2: none has an id from 950 to 999'): S.make(t.select([0, 1, 2]), 'modulo', group_by=())
    assert S.make(t.select([0, 1, 2]), 'modulo', group_by=(), no_val=True).sizes['val'] == 0

@given(st.integers(1, 12), st.integers(0, 2**16), st.sampled_from([0, .1, .5]))
def test_an_empty_val_of_hash_says_what_would_do(n, seed, test):
    t = table(n)
    try: S.make(t, 'hash', .01, test, seed, ())
    except VaetagError as e:
        if 'test takes all' in str(e): return
        share = float(re.search('the least val that gives one is ([0-9.]+)', str(e))[1])
        if share + test < 1: assert S.make(t, 'hash', share, test, seed, ()).sizes['val'] >= 1
    with pytest.raises(VaetagError, match="modulo needs ids that are numbers, and 'x' is none"): S.make(table(1, ids=['x']), 'modulo', group_by=())

def test_quality_of_the_contract():
    "4000 x 800 x 20, p ~ 1/rank"
    rng, p = np.random.default_rng(3), 1/np.arange(1, 801)
    Y = np.zeros((4000, 800), np.float32)
    np.put_along_axis(Y, rng.choice(800, (4000, 20), p=p/p.sum()), 1, 1)
    Y = csr(Y)
    side = stratify(Y, [.8, .1, .1])
    luck = np.random.default_rng(0).permutation(side)
    for f in (1, 2):
        ours, random = (quality(Y, x, [.8, .1, .1])[f] for x in (side, luck))
        assert ours['mean_deviation'] <= random['mean_deviation']/2 and ours['missing_tags'] == 0
    n = np.asarray(Y.sum(0)).ravel(); val = np.asarray(Y[side == 1].sum(0)).ravel()
    assert (abs(val/n-.1) <= 1/n+.05).all()
    assert np.bincount(side).tolist() == [3200, 400, 400]

# --- properties ------------------------------------------------------------------------------------------------------
@st.composite
def cases(draw):
    n, tags, seed = draw(st.integers(4, 80)), draw(st.integers(0, 8)), draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    Y = csr(rng.random((n, tags)) < draw(st.floats(.01, .6)))
    groups = None if draw(st.booleans()) else rng.integers(0, draw(st.integers(3, n)), n)
    return Y, draw(st.sampled_from([(.8, .1, .1), (.5, .5, 0), (1, 1, 1, 1), (.9, .1)])), groups, seed

@given(cases())
def test_stratify_keeps_its_promises(case):
    Y, ratios, groups, seed = case
    n = Y.shape[0]
    side = stratify(Y, ratios, seed, groups)
    assert side.shape == (n,) and set(side) <= set(np.flatnonzero(np.asarray(ratios) > 0))
    want, got = side_sizes(n, ratios), np.bincount(side, minlength=len(ratios))
    if groups is None: assert got.tolist() == want.tolist()
    else:
        for g in np.unique(groups): assert len(set(side[groups == g])) == 1
        assert abs(got-want).max() <= 2*np.bincount(groups).max()
    shuffle = np.random.default_rng(seed+1).permutation(n)
    again = stratify(Y[shuffle], ratios, seed, None if groups is None else groups[shuffle], order=np.argsort(shuffle))
    assert (again == side[shuffle]).all()

@given(cases())
def test_every_tag_with_enough_images_is_on_every_side(case):
    Y, ratios, _, seed = case
    side, r = stratify(Y, ratios, seed), np.asarray(ratios, float)/np.sum(ratios)
    n = np.asarray(Y.sum(0)).ravel()
    for f in np.flatnonzero(r):
        have = np.asarray(Y[side == f].sum(0)).ravel()
        assert ((have > 0) | (n*r[f] < 2)).all(), (f, have, n)  # twice the share: exchanges always find room

@given(cases(), st.data())
def test_fixed_records_never_move(case, data):
    Y, ratios, groups, seed = case
    fixed = np.random.default_rng(seed).choice([-1, *np.flatnonzero(np.asarray(ratios) > 0)], Y.shape[0])
    if groups is not None: fixed = fixed[np.unique(groups, return_index=True)[1]][np.unique(groups, return_inverse=True)[1]]
    side = stratify(Y, ratios, seed, groups, fixed=fixed)
    assert (side[fixed >= 0] == fixed[fixed >= 0]).all()

@given(st.integers(1, 500), st.lists(st.floats(0, 1), min_size=1, max_size=5).filter(lambda r: sum(r) > 0))
def test_sizes_add_up(n, ratios):
    size, quota = side_sizes(n, ratios), n*np.asarray(ratios)/np.sum(ratios)
    assert size.sum() == n and (abs(size-quota) < 1+1e-6).all()

@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_numbers_go_by_first_occurrence(groups):
    of = numbered(groups)
    assert of[0] == 0 and all(of[i] <= of[:i].max(initial=-1)+1 for i in range(len(of)))
    assert len(set(zip(groups, of))) == len(set(groups)) == of.max()+1

@given(st.integers(0, 2**16), st.sampled_from(['stratified', 'random', 'hash']), st.integers(20, 60))
def test_make_leaks_nothing_and_ignores_the_row_order(seed, method, n):
    rng = np.random.default_rng(seed)
    t = table(n, seed=seed, group=rng.integers(0, n//2, n))
    shuffle = rng.permutation(n)
    a, b = (S.make(x, method, .2, .2, seed, ('group',), no_val=method == 'hash') for x in (t, t.select(shuffle)))   # hash may leave val empty
    assert a.fingerprint == b.fingerprint and (a.side[shuffle] == b.side).all() and (a.group[shuffle] == b.group).all()
    for g in np.unique(a.group): assert len(set(a.side[a.group == g])) == 1

@given(st.integers(0, 2**16), st.integers(20, 60), st.integers(1, 40))
def test_extend_keeps_old_sides_and_aims_at_the_whole(seed, old, new):
    t = table(old+new, seed=seed)
    first = S.make(t.select(np.arange(old)), val=.2, test=.1, seed=seed, group_by=())
    both = S.make(t, val=.2, test=.1, seed=seed, group_by=(), extend=first)
    assert (both.side[:old] == first.side).all()
    want, had = side_sizes(old+new, (.7, .2, .1)), np.array(list(first.sizes.values()))
    assert np.array(list(both.sizes.values())).tolist() == want.tolist() or (had > want).any()

@given(st.lists(st.text(max_size=12), min_size=3, max_size=12, unique=True))
def test_any_text_is_an_id(tmp_path_factory, ids):
    t = table(len(ids), ids=ids)
    s = S.make(t, 'hash', .3, .3, group_by=(), no_val=True)
    p = tmp_path_factory.mktemp('s')/'split.parquet'
    s.write(p)
    back = S.Split.read(p)
    assert back.fingerprint == s.fingerprint and back.sides_of(ids).tolist() == s.side.tolist()
    assert back.ids == sorted(ids)

# --- files -----------------------------------------------------------------------------------------------------------
def test_copies_stay_together(tmp_path):
    names = []
    for i in range(30):
        (tmp_path/f'{i}.png').write_bytes(b'%d' % (i//3))
        names.append(f'{i}.png')
    t = TagTable(names, [str(tmp_path/n) for n in names], csr(np.eye(30)), Vocab.from_counts({f't{i}': 1 for i in range(30)}))
    for method in ('stratified', 'random', 'hash'):
        s = S.make(t, method, .2, .2)
        for i in range(0, 30, 3): assert len(set(s.side[i:i+3])) == 1
    assert s.quality['groups'] == 10
    (tmp_path/'1.png').unlink()  # a file that is gone is alone
    assert S.make(t, val=.2, test=.2).quality['groups'] == 11

def test_only_files_of_equal_size_are_read(tmp_path, monkeypatch):
    for i in range(6): (tmp_path/str(i)).write_bytes(b'x'*(10 if i < 2 else 20+i))
    read = []
    monkeypatch.setattr(G, '_digest', lambda p, f=G._digest: read.append(Path(p).name) or f(p))
    assert S.same_content([tmp_path/str(i) for i in range(6)]).tolist() == [0, 0, 2, 3, 4, 5]
    assert sorted(read) == ['0', '1']

def test_the_file_holds_what_the_contract_says(tmp_path):
    t = table(40)
    s = S.make(t, val=.25, test=.1, seed=5, group_by=())
    s.write(tmp_path/'split.parquet')
    f = pq.read_table(tmp_path/'split.parquet')
    assert f.column_names == ['id', 'split', 'group'] and [str(x.type) for x in f.schema] == ['string', 'string', 'int64']
    meta = {k.decode(): v.decode() for k, v in f.schema.metadata.items()}
    text = 'vaetag-split/1\nmethod=stratified\nseed=5\nval=0.250000\ntest=0.100000\ngroup=\n' + ''.join(f'{i}\t{x}\n' for i, x in sorted(zip(s.ids, s.side), key=lambda r: r[0].encode()))
    assert meta['fingerprint'] == s.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    assert (meta['method'], meta['seed'], meta['group_by']) == ('stratified', '5', '') and (float(meta['val']), float(meta['test'])) == (.25, .1)
    before = (tmp_path/'split.parquet').read_bytes()
    S.ensure(tmp_path/'split.parquet', t)
    assert (tmp_path/'split.parquet').read_bytes() == before

def test_same_split_in_another_process():
    code = ('import numpy as np, scipy.sparse as sp; from vaetag_nb.data.stratify import stratify; r = np.random.default_rng(0); '
            'print(stratify(sp.csr_matrix(r.random((300, 20)) < .1, dtype=np.float32), [.8, .1, .1], 7).tolist())')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=dict(PYTHONHASHSEED='1', PATH='')).stdout
    rng = np.random.default_rng(0)
    assert out.strip() == str(stratify(csr(rng.random((300, 20)) < .1), [.8, .1, .1], 7).tolist())

@pytest.mark.parametrize('change, says', [
    (dict(val=-.1), 'val -0.1'), (dict(val=.5, test=.5), 'leave something to train on'), (dict(val=float('nan')), 'val nan'), (dict(val=0), '--no-val'),
    (dict(method='kfold'), "'kfold' is no method"), (dict(group_by='dhash'), "'dhash' is no key"), (dict(group_by='group'), "no column 'group'"),
    (dict(group_by='column:artist'), "no column 'artist'"), (dict(method='column'), 'needs a table with a column')])
def test_errors_name_what_is_wrong(change, says):
    with pytest.raises(VaetagError, match=says): S.make(table(20), **{'group_by': ()} | change)

def test_more_errors(tmp_path):
    with pytest.raises(VaetagError, match='no records'): S.make(table(0), group_by=())
    with pytest.raises(VaetagError, match='1 ids occur twice, first: a'): S.make(table(3, ids=['a', 'b', 'a']), group_by=())
    with pytest.raises(VaetagError, match="holds 'dev'"): S.make(table(3, split=['dev', 'train', 'test']), 'column', group_by=())
    (tmp_path/'x.parquet').write_bytes(b'no')
    with pytest.raises(VaetagError, match='x.parquet: not a Parquet file'): S.Split.read(tmp_path/'x.parquet')
    pd.DataFrame(dict(id=['a'], split=['train'], group=[0])).to_parquet(tmp_path/'y.parquet')
    with pytest.raises(VaetagError, match='lacks method'): S.Split.read(tmp_path/'y.parquet')
    with pytest.raises(UsageError): S.make(table(3), val=2)
    with pytest.raises(VaetagError, match='not valid Unicode'): S.make(table(3, ids=['a', 'b', 'c\udcff']), val=.3, test=.3, group_by=())

def test_real_data(shared):
    "Nothing straddles on real photos, and senders stay whole"
    t = TagTable.read(shared/'clothing_cc0'/'metadata.jsonl')
    sender = pd.read_json(shared/'clothing_cc0'/'metadata.jsonl', lines=True, dtype=str).set_index('file').sender_id
    t = t.with_columns(group=pd.factorize(sender.reindex(t.ids).to_numpy())[0])
    s = S.make(t)
    assert s.group_by == ('sha256', 'group') and pd.Series(s.side).groupby(t.group).nunique().max() == 1
    assert list(s.sizes.values()) == [800, 100, 100]
    assert s.quality['val']['mean_deviation'] < s.quality['random']['val']['mean_deviation']
