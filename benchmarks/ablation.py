"""Which loss and which head: losses with one head and heads with one loss on shop photos; `pool` beside the classic heads on scenes; three seeds

    python benchmarks/ablation.py [--parts photos] [--all] [--cells bce/plain] [--seeds 0 1 2] [--out runs/ablation] [--results benchmarks/results/ablation.json]

photos: 1500 of the photos in VAETAG_SHARED (default ../shared/data), latents of TAEF2, in float32. Each seed draws its own split (70 % to
learn, 10 % to validate, 20 % to test) and its own weights; within a seed every cell has the same split, the same batches and the
same number of steps, so cells are compared in pairs. The cells are those of FIRST; `--all` does every loss with every head. scenes, not
done unless named: drawn by `data.synth`, latents of the embedded VAE, the package's own rates. All trunks are AdamW at one rate, 2e-3 on photos;
`plain` and `attention` have their default, 1e-3. The weights that are kept and the thresholds are chosen on validation; every figure is of
the test side. The file of results is written after each cell and says its settings; what is in it with the same settings is not done again.
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
kind = lambda k: dict(classification=dict(kind=k))
semantic = lambda w, k='triplet': dict(semantic=dict(kind=k, weight=w))
LOSSES = {'bce': {}, 'focal': dict(classification=dict(focal=True)), 'balanced': dict(classification=dict(class_balanced=True)), 'standard': dict(mode='standard'),
          'asl': kind('asl'), 'two_way': kind('two_way'), 'zlpr': kind('zlpr'), 'distribution_balanced': kind('distribution_balanced'),
          'triplet .5': semantic(.5), 'triplet .1': semantic(.1), 'triplet .05': semantic(.05), 'contrastive .1': semantic(.1, 'contrastive'),
          'learned, triplet .1': dict(weighting='learned', **semantic(.1)), 'research 1': dict(mode='research', **semantic(1.)), 'research .05': dict(mode='research', **semantic(.05))}
HEADS = {'pool': dict(model=dict(TRUNK, skip=4)), 'pool skip 0': dict(model=dict(TRUNK, skip=0)), 'pool stem': dict(model=dict(TRUNK, skip=4, stem=2, stem_width=32)),
         'pool skip 0 stem': dict(model=dict(TRUNK, skip=0, stem=2, stem_width=32)), 'query': dict(model=dict(TRUNK, head='query')),
         'timm': dict(model=dict(head='timm', name='test_resnet')), 'plain': dict(model=dict(head='plain'), optim=CLASSIC),
         'attention': dict(model=dict(head='attention', attention_heads=8), optim=CLASSIC)}
FIRST = [*(f'{l}/pool' for l in LOSSES if l != 'triplet .05'), *(f'bce/{h}' for h in HEADS if h != 'pool stem'),
         *(f'{l}/pool skip 0' for l in ('standard', 'asl', 'triplet .5')), *(f'{l}/plain' for l in ('triplet .5', 'research 1', 'research .05'))]
PHOTOS = dict(number=1500, least=30, epochs=20, batch_size=32, ema=.95, optim=dict(lr=2e-3), eval=dict(every=5, batch_size=256, baselines=False), log_every=50, save_every=10,
              device='cpu', precision='no', codec=dict(family='taef2', dtype='fp32', batch_size=32), image=dict(base_resolution=72, max_resolution=96, bucket_step=24))
SCENES = dict(number=400, epochs=10, batch_size=16, ema=.95, eval=dict(every=2, batch_size=256, baselines=False), log_every=50, save_every=10, device='cpu', precision='no')
CELLS = dict(photos={f'{l}/{h}': dict(loss=loss, **head) for l, loss in LOSSES.items() for h, head in HEADS.items()},
             scenes={'pool': dict(model=dict(size='tiny', skip=4)), 'pool skip 0': dict(model=dict(size='tiny', skip=0)),
                     'attention': dict(model=dict(head='attention', attention_heads=4)), 'plain': dict(model=dict(head='plain'))})
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

def cells(part, every=False, only=None):
    "{key: settings but the seed} of the cells: those of `only`; photos: else those of FIRST, or every one"
    return {k: v for k, v in CELLS[part].items() if (k in only if only else every or part != 'photos' or k in FIRST)}

def emptied(f): shutil.rmtree(f) if f.is_dir() else f.unlink()

def run(part, settings, seed, out):
    "Train and test one cell; its figures on the test side"
    recipe = {k: v for k, v in PARTS[part].items() if k not in ('number', 'least')}
    own, folder, began = prepared(part, out), out/f'run-{part}-{seed}', time.process_time()
    cfg = load(DecoderConfig, merged(merged(recipe, own), settings), dict(out=str(folder), seed=seed, data=dict(val=.1, test='.2')))
    figures = train_decoder(cfg).metrics['test']['decoder']
    for f in folder.iterdir():      # the split of a seed is drawn once
        if f.name != 'split.parquet': emptied(f)
    return {k: figures[k] for k in FIGURES} | dict(seconds=round(time.process_time()-began, 1))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--parts', nargs='+', choices=list(PARTS), default=['photos'])
    p.add_argument('--all', action='store_true', help='photos: every loss with every head, hours')
    p.add_argument('--cells', nargs='+', help='only these, such as bce/plain')
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    p.add_argument('--out', type=Path, default=Path('runs/ablation'), help='latents and unfinished runs')
    p.add_argument('--results', type=Path, help='file of results; none: OUT/ablation.json')
    a = p.parse_args()
    if 'photos' in a.parts and not (SHARED/'weights'/'taef2').exists():
        print(f'photos skipped: no real images in {SHARED}; set VAETAG_SHARED to their folder', file=sys.stderr); a.parts.remove('photos')
    a.out.mkdir(parents=True, exist_ok=True)
    to = a.results or a.out/'ablation.json'
    done = read_json(to) if to.exists() else {}
    for part in a.parts:
        at = done.setdefault(part, {})
        if at.get('recipe') != PARTS[part]: at = done[part] = dict(recipe=PARTS[part], cells={})
        for f in a.out.glob(f'run-{part}-*/*'):
            if f.name != 'split.parquet': emptied(f)        # of a cell that was not finished
        for key, settings in cells(part, a.all, a.cells).items():
            if at['cells'].get(key, {}).get('settings') != settings: at['cells'][key] = dict(settings=settings, test={})
            test = at['cells'][key]['test']
            for s in map(str, a.seeds):
                if s in test: continue
                test[s] = run(part, settings, int(s), a.out)
                print(part, key, s, test[s], flush=True)
                write_json(to, done)

if __name__ == '__main__': main()
