"""A tagger on pixels: from scratch and from pretrained weights, three losses, and the decoder on latents in the same time; three seeds

    python benchmarks/timm_evidence.py [--cells pretrained/bce latent] [--seeds 0 1 2] [--photos 2000] [--epochs 8] [--size 64]
                                       [--out runs/timm_evidence] [--results benchmarks/results/timm_evidence.json]

Shop photos in VAETAG_SHARED (default ../shared/data), the tags that 30 of them carry. Each seed draws its own split (70 % to learn, 10 % to validate,
20 % to test; duplicates on one side) and its own weights; within a seed all cells have the same split, and those of timm the same batches. The network is
MobileNet v2 on squares of 64 pixels, from random weights (`scratch`) or from those in `weights/mobilenetv2_timm` (`pretrained`); every loss has the same
rate, so that the figures compare losses as they come, not as each would be tuned. `latent` is the decoder of real_images.py on the latents of TAEF2, for as many epochs as fit
into the processor time that `pretrained/bce` took with this seed, encoding included. Weights and thresholds are chosen on validation; every figure is of the test side.
The file of results is written after each cell, and what is in it with the same settings is not done again.
"""
import argparse, shutil, sys, time
from pathlib import Path
import numpy as np
from real_images import COMMON, RECIPES, SHARED, merged, table
from vaetag_nb.core.config import load
from vaetag_nb.core.io import read_json, write_json
from vaetag_nb.core.rng import np_rng
from vaetag_nb.data.split import ensure
from vaetag_nb.data.table import TagTable
from vaetag_nb.trainers.tagger import DecoderConfig, train_decoder
from vaetag_nb.trainers.timm import train_timm
from vaetag_nb.trainers.timm_settings import TimmConfig

LEAST, FIGURES = 30, ('mAP', 'f1_micro', 'f1_macro')
WEIGHTS = SHARED/'weights'/'mobilenetv2_timm'/'mobilenetv2_100_nsfwjs_backbone_fp16.pth'
TIMM = dict(batch_size=32, device='cpu', precision='no', workers=0, log_every=50, save_every=100, split=dict(method='column'), optim=dict(lr=1e-3),
            model=dict(name='mobilenetv2_100', kwargs=dict(pad_type='same', bn_eps=1e-3), drop_path_rate=0.))
LATENT = merged(merged(COMMON, RECIPES['fashion']), dict(eval=dict(baselines=False)))
CELLS = {f'{start}/{loss}': dict(model=dict(pretrained=str(WEIGHTS) if start == 'pretrained' else False), loss=dict(name=loss))
         for start in ('pretrained', 'scratch') for loss in ('bce', 'asl', 'focal')} | dict(latent={})

def photos(out, number, seed):
    "The table of one seed, with its sides"
    to = out/f'photos-{seed}.parquet'
    if to.exists(): return to
    if not (out/'fashion.parquet').exists(): table('fashion', out/'fashion.parquet')
    t = TagTable.read(out/'fashion.parquet')
    t = t.select(np.sort(np_rng(0, 'timm evidence').permutation(len(t))[:number]))
    t = t.with_vocab(t.vocab.select(t.counts() >= min(LEAST, number//20)))   # fewer, for a trial with few photos
    t = t.where(labelled=True)
    split = ensure(out/f'split-{seed}.parquet', t, method='stratified', val=.1, test=.2, seed=seed, group_by=('sha256', 'group'))
    t.with_columns(split=split.sides_of(t.ids)).to_parquet(to)
    return to

def timed(f, *args):
    "What `f` returns, and its processor seconds"
    began = time.process_time()
    r = f(*args)
    return r, time.process_time() - began

def timm(settings, recipe, seed, out):
    "Train and test a network on pixels"
    own = dict(out=str(out), name='run', seed=seed, epochs=recipe['epochs'], preprocess=dict(size=recipe['size']), data=dict(table=str(photos(out, recipe['photos'], seed))))
    r, seconds = timed(train_timm, load(TimmConfig, TIMM, own, settings))
    return {k: r.metrics['test']['timm'][k] for k in FIGURES} | dict(epochs=recipe['epochs'], seconds=round(seconds, 1))

def decoder(recipe, seed, out, epochs):
    "Train and test a decoder on cached latents"
    own = dict(out=str(out/'run'), seed=seed, epochs=epochs, data=dict(metadata=str(photos(out, recipe['photos'], seed))),
               codec=dict(vae=str(SHARED/'weights'/'taef2')), latents=dict(store=str(out/'latents')))
    r, seconds = timed(train_decoder, load(DecoderConfig, LATENT, own))
    return {k: r.metrics['test']['decoder'][k] for k in FIGURES} | dict(epochs=epochs, seconds=round(seconds, 1))

def cleared(out): shutil.rmtree(out/'run', ignore_errors=True)

def pace(recipe, out)->dict:
    "Processor seconds of encoding all photos, of an epoch of the decoder, and of the rest of its run"
    shutil.rmtree(out/'latents', ignore_errors=True)
    took = []
    for epochs in (1, 1, 3): cleared(out); took.append(decoder(recipe, 0, out, epochs)['seconds'])
    cold, one, three = took
    epoch = max((three - one)/2, 1e-3)
    return dict(encode=cold - one, epoch=epoch, rest=one - epoch)

def latent(recipe, seed, out, done):
    "The decoder, for as long as the network on pixels took"
    budget = done['cells']['pretrained/bce']['test'][str(seed)]['seconds']
    if 'pace' not in done: done['pace'] = pace(recipe, out)
    p = done['pace']
    cleared(out)
    got = decoder(recipe, seed, out, max(1, round((budget - p['encode'] - p['rest'])/p['epoch'])))
    return got | dict(seconds=round(got['seconds'] + p['encode'], 1), budget=budget)

def show(done):
    "The cells as a table: mean and standard deviation over the seeds that are done"
    print(f'| {"":18} | ' + ' | '.join(f'{f:15}' for f in FIGURES) + ' | epochs | seconds |\n|' + '---|'*(len(FIGURES) + 3))
    for key, c in done['cells'].items():
        runs = list(c['test'].values())
        if not runs: continue
        of = lambda f: np.array([r[f] for r in runs], float)
        spread = lambda x: x.std(ddof=1) if len(x) > 1 else 0.
        print(f'| {key:18} | ' + ' | '.join(f'{of(f).mean():.4f} +- {spread(of(f)):.4f}' for f in FIGURES) + f' | {of("epochs").mean():.0f} | {of("seconds").mean():.0f} |')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cells', nargs='+', choices=list(CELLS), default=list(CELLS))
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    p.add_argument('--photos', type=int, default=2000, help='photos, of 5000')
    p.add_argument('--epochs', type=int, default=8, help='of the networks on pixels')
    p.add_argument('--size', type=int, default=64, help='pixels; the longer side of most photos is 80')
    p.add_argument('--out', type=Path, default=Path('runs/timm_evidence'), help='tables, latents and the unfinished run')
    p.add_argument('--results', type=Path, help='file of results; none: OUT/timm_evidence.json')
    a = p.parse_args()
    if not WEIGHTS.exists(): print(f'skipped: no real images and weights in {SHARED}; set VAETAG_SHARED to their folder', file=sys.stderr); return
    if 'latent' in a.cells and 'pretrained/bce' not in a.cells: p.error('latent has the time of pretrained/bce; name that one, too')
    a.out.mkdir(parents=True, exist_ok=True)
    named = lambda s: s | dict(model=dict(pretrained=Path(s['model']['pretrained']).name if s['model']['pretrained'] else False)) if s else s
    recipe = dict(photos=a.photos, epochs=a.epochs, size=a.size, least=LEAST, timm=TIMM, latent=LATENT, cells={k: named(c) for k, c in CELLS.items()})
    to = a.results or a.out/'timm_evidence.json'
    done = read_json(to) if to.exists() else {}
    if done.get('recipe') != recipe:
        done = dict(recipe=recipe, cells={})
        for f in (*a.out.glob('photos-*'), *a.out.glob('split-*')): f.unlink()
    for s in a.seeds:
        for key in sorted(a.cells, key=list(CELLS).index):
            test = done['cells'].setdefault(key, dict(test={}))['test']
            if str(s) in test: continue
            cleared(a.out)
            test[str(s)] = latent(recipe, s, a.out, done) if key == 'latent' else timm(CELLS[key], recipe, s, a.out)
            write_json(to, done)
            print(key, s, test[str(s)], flush=True)
    cleared(a.out)
    show(done)

if __name__ == '__main__': main()
