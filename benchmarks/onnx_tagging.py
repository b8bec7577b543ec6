#!/usr/bin/env python3
"""Tagging a folder on the CPU: the exported ONNX file in ONNX Runtime against the model folder in PyTorch.

  python benchmarks/onnx_tagging.py [--pictures 32] [--repeats 3] [--json]
Both sides are our `Tagger` with the same weights (random), float32, in the same number of threads; pictures are the photograph-like JPEGs of `decode.py`, of a quarter of a megapixel.
The first ratio is that of the networks alone, on batches decoded and waiting in memory; the second one is that of whole folder runs, with reading,
decoding, resizing and writing. Scores of the networks agree within 1e-4, those of the runs within .02: the exported folder's clients resize before they pad.
"""
import tempfile
from pathlib import Path
import torch
from common import Bench
from decode import make
from tagging import pixel_tagger
from vaetag_nb.infer import Tagger
from vaetag_nb.models.timm_folder import save_timm
from vaetag_nb.publish.export import export_pixels
from vaetag_nb.sources import gather, measure

NETWORKS = ('mobilenetv3_small_100', 'vit_tiny_patch16_224', 'resnet50')

def exported(folder, out, layout):
    "The model folder as ONNX alone"
    export_pixels(folder, out, layout, size=256)
    for f in ('config.json', 'model.safetensors'): (out/f).unlink(missing_ok=True)
    return Tagger.load(out, device='cpu')

def against(b, name, model, onnx, folder, out):
    "The network alone, then the folder run"
    ours, theirs = ({r.path: r.scores for r in t.tag(folder)} for t in (onnx, model))
    assert max(abs(ours[k] - theirs[k]).max() for k in ours) < .02
    pictures = gather(folder)
    measure(pictures)
    ready = [model.read_batch(x)[0] for x in model.batches(pictures, 8)]
    assert max(abs(onnx.score_images(x) - model.score_images(x)).max() for x in ready) < 1e-4
    b.duel(f'{name}, network alone', lambda: [onnx.score_images(x) for x in ready], lambda: [model.score_images(x) for x in ready], items=len(pictures), unit='picture', peer_name='PyTorch')
    b.duel(f'{name}, folder run', lambda: onnx.tag_folder(folder, out/'onnx'), lambda: model.tag_folder(folder, out/'torch'), items=len(pictures), unit='picture', peer_name='PyTorch')

def main():
    torch.set_num_threads(1)    # spinning threads that wait for each other would count as work
    b = Bench(__doc__, repeats=3, pictures=32)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        files = make(d/'in', b.pictures, 250_000)
        for name in NETWORKS:
            (d/name).mkdir()
            t = pixel_tagger(name, files)
            save_timm(d/name/'model', t.model.net, t.vocab, t.model.square, t.model.thresholds)
            against(b, f'{name} at 224', Tagger.load(d/name/'model', device='cpu'), exported(d/name/'model', d/name/'onnx', 'timm'), d/'in', d/name)
    b.done()

if __name__ == '__main__': main()
