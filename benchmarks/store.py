#!/usr/bin/env python3
"""The latent store against one file per image: random reads, and a whole epoch through a loader.

  python benchmarks/store.py [--samples 1000] [--batch 64] [--repeats 5] [--json]
Peers: one uncompressed float32 npz per image (the cache of kohya's sd-scripts) and one .pt per image (the cache of the original
VAE-Tagger), latents of 16x64x64 (a 512x512 picture under FLUX's VAE). Files are warm; sides take turns, the best of each counts.
"""
import argparse, json, os, shutil, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset
from vaetag_nb.core.io import write_json
from vaetag_nb.core.rng import np_rng, torch_rng
from vaetag_nb.latents.convention import Convention
from vaetag_nb.latents.encode import ShardWriter
from vaetag_nb.latents.shards import key_hashes, sample_ids
from vaetag_nb.latents.store import LatentStore, ROW, describe, write_index

SHAPE = (16, 64, 64)

def make(folder, n):
    "The same latents three ways"
    keys, blank = [f'{i:06d}' for i in range(n)], {k: [0] for k in ROW if k != 'path'}
    meta = describe(dict(fingerprint='benchmark'), Convention(.3611, .1159).to_dict(), {})
    write_json(folder/'store'/'meta.json', meta); (folder/'npz').mkdir(); (folder/'pt').mkdir()
    with ShardWriter(folder/'store', meta['fingerprint']) as w:
        for i, k in enumerate(keys):
            z = torch.randn(SHAPE, generator=torch_rng(0, 'latent', i)).half()
            w.add(sample_ids(key_hashes([k])), z[None], None, dict(path=[k], **blank))
            np.savez(folder/'npz'/f'{k}.npz', latents=z.float().numpy(), original_size=np.array([512, 512]), crop_ltrb=np.array([0, 0, 512, 512]))
            torch.save(z, folder/'pt'/f'{k}.pt')
    write_index(folder/'store', meta['fingerprint'])
    return keys

class Files(Dataset):
    "One .pt per image, as the original caches them"
    def __init__(self, folder, keys): self.folder, self.keys = folder, keys
    def __len__(self): return len(self.keys)
    def __getitem__(self, i): return torch.load(f'{self.folder}/{self.keys[i]}.pt', weights_only=True)

def duel(sides, repeats):
    "Best wall time of each of `sides` {name: function}, taking turns"
    best = dict.fromkeys(sides, float('inf'))
    for _ in range(repeats):
        for k, f in sides.items():
            t = time.perf_counter(); f(); best[k] = min(best[k], time.perf_counter() - t)
    return best

def drain(batches):
    "Go through `batches` as training does: each is dropped before the next"
    for _ in batches: pass

def size(folder): return sum(p.stat().st_size for p in folder.iterdir())

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for k, v in dict(samples=1000, batch=64, repeats=5).items(): a.add_argument(f'--{k}', type=int, default=v)
    a.add_argument('--json', action='store_true'); a = a.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        keys = make(folder, a.samples)
        store = LatentStore.open(folder/'store'); rows = store.row_of(keys)
        picks = [np_rng(0, 'read', b).integers(0, a.samples, a.batch) for b in range(max(2, a.samples//a.batch))]
        ours = lambda ix: store.read(rows[ix])
        npz = lambda ix: torch.from_numpy(np.stack([np.load(f'{folder}/npz/{keys[i]}.npz')['latents'] for i in ix]))
        pt = lambda ix: torch.stack([torch.load(f'{folder}/pt/{keys[i]}.pt', weights_only=True) for i in ix])
        for ix in picks[:3]: assert torch.equal(ours(ix), pt(ix)) and torch.equal(ours(ix), npz(ix).half()), 'the three caches differ'

        each = lambda f: lambda: drain(f(ix) for ix in picks)
        single = lambda f: lambda: drain(f(ix[:1]) for ix in picks for _ in range(8))
        best, alone = duel(dict(ours=each(ours), npz=each(npz), pt=each(pt)), a.repeats), duel(dict(ours=single(ours), npz=single(npz), pt=single(pt)), a.repeats)

        order = [ix for ix in np.array_split(np_rng(0, 'epoch').permutation(a.samples), max(1, a.samples//a.batch))]
        loader = DataLoader(Files(folder/'pt', keys), batch_sampler=[ix.tolist() for ix in order], num_workers=2, persistent_workers=True)
        for z, ix in zip(loader, order): assert torch.equal(z, ours(ix)), 'the loaders differ'   # starts the workers, too
        epoch = duel(dict(ours=lambda: drain(ours(ix) for ix in order), loader=lambda: drain(loader)), a.repeats)
        table = [('random reads in batches, against one npz per image', best['npz']/best['ours'], 20), ('bytes of one npz per image for one of ours', size(folder/'npz')/size(folder/'store'), 1.95),
                 ('random reads in batches, against one .pt per image', best['pt']/best['ours'], 10), ('one epoch, against a DataLoader of 2 workers over .pt files', epoch['loader']/epoch['ours'], 6),
                 ('single random reads, against npz', alone['npz']/alone['ours'], None), ('single random reads, against .pt', alone['pt']/alone['ours'], None)]
    finally: shutil.rmtree(folder)
    if a.json: print(json.dumps([dict(what=w, ratio=round(r, 2), target=t) for w, r, t in table]))
    else:
        for w, r, t in table: print(f'{r:7.1f}x  {w}' + (f'  (to reach: {t}x)' if t else ''))
    sys.exit(any(t and r < t for _, r, t in table))

if __name__ == '__main__': os.environ.setdefault('OMP_NUM_THREADS', '1'); main()
