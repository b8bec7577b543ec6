"""The decoder on real images: photos of a shop and emoji, latents of a pretrained tiny VAE, three seeds, beside the baselines

    python benchmarks/real_images.py [--sets fashion emoji] [--seeds 0 1 2] [--out runs/real_images] [--epochs N] [--json]

The images lie outside the project: set VAETAG_SHARED to their folder (default ../shared/data). Each seed draws its own
split (70 % to learn, 10 % to validate, 20 % to test, stratified by tags; duplicates and near-duplicates on one side) and its own
weights. Weights, thresholds and the probes' regularisation are chosen on validation; the figures are of the test side.
Writes OUT/real_images.json. A seed that is done is not done again.
"""
import argparse, json, os, sys
from pathlib import Path
import numpy as np
from scipy import sparse
from vaetag_nb.core.config import load
from vaetag_nb.core.io import write_json
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import Vocab
from vaetag_nb.trainers.tagger import DecoderConfig, train_decoder

SHARED = Path(os.environ.get('VAETAG_SHARED', Path(__file__).resolve().parents[2]/'shared'/'data'))
COMMON = dict(batch_size=32, ema=.99, optim=dict(kind='muon', lr=2e-3), eval=dict(every=2, batch_size=256), log_every=20, save_every=10, device='cpu',
              codec=dict(family='taef2', batch_size=32), model=dict(d=128, depth=2, heads=4, skip=4, dropout=.2), latents=dict(mixup=.2))
RECIPES = dict(
    fashion=dict(epochs=20, batch_size=64, image=dict(base_resolution=72, max_resolution=96, bucket_step=24, flip=True), latents=dict(zoom=.2)),
    emoji=dict(epochs=18, image=dict(bucketing=False, resolution=128, flip=True), model=dict(depth=1, stem=2, stem_width=48), latents=dict(zoom=.3)))
FIGURES = 'mAP', 'f1_micro', 'f1_macro'

def records(name):
    "(file, tags, group, category of each tag that has one) of the images of a set"
    folder = SHARED/('fashion' if name == 'fashion' else 'emoji')
    rows = [json.loads(l) for l in open(folder/'metadata.jsonl', encoding='utf-8')]
    if name == 'fashion': return folder, [(r['file'], r['tags'], r['id']) for r in rows], 30
    return folder, [(f'noto/{r["hex"]}.png', r['tags'], r['base']) for r in rows if 'noto' in r['vendors']], 15

def table(name, path):
    "The set as a Parquet table with the tags that are frequent enough, and with groups that no split may cut"
    folder, rows, least = records(name)
    counts = {}
    for _, tags, _ in rows:
        for t in tags: counts[t] = counts.get(t, 0) + 1
    categories = Vocab.read(folder/'selected_tags.csv', duplicates='merge')
    vocab = Vocab.from_counts({t: n for t, n in counts.items() if n >= least}, dict(zip(categories.names, categories.categories)))
    at = [(i, vocab.index[t]) for i, (_, tags, _) in enumerate(rows) for t in tags if t in vocab]
    labels = sparse.csr_matrix((np.ones(len(at), np.float32), tuple(zip(*at))), shape=(len(rows), len(vocab)))
    group = np.unique([g for *_, g in rows], return_inverse=True)[1]
    TagTable([f for f, *_ in rows], [folder/f for f, *_ in rows], labels, vocab, group=group).to_parquet(path)

def run(name, seed, out, epochs):
    "Train and test with one seed; the figures of every contender on the test side"
    if not (out/f'{name}.parquet').exists(): table(name, out/f'{name}.parquet')
    own = dict(out=str(out/f'{name}-{seed}'), seed=seed, data=dict(metadata=str(out/f'{name}.parquet'), val=.1, test='.2'), codec=dict(vae=str(SHARED/'weights'/'taef2')),
               latents=dict(store=str(out/f'{name}-latents')), **(dict(epochs=epochs) if epochs else {}))
    return train_decoder(load(DecoderConfig, COMMON, RECIPES[name], own)).metrics['test']

def merged(a, b):
    "Two settings as one; the second counts"
    return {k: merged(a[k], b[k]) if isinstance(a.get(k), dict) and isinstance(b.get(k), dict) else b.get(k, a.get(k)) for k in dict.fromkeys([*a, *b])}

def summary(runs):
    "{contender: {figure: (mean, spread)}}: the spread is the standard deviation over seeds"
    return {who: {f: (float(np.mean(x)), float(np.std(x, ddof=1)) if len(x) > 1 else 0.) for f in FIGURES for x in [[r[who][f] for r in runs]]} for who in runs[0]}

def show(name, figures, seeds):
    print(f'\n{name}, {len(seeds)} seeds: mean +- standard deviation\n')
    print(f'| {"model":18} | ' + ' | '.join(f'{f:15}' for f in FIGURES) + ' |\n|' + '|'.join('-'*(n+2) for n in (18, *[15]*len(FIGURES))) + '|')
    for who, fs in figures.items(): print(f'| {who:18} | ' + ' | '.join(f'{m:.4f} +- {s:.4f}'.ljust(15) for m, s in fs.values()) + ' |')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sets', nargs='+', choices=list(RECIPES), default=list(RECIPES))
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    p.add_argument('--out', type=Path, default=Path('runs/real_images'))
    p.add_argument('--epochs', type=int)
    p.add_argument('--results', type=Path, help='a copy of the figures, such as benchmarks/results/real_images.json, which the docs show')
    p.add_argument('--json', action='store_true')
    a = p.parse_args()
    if not (SHARED/'weights'/'taef2').exists():
        print(f'skipped: no real images in {SHARED}; set VAETAG_SHARED to their folder', file=sys.stderr); return
    a.out.mkdir(parents=True, exist_ok=True)
    result = {name: summary([run(name, s, a.out, a.epochs) for s in a.seeds]) for name in a.sets}
    figures = dict(seeds=a.seeds, recipes={n: merged(COMMON, RECIPES[n]) for n in a.sets}, test=result)
    for f in (a.out/'real_images.json', *([a.results] if a.results else [])): write_json(f, figures)
    if a.json: print(json.dumps(result))
    else:
        for name, figures in result.items(): show(name, figures, a.seeds)

if __name__ == '__main__': main()
