#!/usr/bin/env python3
"""Files to batches, as training and tagging need them, against Pillow as it is mostly used; and sizes of files.

  python benchmarks/decode.py [--pictures 64] [--repeats 5] [--json]
Peer of `load_batch`: Pillow's open, convert, crop and LANCZOS resize, then torchvision's `ToTensor` and `Normalize` to [-1, 1]; for the
whole loader that function in a torch DataLoader with two worker processes, which starts with its first batch. Ours decodes with
Pillow, too (torchcodec, where installed, has lines of its own), and runs in two threads; both crop alike and end with the same tensor, within 2 of 255.
Pictures are JPEG of quality 90 with the statistics of photographs (power falls with the square and a half of frequency), about
200 kB a megapixel, in five ratios. `[default buckets]` is what training does by default: one megapixel stays one megapixel.
"""
import os, shutil, tempfile
from pathlib import Path
import numpy as np, torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor
from common import Bench, best_of, si
from vaetag_nb.bucketing import Preprocess, batches_by_bucket
from vaetag_nb.core.rng import np_rng
from vaetag_nb.data import images
from vaetag_nb.data.images import crop_box, image_sizes, load_batch, to_float

def photo(i, w, h):
    "A picture whose spectrum falls as that of photographs, with edges"
    rng = np_rng(0, 'photo', i)
    f = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    fall = 1/np.maximum(f, 1/max(w, h))**1.5
    def field(): z = np.fft.irfft2(fall*np.exp(2j*np.pi*rng.random(f.shape)), (h, w)); return (z - z.mean())/z.std()
    light = field()
    a = np.stack([light + .35*field() for _ in range(3)], -1)*45 + 118
    return Image.fromarray(a.clip(0, 255).astype(np.uint8))

RATIOS = [(1, 1), (4, 3), (3, 4), (3, 2), (2, 3)]

def make(folder, n, pixels, quality=90):
    folder.mkdir()
    for i in range(n):
        a, b = RATIOS[i % len(RATIOS)]
        k = (pixels/(a*b))**.5
        photo(i, round(a*k), round(b*k)).save(folder/f'{i:03d}.jpg', quality=quality)
    return sorted(folder.iterdir())

to_tensor = Compose([ToTensor(), Normalize([.5]*3, [.5]*3)])

def pillow(path, size):
    "One picture as most training scripts load it"
    im = Image.open(path).convert('RGB')
    return to_tensor(im.crop(crop_box(*im.size, *size)).resize(size, Image.Resampling.LANCZOS))

class Pictures(Dataset):
    "The same as a torch data set"
    def __init__(self, paths, sizes): self.paths, self.sizes = paths, sizes
    def __len__(self): return len(self.paths)
    def __getitem__(self, i): return pillow(self.paths[i], self.sizes[i])

def ours(paths, size, threads=1): return to_float(load_batch(paths, size, threads=threads).images)

def loaders(files, pre, batch):
    "Two ways through one epoch in batches of one shape"
    w, h, _ = image_sizes(files)
    ids, targets = pre.ids(w, h), np.stack(pre.assign(w, h), 1)
    plan = [x.tolist() for x in batches_by_bucket(ids, batch)]
    def mine(): return [float(ours([files[i] for i in x], targets[x[0]], 2)[0, 0, 0, 0]) for x in plan]
    def peers():
        data = Pictures([str(f) for f in files], [tuple(t.tolist()) for t in targets])
        return [float(x[0, 0, 0, 0]) for x in DataLoader(data, batch_sampler=plan, num_workers=2)]
    assert np.abs(np.array(mine()) - peers()).max() <= 2/127.5
    return mine, peers

def main():
    run = Bench(__doc__, pictures=64, batch=8)
    torch.set_num_threads(1)
    codec, images.torchcodec_jpeg = images.torchcodec_jpeg, lambda: None
    tmp = Path(tempfile.mkdtemp())
    try:
        for name, pixels, n in [('0.25 megapixels', 2**18, run.pictures), ('1 megapixel', 2**20, run.pictures), ('4 megapixels', 2**22, max(4, run.pictures//8))]:
            files = make(tmp/name, n, pixels)
            a, b = ours(files, (512, 512)), torch.stack([pillow(f, (512, 512)) for f in files])
            assert (a - b).abs().max() <= 2.01/127.5
            batches = [files[i:i+8] for i in range(0, n, 8)]
            mine, peers = lambda: [ours(b, (512, 512)) for b in batches], lambda: [torch.stack([pillow(f, (512, 512)) for f in b]) for b in batches]
            data, alone = [f.read_bytes() for f in files], lambda: [images.load_image(d) for d in data]
            run.say(f'limit: Pillow decodes a picture of {name} in {si(best_of(dict(alone=alone), run.repeats)["alone"]/n)}')
            run.duel(f'decode and resize, {name} to 512x512', mine, peers, n, 'picture', 2.5 if name == '1 megapixel' else None, 'Pillow')
            if codec():
                images.torchcodec_jpeg = codec
                run.duel('the same with torchcodec', mine, peers, n, 'picture', peer_name='Pillow')
                images.torchcodec_jpeg = lambda: None
        files = sorted((tmp/'1 megapixel').iterdir())
        for name, pre, goal in [('512x512', Preprocess(bucketing=False, resolution=512), 3.5), ('default buckets', Preprocess(), None)]:
            mine, peers = loaders(files, pre, run.batch)
            for clock in ('cpu', 'wall'):
                run.duel(f'whole loader [{name}], 1 megapixel', mine, peers, len(files), 'picture', goal if clock == 'wall' else None, 'DataLoader', clock)
        many = make(tmp/'small', 50, 2**16)*40
        assert [x.tolist() for x in image_sizes(many)[:2]] == np.array([Image.open(f).size for f in many]).T.tolist()
        def pil():
            for f in many:
                with Image.open(f) as im: im.size, im.getexif().get(274)
        run.duel('sizes of files', lambda: image_sizes(many), pil, len(many), 'file', peer_name='Pillow')
    finally: shutil.rmtree(tmp)
    run.done()

if __name__ == '__main__': os.environ.setdefault('OMP_NUM_THREADS', '1'); main()
