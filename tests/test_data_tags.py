"The tag grammar and the vocabulary on random and on hostile input"
import csv, io, math, re
import numpy as np, pyarrow as pa, pytest
from hypothesis import example, given, strategies as st
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.data.labels import Labels, LoadReport
from vaetag_nb.data.tags import CATEGORIES, Vocab, format_tags, parse_tags

characters = st.characters(blacklist_categories=('Cs',))
names = st.text(characters, min_size=1, max_size=12).map(str.strip).filter(bool)
odd_names = st.sampled_from(['null', 'nan', 'NA', 'None', '2024', '1e5', ':d', ':3', 're:zero', 'a:1.0', 'inf', '-', '"', '""', "'", ',', 'a,b', '=1+1', '#N/A',
                             'a\nb', 'a\rb', 'x\r\ny', 'a\u2028b', '\ufeffa', '猫', 'a\tb', '\0', 'true', 'a"b', '\\', 'e\u0301', '\u200b', '$t', '()', '{}'])
weights = st.floats(0, 1, width=32)

# --- an independent reading of the rule, word by word -----------------------------------------------------------------
def rule_R(text, vocab):
    tags, unknown, bad, twice, empty = {}, [], [], [], []
    for e in (x.strip() for x in text.split(',')):
        if not e: continue
        tag, w, blank = e, '1', False
        if vocab is None or e not in vocab:
            at = e.rfind(':')
            left, right = (e[:at].strip(), e[at+1:].strip()) if at >= 0 else ('', '')
            number = re.fullmatch(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?([nN][aA][nN]|[iI][nN][fF]([iI][nN][iI][tT][yY])?)', right)
            if left and not right: tag, blank = left, True
            elif left and number: tag, w = left, right
        w = float(w)
        if math.isnan(w) or not 0 <= w <= 1: bad.append(e)
        elif vocab is not None and tag not in vocab: unknown.append(tag)
        else:
            if blank: empty.append(tag)
            if tag in tags: twice.append(tag)
            tags[tag] = w + 0
    return tags, unknown, bad, twice, empty

VOCAB = {t: i for i, t in enumerate(['cat', 'dog', 're:zero', ':d', ':3', 're', 'Cat', 'a:1', 'a', '1', 'nan', 'cat:0.5'])}
TABLE = {t: i for i, t in enumerate(['cat', 'dog', 'outdoor', 'nature', 're:zero', ':d', ':3', 're', 'Cat'])}

@pytest.mark.parametrize('text,tags,more', [
    ('cat:1.0, outdoor:0.9, nature:0.8', dict(cat=1, outdoor=.9, nature=.8), {}), ('cat', dict(cat=1), {}), ('cat:1.0,', dict(cat=1), {}), (' dog:0.25', dict(dog=.25), {}),
    ('cat:, dog:0.5', dict(cat=1, dog=.5), dict(empty_weights=['cat'])), ('re:zero:0.8, cat', {'re:zero': .8, 'cat': 1}, {}), (':d, cat', {':d': 1, 'cat': 1}, {}),
    (':3, cat', {':3': 1, 'cat': 1}, {}), ('CAT:1.0, dog', dict(dog=1), dict(unknown=['CAT'])), ('cat:0.3, cat:0.7', dict(cat=.7), dict(duplicates=['cat'])),
    ('cat:nan, dog', dict(dog=1), dict(bad_weights=['cat:nan']))])
def test_the_table_of_the_contract(text, tags, more):
    p = parse_tags(text, TABLE)
    assert p.tags == tags and {k: v for k, v in vars(p).items() if k != 'tags' and v} == more

pieces = st.sampled_from([*VOCAB, 'cat', ':', ' ', ',', '.5', '1', '0', '1e-1', '-0', '１', '，', '%', '_', 'nan', 'inf', 'x', '+1', '.', '1.', '\u3000', 'e'])
texts = st.lists(pieces, max_size=14).map(''.join)

@given(texts, st.booleans())
@example('cat:0.5', True)
@example('a:1:, a:1', True)
@example(' : : 0.5', False)
def test_parser_follows_the_rule(text, closed):
    vocab = VOCAB if closed else None
    p = parse_tags(text, vocab)
    assert (p.tags, p.unknown, p.bad_weights, p.duplicates, p.empty_weights) == rule_R(text, vocab)
    assert all(0 <= w <= 1 and math.copysign(1, w) == 1 for w in p.tags.values())

@given(st.text(max_size=40))
def test_any_text_can_be_read(text):
    p = parse_tags(text)
    assert all(t and t == t.strip() for t in p.tags)

def test_long_numbers_take_no_time():
    assert parse_tags('a:' + '1'*200_000 + 'x').tags == {'a:' + '1'*200_000 + 'x': 1.}
    assert parse_tags('a:' + '9'*200_000).bad_weights

@given(st.dictionaries(names.filter(lambda n: ',' not in n) | odd_names.filter(lambda n: ',' not in n), weights, max_size=6))
def test_format_parse_round_trip(tags):
    assert parse_tags(format_tags(tags)).tags == tags
    f32 = {t: np.float32(w) for t, w in tags.items()}
    assert {t: np.float32(w) for t, w in parse_tags(format_tags(f32)).tags.items()} == f32

@given(st.dictionaries(names, weights, max_size=6))
def test_a_mapping_holds_any_name(tags):
    assert parse_tags(tags).tags == tags

# --- in bulk as one by one ---------------------------------------------------------------------------------------------
junk = st.none() | st.booleans() | st.floats() | st.text(max_size=3)
records = st.one_of(st.none(), texts, st.lists(pieces | texts, max_size=5), st.dictionaries(pieces | names, junk, max_size=4),
                    st.integers(), st.booleans(), st.lists(st.integers(), min_size=1, max_size=2), st.dictionaries(pieces, st.lists(pieces), min_size=1, max_size=2))

def one_by_one(recs, vocab):
    "What `Labels` must give, by `parse_tags`"
    rows, state, counts = [], [], dict(bad_weights=0, unknown_tags=0, duplicate_tags=0, empty_weights=0, bad_records=0)
    for r in recs:
        try: p = parse_tags(r, vocab)
        except VaetagError: rows.append({}); state.append(-1); counts['bad_records'] += 1; continue
        rows.append({t: np.float32(w) for t, w in p.tags.items()})
        state.append(int(bool(p.tags or p.unknown)))
        for k, v in (('bad_weights', p.bad_weights), ('unknown_tags', p.unknown), ('duplicate_tags', p.duplicates), ('empty_weights', p.empty_weights)): counts[k] += len(v)
    return rows, state, {k: n for k, n in counts.items() if n}

def as_rows(x, vocab):
    return [{vocab[c]: w for c, w in zip(x.indices[a:b], x.data[a:b])} for a, b in zip(x.indptr, x.indptr[1:])]

@given(st.lists(records, max_size=12), st.booleans(), st.integers(1, 12), st.integers(1, 40))
def test_bulk_equals_single(recs, closed, batch, remember):
    vocab, report = Vocab(list(VOCAB)) if closed else None, LoadReport(limit=2)
    l = Labels(vocab, report); l.remember = remember
    ids = [str(i) for i in range(len(recs))]
    state = [s for at in range(0, len(recs), batch) for s in l.add(ids[at:at+batch], recs[at:at+batch])]
    x, v = l.result()
    rows, want, counts = one_by_one(recs, vocab)
    assert as_rows(x, v) == rows and state == want
    assert {k: n for k, n in report.counts.items() if n and k != 'images_with_unknown_tags'} == counts
    assert x.has_sorted_indices and (closed or sorted(v.names) == sorted({t for r in rows for t in r}))
    assert sum(report.unknown.values()) == counts.get('unknown_tags', 0)

@given(st.lists(st.none() | st.lists(pieces | names, max_size=5), max_size=8), st.booleans(), st.booleans())
def test_arrow_equals_python(recs, closed, coded):
    vocab, ids = Vocab(list(VOCAB)) if closed else None, [str(i) for i in range(len(recs))]
    kind = pa.list_(pa.dictionary(pa.int32(), pa.string()) if coded else pa.string())
    a, b = Labels(vocab), Labels(vocab)
    states = a.add(ids, recs).tolist(), b.add_arrow(ids, pa.array(recs, pa.list_(pa.string())).cast(kind)).tolist()
    (x, v), (y, w) = a.result(), b.result()
    assert states[0] == states[1] and v == w and as_rows(x, v) == as_rows(y, w)
    assert a.report.counts == b.report.counts and a.report.unknown == b.report.unknown

@given(st.lists(st.lists(st.tuples(st.sampled_from(['cat', 'dog', 'bird', '']), st.floats(-1, 2, width=32) | st.none() | st.just(math.nan)), max_size=4), max_size=5))
def test_arrow_weights(recs):
    vocab, ids = Vocab(['dog', 'cat']), [str(i) for i in range(len(recs))]
    l = Labels(vocab)
    l.add_arrow(ids, pa.array([[t for t, _ in r] for r in recs], pa.list_(pa.string())), pa.array([[w for _, w in r] for r in recs], pa.list_(pa.float32())))
    rows, _, counts = one_by_one([dict_of_last(r, vocab) for r in recs], vocab)
    assert as_rows(*l.result()) == rows
    assert l.report.counts['bad_weights'] == sum(t != '' and not (w is not None and 0 <= w <= 1) for r in recs for t, w in r)

def dict_of_last(r, vocab):
    "Of equal tags the last valid weight, as the grammar has it"
    return {t: w for t, w in r if t in vocab and w is not None and 0 <= w <= 1}

# --- vocabulary --------------------------------------------------------------------------------------------------------
vocabs = st.lists(st.tuples(names | odd_names.map(str.strip).filter(bool), st.sampled_from(list(CATEGORIES)), st.integers(0, 2**50), st.integers(-2**50, 2**50), st.text(characters, max_size=5).map(str.strip)),
                  min_size=1, max_size=12, unique_by=lambda r: r[0])

@given(vocabs)
def test_vocab_survives_its_file(tmp_path_factory, rows):
    n, c, k, i, e = map(list, zip(*rows))
    v = Vocab(n, c, k, i, dict(note=e, best_threshold=[f'.{j}' for j in range(len(n))]))
    p = tmp_path_factory.mktemp('vocab')/'selected_tags.csv'
    v.write(p)
    raw = p.read_bytes()
    assert raw[:3] != b'\xef\xbb\xbf' and raw.startswith(b'tag_id,name,category,count,note,best_threshold\n')
    assert Vocab.read(p, order='file') == v
    ranked = Vocab.read(p)
    assert sorted(ranked.names) == sorted(n) and ranked.sha256 == Vocab.read(p).sha256
    p.write_bytes(b'\xef\xbb\xbf' + raw)
    assert Vocab.read(p, order='file') == v

@given(vocabs, st.sampled_from(['rank', 'name']))
def test_order_depends_on_content_only(rows, order):
    build = lambda r: Vocab.from_counts({n: k for n, _, k, *_ in r}, {n: c for n, c, *_ in r}, order)
    v = build(rows)
    assert v == build(rows[::-1]) and sorted(v.names) == sorted(r[0] for r in rows)
    assert v.ordered(order).names == v.names
    if order == 'rank':
        rank = [{9: 0, 0: 1, 4: 2}.get(int(c), 3 + int(c)) for c in v.categories]
        assert rank == sorted(rank)

@given(vocabs, vocabs)
def test_merged_adds_up(a, b):
    va, vb = (Vocab(*map(list, list(zip(*r))[:3])) for r in (a, b))
    m = Vocab.merged([va, vb])
    count = lambda v, t: int(v.counts[v.index[t]]) if t in v else 0
    assert set(m.names) == {*va.names, *vb.names} and all(count(m, t) == count(va, t) + count(vb, t) for t in m)
    assert all(m.categories[m.index[t]] == va.categories[va.index[t]] for t in va)

@given(vocabs, st.integers(0, 5), st.none() | st.integers(0, 3), st.none() | st.sets(st.sampled_from(list(CATEGORIES))))
def test_filter_keeps_what_it_says(rows, low, top, cats):
    v = Vocab(*map(list, list(zip(*rows))[:3]))
    v.counts %= 7
    f = v.filter(low, top, cats)
    passing = [t for i, t in enumerate(v) if v.counts[i] >= low and (cats is None or v.categories[i] in cats)]
    assert [t for t in v if t in f] == f.names and set(f.names) <= set(passing)
    for c in CATEGORIES:
        these = [t for t in passing if v.categories[v.index[t]] == c]
        kept = [t for t in these if t in f]
        assert len(kept) == (len(these) if top is None else min(top, len(these)))
        if kept: assert min(v.counts[v.index[t]] for t in kept) >= max([v.counts[v.index[t]] for t in these if t not in f], default=0)

@pytest.mark.parametrize('data, says', [
    (b'', 'empty file'), (b'name\n', 'no tag below'), (b'tag,count\na,1\n', "no column 'name'; found 'tag', 'count'"), (b'Name\na\n', "no column 'name'; found 'Name'"),
    (b'1girl,0,6008644,"1girls,sole_female"\n', "no column 'name'; found '1girl'"), (b'name,count\na,1\n ,2\n,3\n', 'no name in lines 3, 4'),
    (b'name\na\nb\n a \n', "'a' in lines 2, 4"), (b'name,category\na,0\nb,villain\n', "line 3: 'villain' is no tag category"), (b'name\n\xff\n', 'not UTF-8 at byte 5'),
    (b'name,count\na,1,2\n', 'line 2 has 3 cells, the header 2'), (b'name,name\na,b\n', "column 'name' stands twice"), (b'name,tag_id\na,one\n', "line 2: 'one' is no tag_id"),
    (b'\x00\x01\x02', "no column 'name'"), (b'\xff\xfen\x00a\x00m\x00e\x00\n\x00', 'not UTF-8'), (b'name\n"' + b'x'*140_000 + b'"\n', 'not CSV: line 2')])
def test_wrong_tag_files_are_one_line(tmp_path, data, says):
    p = tmp_path/'tags.csv'; p.write_bytes(data)
    with pytest.raises(VaetagError) as e: Vocab.read(p)
    text = str(e.value)
    assert says in text and str(p) in text and '\n' not in text and '\r' not in text and e.value.exit_code == 1

def test_missing_tag_file_and_wrong_choices(tmp_path):
    with pytest.raises(VaetagError, match='none.csv: cannot read: No such file'): Vocab.read(tmp_path/'none.csv')
    (tmp_path/'t.csv').write_text('name\na\n')
    for kw in (dict(order='rank'), dict(duplicates='drop')):
        with pytest.raises(UsageError): Vocab.read(tmp_path/'t.csv', **kw)

def test_merge_keeps_largest_count_and_first_category(tmp_path, capsys):
    p = tmp_path/'t.csv'; p.write_text('name,category,count\na,4,1\n,0,9\na,0,7\nb,0,\na,0,3\n')
    v = Vocab.read(p, duplicates='merge')
    assert (v.names, v.categories.tolist(), v.counts.tolist()) == (['b', 'a'], [0, 4], [0, 7])
    said = capsys.readouterr().err
    assert 'rows without a name' in said and "'a' in lines 2, 4, 6" in said and 'unreadable count' in said

def test_real_tag_list(shared):
    "140 782 danbooru tags, quotes and backslashes and digits-only names among them"
    src = shared/'tags'/'danbooru_tagcomplete_140782.csv'
    with pytest.raises(VaetagError, match="no column 'name'"): Vocab.read(src)
    rows = [r for r in csv.reader(io.StringIO(src.read_text(encoding='utf-8'), newline='')) if r]
    v = Vocab.from_counts({r[0]: int(r[2]) for r in rows}, {r[0]: r[1] for r in rows})
    assert len(v) == len({r[0] for r in rows}) > 140_000 and v.names[0] == '1girl'
    assert parse_tags(', '.join(v.names[:1000]), v).tags == dict.fromkeys(v.names[:1000], 1.)
