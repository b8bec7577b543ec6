#!/usr/bin/env python3
"""Metrics and thresholds of a tagger against scikit-learn.

  python benchmarks/metrics.py [--images 100000] [--tags 100] [--grid-images 10000] [--json]
Average precision of every tag, with ours also its best F1 and threshold, against `average_precision_score` per tag (AP alone);
half-precision scores (one histogram a tag) and float32 scores (one sort a tag), on one thread. Then a threshold per tag against the
search over 16 values with `f1_score` (VAE-Tagger), and a whole report (micro, macro, weighted, per image, calibration,
thresholds) against the handful of scikit-learn calls for a part of it. Equality is asserted first.
"""
import warnings
import numpy as np
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, log_loss, precision_recall_curve, precision_recall_fscore_support
from common import Bench
from vaetag_nb.core.rng import np_rng
from vaetag_nb.eval.curves import ExactScores, checked
from vaetag_nb.eval.tagging import MultiLabelMeter
from vaetag_nb.eval.thresholds import grid_thresholds, middle, widest

def scores(n, c):
    "Scores as of a trained tagger: frequencies from 30 % to 0.1 %, most cells near 0"
    rng = np_rng(0, 'scores')
    y = rng.random((n, c)) < np.geomspace(.3, .001, c)
    logit = rng.standard_normal((n, c), np.float32)*1.5 - 4 + 5*y
    return (1/(1+np.exp(-logit))).astype(np.float32), y

def packed(s, y):
    e = ExactScores(s.shape[1]); e.add(*checked(s, y))
    return e

def ours(s, y):
    "AP, best F1 and threshold per tag"
    return np.array([(c.ap, c.f1.max(), middle(*widest(c.score, c.below, c.f1))) for c in packed(s, y).curves(threads=1)]).T

def theirs(f, y): return np.array([average_precision_score(y[:, c], f[:, c]) for c in range(y.shape[1])])

GRID = np.arange(10, 86, 5)/100

def peer_grid(f, y):
    "The search of VAE-Tagger: the first best of 16 thresholds"
    best = np.zeros((2, y.shape[1]))
    for c in range(y.shape[1]):
        for t in GRID:
            f1 = f1_score(y[:, c], f[:, c] >= np.float32(t), zero_division=0)
            if f1 > best[1, c] + 1e-12: best[:, c] = t, f1
    return best

def peer_report(f, y):
    on = f >= np.float32(.5)
    return [precision_recall_fscore_support(y, on, average=a, zero_division=0) for a in ('micro', 'macro', 'weighted', 'samples')], theirs(f, y), \
        average_precision_score(y.ravel(), f.ravel()), brier_score_loss(y.ravel(), f.ravel()), log_loss(y.ravel(), f.ravel().astype(np.float64))

def main():
    warnings.filterwarnings('ignore')
    b = Bench(__doc__, repeats=3, images=100_000, tags=100, grid_images=10_000)
    single, y = scores(b.images, b.tags)
    half = single.astype(np.float16)
    for name, s, goal in (('float16, histogram', half, 20), ('float32, sort', single, 5)):
        f = s.astype(np.float32)
        (ap, f1, t), want = ours(s, y), theirs(f, y)
        assert np.abs(ap-want).max() < 1e-9, np.abs(ap-want).max()
        for c in range(0, b.tags, 10):
            p, r, _ = precision_recall_curve(y[:, c], f[:, c])
            assert abs((2*p*r/np.maximum(p+r, 1e-30)).max()-f1[c]) < 1e-9 and abs(f1_score(y[:, c], f[:, c] >= np.float32(t[c]))-f1[c]) < 1e-9
        b.duel(f'AP, best F1 and threshold of {b.images} x {b.tags} ({name})', lambda: ours(s, y), lambda: theirs(f, y), b.tags, 'tag', goal, 'scikit-learn AP alone')
    f, g = single[:b.grid_images], y[:b.grid_images]
    searched, exact = peer_grid(f, g), ours(f, g)
    assert (exact[1] >= searched[1]-1e-12).all() and np.allclose(grid_thresholds(f, g, grid=GRID, tie='low'), searched, atol=1e-9)
    b.duel(f'threshold per tag, {b.grid_images} images', lambda: ours(f, g), lambda: peer_grid(f, g), b.tags, 'tag', 100, 'search over 16 values', repeats=1)
    b.say(f'  mean F1 at the exact thresholds {exact[1].mean():.4f}, at the searched ones {searched[1].mean():.4f}')
    for name, s in (('float16', half), ('float32', single)):
        f = s.astype(np.float32)
        report = lambda: MultiLabelMeter(b.tags, averaging='sklearn').update(s, y).compute(threads=1)
        r, (prf, ap, micro, brier, loss) = report(), peer_report(f, y)
        for (p, q, f1, _), a in zip(prf, ('micro', 'macro', 'weighted')): assert np.allclose([r[f'precision_{a}'], r[f'recall_{a}'], r[f'f1_{a}']], [p, q, f1], atol=1e-9)
        assert np.allclose([r['avg_f1'], r['mAP'], r['mAP_micro'], r['brier'], r['nll']], [prf[3][2], ap.mean(), micro, brier, loss], atol=1e-7)
        b.duel(f'whole report of {b.images} x {b.tags} ({name})', report, lambda: peer_report(f, y), b.tags, 'tag', None, 'scikit-learn, without thresholds and calibration', repeats=1)
    b.done()

if __name__ == '__main__': main()
