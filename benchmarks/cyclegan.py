#!/usr/bin/env python3
"""Training a latent CycleGAN: reading latents against a file each, a step against a plain loop, a generator against one that works on pixels.

  python benchmarks/cyclegan.py [--latents 1000] [--ngf 32] [--steps 8] [--pixels 256] [--repeats 3] [--json]
Reading: an epoch of both domains in batches of 4, latents of 4x32x32, from a store that is mapped, and held in memory; the peer calls `torch.load(..., weights_only=True)` for each, as the original does.
Step: both sides train the same four networks (residual generators of 4 blocks, patch discriminators, latents of 4x16x16, batches of 8, replay buffers off) on the same batches; after the first steps all weights
are equal to 1e-5. The peer is the loop that one writes by hand, with the generators' passes one by one.
Generator: forward and backward of ours for a latent of 4x32x32, ngf 64, against the ResNet-9 of CycleGAN for the picture of 256 pixels that it stands for; the VAE, which works once a picture, is left out on our side.
"""
import tempfile
from pathlib import Path
import numpy as np, torch
from torch import nn
from common import Bench
from vaetag_nb.core.config import load
from vaetag_nb.core.rng import seeded, torch_rng
from vaetag_nb.latents.files import pack
from vaetag_nb.models.cyclegan import generator
from vaetag_nb.models.cyclegan_folder import Space
from vaetag_nb.trainers.cyclegan_data import LatentSide, PairSource, Sides
from vaetag_nb.trainers.cyclegan_settings import CycleGanConfig
from vaetag_nb.trainers.cyclegan_task import CycleGanTask
from vaetag_nb.trainers.engine import Trainer
from vaetag_nb.trainers.unpaired import unpaired

def reading(b, d):
    files = [d/'files'/f'{i:05d}.pt' for i in range(b.latents)]
    (d/'files').mkdir()
    x = torch.randn(b.latents, 4, 32, 32, generator=torch_rng(0, 'latents'))
    for f, z in zip(files, x): torch.save(z.clone(), f)
    side = LatentSide(pack(d/'files', d/'packed'), np.arange(b.latents), Space())
    source, plan = PairSource(side, side), unpaired(side.shape_ids, side.shape_ids, 4, 0)(0)
    epoch = lambda: [source.latents(source.get(0, plan[i])) for i in range(len(plan))]
    peer = lambda: [torch.load(f, map_location='cpu', weights_only=True) for _ in 'ab' for f in files]
    assert all(torch.equal(side.x([i])[0], torch.load(files[i], weights_only=True)) for i in range(0, b.latents, 97))
    b.duel('reading latents, mapped', epoch, peer, 2*b.latents, 'latent', 10, 'torch.load')
    side.hold('cpu')
    b.duel('reading latents, held in memory', epoch, peer, 2*b.latents, 'latent', 10, 'torch.load')

class Plain:
    "The loop that one writes by hand."
    def __init__(self, cfg, sides, plan):
        self.nets = cfg.model.make(4, cfg.seed)
        for m in self.nets.values(): m.train()
        adam = lambda *names: torch.optim.Adam([p for n in names for p in self.nets[n].parameters()], cfg.optim.lr, (.5, .999))
        self.gen, self.disc, self.cfg, self.sides, self.plan, self.at = adam('G', 'F'), adam('D_A', 'D_B'), cfg, sides, plan, 0
    def step(self):
        (G, F, DA, DB), l = (self.nets[k] for k in ('G', 'F', 'D_A', 'D_B')), self.cfg.loss
        rows = self.plan[self.at % len(self.plan)]; self.at += 1
        a, b = self.sides.a.x(rows[:, 0]), self.sides.b.x(rows[:, 1])
        for m in (DA, DB): m.requires_grad_(False).eval()
        fake_b, fake_a = G(a), F(b)
        game, far = lambda y: (y - 1).square().mean(), lambda x, y: (x - y).abs().mean()
        loss = game(DB(fake_b)) + game(DA(fake_a)) + l.lambda_cyc*(far(F(fake_b), a) + far(G(fake_a), b)) + l.lambda_cyc*l.lambda_id*(far(G(b), b) + far(F(a), a))
        self.gen.zero_grad(); loss.backward(); self.gen.step()
        for m in (DA, DB): m.requires_grad_(True).train()
        loss = 0.
        for D, real, fake in ((DA, a, fake_a), (DB, b, fake_b)):
            r, f = D(torch.cat([real, fake.detach()])).chunk(2)
            loss = loss + l.d_scale*.5*(game(r) + f.square().mean())
        self.disc.zero_grad(); loss.backward(); self.disc.step()

def stepping(b, d):
    (d/'small').mkdir()
    for i in range(64): np.save(d/'small'/f'{i:02d}.npy', torch.randn(4, 16, 16, generator=torch_rng(1, i)).numpy())
    store = pack(d/'small', d/'small_packed')
    side = lambda: LatentSide(store, np.arange(64), Space())
    cfg = load(CycleGanConfig, dict(data=dict(a_dir='a', b_dir='b'), model=dict(ngf=b.ngf, n_res_blocks=4), buffer=dict(size=0), batch_size=8)).resolved()
    task = CycleGanTask(Sides(side(), side(), side(), side()), cfg)
    task.source.preload('always', 'cpu')
    t = Trainer(task, steps=10**6, device='cpu', precision='no', max_grad_norm=0)
    groups = t.groups(); t.train_mode()
    plain = Plain(cfg, task.sides, task.plan(0))
    def ours(n=b.steps):
        for _ in range(n): t.train_step(next(groups))
    def peer(n=b.steps):
        for _ in range(n): plain.step()
    ours(2); peer(2)
    apart = max((p - q).abs().max().item() for n, m in plain.nets.items() for p, q in zip(m.parameters(), t.modules[n].parameters()))
    assert apart < 1e-5, apart
    b.duel('a training step', ours, peer, b.steps, 'step', 1, 'plain loop')

class ResNet9(nn.Sequential):
    "The generator of CycleGAN on pixels (Zhu et al. 2017), 9 blocks."
    def __init__(self, w=64):
        unit = lambda a, b, k, s=1, p=0, up=False: [nn.ConvTranspose2d(a, b, k, s, p, 1) if up else nn.Conv2d(a, b, k, s, p), nn.InstanceNorm2d(b), nn.ReLU()]
        class Block(nn.Module):
            def __init__(self, n): super().__init__(); self.f = nn.Sequential(nn.ReflectionPad2d(1), *unit(n, n, 3), nn.ReflectionPad2d(1), *unit(n, n, 3)[:2])
            def forward(self, x): return x + self.f(x)
        super().__init__(nn.ReflectionPad2d(3), *unit(3, w, 7), *unit(w, 2*w, 3, 2, 1), *unit(2*w, 4*w, 3, 2, 1), *[Block(4*w) for _ in range(9)],
                         *unit(4*w, 2*w, 3, 2, 1, True), *unit(2*w, w, 3, 2, 1, True), nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh())

def generating(b):
    with seeded(0, 'pixels'): pixels = ResNet9()
    ours, x, z = generator('residual', 4, 0, 'G', ngf=64, n_res_blocks=6), torch.randn(1, 3, b.pixels, b.pixels, generator=torch_rng(0, 'x')), torch.randn(1, 4, b.pixels//8, b.pixels//8, generator=torch_rng(0, 'z'))
    run = lambda net, v: net(v).abs().mean().backward()
    assert ours(z).shape == z.shape and pixels(x).shape == x.shape
    b.duel('a generator, forward and backward', lambda: run(ours, z), lambda: run(pixels, x), 1, 'picture', 20, 'ResNet-9', repeats=2)

def main():
    b = Bench(__doc__, repeats=3, latents=1000, ngf=32, steps=8, pixels=256)
    with tempfile.TemporaryDirectory() as d:
        reading(b, Path(d)); stepping(b, Path(d))
    generating(b)
    b.done()

if __name__ == '__main__': main()
