#!/usr/bin/env python3
"""The latent store against one file per image: random reads, and a whole epoch through a loader.

  python benchmarks/store.py [--samples 1000] [--batch 64] [--repeats 7] [--json]

Peers: one uncompressed float32 npz per image (the cache of kohya's sd-scripts) and one .pt per image (the cache of the
original VAE-Tagger), latents of 16x64x64 (a 512x512 picture under FLUX's VAE), files warm, one thread. Batches are dropped as
soon as they are made, as in training. First all sides must give the same numbers.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import shutil, tempfile
from pathlib import Path
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset
from common import Bench, best_of, si
from vaetag_nb.core.io import write_json
from vaetag_nb.core.rng import np_rng, torch_rng
from vaetag_nb.latents.convention import Convention
from vaetag_nb.latents.encode import ShardWriter
from vaetag_nb.latents.shards import key_hashes, sample_ids
from vaetag_nb.latents.store import LatentStore, ROW, describe, write_index

SHAPE = (16, 64, 64)

def make(folder, n):
    "The same latents three ways; their record keys"
    keys, blank = [f'{i:06d}' for i in range(n)], {k: [0] for k in ROW if k != 'path'}
    meta = describe(dict(fingerprint='benchmark'), Convention(.3611, .1159).to_dict(), {})
    write_json(folder/'store'/'meta.json', meta); (folder/'npz').mkdir(); (folder/'pt').mkdir()
    with ShardWriter(folder/'store', meta['fingerprint']) as writer:
        for i, k in enumerate(keys):
            z = torch.randn(SHAPE, generator=torch_rng(0, 'latent', i)).half()
            writer.add(sample_ids(key_hashes([k])), z[None], None, dict(path=[k], **blank))
            extra = dict(original_size=np.array([512, 512]), crop_ltrb=np.array([0, 0, 512, 512]))
            np.savez(folder/'npz'/f'{k}.npz', latents=z.float().numpy(), **extra)
            torch.save(z, folder/'pt'/f'{k}.pt')
    write_index(folder/'store', meta['fingerprint'])
    return keys

class Files(Dataset):
    "One .pt per image, as the original caches them"
    def __init__(self, folder, keys): self.folder, self.keys = folder, keys
    def __len__(self): return len(self.keys)
    def __getitem__(self, i): return torch.load(f'{self.folder}/{self.keys[i]}.pt', weights_only=True)

def drain(batches):
    for _ in batches: pass

def size(folder): return sum(p.stat().st_size for p in folder.iterdir())

def run(b, folder):
    keys = make(folder, b.samples)
    store = LatentStore.open(folder/'store'); rows = store.row_of(keys)
    ours = lambda ix: store.read(rows[ix])
    npz = lambda ix: torch.from_numpy(np.stack([np.load(f'{folder}/npz/{keys[i]}.npz')['latents'] for i in ix]))
    pt = lambda ix: torch.stack([torch.load(f'{folder}/pt/{keys[i]}.pt', weights_only=True) for i in ix])

    picks = [np_rng(0, 'read', i).integers(0, b.samples, b.batch) for i in range(max(2, b.samples//b.batch))]
    for ix in picks[:3]: assert torch.equal(ours(ix), pt(ix)) and torch.equal(ours(ix), npz(ix).half()), 'the three caches differ'
    through = lambda f, n=None: lambda: drain(f(ix[:n]) for ix in picks)
    n = len(picks)*b.batch
    memory = store.read(rows).flatten(1).view(torch.uint8).numpy()
    def copy():
        for ix in picks:
            for to, i in zip(np.empty((b.batch, memory.shape[1]), np.uint8), ix): to[:] = memory[i]
    alone = best_of(dict(copy=copy), b.repeats)['copy']
    b.say(f'limit: copying a latent from an array in memory takes {si(alone/n)}')
    b.duel('random reads in batches, one npz per image', through(ours), through(npz), n, 'latent', 20, 'npz')
    b.duel('random reads in batches, one .pt per image', through(ours), through(pt), n, 'latent', 10, '.pt')
    b.duel('random reads one by one, one npz per image', through(ours, 1), through(npz, 1), len(picks), 'latent', None, 'npz')
    b.duel('random reads one by one, one .pt per image', through(ours, 1), through(pt, 1), len(picks), 'latent', None, '.pt')
    disk = size(folder/'npz')/size(folder/'store')
    b.add('bytes on disk, npz', disk, target=1.95); b.say(f'bytes on disk, one npz per image: {disk:.2f}x ours')

    order = np.array_split(np_rng(0, 'epoch').permutation(b.samples), max(1, b.samples//b.batch))
    loader = DataLoader(Files(folder/'pt', keys), batch_sampler=[ix.tolist() for ix in order], num_workers=2, persistent_workers=True)
    for z, ix in zip(loader, order): assert torch.equal(z, ours(ix)), 'the loaders differ'   # and the workers are up
    epoch = (lambda: drain(ours(ix) for ix in order)), (lambda: drain(loader))
    b.duel('one epoch, DataLoader of 2 workers over .pt files', *epoch, b.samples, 'latent', 6, 'DataLoader', clock='wall')

def main():
    b, folder = Bench(__doc__, repeats=7, samples=1000, batch=64), Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    try: run(b, folder)
    finally: shutil.rmtree(folder)
    b.done()

if __name__ == '__main__': main()
