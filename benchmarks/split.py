#!/usr/bin/env python3
"""The stratified split against iterative-stratification, and on a million images.

  python benchmarks/split.py [--images 20000] [--tags 2000] [--large 1000000] [--large-tags 10000] [--json]
Peer: iterative-stratification 0.1.9 (MultilabelStratifiedKFold). Five equal sides, 18 draws of tags an image, tag frequency
1/(rank+10). Label-distribution error: mean over tags and sides of |c/(n-c) - C/(N-C)|, as in Sechidis et al. 2011. The large split
(30 draws an image) runs in a process of its own, whose peak memory counts the interpreter, the labels and everything else.
"""
import json, resource, subprocess, sys, time
import numpy as np, scipy.sparse as sp
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from common import Bench, cpu
from vaetag_nb.core.rng import np_rng
from vaetag_nb.data.split import make
from vaetag_nb.data.stratify import side_sizes, stratify

def labels(n, c, per_image, block=50_000):
    "n x c labels, `per_image` draws for each image, made in blocks so that making them costs no memory"
    p = 1/np.arange(11, c+11)
    cdf, rows = np.cumsum(p/p.sum()), []
    for s in range(0, n, block):
        m = min(block, n-s)
        drawn = np.sort(np.searchsorted(cdf, np_rng(0, 'labels', s).random((m, per_image))).clip(max=c-1).astype(np.int32), 1)
        keep = np.c_[np.ones(m, bool), drawn[:, 1:] != drawn[:, :-1]]
        rows.append(sp.csr_matrix((np.ones(keep.sum(), np.float32), drawn[keep], np.r_[0, np.cumsum(keep.sum(1))]), (m, c)))
    return sp.vstack(rows, format='csr', dtype=np.float32)

def quality(Y, side, k):
    "Label-distribution error, largest error of a side's size, tags with a share of one image or more that a side lacks"
    n, N = np.bincount(side, minlength=k), len(side)
    count = (Y.T.astype(np.float64)@np.eye(k)[side]).T
    total = count.sum(0)
    ld = abs(count/np.maximum(n[:, None]-count, 1) - total/np.maximum(N-total, 1))[:, total > 0].mean()
    return ld, int(abs(n-side_sizes(N, [1]*k)).max()), int(((total*n[:, None]/N >= 1) & (count == 0)).sum())

def peer(Y, k):
    dense, side = Y.toarray().astype(int), np.empty(Y.shape[0], int)
    for i, (_, test) in enumerate(MultilabelStratifiedKFold(k, shuffle=True, random_state=0).split(dense, dense)): side[test] = i
    return side

class Table:
    "As much of a `TagTable` as a split looks at"
    group = split = None
    def __init__(self, ids, labels): self.ids, self.labels = ids, labels
    def __len__(self): return len(self.ids)

def large(n, c):
    "Child process: draw a whole split of `n` images and say what it took"
    Y, peak = labels(n, c, 30), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    t, w = cpu(), time.perf_counter()
    split = make(Table([f'{i:07d}' for i in range(n)], Y), group_by=())
    val, luck = split.quality['val'], split.quality['random']['val']
    print(json.dumps(dict(nnz=int(Y.nnz), cpu_s=cpu()-t, wall_s=time.perf_counter()-w, peak_gib=peak(), sizes=split.sizes, missing=val['missing_tags'],
                          deviation=val['mean_deviation'], random_deviation=luck['mean_deviation'])))

def main():
    b = Bench(__doc__, repeats=2, images=20_000, tags=2000, large=1_000_000, large_tags=10_000)
    k, Y, sides = 5, labels(b.images, b.tags, 18), {}
    def ours(): sides['ours'] = stratify(Y, [1]*k, seed=0)
    def theirs(): sides['peer'] = peer(Y, k)
    ours(), theirs()
    (ld, off, lacking), (ld2, off2, lacking2) = quality(Y, sides['ours'], k), quality(Y, sides['peer'], k)
    assert off == 0 and lacking == 0 and ld < ld2, (ld, off, lacking, ld2)
    b.duel(f'stratified split of {b.images} x {b.tags}', ours, theirs, unit='split', target=50, peer_name='iterative-stratification')
    b.say(f'  label-distribution error {ld:.2g} against {ld2:.2g}; size of a side off by {off} against {off2}; tags missing on a side {lacking} against {lacking2}')
    b.add('label-distribution error, peer/ours', ld2/ld, ours=ld, peer=ld2)
    out = subprocess.run([sys.executable, __file__, 'child', str(b.large), str(b.large_tags)], stdout=subprocess.PIPE, text=True, check=True)
    d = json.loads(out.stdout)
    assert d['peak_gib'] < 2 and d['cpu_s'] < 30 and d['missing'] == 0, d
    b.say(f'{b.large} x {b.large_tags}, {d["nnz"]/1e6:.1f}M labels, with groups, quality report and ids: {d["cpu_s"]:.1f} s CPU, {d["wall_s"]:.1f} s wall, {d["peak_gib"]:.2f} GiB peak; '
          f'mean deviation of val {d["deviation"]:.2f} images a tag, of a random split {d["random_deviation"]:.2f}')
    b.add('large split: random/our deviation', d['random_deviation']/d['deviation'], **d)
    b.done()

if __name__ == '__main__': large(*map(int, sys.argv[2:])) if sys.argv[1:2] == ['child'] else main()
