"""Two small tasks with everything that could break an exact resume, and a program that trains, kills and resumes them.

    python tests/engine_toys.py tagger OUT '{"epochs": 3}' [KILL]     (also under torchrun)
"""
import json, os, signal, socket, sys, time, traceback
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from accelerate import PartialState
from torch import nn
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import load_tree, read_jsonl
from vaetag_nb.core.rng import np_rng, seeded
from vaetag_nb.trainers import checkpoint
from vaetag_nb.trainers.callbacks import EarlyStop
from vaetag_nb.trainers.engine import Trainer
from vaetag_nb.trainers.optim import cosine, linear
from vaetag_nb.trainers.plan import shuffled
from vaetag_nb.trainers.task import Task

class Noisy:
    "Random rows, shifted anew each epoch: an augmentation."
    def __init__(self, n, dim, seed, bad=None): self.x, self.seed, self.bad = np_rng(seed, 'data').normal(size=(n, dim)).astype('f'), seed, bad
    def __len__(self): return len(self.x)
    def names(self, indices): return [f'{i}.jpg' for i in indices]
    def get(self, epoch, indices):
        shift = np.stack([np_rng(self.seed, 'item', epoch, int(i)).normal(size=self.x.shape[1]) for i in indices]).astype('f')
        x = torch.from_numpy(self.x[indices] + .1*shift)
        if self.bad in indices: x = x*float('nan')
        return dict(x=x, y=(x[:, :3] > 0).float())

class Tagger(Task):
    "Dropout, batch norm, weight decay; mean loss."
    select = 'val/loss'
    def __init__(self, n=46, batch=8, seed=0, dropout=.2, norm=True, bad=None, pause=0.):
        super().__init__(); self.pause = pause
        self.source, self.val, self.plan = Noisy(n, 8, seed, bad), Noisy(10, 8, seed + 1), shuffled(n, batch, seed)
        with seeded(seed, 'init'):
            self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.in_loss = self.in_validate = lambda _: None
    def optims(self, total, per_epoch):
        return dict(main=(torch.optim.AdamW(self.net.parameters(), lr=.01, weight_decay=.1), cosine(total, warmup=3), ['net']))
    def loss_main(self, batch, ctx):
        self.in_loss(ctx); time.sleep(self.pause)
        out = self.net(batch['x'])
        return F.binary_cross_entropy_with_logits(out, batch['y']), dict(wrong=((out > 0) != batch['y'].bool()).float().mean())
    def validate(self, trainer):
        self.in_validate(trainer)
        sums = sum((self.loss_main(b, None)[0]*s.n).item() for s, b in trainer.batches(self.val, 4))
        return {'val/loss': sum(trainer.gather(sums))/len(self.val), 'val/luck': torch.rand(1).item()}

class Gan(Task):
    "Two optimisers, spectral norm, a replay buffer, a discriminator that rests at first."
    select, averaged = 'val/fake', ('G',)
    def __init__(self, n=30, batch=4, seed=0, start=.1, **kw):
        super().__init__()
        self.source, self.plan, self.start, self.buffer = Noisy(n, 8, seed), shuffled(n, batch, seed), start, []
        with seeded(seed, 'init'):
            self.G = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(.1), nn.Linear(16, 8))
            self.D = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16)), nn.LeakyReLU(.2), nn.Linear(16, 1))
        self.in_loss = self.in_validate = lambda _: None
    def optims(self, total, per_epoch):
        adam = lambda m: torch.optim.Adam(m.parameters(), lr=2e-3, betas=(.5, .999))
        return dict(gen=(adam(self.G), linear(total), ['G']), disc=(adam(self.D), None, ['D']))
    def loss_gen(self, batch, ctx):
        self.in_loss(ctx)
        ctx.fake = self.G(torch.randn(len(batch['x']), 4, device=batch['x'].device))
        return F.softplus(-self.D(ctx.fake)).mean(), dict(size=ctx.fake.detach().abs().mean())
    def loss_disc(self, batch, ctx):
        if ctx.progress < self.start: return None, {}
        return F.softplus(-self.D(batch['x'])).mean() + F.softplus(self.D(self.replay(ctx))).mean(), {}
    def replay(self, ctx):
        rng, out = np.random.default_rng(ctx.fold('buffer')), []
        for x in ctx.fake.detach():
            if len(self.buffer) < 8: self.buffer.append(x); out.append(x); continue
            j = rng.integers(8)
            if rng.random() < .5: out.append(self.buffer[j]); self.buffer[j] = x
            else: out.append(x)
        return torch.stack(out)
    def state_dict_extra(self): return dict(buffer=self.buffer)
    def load_state_dict_extra(self, s): self.buffer = s['buffer']
    def validate(self, trainer):
        self.in_validate(trainer)
        return {'val/fake': self.G(torch.randn(16, 4)).abs().mean().item()}

TASKS = dict(tagger=Tagger, gan=Gan)

def arm(t, kill):
    "Let the trainer be struck at `{'where': ..., 'step': n, 'rank': r, 'signal': s}`"
    step, num = kill['step'], getattr(signal, kill.get('signal', 'SIGKILL'))
    if t.p.rank != kill.get('rank', 0): return
    if kill.get('group'): os.setpgrp()                     # as Ctrl-C in a terminal: the loading processes get it, too
    strike = lambda: os.killpg(0, num) if kill.get('group') else os.kill(os.getpid(), num)
    if kill['where'] == 'loss': t.task.in_loss = lambda ctx: strike() if ctx and ctx.step == step else None
    if kill['where'] == 'validate': t.task.in_validate = lambda tr: strike() if t.step >= step else None
    if kill['where'] == 'raise':
        def fail(ctx):
            if ctx and ctx.step == step: raise VaetagError('0.jpg: cannot be read')
        t.task.in_loss = fail
    if kill['where'] == 'save':
        write = checkpoint.save_tree
        def torn(path, tree, metadata=None):
            if t.step >= step: Path(path).write_bytes(b'half'); strike()
            write(path, tree, metadata)
        checkpoint.save_tree = torn

def train(kind, out, task=None, kill=None, resume='auto', override=(), **kw):
    "Train a toy; `task` and `kw` are the settings of the task and of the `Trainer`."
    torch.set_num_threads(1)
    kw = {**dict(epochs=4, accumulate=3, ema=.9, log_every=2, save_every='3 steps', seed=0, callbacks=[EarlyStop(50)]), **kw}
    t = Trainer(TASKS[kind](**(task or {})), out, device='cpu', **kw)
    if kill: arm(t, kill)
    return t.fit(resume, override)

def result(out):
    "All that must be the same after a resume: the last checkpoint, the best weights, the log without times"
    out = Path(out)
    last = sorted((out/'checkpoints').glob('step_*'))[-1]
    loop = load_tree(last/'loop.safetensors'); loop['callbacks'].pop('JsonlLogger')
    files = {f'{f.parent.name}/{f.name}': f.read_bytes() for d in (last, out/'best') for f in sorted(d.iterdir()) if f.name not in ('loop.safetensors', 'state.json')}
    log = [{k: v for k, v in l.items() if k not in ('img_s', 'mem_mb')} for l in read_jsonl(out/'log.jsonl')]
    return dict(files=files, loop=loop, log=log, best=(out/'best.json').read_text(), done=(out/'done.json').read_text())

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return str(s.getsockname()[1])

def child(fn, env, log):
    "Fork a process that calls `fn()`; its number"
    pid = os.fork()
    if pid: return pid
    code = 99
    try:
        PartialState._reset_state(); os.environ.update(env)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2); sys.stderr = open(2, 'w', closefd=False)
        fn(); code = 0
    except VaetagError as e: os.write(2, f'{e}\n'.encode()); code = getattr(e, 'exit_code', 1)
    except BaseException: os.write(2, traceback.format_exc().encode())
    finally: sys.stderr.flush(); os._exit(code)

def processes(fn, world=1, log=os.devnull, timeout=300)->list:
    "Run `fn()` in `world` processes, as torchrun would; their exit statuses, a signal as a negative number"
    port = free_port()
    env = lambda r: dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=port) if world > 1 else {}
    pids = [child(fn, env(r), log if world == 1 or log == os.devnull else f'{log}.{r}') for r in range(world)]
    ended, late = {}, time.monotonic() + timeout
    while len(ended) < world and time.monotonic() < late:
        for p in pids:
            if p not in ended and (done := os.waitpid(p, os.WNOHANG))[0]: ended[p] = os.waitstatus_to_exitcode(done[1])
        time.sleep(.005)
    for p in set(pids) - ended.keys(): os.kill(p, signal.SIGKILL); os.waitpid(p, 0)
    assert len(ended) == world, f'hangs: of {pids} only {ended} ended'
    return [ended[p] for p in pids]

if __name__ == '__main__':
    kind, out, kw = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    try: train(kind, out, kill=json.loads(sys.argv[4]) if len(sys.argv) > 4 else None, **kw)
    except VaetagError as e: print(e, file=sys.stderr); sys.exit(getattr(e, 'exit_code', 1))
