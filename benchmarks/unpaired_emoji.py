"""The latent CycleGAN on two real styles without pairs: emoji of two vendors, three seeds, beside the VAE alone, untranslated pixels, and the usual settings

    python benchmarks/unpaired_emoji.py [--who ours classic] [--seeds 0 1 2] [--out runs/unpaired_emoji] [--epochs N] [--results benchmarks/results/unpaired_emoji.json]

A is noto, B is twemoji, from VAETAG_SHARED (default ../shared/data); all pictures are squashed to 64 pixels, latents are of TAEF2. A fifth of the motifs (by `base`, which holds near-duplicates
together) is for testing; of neither vendor is one of these pictures trained or validated on. That the same motif exists in both styles is not used in training: it is the measure. Each seed draws its
own validation pictures and weights. ours: the residual generator; classic: networks and weights of losses of the original (classic generator and discriminator of width 32, 6 blocks, 10 and .5,
rate 2e-4), as many epochs and pictures. Of both, the weights that are best on validation by SqueezeNet (`eval.best: fid`); with --last the last ones, too. Rows that are not trained: the VAE alone (encode, decode),
and the pixels as they are. Figures are of the test side: distance and KID on SqueezeNet's features, LPIPS (squeeze) to the true partner, agreement of the tags of a tagger of ours that was trained on
the training pictures of both vendors. What is done is not done again, so it can be stopped at any time. The file of results is written after each row.
"""
import argparse, json, shutil
from pathlib import Path
import numpy as np
from real_images import SHARED, merged
from vaetag_nb.core.config import load
from vaetag_nb.core.io import load_tensors, read_json, read_jsonl, write_json
from vaetag_nb.core.rng import np_rng
from vaetag_nb.data.vocab import build_vocab
from vaetag_nb.eval.distribution import set_metrics
from vaetag_nb.eval.features import extractor, features_of
from vaetag_nb.eval.images import Lpips, Rule, load_images
from vaetag_nb.latents.codec import Codec
from vaetag_nb.models.cyclegan_folder import load_cyclegan
from vaetag_nb.trainers.checkpoint import RunFolder
from vaetag_nb.trainers.cyclegan import train_cyclegan
from vaetag_nb.trainers.cyclegan_settings import CycleGanConfig
from vaetag_nb.trainers.tagger import DecoderConfig, train_decoder
from vaetag_nb.translate import Translator
from vaetag_nb.translation import evaluate_translation
from vaetag_nb.translation_parts import TranslationSettings, pair_figures

VENDORS = 'noto', 'twemoji'   # A, B
SQUEEZE, VAE = str(SHARED/'weights'/'squeezenet'/'squeezenet1_1_caffe_fp16.pth'), str(SHARED/'weights'/'taef2')
COMMON = dict(epochs=10, batch_size=8, ema=.99, device='cpu', log_every=50, image=dict(resolution=64, fit='squash'), codec=dict(family='taef2', batch_size=32), preview=dict(every_epochs=5),
              eval=dict(best='fid', every_epochs=2))
WHO = dict(ours=dict(model=dict(ngf=32, n_res_blocks=4, d_layers=1), optim=dict(lr=5e-4)),
           classic=dict(model=dict(generator='classic', discriminator='classic', ngf=32, ndf=32, n_res_blocks=6), optim=dict(lr=2e-4), loss=dict(lambda_cyc=10., lambda_id=.5)))
TAGGER = dict(epochs=12, batch_size=32, ema=.99, seed=0, device='cpu', optim=dict(kind='muon', lr=2e-3), eval=dict(every=4, batch_size=256, baselines=False), log_every=50,
              image=dict(bucketing=False, resolution=64, fit='squash'), codec=dict(family='taef2', batch_size=32), model=dict(d=128, depth=1, heads=4, skip=0, dropout=.2), latents=dict(mixup=.2))
FIGURES = 'fd_squeeze', 'kid_squeeze', 'paired_lpips', 'tag_f1', 'content_lpips'

def motifs():
    "The rows of the metadata, and the bases that are for testing"
    rows = [json.loads(l) for l in open(SHARED/'emoji'/'metadata.jsonl', encoding='utf-8')]
    bases = sorted({r['base'] for r in rows})
    return rows, {bases[i] for i in np_rng(0, 'split', 'emoji').permutation(len(bases))[:len(bases)//5]}

def folders(out):
    "train/noto, train/twemoji, test/noto, test/twemoji, with the tags beside the training pictures"
    rows, test = motifs()
    for v in VENDORS:
        for r in rows:
            if v not in r['vendors']: continue
            side = 'test' if r['base'] in test else 'train'
            to = out/side/v/f'{r["hex"]}.png'
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SHARED/'emoji'/v/to.name, to)
            if side == 'train': to.with_suffix('.txt').write_text(', '.join(r['tags']), encoding='utf-8')
    write_json(out/'folders.json', {s: {v: len([*(out/s/v).glob('*.png')]) for v in VENDORS} for s in ('train', 'test')})

def tagger(out)->Path:
    "The model folder of a tagger of both vendors' training pictures"
    if (out/'tagger'/'done.json').exists(): return out/'tagger'/'best'
    build_vocab([out/'train'], min_count=30)[0].write(out/'tags.csv')
    cfg = load(DecoderConfig, TAGGER, dict(out=str(out/'tagger'), data=dict(metadata=str(out/'train'), tags=str(out/'tags.csv'), val=.1, test='.1'), codec=dict(vae=VAE), latents=dict(store=str(out/'tagger-latents'))))
    return train_decoder(cfg).best

def last_weights(run):
    "A run's model with its last averaged weights instead of the best ones"
    m, ck = load_cyclegan(run), RunFolder(run).latest().path
    for n in 'GF': getattr(m, n).load_state_dict(load_tensors(ck/f'{n}_ema.safetensors')[0])
    return m

def measured(model, out, judge)->dict: # {direction: figures}
    "The test side through a model"
    s = TranslationSettings(lpips_net='squeeze', lpips_weights=SQUEEZE, clip=False, features=(f'squeeze:{SQUEEZE}',), pairs='name', tagger=str(judge), batch_size=32, cache=str(out/'features'))
    r = evaluate_translation(Translator(model, Codec.load(VAE, family='taef2'), 'cpu'), out/'test'/'noto', out/'test'/'twemoji', settings=s, checkpoint='unpaired_emoji')
    keep = lambda k: k.startswith(FIGURES) or k in ('count', 'n_ref', 'cycle_l1', 'recon_lpips')
    return {w: {k: v for k, v in r.summary[w].items() if keep(k)} for w in ('A2B', 'B2A')}

def pixels(out)->dict: # {direction: figures}
    "The test side as it is"
    ex, lpips, rule = extractor(f'squeeze:{SQUEEZE}'), Lpips('squeeze', SQUEEZE), Rule(64, 'squash')
    files = {v: {p.name: p for p in sorted((out/'test'/v).glob('*.png'))} for v in VENDORS}
    feats = {k: features_of(ex, [*f.values()], rule, out/'features').x for k, f in files.items()}
    both = sorted(files['noto'].keys() & files['twemoji'].keys())
    a, b = (load_images([files[v][n] for n in both], 64, 'squash')[0] for v in VENDORS)
    near = float(np.nanmean(pair_figures(a, b, lpips)['paired_lpips']))
    def way(x, y):
        m = set_metrics(feats[x], feats[y], 'fd_squeeze', '_squeeze', want=('fid', 'kid', 'floor'))[0]
        return {k: v for k, v in m.items() if v is not None} | dict(paired_lpips=near, pairs=len(both))
    return dict(A2B=way(*VENDORS), B2A=way(*VENDORS[::-1]))

def row(who, seed, out, epochs, old, last)->dict: # {chosen, last: {direction: figures}, ...}; `old`: what is there of it
    "Train and test one contender with one seed; `last`: with its last weights, too"
    own = dict(out=str(out/f'{who}-{seed}'), seed=seed, data={f'{k}_dir': str(out/'train'/v) for k, v in zip('ab', VENDORS)}, codec=dict(vae=VAE), eval=dict(features=[f'squeeze:{SQUEEZE}']))
    run = train_cyclegan(load(CycleGanConfig, COMMON, WHO[who], own, dict(epochs=epochs) if epochs else {}))
    best, judge = read_json(run.out/'best.json'), tagger(out)
    new = dict(best_epoch=best['epoch'], best_value=best['value'], validation=[l['val_fd_squeeze'] for l in read_jsonl(run.out/'log.jsonl') if l.get('val_fd_squeeze')])
    new['chosen'] = old['chosen'] if 'chosen' in old else measured(load_cyclegan(run.out), out, judge)
    if last: new['last'] = new['chosen'] if best['step'] == RunFolder(run.out).latest().state['step'] else measured(last_weights(run.out), out, judge)
    return old | new

def summary(rows)->dict: # {contender: {direction: {figure: (mean, standard deviation)}}}
    "Over the seeds; the VAE alone is the same in all"
    out = {}
    for who, seeds in rows.items():
        for which in ('chosen', 'last'):
            if not all(which in r for r in seeds.values()): continue
            out[f'{who}, {which}'] = {w: {f: (float(np.mean(x)), float(np.std(x, ddof=1)) if len(x) > 1 else 0.) for f in FIGURES for x in [[r[which][w][f] for r in seeds.values()]]} for w in ('A2B', 'B2A')}
    return out

def show(result):
    first = next(iter(next(iter(result['rows'].values())).values()))['chosen']
    for w in ('A2B', 'B2A'):
        print(f'\n{w}\n\n| {"":16} | ' + ' | '.join(f'{f:19}' for f in FIGURES) + ' |\n|' + '|'.join('-'*(n+2) for n in (16, *[19]*len(FIGURES))) + '|')
        named = lambda name, cells: print(f'| {name:16} | ' + ' | '.join(f'{c:19}' for c in cells) + ' |')
        cell = lambda v: '' if v is None else f'{v:.4f}'
        named('pixels', [cell(result['pixels'][w].get(f)) for f in FIGURES])
        named('VAE only', [cell(first[w].get(f'{f}_vae', first[w]['recon_lpips'] if f == 'content_lpips' else None)) for f in FIGURES])
        for who, by in result['test'].items(): named(who, [f'{m:.4f} +- {s:.4f}' for m, s in by[w].values()])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--who', nargs='+', choices=list(WHO), default=list(WHO))
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    p.add_argument('--out', type=Path, default=Path('runs/unpaired_emoji'))
    p.add_argument('--epochs', type=int)
    p.add_argument('--last', action='store_true', help='measure the last weights beside the best ones')
    p.add_argument('--results', type=Path, help='a copy of the figures, such as benchmarks/results/unpaired_emoji.json, which the docs show')
    a = p.parse_args()
    if not Path(SQUEEZE).exists(): raise SystemExit(f'no emoji and weights in {SHARED}; set VAETAG_SHARED to their folder')
    a.out.mkdir(parents=True, exist_ok=True)
    if not (a.out/'folders.json').exists(): folders(a.out)
    done = read_json(a.out/'done.json') if (a.out/'done.json').exists() else dict(rows={})
    settings = {w: merged(COMMON, WHO[w]) | (dict(epochs=a.epochs) if a.epochs else {}) for w in WHO}
    if 'pixels' not in done: done['pixels'] = pixels(a.out)
    for seed in a.seeds:
        for who in a.who:
            at = done['rows'].setdefault(who, {})
            old = at.get(str(seed), {})
            if old.get('settings') != settings[who]: old = dict(settings=settings[who])
            if 'last' not in old and (a.last or 'chosen' not in old):
                at[str(seed)] = row(who, seed, a.out, a.epochs, old, a.last)
                write_json(a.out/'done.json', done)
            result = dict(pictures=read_json(a.out/'folders.json'), recipes=settings, tagger=TAGGER, pixels=done['pixels'], test=summary(done['rows']),
                          rows={w: {s: {k: v for k, v in r.items() if k != 'settings'} for s, r in rs.items()} for w, rs in done['rows'].items()})
            if a.results: write_json(a.results, result)
    show(result)

if __name__ == '__main__': main()
