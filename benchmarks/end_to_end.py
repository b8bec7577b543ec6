"""Does it help that tags move the encoder? A decoder on the frozen VAE, trained further frozen and end to end, three seeds

    python benchmarks/end_to_end.py [--seeds 0 1 2] [--out runs/end_to_end] [--results benchmarks/results/end_to_end.json]

Shop photos in VAETAG_SHARED (default ../shared/data) and the embedded VAE, which has seen drawn scenes only. Each seed draws its own
split (70 % to learn, 10 % to validate, 20 % to test) and its own weights. All contenders go on from one decoder, `start`:

- `frozen`: as many further steps as `full`, with the same program, batches and rates, the VAE still frozen;
- `longer`: from cached latents, LONGER times as many steps;
- `full`: tags and reconstruction move the VAE, too.

The weights that are kept (of `frozen` and `full` perhaps the start's) and the thresholds are chosen on validation; every figure is of the test side. The file of
results is written after each contender, and one that is in it is not done again; another recipe starts anew.
"""
import argparse, shutil, sys, time
from pathlib import Path
import numpy as np
from real_images import SHARED, table
from vaetag_nb.core.config import load
from vaetag_nb.core.io import read_json, write_json
from vaetag_nb.core.rng import np_rng
from vaetag_nb.data.table import TagTable
from vaetag_nb.latents.codec import Codec
from vaetag_nb.recon import ReconSettings, evaluate_recon
from vaetag_nb.trainers.cached import read_sides
from vaetag_nb.trainers.full import FullConfig, train_full
from vaetag_nb.trainers.tagger import DecoderConfig, train_decoder

NUMBER, LEAST, START, FURTHER, LONGER = 800, 30, 12, 3, 10     # photos; photos of a tag; epochs: of the start, further; how many times as many for `longer`
COMMON = dict(batch_size=16, log_every=20, save_every=10, device='cpu', precision='no', image=dict(base_resolution=48, max_resolution=64, bucket_step=16),
              codec=dict(vae='embedded', batch_size=32), model=dict(d=96, depth=2, heads=4, skip=0), optim=dict(lr=1e-3), eval=dict(batch_size=64, baselines=False))
FULL = dict(epochs=FURTHER, loss=dict(semantic=dict(weight=0.), recon=dict(weight=1.)), optim=dict(lr=5e-4, vae_lr=1e-4))
WHO, FIGURES = ('start', 'frozen', 'longer', 'full'), ('mAP', 'f1_micro', 'f1_macro')

def photos(out):
    "A random choice of photos and the tags that are frequent in it"
    if not (out/'fashion.parquet').exists(): table('fashion', out/'fashion.parquet')
    t = TagTable.read(out/'fashion.parquet')
    t = t.select(np.sort(np_rng(0, 'end to end').permutation(len(t))[:NUMBER]))
    t.with_vocab(t.vocab.select(t.counts() >= LEAST)).to_parquet(out/'photos.parquet')

def run(who, seed, out):
    "Train and test one contender: figures, PSNR of the test side, processor seconds, drift of the latents"
    folder, own = out/f'{who}-{seed}', dict(seed=seed, data=dict(metadata=str(out/'photos.parquet'), val=.1, test='.2'))
    start, own = out/f'start-{seed}', own | dict(out=str(folder))
    cache, go_on = dict(latents=dict(store=str(out/'latents'))), dict(model=dict(init=str(start/'best')))
    began = time.process_time()
    if who == 'start': r = train_decoder(load(DecoderConfig, COMMON, own, cache, dict(epochs=START, ema=.95)))
    if who == 'longer': r = train_decoder(load(DecoderConfig, COMMON, own, cache, go_on, dict(epochs=FURTHER*LONGER, ema=.95, optim=dict(lr=FULL['optim']['lr']))))
    if who in ('frozen', 'full'): r = train_full(load(FullConfig, COMMON, own, FULL, go_on, dict(vae=dict(train='all' if who == 'full' else 'none'))))
    seconds, best = time.process_time()-began, r.out/'best'
    codec = Codec.load(str(best/'vae') if who == 'full' else 'embedded')
    cfg = load(DecoderConfig, COMMON, own)
    test = read_sides(cfg.data, folder, seed)['test']
    psnr = evaluate_recon(codec, test, cfg.image.preprocess(), ReconSettings(metrics=('psnr',), bootstrap=0, shown=0, batch_size=32)).result.metrics['psnr_mean']
    drift = read_json(best/'drift.json')['distance'] if (best/'drift.json').exists() else 0.
    kept = read_json(r.out/'best.json')
    return {k: r.metrics['test']['decoder'][k] for k in FIGURES} | dict(val_mAP=r.metrics['val']['decoder']['mAP'], psnr=psnr, drift=drift, seconds=round(seconds, 1), kept=kept)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    p.add_argument('--out', type=Path, default=Path('runs/end_to_end'), help='latents and runs')
    p.add_argument('--results', type=Path, help='file of results; none: OUT/end_to_end.json')
    a = p.parse_args()
    if not (SHARED/'fashion').exists():
        print(f'skipped: no real images in {SHARED}; set VAETAG_SHARED to their folder', file=sys.stderr); return
    a.out.mkdir(parents=True, exist_ok=True)
    if not (a.out/'photos.parquet').exists(): photos(a.out)
    recipe = dict(number=NUMBER, least=LEAST, start=START, further=FURTHER, longer=LONGER, common=COMMON, full=FULL)
    to = a.results or a.out/'end_to_end.json'
    done = read_json(to) if to.exists() else {}
    if done.get('recipe') != recipe:
        done = dict(recipe=recipe, test={})
        for f in (x for w in WHO for x in a.out.glob(f'{w}-*')): shutil.rmtree(f)
    for s in a.seeds:
        for who in WHO:
            at = done['test'].setdefault(who, {})
            if str(s) in at: continue
            at[str(s)] = run(who, s, a.out)
            print(who, s, at[str(s)], flush=True)
            write_json(to, done)

if __name__ == '__main__': main()
