"""Aligners on the embeddings of our own taggers: every architecture at equal budget, three seeds, beside the baselines; rows a second

    python benchmarks/aligner.py [--run RUN | --embeddings FILE... --head HEAD] [--seeds 0 1 2] [--epochs 100] [--batch 256]
                                 [--names posnum num2 ...] [--out runs/aligners] [--results FILE --name NAME] [--json]
    python benchmarks/aligner.py --speed

RUN is the run of a latent tagger; its embeddings are computed from the latents in its store. FILE and HEAD are what `vaetag tag --emit embeddings` and
`vaetag export --format head` wrote, or any model folder for the head. Without either: 5000 random directions of width 64 whose length no linear map can say.
--results keeps the figures in a JSON file of several taggers, under NAME, beside what is there. Each seed draws its own split (80 % to learn, 20 % to test) and its own weights. Classic architectures learn with the
loss of tagger_embedding_aligner (cross entropy alone) as well as with ours, the better of the two counts. Figures are those of the best epoch by
the error of the tags (pred_mse) on the test rows, as everywhere in this comparison. A run that is done is not done again.

--speed: the classic num2 on a head of 10,861 tags of width 1024, rows gathered a batch at a time, the logits computed once and read where they are, against the way of
tagger_embedding_aligner: one row at a time with its probabilities through a DataLoader, cross entropy of probabilities; and both without the training.
"""
import argparse, json
from pathlib import Path
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset
from common import best_of
from vaetag_nb.core.config import load
from vaetag_nb.core.io import read_json, write_json
from vaetag_nb.core.rng import np_rng
from vaetag_nb.data.embeddings import EmbeddingTable
from vaetag_nb.infer import Tagger
from vaetag_nb.latents.store import LatentStore
from vaetag_nb.models.aligner import make_aligner, profile
from vaetag_nb.models.linear_head import LinearHead, head_of_model, read_head, save_head
from vaetag_nb.trainers.aligner import AlignerConfig, EmbeddingSource, aligner_loss, kept_logits, train_aligner
from vaetag_nb.trainers.plan import shuffled

CLASSIC = 'num', 'num0', 'num1', 'num2', 'simple', 'simple_num', 'simple_num_n2'
OURS = 'posnum', 'residual'

def made_up(out, rows=5000, width=64, tags=50):
    "Directions whose length depends on the absolute value of a coordinate"
    r = np_rng(0, 'directions')
    u = r.normal(size=(rows, width)); u /= np.linalg.norm(u, axis=1, keepdims=True)
    np.savez(out/'emb.npz', embs=(u*np.exp(1 + .5*u[:, :1] + .3*abs(u[:, 1:2]))).astype(np.float32))
    save_head(out/'inv.npz', LinearHead(r.normal(size=(width, tags)), np.full(tags, -1.)))

def of_run(run, out):
    "What the last layer of a latent tagger sees of the latents in the run's store"
    tagger = Tagger.load(run, device='cpu')
    store = LatentStore(next(p for p in (Path(run)/'latents', *Path(run).parent.glob('*latents')) if p.is_dir()))
    net, embs, plain = tagger.latent_net, [], ~store.index['flip'].to_numpy(bool)
    for shape in np.unique(store.shape_ids):
        rows = np.flatnonzero((store.shape_ids == shape) & plain)
        for i in range(0, len(rows), 64): embs.append(net.of_inputs(store.convention.apply(store.read(rows[i:i+64])))[1].numpy())
    np.savez(out/'emb.npz', embs=np.concatenate(embs))
    save_head(out/'inv.npz', head_of_model(run))

def contender(out, name, norm, seed, o):
    "The best figures of one run"
    own = dict(out=str(out/f'{name}-{norm:g}-{seed}'), seed=seed, epochs=o.epochs, batch_size=o.batch, device='cpu', model=dict(name=name), loss=dict(norm=norm),
               data=dict(embeddings=[str(f) for f in o.embeddings], head=str(o.head)))
    done = Path(own['out'])/'best/evaluation.json'
    if not (Path(own['out'])/'done.json').exists(): train_aligner(load(AlignerConfig, own))
    e = read_json(done)
    return e['test'], e['baselines']

def compare(o):
    "All architectures, their means and spreads"
    out = Path(o.out); out.mkdir(parents=True, exist_ok=True)
    if not o.embeddings:
        if not (out/'emb.npz').exists(): of_run(o.run, out) if o.run else made_up(out)
        o.embeddings, o.head = [out/'emb.npz'], out/'inv.npz'
    table, n = {}, EmbeddingTable.read(o.embeddings).n
    for name in o.names:
        for norm in ((1.,) if name in OURS else (0., 1.)):
            runs = [contender(out, name, norm, s, o) for s in o.seeds]
            figures = {k: [r[0][k] for r in runs] for k in ('pred_mse', 'loss_excess', 'emb_norms', 'agreement_f1')}
            best = table.get(name)
            if best is None or np.mean(figures['pred_mse']) < np.mean(best['pred_mse']): table[name] = figures | dict(params=profile(make_aligner(name, n))['params'], loss='ours' if norm else 'cross entropy')
            for k in ('identity', 'mean', 'ridge'): table[k] = {f: [r[1][k][f] for r in runs] for f in figures} | dict(params=0 if k != 'ridge' else n + 1, loss='-')
    return dict(sorted(table.items(), key=lambda kv: np.mean(kv[1]['pred_mse'])))

def about(o):
    "What the figures are of"
    table, head = EmbeddingTable.read(o.embeddings), read_head(o.head)
    return dict(rows=len(table), width=table.n, tags=head.tags, lengths=dict(mean=float(table.norms.mean()), std=float(table.norms.std())), epochs=o.epochs, batch=o.batch, seeds=o.seeds)

class PerItem(Dataset):
    "One row at a time as tagger_embedding_aligner gives them: direction, probabilities from the file, length"
    def __init__(self, embs, preds): self.embs, self.preds = embs, preds
    def __len__(self): return len(self.embs)
    def __getitem__(self, i):
        e = self.embs[i].astype(np.float32)
        n = np.linalg.norm(e)
        return e/n, self.preds[i].astype(np.float32), n

def speed(o):
    "Rows a second of one epoch: ours against one row at a time"
    width, tags, rows = 1024, o.tags, o.rows
    out, r = Path(o.out), np.random.default_rng(0)
    out.mkdir(parents=True, exist_ok=True)
    head = LinearHead(r.normal(size=(width, tags))/30, np.full(tags, -3.))
    embs = r.normal(size=(rows, width)).astype(np.float16)
    preds = head.logits(torch.from_numpy(embs).float()).sigmoid().half().numpy()
    np.savez(out/'speed.npz', embs=embs, preds=preds)
    table, results = EmbeddingTable.read(out/'speed.npz', head), {}
    ours, theirs, true = EmbeddingSource(table, np.arange(rows)), PerItem(embs, preds), kept_logits(table, head)
    def run(batches, loss, net, fused=False):    # without a network: only loaded
        opt = net and torch.optim.AdamW(net.parameters(), fused=fused)
        for b in batches:
            if net: opt.zero_grad(); loss(net, b).backward(); opt.step()
    our_loss = lambda net, b: aligner_loss(head, b['embs'], net(b['inputs']), norm=0, along=True, true=true, at=b['at'])[0]
    bce = lambda net, b: torch.nn.functional.binary_cross_entropy(head.logits(net(b[0])).sigmoid(), b[1])      # as there: of probabilities, from the file
    for batch in (16, 256):
        plan, room = shuffled(rows, batch, 0), torch.empty(batch, tags)
        batches = lambda: (ours.get(0, i) for i in plan(0))
        copied = lambda: (torch.index_select(true, 0, b['at'], out=room[:len(b['at'])]) for b in batches())      # as the loss does, piece by piece
        for what, net, given in (('loading', lambda: None, batches), ('loading, logits copied', lambda: None, copied), ('training', lambda: make_aligner('num2', width), batches)):
            t = best_of(dict(ours=lambda: run(given(), our_loss, net(), True), theirs=lambda: run(DataLoader(theirs, batch_size=batch, shuffle=True), bce, net())), o.repeats)
            results[f'{what}, batch {batch}'] = dict(ours=rows/t['ours'], theirs=rows/t['theirs'], ratio=t['theirs']/t['ours'])
    return results

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--run'); p.add_argument('--embeddings', nargs='+', default=[]); p.add_argument('--head'); p.add_argument('--results', type=Path); p.add_argument('--name', default='taggers')
    p.add_argument('--names', nargs='+', choices=(*OURS, *CLASSIC), default=(*OURS, *CLASSIC))
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2]); p.add_argument('--epochs', type=int, default=100); p.add_argument('--batch', type=int, default=256)
    p.add_argument('--out', default='runs/aligners'); p.add_argument('--speed', action='store_true'); p.add_argument('--json', action='store_true')
    p.add_argument('--rows', type=int, default=1024); p.add_argument('--tags', type=int, default=10861); p.add_argument('--repeats', type=int, default=3)
    o = p.parse_args()
    if o.speed:
        got = speed(o)
        print(json.dumps(got) if o.json else '\n'.join(f"{k:33} {v['ours']:9,.0f} rows/s, one by one {v['theirs']:9,.0f}: {v['ratio']:.1f}x" for k, v in got.items()))
        return
    if bool(o.embeddings) != bool(o.head): p.error('--embeddings and --head go together')
    got = compare(o)
    write_json(Path(o.out)/'aligners.json', got)
    if o.results: write_json(o.results, (read_json(o.results) if o.results.exists() else {}) | {o.name: dict(about(o), aligners=got)})
    said = lambda v: f'{np.mean(v):.3g} ± {np.std(v):.1g}'
    print(json.dumps(got) if o.json else '\n'.join(f"{k:14} {v['params']:>9,}  {v['loss']:13}  pred_mse {said(v['pred_mse']):18}  excess {said(v['loss_excess']):18}  tags {np.mean([x or 0 for x in v['agreement_f1']]):.4f}" for k, v in got.items()))

if __name__ == '__main__': main()
