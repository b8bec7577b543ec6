#!/usr/bin/env python3
"""Buckets and epochs of many pictures against the same rules one picture at a time.

  python benchmarks/bucketing.py [--pictures 1000000] [--repeats 3] [--json]
Peers: a loop that finds the nearest ratio by argmin over all buckets, as kohya's and NovelAI's bucketing do, and the fastest
loop we could write (bisection in sorted lists); for an epoch, lists per bucket that are shuffled and cut, with our random numbers
(equal batches, asserted) and with Python's shuffle, as kohya does (another order, the same work). An epoch begins with pictures
already sorted by bucket, on both sides.
"""
import random
from bisect import bisect_left, bisect_right
from math import log
import numpy as np
from common import Bench
from vaetag_nb.bucketing import Buckets, Groups, batches_by_bucket
from vaetag_nb.core.rng import np_rng

def pictures(n):
    "Sizes as a scraped collection has them: about 1.3 megapixels, mostly upright"
    rng = np_rng(0, 'sizes')
    area, ratio = np.exp(rng.normal(14.1, .6, n)), np.exp(rng.normal(-.15, .35, n))
    return np.sqrt(area*ratio).astype(np.int32).clip(64), np.sqrt(area/ratio).astype(np.int32).clip(64)

def argmin_loop(w, h, b):
    "The rule with numpy, picture by picture"
    ratios, areas, widths = np.log(b.sizes[:, 0]/b.sizes[:, 1]), b.sizes.prod(1, dtype=np.int64), b.sizes[:, 0]
    out = []
    for x, y in zip(w.tolist(), h.tolist()):
        far = np.abs(ratios - log(x/y))
        tied = np.flatnonzero(far <= far.min() + 1e-12)
        if len(tied) > 1:
            a = areas[tied]
            filled = tied[a <= x*y]
            tied = filled[np.lexsort([widths[filled], areas[filled]])[::-1]] if len(filled) else tied[np.lexsort([-widths[tied], a])]
        out.append(tied[0])
    return out

def bisect_loop(w, h, b):
    "The rule in plain Python with sorted lists; the default grid has no picture that ties between two ratios"
    groups = {}
    for i, (x, y) in enumerate(b.sizes.tolist()): groups.setdefault(x/y, []).append((x*y, i))
    ratios = sorted(groups)
    middle = [(p*q)**.5 for p, q in zip(ratios, ratios[1:])]
    areas, rows = ([[t[k] for t in sorted(groups[r])] for r in ratios] for k in (0, 1))
    out = []
    for x, y in zip(w.tolist(), h.tolist()):
        g = bisect_left(middle, x/y)
        out.append(rows[g][max(0, bisect_right(areas[g], x*y) - 1)])
    return out

def list_epoch(lists, chance, size, seed, epoch):
    "Our rule with lists: sort each bucket by a random number a sample, cut it into batches, shuffle the batches"
    rng = np_rng(seed, 'batches', epoch)
    draws = (rng.integers(0, 2**64, sum(map(len, lists)), dtype=np.uint64) & chance).tolist()
    batches, at = [], 0
    for l in lists:
        l, at = [i for _, i in sorted(zip(draws[at:at+len(l)], l))], at + len(l)
        batches += [l[i:i+size] for i in range(0, len(l), size)]
    return [batches[i] for i in rng.permutation(len(batches)).tolist()]

def kohya_epoch(lists, size, seed):
    "The same with Python's shuffle, in place"
    rng, batches = random.Random(seed), []
    for l in lists:
        rng.shuffle(l)
        batches += [l[i:i+size] for i in range(0, len(l), size)]
    rng.shuffle(batches)
    return batches

def main():
    run = Bench(__doc__, repeats=3, pictures=1_000_000, batch=16)
    (w, h), b, n = pictures(run.pictures), Buckets(), run.pictures
    ids = b.assign(w, h)
    assert ids.tolist() == argmin_loop(w, h, b) == bisect_loop(w, h, b)
    run.duel('bucket assignment', lambda: b.assign(w, h), lambda: argmin_loop(w, h, b), n, 'picture', 20, 'argmin loop')
    run.duel('bucket assignment', lambda: b.assign(w, h), lambda: bisect_loop(w, h, b), n, 'picture', peer_name='bisection loop')

    groups = Groups(ids)
    lists = [groups.order[s:e].tolist() for s, e in zip(groups.start, groups.end)]
    ours, theirs = batches_by_bucket(groups, run.batch, 0, 3), list_epoch(lists, groups.chance, run.batch, 0, 3)
    assert len(ours) == len(theirs) and all(x.tolist() == y for x, y in zip(ours, theirs))
    epoch = lambda: batches_by_bucket(groups, run.batch, 0, 3)
    run.duel('epoch of batches', epoch, lambda: list_epoch(lists, groups.chance, run.batch, 0, 3), n, 'picture', peer_name='lists, same order')
    run.duel('epoch of batches', epoch, lambda: kohya_epoch(lists, run.batch, 0), n, 'picture', 15, 'lists, random.shuffle')
    run.done()

if __name__ == '__main__': main()
