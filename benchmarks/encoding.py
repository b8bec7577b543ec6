#!/usr/bin/env python3
"""A latent store of a folder against a plain loop over pictures, and the share of time outside the VAE.

  python benchmarks/encoding.py [--pictures 8] [--repeats 3] [--json]
Both sides use the same weights (the VAE that ships with the package; TAEF2, where `VAETAG_SHARED` or `../shared/data` beside the
project has it), squares of 256 pixels cut from one-megapixel JPEGs, float32, and store fp16. The peer: Pillow's open, crop and LANCZOS resize,
`vae.encode`, one .pt file a picture, its VAE in contiguous memory. Latents agree but for what the resize kernels differ by (2 of 255 in
a pixel). Share outside the VAE: 1 - processor time of the VAE alone on batches that wait in memory / that of the whole run.
"""
import copy, itertools, os, tempfile
from pathlib import Path
import torch
from common import Bench, best_of
from decode import make, pillow
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.data.images import load_batch
from vaetag_nb.latents.codec import Codec
from vaetag_nb.latents.encode import encode_table, raw_latents
from vaetag_nb.latents.store import LatentStore

SIDE = 256

def codecs():
    "The VAEs that are at hand"
    yield 'embedded VAE', Codec.embedded()
    taef2 = Path(os.environ.get('VAETAG_SHARED', Path(__file__).parents[1].parent/'shared'/'data'))/'weights'/'taef2'
    if taef2.is_dir(): yield 'TAEF2', Codec.load(taef2)

@torch.inference_mode()
def loop(files, codec, vae, out):
    "The usual script: one picture, one file after the other"
    out.mkdir(exist_ok=True)
    for f in files:
        got = vae.encode(pillow(f, (SIDE, SIDE))[None])
        z = got.latent_dist.mean if hasattr(got, 'latent_dist') else got.latents if hasattr(got, 'latents') else got.latent
        torch.save(z[0].half(), out/f'{f.stem}.pt')

def run(b, d, name, codec, files):
    pre, vae = Preprocess(bucketing=False, resolution=SIDE), copy.deepcopy(codec.vae).to(memory_format=torch.contiguous_format)
    ids, number = [f.stem for f in files], itertools.count()
    def ours():
        out = d/f'store-{next(number)}'
        return encode_table(ids, files, codec, out, pre, threads=1).store
    loop(files, codec, vae, d/'peer')
    with LatentStore.open(ours()) as store:
        z, want = store.read(store.row_of(ids)).float(), torch.stack([torch.load(d/'peer'/f'{i}.pt', weights_only=True) for i in ids]).float()
    apart = ((z - want).norm()/want.norm()).item()
    assert apart < .02, apart
    b.say(f'{name}: {codec.num_parameters/1e6:.1f} M parameters; latents differ by {100*apart:.2g} % (root mean square)')
    b.duel(f'encode with {name}', ours, lambda: loop(files, codec, vae, d/'peer'), len(files), 'picture', None, 'one at a time')
    ready = [load_batch(files[i:i+8], (SIDE, SIDE), threads=1).images for i in range(0, len(files), 8)]
    best = best_of(dict(vae=lambda: [raw_latents(codec, x, files, 'fp16') for x in ready], run=ours), b.repeats)
    outside = 1 - best['vae']/best['run']
    b.say(f'{name}: {100*outside:.1f} % of the processor time is outside the VAE ({best["run"]/len(files):.3g} s a picture, of which the VAE {best["vae"]/len(files):.3g} s)')
    b.add(f'share of the VAE, {name}', 1 - outside, run=best['run'], vae=best['vae'], clock='cpu')

def main():
    torch.set_num_threads(1)
    b = Bench(__doc__, repeats=3, pictures=8)
    for name, codec in codecs():
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            run(b, d, name, codec, make(d/'in', b.pictures, 2**20))
    b.done()

if __name__ == '__main__': main()
