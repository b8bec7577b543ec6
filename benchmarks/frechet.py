#!/usr/bin/env python3
"""The Frechet distance of FID against clean-fid's and torch-fidelity's, and against torchmetrics' where it is installed.

  python benchmarks/frechet.py [--few 130] [--many 5000] [--dim 2048] [--json]
From features to the distance for `few` pictures a side (and 120 against 140), from statistics to the distance at full rank. Values are
compared first: at full rank clean-fid's agrees to 1e-9; with few pictures the peers' roots of a product without full rank are off, ours is
held against the distance of exactly known sets. clean-fid calls `scipy.linalg.sqrtm(..., disp=False)`, which scipy 1.18 no longer
has: there its function gets a `sqrtm` that takes the argument, does the same and returns no error estimate; its own code is
called, nothing else of it changed. torch-fidelity and torchmetrics are no dependencies: without them their lines are left out.
"""
import warnings
import numpy as np, scipy.linalg
from cleanfid import fid as cleanfid
from common import Bench
from vaetag_nb.core.rng import np_rng
from vaetag_nb.eval.frechet import FeatureStats, frechet_distance

TOLERANCE = {'clean-fid': 1e-9, 'torch-fidelity': 1e-7, 'torchmetrics': 1e-6} # of the peers at full rank, relative

def with_disp(a, disp=True): # what scipy before 1.18 returns
    return scipy.linalg.sqrtm(a) if disp else (scipy.linalg.sqrtm(a), 0.)

def rows(n, dim, side):
    "Features as a network has them: not negative, correlated, with a decaying spectrum"
    rng = np_rng(0, 'mixing')
    mix, bias = rng.standard_normal((dim//8, dim))*np.geomspace(1, .05, dim//8)[:, None], rng.standard_normal(dim)
    rng = np_rng(0, 'rows', n, side)
    return np.maximum(rng.standard_normal((n, dim//8))@mix*.3 + .2*rng.standard_normal((n, dim)) + bias + .05*side, 0)

def stats(x): return x.mean(0), np.cov(x.T)

def peers():
    "{name: function of two (mu, sigma)}"
    found = {'clean-fid': lambda a, b: float(cleanfid.frechet_distance(*a, *b))}
    try:
        from torch_fidelity.metric_fid import fid_statistics_to_metric
        found['torch-fidelity'] = lambda a, b: fid_statistics_to_metric(*(dict(mu=m, sigma=s) for m, s in (a, b)), False)['frechet_inception_distance']
    except ImportError: pass
    try:
        import torch
        from torchmetrics.image.fid import _compute_fid
        found['torchmetrics'] = lambda a, b: float(_compute_fid(*(torch.from_numpy(x) for x in (*a, *b))))
    except ImportError: pass
    return found

def known(dim, n):
    "Two sets whose distance is known by hand: one is the other, moved and doubled, so that the last term is 2 tr S"
    x = rows(n, dim, 0)
    y = 2*x + 1
    return x, y, ((x.mean(0) + 1)**2).sum() + np.var(x, axis=0, ddof=1).sum()

def main():
    warnings.filterwarnings('ignore')
    b = Bench(__doc__, repeats=2, few=130, many=5000, dim=2048)
    try: scipy.linalg.sqrtm(np.eye(2), disp=False); how = 'as it is'
    except TypeError: cleanfid.linalg = type('linalg', (), dict(sqrtm=staticmethod(with_disp))); how = 'with a sqrtm that takes disp'
    theirs = peers()
    b.say(f'scipy {scipy.__version__}: clean-fid is called {how}; peers: {", ".join(theirs)}')
    few = [(b.few, b.few, dict.fromkeys(theirs, 1000) | {'torch-fidelity': None, 'torchmetrics': None}), (min(120, b.few), min(140, b.few + 10), {'clean-fid': 500, 'torch-fidelity': 100, 'torchmetrics': None})]
    for n, m, goal in few:
        x, y, want = known(b.dim, n)
        d = frechet_distance(x, y)
        assert abs(d - want) <= 1e-9*want, (d, want)
        off = {k: f(stats(x), stats(y))/want - 1 for k, f in theirs.items()}
        b.say(f'  N={n}: error against the known distance: ours {d/want - 1:.1e}, ' + ', '.join(f'{k} {v:.1e}' for k, v in off.items()))
        assert max(map(abs, off.values())) < 1e-2, off
        x, y = rows(n, b.dim, 0), rows(m, b.dim, 1)
        d = frechet_distance(x, y)
        for k, f in theirs.items():
            v = f(stats(x), stats(y))
            assert abs(v - d) <= 1e-3*abs(d), (k, v, d)
            b.duel(f'features of {n} and {m} pictures, D={b.dim}, {k}', lambda: frechet_distance(x, y), lambda: f(stats(x), stats(y)), 1, 'distance', goal[k], k)
            b.results[-1] |= dict(error_ours=float(frechet_distance(*known(b.dim, n)[:2])/want - 1), error_peer=float(off[k]), difference=v/d - 1, scipy=scipy.__version__, called=how)
    s, t = (stats(rows(max(b.many, b.dim + 1), b.dim, i)) for i in (0, 1))
    ours = lambda: frechet_distance(FeatureStats.of_moments(*s, b.many), FeatureStats.of_moments(*t, b.many))
    d = ours()
    for k, f in theirs.items():
        v = f(s, t)
        assert abs(v - d) <= TOLERANCE[k]*d, (k, v, d)
        b.duel(f'statistics of full rank, D={b.dim}, {k}', ours, lambda: f(s, t), 1, 'distance', {'clean-fid': 8, 'torch-fidelity': 2.5}.get(k), k)
        b.results[-1] |= dict(difference=v/d - 1, scipy=scipy.__version__, called=how)
    b.done()

if __name__ == '__main__': main()
