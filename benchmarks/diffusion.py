#!/usr/bin/env python3
"""Latent diffusion: training steps and drawings a second against the plain loops of diffusers.

  python benchmarks/diffusion.py [--steps 6] [--batch 32] [--side 8] [--calls 10] [--repeats 3] [--json]
Training: both sides train the same UNet2DModel (preset tiny, 8 users) on latents of 4 channels with AdamW, clipped gradients and a moving average of the weights. Ours is the engine with DiffusionTask, which draws the posterior, noise,
time and dropout of each sample from counters; the peer is the loop of diffusers' examples (DDPMScheduler.add_noise, get_velocity, mse, EMAModel) on latents in memory.
Drawing: the same weights and the same first noise, DDIM with guidance 2, in one batch; the latents agree to 1e-5. The peer is the loop of diffusers' pipelines (one batch of twice the size a step).
"""
import copy, gc
import numpy as np, torch
from torch.nn import functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from common import Bench
from vaetag_nb.core.rng import torch_rng
from vaetag_nb.data.users import UserMap
from vaetag_nb.latents.codec import Codec
from vaetag_nb.latents.convention import Convention
from vaetag_nb.models.sampling import Sampling, first_noise, sample, scheduler_of
from vaetag_nb.trainers.diffusion_settings import diffusion_config
from vaetag_nb.trainers.diffusion_task import DiffusionTask, UserLatents
from vaetag_nb.trainers.engine import Trainer

USERS = 8

class Memory:
    "Posteriors of users in memory."
    folder, meta = 'memory', dict(logvar=True)
    def __init__(self, n, side): self.z, self.logvar = torch.randn(n, 4, side, side, generator=torch_rng(0, 'z')), torch.full((n, 4, side, side), -6.)
    def row_of(self, ids): return np.arange(len(ids))
    def read(self, rows): return self.z[rows]
    def read_logvar(self, rows): return self.logvar[rows]

def training(b, cfg):
    n, store = 32*b.batch, Memory(32*b.batch, b.side)
    user = np.arange(n) % USERS
    source = lambda draws: UserLatents(store, [str(i) for i in range(n)], user, Convention(), draws=draws)
    codec = Codec.random(dict(in_channels=1, out_channels=1, block_out_channels=[8, 8, 8, 8], norm_num_groups=4, layers_per_block=1, latent_channels=4))
    task = DiffusionTask(cfg.unet.make(4, b.side, USERS, 0), source(True), source(False), cfg, codec, UserMap(tuple(range(1, USERS + 1))), None)
    unet, null = copy.deepcopy(task.net.unet), USERS
    gc.freeze()   # as `Trainer.fit` does, and for both sides
    t = Trainer(task, steps=10**6, ema=cfg.ema.decay, ema_warmup='ramp', max_grad_norm=1., device='cpu', precision='no')
    groups = t.groups(); t.train_mode()
    scheduler = DDPMScheduler(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear', prediction_type='v_prediction', rescale_betas_zero_snr=True)
    opt, ema, who = torch.optim.AdamW(unet.parameters(), cfg.optim.lr, weight_decay=cfg.optim.weight_decay), EMAModel(unet.parameters(), decay=cfg.ema.decay), torch.from_numpy(user)
    def plain():
        i = torch.randint(n, (b.batch,))
        z = store.z[i] + (store.logvar[i]/2).exp()*torch.randn_like(store.z[i])
        noise, at = torch.randn_like(z), torch.randint(1000, (b.batch,))
        label = torch.where(torch.rand(b.batch) < cfg.condition.dropout, null, who[i])
        loss = F.mse_loss(unet(scheduler.add_noise(z, noise, at), at, class_labels=label).sample, scheduler.get_velocity(z, noise, at))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.)
        opt.step(); opt.zero_grad(); ema.step(unet.parameters())
    def ours(k=b.steps):
        for _ in range(k): t.train_step(next(groups))
    def peer(k=b.steps):
        for _ in range(k): plain()
    ours(1); peer(1)
    b.duel('a training step', ours, peer, b.steps, 'step', 1, 'loop of diffusers')

@torch.no_grad()
def drawing(b, cfg):
    net, noise = cfg.unet.make(4, b.side, USERS, 0).eval(), cfg.noise.make()
    keys, label, null = [('1', k) for k in range(b.batch)], torch.arange(b.batch) % USERS, torch.full((b.batch,), USERS)
    x0, s = first_noise((4, b.side, b.side), keys), Sampling(steps=b.calls, guidance=2.)
    ours = lambda: sample(net, x0.clone(), label, null, noise, s, keys)
    def peer():
        scheduler, x = scheduler_of(noise), x0.clone()
        scheduler.set_timesteps(b.calls)
        for t in scheduler.timesteps:
            u, c = net.unet(torch.cat([x, x]), t, class_labels=torch.cat([null, label])).sample.chunk(2)
            x = scheduler.step(u + 2*(c - u), t, x).prev_sample
        return x
    np.testing.assert_allclose(ours(), peer(), atol=1e-5)
    b.duel('a drawing', ours, peer, b.batch, 'picture', 1, 'loop of diffusers')

def main():
    b = Bench(__doc__, repeats=3, steps=6, batch=32, side=8, calls=10)
    cfg = diffusion_config(preset='tiny', batch_size=b.batch, data=dict(folders='memory'))
    training(b, cfg); drawing(b, cfg)
    b.done()

if __name__ == '__main__': main()
