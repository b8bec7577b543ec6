#!/usr/bin/env python3
"""An epoch of decoder training from cached latents against one that encodes every batch, as VAE-Tagger does.

  python benchmarks/cached.py [--pictures 64] [--repeats 3] [--json]
Drawn scenes of 256 pixels; the VAE that ships with the package and, where `VAETAG_SHARED` or `../shared/data` beside the project has it, TAEF2; float32. Both sides train
the same `pool` head of size tiny with AdamW in batches of 8 in the same order: forward, backward, step. The peer reads and encodes the pictures of each batch, without gradient. Latents of all
batches are equal to 1e-4 of their size, and so are the losses of the first epoch. Ours is without the encoding that fills the cache once, which costs what the peer pays in each epoch; it is named.
"""
import tempfile, time
from pathlib import Path
import torch
from common import Bench
from encoding import codecs
from vaetag_nb.core.rng import seeded
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.latents.encode import encode_table
from vaetag_nb.latents.store import LatentStore
from vaetag_nb.losses import bce
from vaetag_nb.models.latent_tagger import SIZES, build_head
from vaetag_nb.trainers.cached import LatentSource, same_shape
from vaetag_nb.trainers.fresh import FreshPictures, encoded
from vaetag_nb.trainers.settings import DataConfig, ImageConfig

BATCH = 8

def trained(batches, channels, tags)->list:
    "The losses of an epoch of training a new head on batches of latents and labels"
    with seeded(0, 'init'): head = build_head(dict(kind='pool', channels=channels, num_tags=tags, skip=4, **SIZES['tiny'])).train()
    opt, losses = torch.optim.AdamW(head.parameters(), 3e-4, fused=True), []
    with seeded(0, 'drop path'):
        for b in batches:
            loss = bce(head(b['z']), b['y'])
            opt.zero_grad(); loss.backward(); opt.step()
            losses.append(loss.item())
    return losses

def run(b, d, name, codec, table):
    image = ImageConfig(bucketing=False, resolution=256)
    began = time.process_time()
    store = encode_table(table.ids, table.paths, codec, d/name, image.preprocess(codec.multiple), threads=1, dtype='fp32').store
    filled, kept, fresh = time.process_time()-began, LatentSource(LatentStore.open(store), table), FreshPictures(table, image, 0)
    plan, tags = [*same_shape(kept, BATCH, 0)(0)], len(table.vocab)
    cached = lambda: (kept.get(0, i) for i in plan)
    anew = lambda: (encoded(fresh.get(0, i), codec, 0, 0) for i in plan)
    pairs = [*zip(cached(), anew())]
    apart = max(((x['z']-y['z']).abs().max()/x['z'].abs().max()).item() for x, y in pairs)
    assert apart < 1e-4 and all((x['y'] == y['y']).all() for x, y in pairs), apart
    ours, peer = (lambda f=f: trained(f(), codec.channels, tags) for f in (cached, anew))
    assert torch.allclose(torch.tensor(ours()), torch.tensor(peer()), atol=1e-4)
    b.say(f'{name}: {codec.num_parameters/1e6:.1f} M parameters; latents differ by {apart:.1g} of the largest; filling the cache took {1000*filled/len(table):.3g} ms a picture, once')
    b.duel(f'an epoch with {name}', ours, peer, len(table), 'picture', None, 'encoding each batch')

def main():
    torch.set_num_threads(1)
    b = Bench(__doc__, repeats=3, pictures=64)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        make_scenes(d/'scenes', b.pictures, 0, resolution=256)
        table = DataConfig(str(d/'scenes'/'data.json'), str(d/'scenes'/'tags.csv')).read(d/'scenes'/'data.json')
        for name, codec in codecs(): run(b, d, name, codec, table)
    b.done()

if __name__ == '__main__': main()
