"""Small models and data of every kind, and for each dashboard the one line that opens it on them."""
import threading
from pathlib import Path
import numpy as np, torch
from PIL import Image
from toy_tagger import TINY, toy_tagger
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.core.io import append_jsonl, read_json, write_json
from vaetag_nb.core.rng import np_rng
from vaetag_nb.data.embeddings import EmbeddingTable
from vaetag_nb.data.tags import Vocab
from vaetag_nb.data.users import UserMap
from vaetag_nb.latents.codec import Codec, Convention
from vaetag_nb.latents.encode import encode_table
from vaetag_nb.models.aligner import fit_ridge, make_aligner, start_aligner
from vaetag_nb.models.aligner_folder import Aligner, save_aligner
from vaetag_nb.models.cyclegan import generator
from vaetag_nb.models.cyclegan_folder import CycleGan, save_cyclegan
from vaetag_nb.models.diffusion_folder import LatentDiffusion, save_diffusion
from vaetag_nb.models.latent_diffusion import UNetSettings
from vaetag_nb.models.linear_head import LinearHead, save_head
from vaetag_nb.models.noise import NoiseSchedule
from vaetag_nb.models.sampling import Sampling

# each is a notebook of one line, an app by itself, on files that lie beside it
CALLS = dict(predictions="predictions('toy/model', 'toy/scenes/data.json')", tags="tags('toy/scenes/data.json', most=4)", labels="tag_browser('toy/model', 'toy/scenes/data.json', most=4, min_positives=1)",
             latents="latents('store', tagger='toy/model', side=96)", reconstructions="reconstructions({'scenes': 'embedded', 'untrained': 'untrained'}, 'toy/scenes/images', side=96, first=8)",
             translation="translation('translator', 'toy/scenes/images', most=8)", generation="generation('diffusion', n=2)", aligner="aligner('aligner', 'emb.npz', head='inv.npz')", monitor="monitor('runs', every=.5)")

def source_of(name)->str: return f'from vaetag_nb import dashboards; dashboards.{CALLS[name]}'

def make_files(root):
    "All that `CALLS` open."
    root = Path(root)
    scenes = Codec.load('embedded')
    table, _ = toy_tagger(root/'toy', steps=200, codec=scenes)
    limits = root/'toy/model/optimal_thresholds.json'
    write_json(limits, read_json(limits) | dict(global_threshold=.352))     # no step of a slider
    encode_table(table.ids, table.paths, scenes, root/'store', Preprocess(base=48, max=96, step=8))
    Codec.random(TINY, Convention(8., .01), seed=1).save(root/'untrained')
    nets = [generator('residual', scenes.channels, 0, n, ngf=8, n_res_blocks=1) for n in 'GF']
    for net, by in zip(nets, (1., -1.)): torch.nn.init.constant_(net.head.bias, by)
    save_cyclegan(root/'translator', CycleGan(*nets, space='model', codec=scenes.spec()))
    unet = UNetSettings(block_out_channels=(32, 32), layers_per_block=1, attention=(2,), head_dim=8).make(scenes.channels, 64//scenes.factor, 3).eval()
    save_diffusion(root/'diffusion', LatentDiffusion(unet, scenes, UserMap((1, 2, 9)), NoiseSchedule(), Sampling(steps=2), 64, data=dict(source='simulated')))
    r = np_rng(0, 'embeddings')
    u = r.normal(size=(200, 16)); u /= np.linalg.norm(u, axis=1, keepdims=True)
    np.savez(root/'emb.npz', embs=u*np.exp(1.5 + .5*u[:, :1]))
    save_head(root/'inv.npz', head := LinearHead(r.normal(size=(16, 4)), np.zeros(4), 'toy', Vocab(['safe', 'girl', 'tree', 'miku'], [9, 0, 0, 4])))
    save_aligner(root/'aligner', Aligner(start_aligner(make_aligner('ridge', 16), *fit_ridge(EmbeddingTable.read(root/'emb.npz', head), np.arange(200))), 'ridge', 16))
    for run, k in (('first', 1.), ('second', .7)):
        (root/'runs'/run/'samples').mkdir(parents=True)
        for step in range(1, 201): log(root, run, step=step, epoch=1 + step//101, loss=k*(2/(1 + step/30) + .2*(step*7919 % 13)/13), lr=1e-3, img_s=99.)
        for step in (100, 200): Image.new('RGB', (320, 96), (step, int(200*k), 200)).save(root/f'runs/{run}/samples/step_{step:08d}_grid.png')
        append_jsonl(root/f'runs/{run}/log.jsonl', dict(kind='epoch', step=200, epoch=2, loss=.5))

def log(root, run, **row): append_jsonl(Path(root)/f'runs/{run}/log.jsonl', dict(kind='step') | row)

class Writing:
    "A run that goes on beside its dashboard, as a trainer writes it."
    def __init__(self, root): self.root, self.ending = root, threading.Event()
    def __enter__(self): self.thread = threading.Thread(target=self.write); self.thread.start(); return self
    def __exit__(self, *_): self.ending.set(); self.thread.join()
    def write(self):
        for step in range(201, 10**6):
            log(self.root, 'second', step=step, epoch=2, loss=1/step)
            if self.ending.wait(.3): return
