"Verification and classification against scikit-learn and against counting by hand"
import numpy as np, pytest
from sklearn import metrics as sk
from vaetag_nb.core.rng import np_rng
from vaetag_nb.eval.identity import classification_report, error_rates, rank_k, rates_at, verification

@pytest.mark.parametrize('seed', range(4))
def test_verification_is_scikit_learns_and_a_plain_count(seed):
    r = np_rng(seed, 'scores')
    g, i = r.normal(.6, .3, 60).round(1 + seed % 2), r.normal(0, .4, 90).round(1 + seed % 2)   # rounded: with many ties
    v = verification(g, i, far=(.1, .02))
    y, s = np.r_[np.ones(60), np.zeros(90)], np.r_[g, i]
    assert abs(v['auc'] - sk.roc_auc_score(y, s)) < 1e-12
    cuts = sorted({*s, np.inf}, reverse=True)
    far, frr = [[rates_at(g, i, t)[k] for t in cuts] for k in ('far', 'frr')]
    assert np.allclose(error_rates(g, i), (cuts, far, frr), atol=1e-12)
    k = next(k for k in range(len(cuts)) if far[k] >= frr[k])
    assert v['eer_threshold'] == cuts[k] and min(far[k-1], frr[k]) - 1e-12 <= v['eer'] <= max(far[k], frr[k-1]) + 1e-12
    for f in (.1, .02): assert v[f'tar@far={f:g}'] == pytest.approx(max(1 - y for x, y in zip(far, frr) if x <= f))

def test_weights_of_pairs_are_repetitions():
    g, i = [.9, .5, .4], [.7, .3]
    test = error_rates(g, i, [2, 1, 3], [1, 4])
    assert np.allclose(test, error_rates(np.repeat(g, [2, 1, 3]), np.repeat(i, [1, 4])))

def test_intervals_shrink_with_more_people():
    def width(people):
        r = np_rng(people, 'people')
        g, i = r.normal(1, 1, people*4), r.normal(-1, 1, people*8)
        a = np.repeat(np.arange(people), 8)
        v = verification(g, i, identities=(np.repeat(np.arange(people), 4), np.c_[a, (a + 1 + np.arange(len(a)) % (people - 1)) % people]), draws=300)
        lo, hi = v.intervals['eer']; return hi - lo
    assert width(200) < .6*width(25)

def test_classification_is_scikit_learns():
    r = np_rng(0, 'classes')
    truth = r.integers(0, 5, 400); pred = np.where(r.random(400) < .5, truth, r.integers(0, 6, 400))   # class 5 is found, never true
    c = classification_report(truth, pred, 'abcdef')
    assert np.array_equal(c.confusion, sk.confusion_matrix(truth, pred, labels=range(6)))
    assert c['accuracy'] == pytest.approx(sk.accuracy_score(truth, pred))
    assert c['f1_macro'] == pytest.approx(sk.f1_score(truth, pred, labels=range(5), average='macro'))
    recall = sk.recall_score(truth, pred, labels=range(5), average=None)
    assert c['balanced_accuracy'] == pytest.approx(recall.mean())
    s = r.random((400, 6))
    for k in (1, 3): assert rank_k(s, truth, (k,))[f'rank_{k}'] == pytest.approx(sk.top_k_accuracy_score(truth, s, k=k, labels=range(6)))
