#!/usr/bin/env python3
"""The memory that a step of each preset takes at 128 pixels, as a dry run foresees it, and as a process measures it.

Each stage runs in a process of its own: two optimiser steps on blank data (the second one has Adam's moments), on the CPU in float32, with one batch a step, as
accumulation adds nothing to the peak. Measured is the largest size of the process less its size before anything was made, so Python and torch are not in it.

    python benchmarks/diffusion_memory.py --presets memory --stages unet
"""
import argparse, dataclasses as dc, json, subprocess, sys, time
import psutil, torch
from vaetag_nb.trainers.diffusion_settings import diffusion_config
from vaetag_nb.trainers.dry_run import blank_sides, diffusion_on_trial, first_codec, first_vae, plan_diffusion, users_planned, vae_on_trial
from vaetag_nb.trainers.memory import peak_memory

PRESETS, STAGES = ('tiny', 'standard', 'memory', 'quality'), ('vae', 'unet')

def measured(preset, stage, steps=2):
    "MB of one stage, in this process"
    cfg = diffusion_config(preset=preset, device='cpu', precision='no')
    users, user, sides, grey, _ = users_planned(cfg)
    before = psutil.Process().memory_info().rss
    if stage == 'vae': task, trainer, batch, s, _ = vae_on_trial(dc.replace(first_vae(cfg), accumulate=1), blank_sides(cfg.image.resolution), True, ema=first_vae(cfg).ema)
    else: task, trainer, batch, s = diffusion_on_trial(dc.replace(cfg, accumulate=1), users, user, first_codec(cfg, grey), grey, ema=cfg.ema.decay)
    trainer.task.train()
    start = time.perf_counter()
    for k in range(steps): trainer.train_step([(s, batch)])
    return dict(measured_mb=round((peak_memory(torch.device('cpu'))[0] - before)/2**20), seconds_a_step=round((time.perf_counter() - start)/steps, 1))

def foreseen(preset, stage):
    "MB of the dry run"
    return round(plan_diffusion(diffusion_config(preset=preset, device='cpu', precision='no'))[stage]['memory_mb']['total'])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--presets', nargs='+', choices=PRESETS, default=PRESETS); p.add_argument('--stages', nargs='+', choices=STAGES, default=STAGES)
    p.add_argument('--one', nargs=2, help=argparse.SUPPRESS); p.add_argument('--json', action='store_true', help='one JSON list')
    a = p.parse_args()
    if a.one: print(json.dumps(measured(*a.one))); return
    rows = []
    for preset in a.presets:
        for stage in a.stages:
            out = subprocess.run([sys.executable, __file__, '--one', preset, stage], capture_output=True, text=True, check=True).stdout
            rows.append(dict(preset=preset, stage=stage, foreseen_mb=foreseen(preset, stage)) | json.loads(out.splitlines()[-1]))
            if not a.json: print(*(f'{v}' for v in rows[-1].values()), sep='\t', flush=True)
    if a.json: print(json.dumps(rows))

if __name__ == '__main__': main()
