#!/usr/bin/env python3
"""Tagging a folder, against the loop that tagging clients run: one picture at a time, Pillow, batch 1.

  python benchmarks/tagging.py [--pictures 16] [--heavy 4] [--repeats 3] [--json]
Both sides use the same weights (a VAE of the size that ships with the package and a `pool` head, random: speed does not ask what was
learned; the peer's VAE in contiguous memory, as diffusers loads it), the same buckets, float32, and write the same predictions; their scores agree within .01 (the resize kernels differ by up to
2 of 255 in a pixel) and their tags on all but a few cells next to a threshold. The peer loads its model once, which many clients do not.
Pictures are the photograph-like JPEGs of `decode.py`, one megapixel each, tagged at about 256 x 256 and 512 x 512 pixels.

The second figure is for a model so heavy that it dominates: the rate of the whole folder run as a share of the rate of the same model
on the same batches, decoded and waiting in memory.

Then the same for taggers of pixels: a light and a heavier network of timm at 224 pixels, against the loop of the usual clients (white square, Pillow's bicubic resize, numpy, batch 1,
a Python loop over the tags; its network in contiguous memory, as timm makes it). About 30 of the 1,000 tags are given to a picture.
What both sides share is the network; the model-bound limit printed beside the ratio is what a run without any reading and decoding would reach.
"""
import copy, json, tempfile
from pathlib import Path
import numpy as np, torch
from PIL import Image
from common import Bench, best_of
from decode import make, to_tensor
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.core.io import read_json
from vaetag_nb.core.rng import seeded
from vaetag_nb.data.images import crop_box
from vaetag_nb.data.tags import Vocab
from vaetag_nb.infer import Tagger
from vaetag_nb.latents.codec import Codec
from vaetag_nb.models.latent_tagger import SIZES, TaggerModel, build_head
from vaetag_nb.models.timm_folder import TimmModel
from vaetag_nb.models.timm_tagger import create, square_of
from vaetag_nb.sources import gather, measure

def tagger(widths, size, pre, tags=200):
    "A tagger with random weights: VAE of the given block widths, head of a size"
    codec = Codec.random(dict(latent_channels=8, block_out_channels=widths, layers_per_block=1, norm_num_groups=4,
                              use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False), seed=0)
    codec.vae.eval().requires_grad_(False)
    with seeded(0, 'head'): head = build_head(dict(kind='pool', channels=8, num_tags=tags, **SIZES[size]))
    model = TaggerModel(head, Vocab([f'tag_{i}' for i in range(tags)]), codec.spec(), pre.to_dict(), dict(global_threshold=.5, per_class_thresholds={}), {})
    return Tagger(model, vae=codec, device='cpu')

@torch.no_grad()
def one_by_one(t, vae, folder, out):
    "The usual client: open, crop, resize, encode, score, one after the other"
    found, scores = {}, {}
    for path in sorted(folder.iterdir()):
        im = Image.open(path).convert('RGB')
        tw, th = (int(x[0]) for x in t.preprocess.assign([im.width], [im.height]))
        x = to_tensor(im.crop(crop_box(*im.size, tw, th)).resize((tw, th), Image.Resampling.LANCZOS))[None]
        z = t.codec.normalize(vae.encode(x).latent_dist.mean)
        p = torch.sigmoid(t.head(z))[0].numpy()
        best = [i for i in np.argsort(-p) if p[i] >= .5]
        found[path.name], scores[path.name] = [dict(tag=t.vocab.names[i], score=float(p[i])) for i in best], p
    (out/'peer.json').write_text(json.dumps(found), encoding='utf-8')
    return scores

def same(t, vae, folder, out):
    "Both sides on all pictures: scores close, tags equal but next to a threshold"
    peer, ours = one_by_one(t, vae, folder, out), {r.path: r.scores for r in t.tag(folder)}
    a, b = (np.stack([s[k] for k in sorted(peer)]) for s in (peer, ours))
    assert abs(a - b).max() < .01, abs(a - b).max()
    assert (((a >= .5) != (b >= .5)) & (abs(a - .5) > .01)).sum() == 0
    t.tag_folder(folder, out)
    assert [x['path'] for x in read_json(out/'predictions.json')['images']] == sorted(peer)

def against_model(b, t, folder, out, name, target=None):
    "Rate of the folder run over the rate of the model alone, processor time of both: 100 % is the limit of any folder run"
    pictures = gather(folder)
    measure(pictures)
    ready = [t.read_batch(x)[0] for x in t.batches(pictures, 8)]
    best = best_of(dict(model=lambda: [t.score_images(x) for x in ready], run=lambda: t.tag_folder(folder, out)), b.repeats)
    share = best['model']/best['run']
    missed = '' if target is None else f', promised {100*target:.0f} %{"" if share >= target else " MISSED"}'
    b.say(f'{name}: {100*share:.1f} % of the rate of the model alone ({1e3*best["run"]/len(pictures):.3g} ms and '
          f'{1e3*best["model"]/len(pictures):.3g} ms a picture, cpu time{missed})')
    b.add(f'share of the model-only rate, {name}', share, run=best['run'], model=best['model'], target=target, clock='cpu')

def pixel_tagger(name, files, size=224, tags=1000, shown=30):
    "A timm tagger with random weights that gives about `shown` tags to a picture, as a trained one does"
    with seeded(0, name): net = create(name, tags, size).eval()
    vocab, square = Vocab([f'tag_{i}' for i in range(tags)]), square_of(net, size)
    with torch.no_grad():
        logits = net(square.normalize(square.load(files).images))
        net.get_classifier().bias.sub_(torch.quantile(logits, 1 - shown/tags))
    return Tagger(TimmModel(net, vocab, square, dict(global_threshold=.5, per_class_thresholds={}), dict(kind='timm_tagger', architecture=net.vaetag['architecture'], head={})), device='cpu')

@torch.no_grad()
def client(t, net, folder, out):
    "The loop of the usual clients: open, pad, resize, normalise, one picture through the network, one tag after the other"
    sq, names, found, scores = t.model.square, t.vocab.names, {}, {}
    mean, std = (np.float32(v) for v in (sq.mean, sq.std))
    for path in sorted(folder.iterdir()):
        im = Image.open(path).convert('RGB')
        side = max(im.size)
        ground = Image.new('RGB', (side, side), (255, 255, 255))
        ground.paste(im, ((side - im.width)//2, (side - im.height)//2))
        x = (np.asarray(ground.resize(sq.size[::-1], Image.Resampling.BICUBIC), np.float32)/255 - mean)/std
        p = torch.sigmoid(net(torch.from_numpy(x.transpose(2, 0, 1)[None])))[0].numpy()
        tags = {n: float(v) for n, v in zip(names, p)}
        found[path.name] = dict(sorted(((n, v) for n, v in tags.items() if v >= .5), key=lambda kv: -kv[1]))
        scores[path.name] = p
    (out/'peer.json').write_text(json.dumps(found), encoding='utf-8')
    return scores

def pixels(b, folder, files, out):
    "Folder runs of taggers of pixels against the clients' loop, and against the model alone"
    for name, target in (('mobilenetv3_small_100', 1.5), ('resnet50', None)):
        t = pixel_tagger(name, files)
        (out/name).mkdir()
        net = copy.deepcopy(t.net.net).to(memory_format=torch.contiguous_format)
        theirs, ours = client(t, net, folder, out/name), {r.path: r.scores for r in t.tag(folder)}
        assert max(abs(theirs[k] - ours[k]).max() for k in theirs) < .01
        b.duel(f'tag a folder of 1 MP JPEGs, {name} at 224', lambda: t.tag_folder(folder, out/name), lambda: client(t, net, folder, out/name),
               items=len(files), unit='picture', target=target, peer_name="a client's loop")
        against_model(b, t, folder, out/name, f'folder run, {name}')

def main():
    torch.set_num_threads(1) # spinning threads that wait for each other would count as work
    b = Bench(__doc__, repeats=3, pictures=16, heavy=4)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        files = make(d/'in', b.pictures, 1_000_000)
        for side, base, top in ((256, 192, 384), (512, 384, 768)):
            t = tagger([16, 32, 64, 64], 'tiny', Preprocess(base=base, max=top, step=64))
            vae = copy.deepcopy(t.codec.vae).to(memory_format=torch.contiguous_format)
            (d/str(side)).mkdir()
            same(t, vae, d/'in', d/str(side))
            b.duel(f'tag a folder of 1 MP JPEGs at {side}', lambda: t.tag_folder(d/'in', d/str(side)), lambda: one_by_one(t, vae, d/'in', d/str(side)),
                   items=len(files), unit='picture', target=1.3, peer_name='one at a time')
            against_model(b, t, d/'in', d/str(side), f'folder run at {side}')
        pixels(b, d/'in', files, d)
        make(d/'heavy', b.heavy, 512*512)
        against_model(b, tagger([64, 128, 256, 256], 'small', Preprocess(base=384, max=768, step=64)), d/'heavy', d/'out', 'folder run where the model dominates', .95)
    b.done()

if __name__ == '__main__': main()
