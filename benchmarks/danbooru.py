#!/usr/bin/env python3
"""Two million posts of a public dump to a table and a tag list, in place: time and memory.

  python benchmarks/danbooru.py [--posts 2000000] [--tags 100000] [--json]

Peer: pandas, as the original's scripts do it: `read_parquet` of the needed columns, a loop over the rows that looks each picture up and
counts its tags. Both sides run in processes of their own, whose peak memory counts the interpreter and all libraries. The posts are made up:
30 draws of tags each, tag frequency 1/(rank+10), row groups of 100,000; a thousand archives with an index, as danbooru2024 has them. First
both sides must have found the same pictures and the same counts.
"""
import json, os, resource, subprocess, sys, tempfile
os.environ.setdefault('OMP_NUM_THREADS', '1')
from pathlib import Path
from common import Bench, cpu

GONE = 7  # of so many posts one has no picture

def make(folder, posts, tags):
    "The dump: metadata, and the indexes of archives that have the right size and hold nothing"
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    from vaetag_nb.core.rng import np_rng
    p = 1/np.arange(11, tags+11); cdf = np.cumsum(p/p.sum())
    names = pa.array([f'tag_number_{i}' for i in range(tags)])
    with pq.ParquetWriter(folder/'meta.parquet', pa.schema([('id', pa.int64()), *((c, pa.string()) for c in ('rating', 'tag_string', 'tag_string_artist')),
                                                           *((c, pa.int32()) for c in ('score', 'image_width', 'image_height')), ('parent_id', pa.int64())])) as out:
        for s in range(0, posts, 100_000):
            n, rng = min(100_000, posts-s), np_rng(0, 'posts', s)
            drawn = np.sort(np.searchsorted(cdf, rng.random((n, 30))).clip(max=tags-1), 1)
            keep = np.c_[np.ones(n, bool), drawn[:, 1:] != drawn[:, :-1]]
            lists = pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(keep.sum(1))], pa.int32()), names.take(pa.array(drawn[keep])))
            text = pa.compute.binary_join(lists, ' ')
            column = lambda top: pa.array(rng.integers(0, top, n).astype(np.int32))
            out.write_table(pa.table([pa.array(np.arange(s, s+n)), pa.array(np.array(list('gsqe'))[rng.integers(0, 4, n)]), text, names.take(pa.array(drawn[:, -1])),
                                      column(100), column(2000), column(2000), pa.array(rng.integers(0, posts, n))], out.schema))
    (folder/'images').mkdir()
    for k in range(1000):
        ids = [i for i in range(k, posts, 1000) if i % GONE]
        files = {f'{i}.webp': dict(offset=512+n*2048, size=1500) for n, i in enumerate(ids)}
        (folder/f'images/0{k:03}.json').write_text(json.dumps(dict(filesize=512+len(ids)*2048, files=files)))
        with open(folder/f'images/0{k:03}.tar', 'wb') as f: f.truncate(512+len(ids)*2048)

def ours(folder):
    from vaetag_nb.data.danbooru import DumpFilter, prepare
    from vaetag_nb.data.tags import Vocab
    base, t = peak(), cpu()
    r = prepare(folder/'meta.parquet', folder/'D', folder, want=DumpFilter(min_score=10), in_place=True)
    took, most = cpu()-t, peak()
    v = Vocab.read(folder/'D/selected_tags.csv', order='file')
    return dict(cpu=took, peak=most, base=base, found=r.found, counts=dict(zip(v.names, v.counts.tolist())))

def peer(folder):
    import pandas as pd
    from collections import Counter
    base, t = peak(), cpu()
    where = {}
    for f in sorted((folder/'images').glob('*.json')): where |= {int(k.partition('.')[0]): f'{f.stem}.tar' for k in json.loads(f.read_text())['files']}
    df = pd.read_parquet(folder/'meta.parquet', columns=['id', 'rating', 'tag_string', 'tag_string_artist', 'score', 'image_width', 'image_height', 'parent_id'])
    read, counts, found = peak(), Counter(), 0
    words = dict(g='general', s='sensitive', q='questionable', e='explicit')
    for i, rating, tags in zip(df.id, df.rating, df.tag_string.where(df.score >= 10)):
        if tags != tags or i not in where: continue
        found += 1
        counts.update([*tags.split(), words[rating]])
    return dict(cpu=cpu()-t, peak=peak(), base=base, read=read, found=found, counts=counts)

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20  # GiB

def child(what, folder, *args):
    out = subprocess.run([sys.executable, __file__, '--child', what, folder, *map(str, args)], capture_output=True, text=True, env=os.environ | dict(VAETAG_QUIET='1'))
    if out.returncode: sys.exit(out.stderr)
    return json.loads(out.stdout or 'null')

def main():
    b = Bench(__doc__, repeats=1, posts=2_000_000, tags=100_000)
    with tempfile.TemporaryDirectory() as folder:
        child('make', folder, b.posts, b.tags)
        o, p = child('ours', folder), child('peer', folder)
    assert o['found'] == p['found'] and o['counts'] == p['counts'], 'the two sides count differently'
    b.say(f"{b.posts} posts, {o['found']} pictures kept and found, {len(o['counts'])} tags")
    b.say(f"processor time: {p['cpu']/o['cpu']:.1f}x (ours {o['cpu']:.1f} s with the table written, pandas {p['cpu']:.1f} s without)")
    b.say(f"peak memory: {p['peak']/o['peak']:.1f}x (ours {o['peak']:.2f} GiB, {o['base']:.2f} of it libraries; pandas {p['peak']:.2f} GiB, {p['read']:.2f} after reading; promised 1 GiB"
          + (' MISSED' if o['peak'] > 1 else '') + ')')
    b.add('time', p['cpu']/o['cpu'], ours=o['cpu'], peer=p['cpu'], peer_name='pandas', unit='run', clock='cpu', target=None)
    b.add('memory', p['peak']/o['peak'], ours=o['peak'], peer=p['peak'], peer_name='pandas', unit='GiB', target=None)
    b.add('the promised GiB by the peak', 1/o['peak'], ours=o['peak'], unit='GiB', target=1)
    b.done()

if __name__ == '__main__':
    if sys.argv[1:2] != ['--child']: main()
    elif sys.argv[2] == 'make': make(Path(sys.argv[3]), *map(int, sys.argv[4:]))
    else: print(json.dumps(dict(ours=ours, peer=peer)[sys.argv[2]](Path(sys.argv[3]))))
