"Metrics on random data: equal to scikit-learn and timm, the same for any division of the data, thresholds exact"
import json, warnings
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support
from timm.task.evaluator import MultiLabelClassificationEvaluator
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.eval.curves import EDGES, BinScores, bin_of, checked, pack, unpack
from vaetag_nb.eval.tagging import (MultiLabelMeter, Thresholds, average_precision, best_f1_threshold, bootstrap, brier, ece, fit_thresholds,
                                    global_threshold, grid_thresholds, mcut, middle, pr_threshold)

S = np.array([[.9, .6, .2], [.4, .8, .7], [.3, .1, .35], [.8, .45, .5]])
Y = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]])
P = np.array([[.9, .19, .58], [.8, .7, .4], [.3, .58, .1], [.17, .09, .54]])
T = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]])

@st.composite
def data(draw, max_n=60):
    "Scores (half or single, coarse or fine, with ties, zeros and ones), labels and a mask"
    n, c, seed = draw(st.integers(1, max_n)), draw(st.integers(1, 6)), draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    s = draw(st.sampled_from([lambda: rng.random((n, c)), lambda: rng.choice([0, .05, .25, .5, .5005, 1], (n, c)), lambda: 10**(-8*rng.random((n, c)))]))()
    s = s.astype(draw(st.sampled_from([np.float16, np.float32])))
    y = rng.random((n, c)) < rng.random(c)*draw(st.sampled_from([.1, .6, 1.]))
    return s, y, (rng.random((n, c)) < .8) if draw(st.booleans()) else np.ones((n, c), bool), rng

def in_parts(s, y, known, rng, meters, **kw):
    made = [MultiLabelMeter(s.shape[1], **kw) for _ in range(meters)]
    for i in np.array_split(rng.permutation(len(s)), rng.integers(1, len(s)+1)): made[rng.integers(meters)].update(s[i], y[i], known[i])
    for m in made[1:]: made[0].merge(m)
    return made[0].compute(threads=2)

def same(a, b):
    assert a.summary == b.summary
    for x in ('per_tag', 'per_category', 'reliability_table'): pd.testing.assert_frame_equal(getattr(a, x), getattr(b, x), check_exact=True)

# --- the same for any division ---------------------------------------------------------------------------------------
@given(data(), st.sampled_from(['auto', 'hist']), st.integers(1, 3))
@settings(max_examples=60)
def test_any_division_gives_the_same_report(d, mode, meters):
    s, y, known, rng = d
    same(in_parts(s, y, known, rng, meters, mode=mode), MultiLabelMeter(s.shape[1], mode=mode).update(s, y, known).compute(threads=1))

@given(data())
@settings(max_examples=40)
def test_auto_becomes_hist_wherever_the_limit_is_passed(d):
    s, y, known, rng = d
    want = MultiLabelMeter(s.shape[1], mode='hist').update(s, y, known).compute()
    got = in_parts(s, y, known, rng, 2, limit=int(rng.integers(0, s.size)))
    if got['mode'] == 'hist': same(got, want)
    else: assert {k: v for k, v in got.summary.items() if k in ('f1_micro', 'brier', 'nll', 'ece_macro')} == {k: want[k] for k in ('f1_micro', 'brier', 'nll', 'ece_macro')}

# --- equal to others -------------------------------------------------------------------------------------------------
@given(data())
@settings(max_examples=60)
def test_equal_to_scikit_learn(d):
    s, y, known, rng = d
    warnings.filterwarnings('ignore')
    t = np.float32(rng.random())
    r, f = MultiLabelMeter(s.shape[1], float(t), averaging='sklearn').update(s, y).compute(), s.astype(np.float32)
    on = f >= t
    for avg in ('micro', 'macro', 'weighted'):
        want = precision_recall_fscore_support(y.reshape(len(y), -1), on, average=avg, zero_division=0)[:3] if y.shape[1] > 1 else \
            precision_recall_fscore_support(y[:, 0], on[:, 0], average='binary', zero_division=0)[:3]
        if avg == 'weighted' and not y.any(): continue
        assert np.allclose([r[f'{k}_{avg}'] for k in ('precision', 'recall', 'f1')], want, atol=1e-9)
    ap = [average_precision_score(y[:, c], f[:, c]) if y[:, c].any() else 0. for c in range(y.shape[1])]
    assert np.allclose(r.per_tag.ap, ap, atol=1e-9)
    if y.any(): assert abs(r['mAP_micro']-average_precision_score(y.ravel(), f.ravel())) < 1e-9

@given(data())
@settings(max_examples=40)
def test_masked_cells_count_nowhere(d):
    s, y, known, rng = d
    t = rng.random(s.shape[1]).astype(np.float32)
    r = MultiLabelMeter(s.shape[1], t).update(s, np.where(known, y, np.nan)).compute()
    junk = np.where(known, s, np.nan).astype(s.dtype)
    same(MultiLabelMeter(s.shape[1], t).update(junk, y, known).compute(), r)
    for c in range(s.shape[1]):
        k, f = known[:, c], s[:, c].astype(np.float32)
        row = r.per_tag.iloc[c]
        assert row.support == y[k, c].sum() and row.n_pred == (f[k] >= t[c]).sum()
        if y[k, c].any():
            assert abs(row.ap-average_precision_score(y[k, c], f[k])) < 1e-9
            assert abs(row.f1-f1_score(y[k, c], f[k] >= t[c], zero_division=0)) < 1e-9
        else: assert np.isnan(row.ap) and np.isnan(row.best_f1)
    assert len(MultiLabelMeter(s.shape[1]).update(s, y, known)) == known.any(1).sum()

def test_equal_to_timm():
    rng = np.random.default_rng(0)
    y = torch.tensor(rng.random((200, 30)) < np.geomspace(.5, .002, 30)); logits = torch.tensor(rng.standard_normal((200, 30)), dtype=torch.float32)+2*y-2
    peer = MultiLabelClassificationEvaluator(threshold=.4)
    peer.update(logits, y.float())
    r, want = MultiLabelMeter(30, .4, averaging='timm').update(logits.sigmoid(), y.float()).compute(), peer.compute()
    for ours, theirs in (('mAP', 'map'), ('f1_micro', 'micro_f1'), ('f1_macro', 'macro_f1'), ('avg_f1', 'sample_f1')): assert abs(100*r[ours]-want[theirs]) < 1e-6

# --- bins ------------------------------------------------------------------------------------------------------------
@given(data())
@settings(max_examples=60)
def test_bins_hold_the_exact_value(d):
    s, y, known, _ = d
    exact, binned = (MultiLabelMeter(s.shape[1], mode=m).update(s, y, known).compute() for m in ('exact', 'hist'))
    for e, b in zip(exact.per_tag.itertuples(), binned.per_tag.itertuples()):
        if e.support: assert b.ap_low-1e-12 <= min(e.ap, b.ap) and max(e.ap, b.ap) <= b.ap_high+1e-12
    for k in exact.summary:
        if k not in ('mAP', 'mAP_micro', 'mAP_weighted', 'mAP_min10', 'mode'): assert exact[k] == binned[k], k

def test_memory_of_bins_does_not_grow():
    m = MultiLabelMeter(12_476, mode='hist')
    size, rng = m.nbytes, np.random.default_rng(0)
    for _ in range(3): m.update(rng.random((8, 12_476), np.float32), rng.random((8, 12_476)) < .01)
    assert m.nbytes == size <= 130e6 and not m.ids

def test_bins_are_by_float32_edges():
    x = np.r_[EDGES, np.nextafter(EDGES, np.float32(0)), np.nextafter(EDGES, np.float32(1))].clip(0, 1).astype(np.float32)
    assert (bin_of(x) == np.searchsorted(EDGES, x, 'right')-1).all() and len(EDGES) == 1150
    assert (bin_of((np.arange(1001)/1000).astype(np.float32))[1:] == np.arange(150, 1150)).all()

@given(data())
def test_packing_loses_nothing(d):
    s, y, known, _ = d
    a, b, c = unpack(pack(*checked(s, y, known)))
    assert (a[known] == s.astype(np.float32)[known]).all() and (b == (y & known)).all() and (c == known).all()

# --- thresholds ------------------------------------------------------------------------------------------------------
@given(data(30))
@settings(max_examples=80)
def test_thresholds_are_the_middle_of_the_widest_plateau(d):
    s, y, known, _ = d
    fit = fit_thresholds(s, y, known, min_positives=1) if (y & known).any() else None
    for c in range(s.shape[1]):
        x, z = s[known[:, c], c].astype(np.float32), y[known[:, c], c]
        if not z.any():
            assert fit is None or fit.source[c] == 'global'
            continue
        f1 = lambda t: 2*(z & (x >= np.float32(t))).sum()/(z.sum()+(x >= np.float32(t)).sum())
        cut = np.r_[np.unique(x)[::-1], 0].astype(float); best = max(map(f1, cut[:-1]))
        spans = []
        for k in range(len(cut)-1):
            if f1(cut[k]) < best-1e-12: continue
            if spans and spans[-1][0] == cut[k]: spans[-1][0] = cut[k+1]
            else: spans.append([cut[k+1], cut[k]])
        wide = max(b-a for a, b in spans)
        low, high = next(p for p in spans if p[1]-p[0] >= wide-1e-9)
        assert fit.per_tag[c] == middle(low, high) and abs(f1(fit.per_tag[c])-best) < 1e-12 and abs(fit.f1[c]-best) < 1e-12

@given(data(25))
@settings(max_examples=60)
def test_global_threshold_is_the_best_of_all(d):
    s, y, known, _ = d
    y = y & known
    if not y.any(): return
    has, f = np.flatnonzero(y.any(0)), s.astype(np.float32)
    def macro(t): return np.mean([2*(y[:, c] & (f[:, c] >= t)).sum()/(y[:, c].sum()+((f[:, c] >= t) & known[:, c]).sum()) for c in has])
    def micro(t): on = (f >= t)[:, has] & known[:, has]; return 2*(y[:, has] & on).sum()/(y[:, has].sum()+on.sum())
    cuts = np.unique(f[:, has][known[:, has]])
    for objective, value in (('macro_f1', macro), ('micro_f1', micro)):
        t, best = global_threshold(s, y, known, objective)
        assert abs(best-max(map(value, cuts))) < 1e-9 and abs(value(np.float32(t))-best) < 1e-9
    bins = BinScores(s.shape[1]); bins.add(*checked(s, y, known))
    t, best = global_threshold(bins)
    assert abs(macro(np.float32(t))-best) < 1e-9  # what bins promise at an edge holds for the scores

@given(data(40))
@settings(max_examples=40)
def test_thresholds_of_bins_reach_what_they_say(d):
    s, y, known, _ = d
    if not (y & known).any(): return
    m = MultiLabelMeter(s.shape[1], mode='hist').update(s, y, known)
    fit = fit_thresholds(m, min_positives=2)
    r = MultiLabelMeter(s.shape[1], fit).update(s, y, known).compute()
    has = r.per_tag.support.to_numpy() > 0
    assert np.allclose(r.per_tag.f1[has], fit.f1[has], atol=1e-9)

@given(data(20), st.sampled_from(['low', 'mid', 'high']))
@settings(max_examples=40)
def test_grid_search(d, tie):
    s, y, known, _ = d
    grid = [.1, .25, .5, .9]
    t, f1 = grid_thresholds(s, y, known, grid, tie)
    for c in range(s.shape[1]):
        x, z = s[known[:, c], c].astype(np.float32), y[known[:, c], c]
        if not z.any(): assert np.isnan(t[c]); continue
        v = [2*(z & (x >= np.float32(g))).sum()/(z.sum()+(x >= np.float32(g)).sum()) for g in grid]
        top = [g for g, a in zip(grid, v) if a >= max(v)-1e-12]
        assert t[c] == dict(low=top[0], mid=top[(len(top)-1)//2], high=top[-1])[tie] and abs(f1[c]-max(v)) < 1e-12

def test_neighbouring_floats_stay_apart():
    a = np.float32(.3); b = np.nextafter(a, np.float32(1))
    t, f1 = best_f1_threshold(np.array([a, b]), np.array([0, 1]))
    assert f1 == 1 and a < np.float32(t) <= b

def test_pr_threshold_ends_where_equality_is_nowhere():
    r = pr_threshold(np.full((7, 1), .4), np.arange(7)[:, None] < 3)
    assert r['threshold'] == .4 and r['recall'] == 1

def test_fitted_thresholds_travel(tmp_path):
    fit = fit_thresholds(P, T, min_positives=2, names=['a', 'b', 'null'], split='val')
    fit.to_json(tmp_path/'optimal_thresholds.json')
    d = json.loads((tmp_path/'optimal_thresholds.json').read_text())
    assert {'global_threshold', 'global_f1', 'per_class_thresholds', 'rule', 'objective', 'min_positives', 'split', 'n_samples'} <= set(d)
    assert d['per_class_thresholds']['null'] == dict(threshold=.56, f1_score=1., positives=1, source='global')
    back = Thresholds.read(tmp_path/'optimal_thresholds.json', ['null', 'a'])
    assert back.per_tag.tolist() == [.56, .085] and back.source == ['global', 'tag']
    m = MultiLabelMeter(['null', 'a'], back)
    assert m.threshold_source == 'fitted on val' and m.thresholds.tolist() == [.56, .085]

# --- the worked numbers ----------------------------------------------------------------------------------------------
def test_worked_numbers():
    r = MultiLabelMeter(3).update(S, Y).compute()
    for k, v in dict(precision_micro=.5, recall_micro=.5, f1_micro=.5, f1_macro=.48888889, avg_f1=.41666667, hamming_loss=.5, accuracy=0, mAP=.80555556, mAP_micro=.76683502).items():
        assert abs(r[k]-v) < 1e-6, k
    r = MultiLabelMeter(3).update(P, T).compute()
    for k, v in dict(accuracy=.75, hamming_loss=.16666667, f1_micro=.83333333, f1_macro=.82222222, mAP=.97222222).items(): assert abs(r[k]-v) < 1e-6, k
    assert pr_threshold(S, Y) == dict(threshold=.475, precision=.5, recall=.5, f1=.5)
    assert best_f1_threshold(S, Y)[0].tolist() == [.35, .7, .1] and mcut([.9, .85, .3, .2, .1]) == pytest.approx(.575)
    fit = fit_thresholds(P, T, min_positives=1)
    assert fit.per_tag.tolist() == [.085, .385, .56] and fit.global_threshold == .56
    p, y = [.95, .95, .9, .1, .1, .3], [1, 1, 0, 0, 1, 0]
    assert (ece(p, y), brier(p, y)) == pytest.approx((.35, .2875), abs=1e-6)
    assert average_precision(S[:, 2], Y[:, 2]) == pytest.approx(5/12)

def test_a_score_equal_to_the_threshold_is_predicted():
    for t in (.35, .1, .7, 1.): assert MultiLabelMeter(1, t).update(np.float32([[t]]), [[1]]).compute()['f1_micro'] == 1

def test_summary_and_files_are_complete(tmp_path):
    r = bootstrap(MultiLabelMeter(3).update(S, Y).compute(), n=50)
    r.write(tmp_path)
    d = json.loads((tmp_path/'evaluation_results_overall.json').read_text(), parse_constant=lambda x: pytest.fail(x))
    assert set(d) >= {*(f'{m}_{a}' for m in ('precision', 'recall', 'f1') for a in ('micro', 'macro', 'weighted')), 'accuracy', 'hamming_loss', 'mAP', 'mAP_micro', 'mAP_weighted',
        'avg_precision', 'avg_recall', 'avg_f1', 'exact_match_rate', 'n_samples', 'n_classes', 'n_classes_with_positives', 'threshold_source', 'mcc_macro', 'nll', 'brier', 'ece',
        'ece_active', 'ece_macro', 'rating_accuracy', 'f1_macro_min10', 'mAP_min10', 'n_classes_min10', 'fp_on_unsupported', 'mode', 'averaging', 'reasons', 'intervals', 'settings'}
    assert all((d[k] is None) == (k in d['reasons']) for k in d if k != 'reasons')
    cols = list(pd.read_csv(tmp_path/'evaluation_results.csv'))
    assert cols[:7] == ['class_name', 'precision', 'recall', 'f1', 'ap', 'support', 'threshold'] and cols[7:] == ['category', 'tp', 'fp', 'fn', 'n_pred', 'mcc', 'best_threshold',
        'best_f1', 'best_precision', 'best_recall', 'ece', 'mean_score_pos', 'mean_score_neg', 'f1_ci_low', 'f1_ci_high', 'ap_ci_low', 'ap_ci_high']
    assert list(pd.read_csv(tmp_path/'reliability.csv')) == ['bin_low', 'bin_high', 'n', 'mean_score', 'frequency']
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    bootstrap(MultiLabelMeter(3).update(S, Y).compute(), n=50).write(tmp_path)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}

# --- intervals and errors --------------------------------------------------------------------------------------------
def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(30), 10)
    y = rng.random((30, 4))[person] < .4                      # ten like images of each person
    s = np.clip(.4*y + .6*rng.random((30, 4))[person], 0, 1)
    width = lambda **kw: np.diff(bootstrap(MultiLabelMeter(4).update(s, y).compute(), 300, **kw)['intervals']['f1_micro'])[0]
    assert width(groups=person) > 2*width()

def test_the_interval_shrinks_with_the_root_of_n():
    def width(n):
        rng = np.random.default_rng(n)
        y = rng.random((n, 4)) < .4
        return np.diff(bootstrap(MultiLabelMeter(4).update(np.clip(.3*y + .7*rng.random((n, 4)), 0, 1), y).compute(), 200)['intervals']['f1_micro'])[0]
    assert 3 < width(60)/width(960) < 5.3                     # 4 for sixteen times as many

def test_bootstrap_needs_two(): assert 'at least 2 images' in bootstrap(MultiLabelMeter(3).update(S[:1], Y[:1]).compute())['reasons']['intervals']

@pytest.mark.parametrize('scores, targets, says', [
    ([[1.01]], [[1]], 'score 1.01.* of a.png, tag cat.*logits'), ([[-1]], [[1]], 'score -1'), ([[np.inf]], [[1]], 'score inf'), ([[np.nan]], [[1]], 'score nan'),
    ([[.5]], [[2]], 'target 2.0 of a.png, tag cat'), ([[.5, .5]], [[1, 1]], '2 scores per image, but 1 tags'), ([[.5]], [[1], [0]], 'scores are 1 x 1, targets 2 x 1')])
@pytest.mark.parametrize('kind', [np.float32, np.float16])
def test_bad_cells_are_named(scores, targets, says, kind):
    with pytest.raises(VaetagError, match=says): MultiLabelMeter(['cat']).update(np.array(scores, kind), np.array(targets, np.float32), ids=['a.png'])

def test_a_failed_update_leaves_the_meter_as_it_was():
    m = MultiLabelMeter(3).update(S, Y)
    before = m.compute()
    with pytest.raises(VaetagError): m.update(S+1, Y)
    same(m.compute(), before)

def test_devices_and_types():
    want = MultiLabelMeter(3).update(S, Y).compute()
    same(MultiLabelMeter(3).update(torch.tensor(S, requires_grad=True), torch.tensor(Y)).compute(), want)
    bf = torch.tensor(S).bfloat16()
    same(MultiLabelMeter(3).update(bf, torch.tensor(Y).bool()).compute(), MultiLabelMeter(3).update(bf.float(), Y).compute())
    with pytest.raises(UsageError): MultiLabelMeter(3, averaging='mean')
