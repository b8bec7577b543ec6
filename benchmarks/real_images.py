"""The decoder on real images: photos of a shop and emoji, latents of a pretrained tiny VAE, three seeds, beside the baselines

    python benchmarks/real_images.py [--sets fashion emoji] [--seeds 0 1 2] [--out runs/real_images] [--epochs N] [--json]

The images lie outside the project: set VAETAG_SHARED to their folder (default ../shared/data). Each seed draws its own
split (70 % to learn, 10 % to validate, 20 % to test, stratified by tags; duplicates and near-duplicates on one side) and its own
weights. Weights, thresholds and the probes' regularisation are chosen on validation; the figures are of the test side.
Writes OUT/real_images.json. A seed that is done is not done again. The decoder for emoji is a network that a linear probe on local features
joins after training (model.probe_join); both stand in the table by themselves, too.
"""
import argparse, json, os, sys
from pathlib import Path
import numpy as np, torch
from scipy import sparse
from vaetag_nb.core.config import load
from vaetag_nb.core.io import read_json, write_json
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import Vocab
from vaetag_nb.eval.thresholds import fit_thresholds
from vaetag_nb.models.latent_tagger import load_model
from vaetag_nb.models.pool import local_features
from vaetag_nb.trainers.baselines import pooled
from vaetag_nb.trainers.judge import fit_probe, meter, scored
from vaetag_nb.trainers.processes import Processes
from vaetag_nb.trainers.tagger import DecoderConfig, check, prepare, train_decoder

SHARED = Path(os.environ.get('VAETAG_SHARED', Path(__file__).resolve().parents[2]/'shared'/'data'))
COMMON = dict(batch_size=32, ema=.99, optim=dict(kind='muon', lr=2e-3), eval=dict(every=2, batch_size=256), log_every=20, save_every=10, device='cpu',
              codec=dict(family='taef2', batch_size=32), model=dict(d=128, depth=2, heads=4, skip=4, dropout=.2), latents=dict(mixup=.2))
RECIPES = dict(
    fashion=dict(epochs=20, batch_size=64, image=dict(base_resolution=72, max_resolution=96, bucket_step=24, flip=True), latents=dict(zoom=.2)),
    emoji=dict(epochs=16, image=dict(bucketing=False, resolution=128, flip=True), model=dict(depth=1, skip=0, probe_join=8), latents=dict(zoom=.3)))
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

def about(path):
    "How many pictures, tags, and pictures of a tag there are, on all sides together"
    t = TagTable.read(path).where(labelled=True)
    n = np.asarray((t.labels >= .5).sum(0)).ravel()
    return dict(pictures=len(t), tags=len(t.vocab), median_of_a_tag=float(np.median(n)), tags_below_50=int((n < 50).sum()))

def run(name, seed, out, epochs):
    "Train and test with one seed; the figures of every contender on the test side"
    if not (out/f'{name}.parquet').exists(): table(name, out/f'{name}.parquet')
    own = dict(out=str(out/f'{name}-{seed}'), seed=seed, data=dict(metadata=str(out/f'{name}.parquet'), val=.1, test='.2'), codec=dict(vae=str(SHARED/'weights'/'taef2')),
               latents=dict(store=str(out/f'{name}-latents')), **(dict(epochs=epochs) if epochs else {}))
    cfg = check(load(DecoderConfig, COMMON, RECIPES[name], own))
    return train_decoder(cfg).metrics['test'] | (parts(cfg) if cfg.model.probe_join else {})

def parts(cfg):
    "What a decoder that a probe has joined is made of, each part by itself, with thresholds of its own: figures on the test side"
    run, head, grid = prepare(cfg, Processes('cpu')), load_model(Path(cfg.out)/'best').head.eval(), cfg.model.probe_join
    of = lambda z: pooled(local_features(z), grid)
    p = fit_probe(run.sources['train'], run.sources['val'], of, cfg.seed)
    w, b = p.linear()
    own = head.out.weight[:, head.args['d']:].detach()  # the probe's weights times its share
    share = (own.double().norm()/w.double().norm()).item() # the norm of a million numbers in float32 is off by up to a thousandth
    assert torch.allclose(own, share*w, atol=1e-4*own.abs().max().item()), 'the probe fitted now is not the one that joined'
    who = {f'local probe {grid}x{grid}': lambda z: p(of(z))}
    if share < 1-1e-4: who['network alone'] = lambda z: ((head(z) - share*(of(z) @ w.T + b))/(1-share)).sigmoid()
    def figures(score):
        said = {s: scored(score, run.sources[s], cfg.eval.batch_size) for s in ('val', 'test')}
        t = fit_thresholds(meter(run.vocab, said['val'], run.sources['val']), objective=cfg.eval.objective, min_positives=cfg.eval.min_positives, split='val')
        return meter(run.vocab, said['test'], run.sources['test'], t).compute().summary | dict(share=share)
    return {k: figures(f) for k, f in who.items()}

def merged(a, b):
    "Two settings as one; the second counts"
    return {k: merged(a[k], b[k]) if isinstance(a.get(k), dict) and isinstance(b.get(k), dict) else b.get(k, a.get(k)) for k in dict.fromkeys([*a, *b])}

def summary(runs):
    "{contender: {figure: (mean, spread)}}: the spread is the standard deviation over seeds"
    return {who: {f: (float(np.mean(x)), float(np.std(x, ddof=1)) if len(x) > 1 else 0.) for f in FIGURES for x in [[r[who][f] for r in runs]]}
            for who in runs[0] if all(who in r for r in runs)}

def each(runs):
    "{contender: {figure: its value with each seed}}; of the parts of a joined decoder also the probe's share"
    return {who: {f: [r[who][f] for r in runs] for f in (*FIGURES, 'share') if f in runs[0][who]} for who in runs[0] if all(who in r for r in runs)}

def kept_beside(path, figures):
    "The figures and, of the sets that were not run, those that the file holds"
    old = read_json(path) if path.exists() else {}
    return {k: {**old.get(k, {}), **v} for k, v in figures.items()}

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
    p.add_argument('--results', type=Path, help='a copy of the figures, such as benchmarks/results/real_images.json, which the docs show; sets that are not run stay in it')
    p.add_argument('--json', action='store_true')
    a = p.parse_args()
    if not (SHARED/'weights'/'taef2').exists():
        print(f'skipped: no real images in {SHARED}; set VAETAG_SHARED to their folder', file=sys.stderr); return
    a.out.mkdir(parents=True, exist_ok=True)
    runs = {name: [run(name, s, a.out, a.epochs) for s in a.seeds] for name in a.sets}
    result = {name: summary(rs) for name, rs in runs.items()}
    figures = dict(seeds=dict.fromkeys(a.sets, a.seeds), recipes={n: merged(COMMON, RECIPES[n]) for n in a.sets}, test=result, each={n: each(rs) for n, rs in runs.items()}, sets={n: about(a.out/f'{n}.parquet') for n in a.sets})
    write_json(a.out/'real_images.json', figures)
    if a.results: write_json(a.results, kept_beside(a.results, figures))
    if a.json: print(json.dumps(result))
    else:
        for name, figures in result.items(): show(name, figures, a.seeds)

if __name__ == '__main__': main()
