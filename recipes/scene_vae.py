#!/usr/bin/env python3
"""Make the VAE that ships with the package: python recipes/scene_vae.py [--install]

Draws 4000 scenes into runs/scene_vae/, trains as scene_vae.yaml says (about 25 minutes on one core; an interrupted run goes on),
and measures PSNR on 256 scenes of a seed that training never saw. --install puts the weights into vaetag_nb/assets.

The weights that ship were trained just before `data.synth` began to place objects on a lattice, so a new run gives other bits; their
figures in held_out.json are of scenes as they are drawn now. Delete runs/scene_vae before a new run.
"""
import shutil, sys
from pathlib import Path
import numpy as np, torch
from vaetag_nb.core.config import load
from vaetag_nb.core.io import atomic_dir, write_json
from vaetag_nb.data.images import to_float
from vaetag_nb.data.synth import make_scenes, scene
from vaetag_nb.eval.images import psnr
from vaetag_nb.latents.codec import Codec
from vaetag_nb.trainers.vae import VaeConfig, train_vae

HERE, TRAIN_SEED, HELD_OUT_SEED = Path(__file__).resolve().parent, 1000, 2000

def held_out(codec, n=256):
    "Mean, standard deviation and 5th percentile of PSNR (dB) over `n` scenes of another seed"
    db = []
    for i in range(n):
        x = to_float(torch.from_numpy(np.array(scene(HELD_OUT_SEED, i).image)).permute(2, 0, 1)[None])
        with torch.no_grad(): db.append(float(psnr(codec.decode(codec.encode(x)), x, data_range=2.)[0]))
    return dict(psnr=round(float(np.mean(db)), 2), std=round(float(np.std(db)), 2), p5=round(float(np.percentile(db, 5)), 2), scenes=n, seed=HELD_OUT_SEED)

def main():
    cfg = load(VaeConfig, HERE/'scene_vae.yaml')
    make_scenes(Path(cfg.data.metadata).parent, 4000, TRAIN_SEED)
    best = train_vae(cfg).best/'vae'
    figures = held_out(Codec.load(best))
    print(figures)
    if '--install' not in sys.argv: return
    home = HERE.parent/'vaetag_nb/assets/scene_vae'
    with atomic_dir(home) as d:
        shutil.copytree(best, d, dirs_exist_ok=True); shutil.copy(home/'README.md', d)    # the card says the licence
        write_json(d/'held_out.json', figures)

if __name__ == '__main__': main()
