"Taggers beside each other: the same pictures, tags and draws for all, nothing that one was trained on, and labels that the scores contradict"
import importlib, json, shutil
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score, f1_score
from toy_tagger import toy_tagger
from vaetag_nb.compare import compare, compare_files, paired
from vaetag_nb.contenders import Contender, contenders, normalized
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.core.io import read_json, write_json
from vaetag_nb.data.split import make
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import Vocab
from vaetag_nb.eval.resample import draws
from vaetag_nb.eval.scores import Scores, read_scores, save_scores
from vaetag_nb.eval.suspects import Suspects
from vaetag_nb.verbs import base

importlib.import_module('vaetag_nb.cli')

S = np.array([[.9, .6, .2], [.4, .8, .7], [.3, .1, .35], [.8, .45, .5]], np.float32)
Y = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]])
IDS, TAGS = ['d', 'a', 'c', 'b'], ['x', 'y', 'z']

def table(y=Y, ids=IDS, tags=TAGS, **columns): return TagTable(ids, ids, y, Vocab(tags), labelled=np.ones(len(ids), bool), **columns)
def one(name, s=S, ids=IDS, tags=TAGS, at=.5, **kw): return Contender(name, Scores(ids, np.asarray(s, np.float32), Vocab(tags), None if at is None else np.full(len(tags), at, np.float32)), kind='scores', **kw)
def beside(*cs, truth=None, **kw): return compare({c.name: c for c in cs}, table() if truth is None else truth, **{'draws': 20, 'min_positives': 1} | kw)

# --- the figures, and what is common ---------------------------------------------------------------------------------
def test_the_worked_numbers_of_one_model():
    c = beside(one('a'), one('b'))
    for k, v in dict(mAP=.80555556, f1_micro=.5, precision_micro=.5, recall_micro=.5, f1_macro=.48888889).items():
        assert c['models']['a']['metrics'][k] == pytest.approx(v, abs=1e-6) and c['pairs'][0]['metrics'][k] == dict(difference=0, interval=[0, 0], p=1)
    assert beside(one('a'), one('b'), thresholds='pr')['models']['a']['metrics']['f1_micro'] == pytest.approx(.5)
    best = beside(one('a'), one('b'), thresholds='best')
    assert best.per_tag['threshold_a'].tolist() == pytest.approx([.35, .7, .1]) and best['models']['a']['thresholds'] == 'best_insample'
    assert best['models']['a']['metrics']['f1_macro'] == pytest.approx((1 + 1 + 2/3)/3)

def test_only_what_is_shared_counts():
    wide = one('wide', np.c_[np.full(4, .1), S[:, ::-1]], tags=['other', 'z', 'y', 'x'])
    few = one('few', S[:3, :2], IDS[:3], TAGS[:2])
    c, alone = beside(wide, few), beside(one('a', S[:3, :2], IDS[:3], TAGS[:2]), one('b', S[:3, :2], IDS[:3], TAGS[:2]))
    assert c['counts']['tags'] == 2 and c['counts']['images'] == 3 and c['models']['wide']['compared_share'] == .5
    assert c['models']['wide']['metrics'] == pytest.approx(alone['models']['a']['metrics'], abs=1e-9) and c['pairs'][0]['metrics']['mAP']['difference'] == 0

def test_the_order_of_records_and_models_is_of_no_account():
    back = [3, 1, 0, 2]
    a, b = beside(one('a'), one('b', 1-S)), beside(one('b', (1-S)[back], [IDS[i] for i in back]), one('a'), truth=table(Y[back], [IDS[i] for i in back]))
    assert a['models']['b'] == b['models']['b'] and a['models']['a'] == b['models']['a']
    (p,), (q,) = a['pairs'], b['pairs']
    for k, v in p['metrics'].items(): assert q['metrics'][k]['difference'] == -v['difference'] and q['metrics'][k]['p'] == v['p'] and q['metrics'][k]['interval'] == pytest.approx([-x for x in v['interval'][::-1]])

def test_a_tag_that_the_truth_lacks():
    two = table(Y[:, :2], tags=TAGS[:2])
    assert beside(one('a'), one('b'), truth=two)['counts']['tags'] == 2
    c = beside(one('a'), one('b'), truth=two, closed=False)            # no list: absent everywhere, so that its false alarms count
    assert c['counts']['tags'] == 3 and c['counts']['tags_with_positives'] == 2 and c['models']['a']['metrics']['precision_micro'] == pytest.approx(3/6)

# --- the draws -------------------------------------------------------------------------------------------------------
def test_the_same_draws_serve_all_against_scikit_learn():
    rng = np.random.default_rng(0)
    y, n = rng.random((40, 3)) < .4, 12
    a, b = ((y*.5 + .25 + s*rng.normal(size=y.shape)).clip(0, 1).astype(np.float32) for s in (.2, .4))
    ids = [f'{i:02}' for i in range(40)]
    c = beside(one('a', a, ids), one('b', b, ids), truth=table(y.astype(int), ids), draws=n, seed=3)
    def metrics(s, w):
        rows = np.repeat(np.arange(40), w.astype(int))
        return f1_score(y[rows].ravel(), (s[rows] >= .5).ravel()), np.mean([average_precision_score(y[rows, t], s[rows, t]) for t in range(3)])
    want = np.array([np.subtract(metrics(a, w), metrics(b, w)) for w in draws(40, n, 3)])
    for i, k in enumerate(('f1_micro', 'mAP')):
        m = c['pairs'][0]['metrics'][k]
        assert m['interval'] == pytest.approx(np.quantile(want[:, i], [.025, .975]), abs=1e-6)
        assert m['p'] == pytest.approx(min(1, 2*min((want[:, i] <= 0).mean(), (want[:, i] >= 0).mean())))

def test_p_is_what_is_written_down():
    assert paired([.5, .6, .7, .8], [.4, .7, .6, .6])['p'] == .5       # one of four turns it around
    assert paired([1, 1], [0, 0])['p'] == 0 and paired([1, 1], [1, 1])['p'] == 1 and paired([np.nan], [1]) == dict(interval=None, p=None)

def test_groups_are_drawn_together():
    rng = np.random.default_rng(1)
    y = np.repeat(rng.random((15, 2)) < .5, 6, 0)
    x = (y*.3 + .35 + np.repeat(.3*rng.normal(size=(15, 2)), 6, 0)).clip(0, 1)
    ids, width = [f'{i:03}' for i in range(90)], lambda c: np.diff(c['models']['a']['intervals']['f1_micro'])[0]
    alone, grouped = (beside(one('a', x, ids, TAGS[:2]), one('b', 1-x, ids, TAGS[:2]), truth=table(y.astype(int), ids, TAGS[:2], group=g), draws=200) for g in (None, np.repeat(np.arange(15), 6)))
    assert grouped['counts']['groups'] == 15 and width(grouped) > 1.5*width(alone)

def test_one_picture_has_no_interval():
    c = beside(one('a', S[:1], IDS[:1]), one('b', S[:1], IDS[:1]))
    assert c['pairs'][0]['metrics']['f1_micro'] == dict(difference=0, interval=None, p=None) and 'no intervals' in c['notes'][-1]
    json.dumps(c.result, allow_nan=False)

# --- training pictures -----------------------------------------------------------------------------------------------
def test_pictures_that_either_was_trained_on_are_left_out():
    c = beside(one('a', trained_on={'d', 'nowhere'}), one('b', trained_on={'c'}))
    assert c['counts']['images'] == 2 and c['counts']['trained_on'] == 2 and [c['models'][n]['trained_on'] for n in 'ab'] == [1, 1]
    assert c['notes'] == ['a: 1 pictures that it was trained on were left out', 'b: 1 pictures that it was trained on were left out']
    c = beside(one('a', trained_on=set()), one('b'))
    assert c['counts']['images'] == 4 and (c['models']['a']['split_known'], c['models']['b']['split_known']) == (True, False)
    assert len(c['notes']) == 1 and c['notes'][0].startswith('b: whether it was trained on these pictures could not be checked')
    c = beside(one('a', trained_on={'a.png'}), one('b', S[:2], IDS[:2], trained_on={'d', 'c'}))      # spelled otherwise; `c` is no picture of both
    assert c['notes'][:2] == ['a: none of its 1 training ids is among these pictures: new pictures, or ids spelled otherwise', 'b: 1 pictures that it was trained on were left out']
    assert c['counts']['trained_on'] == 1 and c['counts']['images'] == 1
    with pytest.raises(VaetagError, match='no picture left: all 4'): beside(one('a', trained_on=set(IDS)), one('b'))

# --- faults ----------------------------------------------------------------------------------------------------------
def test_faults_say_what_is_wrong(tmp_path):
    with pytest.raises(UsageError, match="no shared tag: a 3 tags such as 'x', b 1 tags such as 'q', the truth 3"): beside(one('a'), one('b', S[:, :1], tags=['q']))
    with pytest.raises(UsageError, match="no shared picture: .*b has ids such as '9'"): beside(one('a'), one('b', S[:1], ['9']))
    with pytest.raises(VaetagError, match='b: no thresholds are known'): beside(one('a'), one('b', at=None))
    with pytest.raises(VaetagError, match='need 48 bytes .* 40 are allowed'): beside(one('a'), one('b'), limit=40)
    with pytest.raises(VaetagError, match="x: 'a b' and 'a_b' become one tag"): normalized(Vocab(['a b', 'a_b']), 'x')
    with pytest.raises(UsageError, match='a number from 0 to 1'): beside(one('a'), one('b'), thresholds='1.5')
    with pytest.raises(UsageError, match='bootstrap: -3 draws; give 0 or more'): beside(one('a'), one('b'), draws=-3)
    with pytest.raises(VaetagError, match='^b: score 1.5 of d, tag x: .*were logits passed'): beside(one('a'), one('b', np.where(S > .8, 1.5, S)))
    for n in 'rs': write_json(tmp_path/f'{n}.json', dict(metrics=dict(f1=.5)))
    with pytest.raises(UsageError, match='r.json: the same file twice'): compare_files([tmp_path/f'{n}.json' for n in 'rsr'])
    save_scores(tmp_path/'s', one('a').source)
    with pytest.raises(UsageError, match='the same contender twice'): contenders([tmp_path/'s', tmp_path/'s'])
    (tmp_path/'s/index.parquet').unlink()
    with pytest.raises(VaetagError, match='lacks index.parquet'): read_scores(tmp_path/'s')

# --- suspects --------------------------------------------------------------------------------------------------------
@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 6), st.integers(1, 12), st.integers(0, 2**20))
def test_suspects_in_any_division(n, c, least, most, seed):
    rng = np.random.default_rng(seed)
    s, y, known = rng.random((n, c)).round(2).astype(np.float32), rng.random((n, c)) < .5, rng.random((n, c)) < .9
    d, names = Suspects([f't{i}' for i in range(c)], np.full(c, .5), least, most), np.array([f'{i:02}' for i in range(n)], object)
    for part in np.array_split(rng.permutation(n), 3):
        d.update(names[part], s[part], y[part], known[part])
        d._prune()
    rows = [(-round(abs(float(s[i, t]) - y[i, t]), 6), names[i], t) for i in range(n) for t in range(c)
            if known[i, t] and (y & known)[:, t].sum() >= least and (s[i, t] <= np.float32(.1) if y[i, t] else s[i, t] >= np.float32(.9))]
    got = d.table()
    assert list(zip(got.path, got.tag)) == [(p, f't{t}') for _, p, t in sorted(rows)[:most]]

# --- the verbs, with a real model ------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A run folder with its split, and a model folder"
    d = tmp_path_factory.mktemp('home')
    t, _ = toy_tagger(d, n=16, steps=4)
    shutil.copytree(d/'model', d/'run/best')
    make(t, val=.2, test=.3).write(d/'run/split.parquet')
    return d

def test_from_scores_as_from_the_model(home):
    truth, said = ['--truth', f'{home}/scenes/data.json', '--tags', f'{home}/scenes/tags.csv', '--bootstrap', '20'], lambda *a: json.loads(base.shell('eval', 'compare', *map(str, a), '--json')[1])
    status, _, err = base.shell('eval', 'tagger', '--model', f'{home}/model', *truth[2:4], '--data', truth[1], '--save-predictions', f'{home}/kept', '--suspects', f'{home}/s.csv', '--min-positives', '1', '--out', f'{home}/e')
    assert status == 0, err
    assert (home/'e/reliability.png').read_bytes()[:4] == b'\x89PNG' and list(pd.read_csv(home/'s.csv').columns) == ['path', 'tag', 'label', 'score', 'threshold']
    got = said(home/'kept', home/'model', *truth)
    assert got['counts']['images'] == 16 and all(abs(m['difference']) < 1e-6 and m['p'] == 1 for m in got['pairs'][0]['metrics'].values())
    overall = read_json(home/'e/evaluation_results_overall.json')
    assert all(got['models']['kept']['metrics'][k] == pytest.approx(overall[k], abs=1e-6) for k in ('mAP', 'f1_micro', 'f1_macro'))
    run = said(home/'run', home/'kept', *truth, '--out', home/'c')
    assert run['counts']['images'] == 8 and run['counts']['trained_on'] == 8 and run['models']['run']['trained_on'] == 8 and not run['models']['kept']['split_known']
    assert said(home/'kept', home/'model', *truth, '--split-a', home/'run/split.parquet')['counts']['images'] == 8
    assert said(home/'kept', home/'run', *truth, '--split', home/'run/split.parquet', '--side', 'test')['counts']['images'] == 5
    assert sorted(p.name for p in (home/'c').iterdir()) == ['compare.csv', 'compare.json', 'compare.md', 'compare.png']

def test_the_json_of_tag_is_enough(home, monkeypatch):
    monkeypatch.setenv('VAETAG_CACHE', str(home/'cache'))
    assert base.shell('tag', f'{home}/scenes/images', '--model', f'{home}/model', '--threshold', '.2', '--out', f'{home}/t')[0] == 0
    args = map(str, ('eval', 'compare', home/'t/predictions.json', home/'model', '--truth', home/'scenes/data.json', '--tags', home/'scenes/tags.csv', '--thresholds', .2, '--bootstrap', 0, '--min-positives', 1, '--json'))
    status, out, err = base.shell(*args)
    assert status == 0, err
    c = json.loads(out)                                                # named 000000.png by the one, images/000000.png by the data
    m = c['models']
    assert c['counts']['images'] == 16 and m['t']['metrics']['f1_micro'] == pytest.approx(m['model']['metrics']['f1_micro'])
    assert 't: truncated scores: AP is a lower bound' in c['notes'] and any(n.startswith("t: its ids are taken for ends of the pictures' paths") for n in c['notes'])

def test_fitted_thresholds_are_everywhere(home):
    shutil.copytree(home/'model', home/'fit')
    v = Vocab.read(home/'fit/selected_tags.csv', order='file')
    v.categories[0] = 9                                                # the first tag becomes a rating
    v.write(home/'fit/selected_tags.csv')
    write_json(home/'fit/model.json', read_json(home/'fit/model.json') | dict(vocab_sha256=v.sha256))
    data = ['--data', f'{home}/scenes/data.json', '--tags', f'{home}/scenes/tags.csv']
    assert base.shell('eval', 'tagger', '--model', f'{home}/fit', *data, '--fit-thresholds', '--min-positives', '3', '--fallback', 'category')[0] == 0
    th, csv = read_json(home/'fit/optimal_thresholds.json'), pd.read_csv(home/'fit/selected_tags.csv', keep_default_na=False)
    assert csv.category[0] == 9 and csv.best_threshold[0] == '' and set(th['per_class_thresholds']) == {*csv.name[1:]}
    assert csv.best_threshold[1:].astype(float).tolist() == pytest.approx([th['per_class_thresholds'][n]['threshold'] for n in csv.name[1:]], abs=1e-5)
    assert read_json(home/'fit/model.json')['thresholds']['category'] == th['category'] and set(th['category']) == {'0'}
    levels = [json.loads(base.shell('eval', 'tagger', '--model', f'{home}/fit', *data, '--rule', r, '--json')[1]) for r in ('tag', 'category', 'global')]
    assert levels[0]['f1_macro'] > levels[1]['f1_macro'] and levels[2]['threshold_source'].endswith('level global') and levels[2]['settings']['threshold'] == pytest.approx(th['global_threshold'], abs=1e-6)
    for n, says in (('--bootstrap=-3', 'bootstrap: -3 draws; give 0 or more'), ('--batch-size=0', 'batch_size 0: at least 1')):
        for verb in (('tagger', '--model', f'{home}/nowhere', *data), ('compare', f'{home}/nowhere', f'{home}/too', '--truth', f'{home}/scenes/data.json'), ('recon', '--vae', f'{home}/model/vae', *data[:2])):
            status, _, err = base.shell('eval', *verb, n)
            assert status == 2 and says in err and err.count('vaetag:') == 1, (verb, err)
    for args, exits, says in ((('--rule', 'mcut'), 2, 'finds a threshold for each picture'), (('--rule', 'tag', '--thresholds', '.3'), 2, 'leave out --thresholds'), (('--split', 'test'), 1, 'has no split.parquet beside it')):
        status, _, err = base.shell('eval', 'tagger', '--model', f'{home}/fit', *data, *args)
        assert status == exits and says in err and err.count('vaetag:') == 1, err
    assert json.loads(base.shell('eval', 'tagger', '--model', f'{home}/run', *data, '--split', 'test', '--json')[1])['n_samples'] == 5
