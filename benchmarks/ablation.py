"""Which loss and which head: losses with one head and heads with one loss on shop photos, three seeds; and `pool` beside `attention` on scenes

    python benchmarks/ablation.py [--parts photos] [--all] [--seeds 0 1 2] [--out runs/ablation] [--results benchmarks/results/ablation.json]

photos: 1500 of the photos in VAETAG_SHARED (default ../shared/data), latents of TAEF2, in float32. Each seed draws its own split (70 % to
learn, 10 % to validate, 20 % to test) and its own weights; within a seed every cell has the same split, the same batches and the
same number of steps, so cells are compared in pairs. The cells are those of FIRST; `--all` does every loss with every head. scenes, not done unless named: drawn by `data.synth`, latents of the embedded VAE, the package's own
rates. All trunks are AdamW at one rate, 2e-3; `plain` and `attention` have their default, 1e-3. The weights that are kept and the thresholds are chosen on validation; every figure is of the test side. The file of results
is written after each cell, and a cell that is in it is not done again; another recipe starts anew.
"""
import argparse, shutil, sys, time
from pathlib import Path
import numpy as np
from real_images import SHARED, merged, table
from vaetag_nb.core.config import load
from vaetag_nb.core.io import read_json, write_json
from vaetag_nb.core.rng import np_rng
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.data.table import TagTable
from vaetag_nb.trainers.tagger import DecoderConfig, train_decoder

TRUNK, CLASSIC = dict(patch=3, d=64, depth=2, heads=4), dict(lr=1e-3)
CASES = dict(
    losses=dict(bce={}, standard=dict(mode='standard'), triplet=dict(semantic=dict(weight=.5)), asl=dict(classification=dict(kind='asl')),
                focal=dict(classification=dict(focal=True)), balanced=dict(classification=dict(class_balanced=True)), contrastive=dict(semantic=dict(kind='contrastive', weight=.5)),
                learned=dict(weighting='learned', semantic=dict(weight=.5)), research=dict(mode='research')),
    heads=dict(pool=dict(model=TRUNK), pool_skip=dict(model=dict(TRUNK, skip=4)), plain=dict(model=dict(head='plain'), optim=CLASSIC),
               query=dict(model=dict(TRUNK, head='query')), timm=dict(model=dict(head='timm', name='test_resnet')),
               pool_stem=dict(model=dict(TRUNK, stem=2, stem_width=32)), attention=dict(model=dict(head='attention'), optim=CLASSIC)))
PHOTOS = dict(number=1500, least=30, epochs=20, batch_size=32, ema=.95, optim=dict(lr=2e-3), eval=dict(every=5, batch_size=256, baselines=False), log_every=50, save_every=10,
              device='cpu', precision='no', codec=dict(family='taef2', dtype='fp32', batch_size=32), image=dict(base_resolution=72, max_resolution=96, bucket_step=24))
SCENES = dict(number=400, epochs=10, batch_size=16, ema=.95, eval=dict(every=2, batch_size=256, baselines=False), log_every=50, save_every=10, device='cpu', precision='no')
FIRST = [f'{l}/pool' for l in ('bce', 'standard', 'triplet', 'asl')] + [f'bce/{h}' for h in ('pool_skip', 'plain', 'query', 'timm', 'pool_stem')]
FIGURES = 'mAP', 'f1_micro', 'f1_macro'
PARTS = dict(photos=PHOTOS, scenes=SCENES)

def photos(out):
    "The first part's table: a random choice of photos, and the tags that are frequent in it"
    if not (out/'fashion.parquet').exists(): table('fashion', out/'fashion.parquet')
    t = TagTable.read(out/'fashion.parquet')
    t = t.select(np.sort(np_rng(0, 'ablation').permutation(len(t))[:PHOTOS['number']]))
    t.with_vocab(t.vocab.select(t.counts() >= PHOTOS['least'])).to_parquet(out/'photos.parquet')

def prepared(part, out):
    "The settings of a part that name its files, which are made if need be"
    if part == 'scenes':
        make_scenes(out/'scenes', SCENES['number'], 0)
        return dict(data=dict(metadata=str(out/'scenes'/'data.json'), tags=str(out/'scenes'/'tags.csv')), image=dict(base_resolution=96, max_resolution=160, bucket_step=16),
                    codec=dict(vae='embedded', batch_size=32), latents=dict(store=str(out/'scenes-latents')))
    if not (out/'photos.parquet').exists(): photos(out)
    return dict(data=dict(metadata=str(out/'photos.parquet')), codec=dict(vae=str(SHARED/'weights'/'taef2')), latents=dict(store=str(out/'photos-latents')))

def cells(part, every=False):
    "(key, settings) of the cells but their seed; photos: those of FIRST, or every one, first what shares loss or head with the default"
    if part == 'scenes': return [('pool', dict(model=dict(size='tiny'))), ('attention', dict(model=dict(head='attention', attention_heads=4)))]
    at = {c: (i*j > 0, i+j) for i, l in enumerate(CASES['losses']) for j, h in enumerate(CASES['heads']) for c in [(l, h)]}
    return [(f'{l}/{h}', dict(loss=CASES['losses'][l], **CASES['heads'][h])) for l, h in sorted(at, key=at.get) if every or f'{l}/{h}' in FIRST]

def run(part, settings, seed, out):
    "Train and test one cell; its figures on the test side"
    recipe = {k: v for k, v in PARTS[part].items() if k not in ('number', 'least')}
    own, folder, began = prepared(part, out), out/f'run-{part}-{seed}', time.process_time()
    cfg = load(DecoderConfig, merged(merged(recipe, own), settings), dict(out=str(folder), seed=seed, data=dict(val=.1, test='.2')))
    figures = train_decoder(cfg).metrics['test']['decoder']
    for f in folder.iterdir():      # the split of a seed is drawn once
        if f.name != 'split.parquet': shutil.rmtree(f) if f.is_dir() else f.unlink()
    return {k: figures[k] for k in FIGURES} | dict(seconds=round(time.process_time()-began, 1))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--parts', nargs='+', choices=list(PARTS), default=['photos'])
    p.add_argument('--all', action='store_true', help='photos: every loss with every head, hours')
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    p.add_argument('--out', type=Path, default=Path('runs/ablation'), help='latents and unfinished runs')
    p.add_argument('--results', type=Path, help='file of results; none: OUT/ablation.json')
    a = p.parse_args()
    if 'photos' in a.parts and not (SHARED/'weights'/'taef2').exists():
        print(f'photos skipped: no real images in {SHARED}; set VAETAG_SHARED to their folder', file=sys.stderr); a.parts.remove('photos')
    a.out.mkdir(parents=True, exist_ok=True)
    to, recipe = a.results or a.out/'ablation.json', dict(**PARTS, **CASES)
    done = read_json(to) if to.exists() else {}
    if done.get('recipe') != recipe:
        done = dict(recipe=recipe, test={})
        for f in a.out.glob('run-*'): shutil.rmtree(f)      # unfinished runs of another recipe
    for part in a.parts:
        for key, settings in cells(part, a.all):
            for s in a.seeds:
                at = done['test'].setdefault(part, {}).setdefault(key, {})
                if str(s) in at: continue
                at[str(s)] = run(part, settings, s, a.out)
                print(part, key, s, at[str(s)], flush=True)
                write_json(to, done)

if __name__ == '__main__': main()
