#!/usr/bin/env python3
"""Files to the batches that a tagger trains on, against timm's own loader with its own transforms.

  python benchmarks/loading.py [--pictures 48] [--batch 16] [--size 448] [--repeats 5] [--json]
Peer: `timm.data.create_dataset` and `create_loader`, as timm's train.py and validate.py call them. Validation is timm's evaluation
transform on both sides, and both end with the same tensor, within 2 of 255 before the normalisation. Training is a random square of .87 to .998 of
a side and a mirror on both sides (`RandomResizedCrop` with ratio 1 and the areas that belong to it against `AugmentedSquares`, which pads to a square first);
the draws differ, so sizes and ranges are compared. Then the stages alone. Processor time is what a core does; the clock on the wall is for two workers,
ours once in two threads and once in two processes as well. Pictures are those of decode.py; ours decodes with Pillow, as timm does.
"""
import os, shutil, tempfile
from pathlib import Path
import numpy as np, scipy.sparse as sp, torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as T
from common import Bench
from decode import make
from vaetag_nb.data import images
from vaetag_nb.data.augment import AugmentConfig, AugmentedSquares, augmented, draws, window
from vaetag_nb.data.square import IMAGENET_MEAN, IMAGENET_STD, Square
from vaetag_nb.trainers.plan import PlanSampler, sequential, shuffled
from vaetag_nb.trainers.task import load_slices

def timms(folder, run, training, workers):
    "An epoch of timm's loader"
    more = dict(scale=(.87**2, .998**2), ratio=(1., 1.), hflip=.5, color_jitter=None) if training else dict(crop_pct=1.)
    data = create_dataset('', str(folder), is_training=training)
    loader = create_loader(data, (3, run.size, run.size), run.batch, is_training=training, use_prefetcher=False, num_workers=workers,
                           persistent_workers=False, interpolation='bicubic', mean=IMAGENET_MEAN, std=IMAGENET_STD, device=torch.device('cpu'), pin_memory=False, **more)
    def epoch(): return [x for x, _ in loader]
    return epoch

def ours(files, run, training, workers, threads=1):
    "The same by us"
    square = Square(run.size, 'pad' if training else 'crop')
    labels = sp.csr_matrix((len(files), 4), dtype=np.float32)
    source = AugmentedSquares(files, labels, square, AugmentConfig() if training else None, threads=threads)
    plan = (shuffled(len(files), run.batch, 0) if training else sequential(len(files), run.batch))
    def epoch(): return [square.normalize(b['x']) for _, b in load_slices(source, PlanSampler(plan), workers)]
    return epoch

def stages(run, files):
    "Decoding, the resize, what chance does, and numbers, each alone"
    data, n = [f.read_bytes() for f in files], len(files)
    run.duel('decode', lambda: [images.load_image(d) for d in data], lambda: [Image.open(f).convert('RGB') for f in files], n, 'picture', peer_name='timm')
    pics, arrays = [images.load_image(d) for d in data], [np.asarray(images.load_image(d)) for d in data]
    crop, pad, cfg = Square(run.size, 'crop'), Square(run.size), AugmentConfig()
    resize = T.Compose([T.Resize(run.size, T.InterpolationMode.BICUBIC), T.CenterCrop(run.size)])
    run.duel('resize', lambda: [crop.fit(a) for a in pics], lambda: [resize(p) for p in pics], n, 'picture', peer_name='timm')
    rrc, flip = RandomResizedCropAndInterpolation(run.size, (.87**2, .998**2), (1., 1.), 'bicubic'), T.RandomHorizontalFlip()
    u = draws(0, 0, range(n))
    mine = lambda: [augmented(pad.fit(p, window(cfg, v))[0], cfg, v) for p, v in zip(pics, u)]
    run.duel('crop, resize and mirror', mine, lambda: [flip(rrc(p)) for p in pics], n, 'picture', peer_name='timm')
    small, to_tensor = [Image.fromarray(crop.apply(p)) for p in pics], T.Compose([T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    x = crop.load(pics).images
    run.duel('normalise', lambda: crop.normalize(x), lambda: torch.stack([to_tensor(p) for p in small]), n, 'picture', peer_name='timm')

def main():
    run = Bench(__doc__, pictures=48, batch=16, size=448)
    torch.set_num_threads(1)
    images.torchcodec_jpeg = lambda: None
    tmp = Path(tempfile.mkdtemp())
    try:
        for name, pixels in [('1 megapixel', 2**20), ('0.25 megapixels', 2**18)]:
            (tmp/name).mkdir()
            files = make(tmp/name/'a', run.pictures, pixels)
            a, b = (torch.cat(f()) for f in (ours(files, run, False, 0), timms(tmp/name, run, False, 0)))
            assert a.shape == b.shape and (a - b).abs().max() <= 2.01/255/min(IMAGENET_STD)
            a, b = (torch.cat(f()) for f in (ours(files, run, True, 0), timms(tmp/name, run, True, 0)))
            low, high = (torch.tensor([(v - m)/s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD)]).view(3, 1, 1) for v in (-1e-6, 1 + 1e-6))
            assert a.shape == b.shape and all(((low <= x) & (x <= high)).all() for x in (a, b))
            for what, training in [('validation', False), ('training', True)]:
                run.duel(f'{what}, {name}, a core', ours(files, run, training, 0), timms(tmp/name, run, training, 0), len(files), 'picture', 1., 'timm')
                for mode, mine in [('two threads', ours(files, run, training, 0, 2)), ('two processes', ours(files, run, training, 2))]:
                    run.duel(f'{what}, {name}, {mode} against two processes', mine, timms(tmp/name, run, training, 2), len(files), 'picture', peer_name='timm', clock='wall')
            if pixels == 2**20: stages(run, files)
    finally: shutil.rmtree(tmp)
    run.done()

if __name__ == '__main__': os.environ.setdefault('OMP_NUM_THREADS', '1'); main()
