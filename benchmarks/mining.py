#!/usr/bin/env python3
"""Triplets and class counts of many pictures on sparse labels, against loops over pictures.

  python benchmarks/mining.py [--images 100000] [--tags 5000] [--loop 500] [--repeats 3] [--json]
Labels are clustered: a picture has one of `tags`/50 themes of 40 tags, takes 12 of the common ones among them and 6 tags of the whole vocabulary.
Peers of `mine_plan` apply the same rule to the same candidates and draws, anchor by anchor: with Python sets, and with dense rows as
the original VAE-Tagger keeps them. Triplets are equal (asserted on the anchors that the loops do), and each keeps the limits of the rule. The loops take `loop`
anchors, ours all; what is compared is the time an anchor. The peer of the counts walks over the label cells of each picture.
"""
import numpy as np, scipy.sparse as sp
from common import Bench
from vaetag_nb.core.rng import np_rng
from vaetag_nb.mining import CANDIDATES, NEGATIVE, POSITIVE, _pools, jaccard_rows, mine_plan

def labels(n, c):
    "n x c labels in themes"
    rng, k = np_rng(0, 'labels'), max(2, c//50)
    themes = np.stack([rng.choice(c, 40, replace=False) for _ in range(k)])
    own = themes[rng.integers(0, k, n)[:, None], (rng.random((n, 12))**2*40).astype(int)]
    cols = np.c_[own, (rng.random((n, 6))**3*c).astype(int)]
    y = sp.csr_matrix((np.ones(cols.size, np.float32), (np.repeat(np.arange(n), cols.shape[1]), cols.ravel())), (n, c))
    y.sum_duplicates(); y.data[:] = 1
    return y

def candidates(y, groups):
    "What the rule draws before it compares: the candidates and the draw of every record"
    rng = np_rng(0, 'triplet', 0)
    draws = rng.random((len(groups), 2))
    order, ends, first, n = _pools(groups, np.diff(y.indptr) > 0, rng, CANDIDATES)
    pool = first[groups] + (draws[:, 0]*n[groups]).astype(int)
    return lambda a: order[(ends[pool[a]-1] if pool[a] else 0):ends[pool[a]]].tolist(), draws[:, 1].tolist()

def by_anchor(anchors, among, draws, alike):
    "The rule for one anchor after the other"
    found = []
    for a in anchors:
        j = [(alike(a, c), c) for c in among(a) if c != a]
        p, low = max(j, key=lambda x: x[0]), [c for x, c in j if x <= np.float32(NEGATIVE)]
        if p[0] >= np.float32(POSITIVE) and low: found.append((a, p[1], low[int(draws[a]*len(low))]))
    return found

def main():
    b = Bench(__doc__, repeats=3, images=100_000, tags=5000, loop=500)
    y = labels(b.images, b.tags)
    groups = np_rng(0, 'groups').integers(0, 8, b.images)
    among, draws = candidates(y, groups)
    anchors = np_rng(0, 'anchors').choice(b.images, min(b.loop, b.images), replace=False).tolist()
    near = sorted({*anchors, *(c for a in anchors for c in among(a))})
    sets, dense = {i: set(y.indices[y.indptr[i]:y.indptr[i+1]].tolist()) for i in near}, {i: y[i].toarray()[0] for i in near}
    def by_set(a, c): both = len(sets[a] & sets[c]); return np.float32(both/(len(sets[a]) + len(sets[c]) - both))
    def by_row(a, c): return np.minimum(dense[a], dense[c]).sum()/np.maximum(dense[a], dense[c]).sum()

    whole = mine_plan(y, groups)
    of = dict(zip(whole.a.tolist(), zip(whole.p.tolist(), whole.n.tolist())))
    want = [(a, *of[a]) for a in anchors if a in of]
    assert by_anchor(anchors, among, draws, by_set) == want == by_anchor(anchors, among, draws, by_row), 'the triplets differ'
    assert len(whole.a) and (groups[whole.a] == groups[whole.p]).all() and (groups[whole.a] == groups[whole.n]).all() and (whole.a != whole.p).all()
    assert jaccard_rows(y, whole.a, whole.p).min() >= np.float32(POSITIVE) and jaccard_rows(y, whole.a, whole.n).max() <= np.float32(NEGATIVE)
    b.say(f'{b.images} x {b.tags}, {y.nnz/b.images:.1f} tags a picture: {100*len(whole.a)/b.images:.1f} % of the anchors have a triplet')
    k = b.images/len(anchors)   # the loops do one anchor in k
    ours = lambda: mine_plan(y, groups)
    for name, alike, goal in (('sets', by_set, None), ('dense rows', by_row, 100)):
        b.duel(f'triplets of {b.images} x {b.tags}', ours, lambda: by_anchor(anchors, among, draws, alike), b.images, 'anchor', goal, f'loop with {name}', scale=k)

    few = [dense[i] for i in anchors[:20]]
    def count():
        n = [0]*b.tags
        for row in few:
            for i, v in enumerate(row):
                if v > 0: n[i] += 1
        return n
    counted = lambda y: np.bincount(y.indices[y.data > 0], minlength=y.shape[1])
    assert count() == counted(y[anchors[:20]]).tolist()
    b.duel('class counts', lambda: counted(y), count, b.images, 'picture', 100, 'loop over label cells', scale=b.images/len(few))
    b.done()

if __name__ == '__main__': main()
