"Plans, accumulation, precision, guards and hostile run folders of the trainers, on toys"
import contextlib, errno, json, os, signal, subprocess, threading
import numpy as np, pytest, timm, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from engine_toys import Gan, Noisy, Tagger, processes
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.core.io import load_tensors, read_json, read_jsonl, write_json
from vaetag_nb.core.rng import seeded
from vaetag_nb.trainers.callbacks import EarlyStop, Plateau, Samples, TensorBoard
from vaetag_nb.trainers.checkpoint import Checkpoint, RunFolder, locked
from vaetag_nb.trainers.engine import Trainer
from vaetag_nb.trainers.optim import Ema, applied, constant, cosine, linear, one_cycle
from vaetag_nb.trainers.plan import PlanSampler, bucketed, fingerprint, sequential, shuffled
from vaetag_nb.trainers.runtime import Means, NonFinite, Stopped
from vaetag_nb.trainers.task import Task, TensorSource

torch.set_num_threads(1)

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('VAETAG_QUIET', '1')

def trainer(task=None, out=None, **kw): return Trainer(task or Tagger(), out, device='cpu', **kw)

# --- plans -----------------------------------------------------------------------------------------------------------
plans = st.builds(lambda n, batch, seed, kind: (n, [shuffled(n, batch, seed), bucketed(np.arange(n) % 3, batch, seed), sequential(n, batch)][kind]),
                  st.integers(1, 60), st.integers(1, 9), st.integers(0, 99), st.integers(0, 2))

@given(plans, st.integers(0, 3), st.integers(1, 4))
def test_every_row_once_whatever_the_number_of_processes(plan, epoch, world):
    n, plan = plan
    ranks = [[s for s in PlanSampler(plan, r, world, (epoch, 0), epoch + 1)] for r in range(world)]
    assert sorted(i for r in ranks for s in r for i in s.indices[:s.n]) == list(range(n))
    for slices in zip(*ranks, strict=True):                 # every process takes part in every batch
        assert sum(s.n for s in slices) == slices[0].total and all(len(s.indices) for s in slices)
        assert sorted(i for s in slices for i in s.indices[:s.n]) == sorted(plan(epoch)[slices[0].batch])

@given(plans, st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_late_start_is_the_rest(plan, epochs, world, data):
    rank, plan = data.draw(st.integers(0, world - 1)), plan[1]
    whole = [*PlanSampler(plan, rank, world, epochs=epochs)]
    i = data.draw(st.integers(0, len(whole) - 1))
    rest = [*PlanSampler(plan, rank, world, whole[i][:2], epochs)]
    plain = lambda slices: [[x.tolist() if isinstance(x, np.ndarray) else x for x in s] for s in slices]
    assert plain(rest) == plain(whole[i:])

@given(plans, st.integers(1, 5))
def test_length_of_a_run_is_known_before(plan, accumulate):
    n, plan = plan
    assert len({len(plan(e)) for e in range(4)}) == 1 and len({fingerprint(plan) for i in range(2)}) == 1
    task = Tagger(n=n); task.plan = plan
    t = trainer(task, epochs=2, accumulate=accumulate)
    assert sum(1 for g in t.groups()) == t.total_steps

# --- schedules, averages, means --------------------------------------------------------------------------------------
@given(st.sampled_from([constant, linear, cosine]), st.integers(1, 400), st.one_of(st.integers(0, 500), st.floats(0, .99)))
def test_schedules_stay_between_0_and_1_and_end_above_0(make, total, warmup):
    f = [make(total, warmup)(s) for s in range(total)]
    assert all(0 < x <= 1 for x in f) and max(f) == 1
    top = f.index(1)
    assert top <= max(total//2, 1) and f[:top] == sorted(f[:top]) and f[top:] == sorted(f[top:], reverse=True)

@given(st.integers(2, 300), st.floats(.05, .9))
def test_one_cycle_rises_then_falls(total, rise):
    f = [one_cycle(total, rise)(s) for s in range(total)]
    top = int(np.argmax(f))
    assert 0 < min(f) and max(f) <= 1 + 1e-12 and f[:top] == sorted(f[:top]) and f[top:] == sorted(f[top:], reverse=True)

@given(st.lists(st.dictionaries(st.sampled_from('abc'), st.floats(-1e3, 1e3, width=32), min_size=1), min_size=1, max_size=12), st.data())
def test_means_go_on_exactly_from_their_state(steps, data):
    whole, part = Means(), Means()
    cut = data.draw(st.integers(0, len(steps)))
    feed = lambda m, xs: [m.add({k: torch.tensor(v) for k, v in x.items()}, 3) for x in xs]
    feed(whole, steps); feed(part, steps[:cut])
    part = Means(json.loads(json.dumps(part.state()))); feed(part, steps[cut:])
    assert part.read() == whole.read()

def test_averages_of_spectral_norm_stay_usable():
    with seeded(0): net = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    ema, opt = Ema(dict(net=net), .9, 'none'), torch.optim.SGD(net.parameters(), .5)
    for s in range(1, 20): net(torch.randn(8, 4)).pow(2).mean().backward(); opt.step(); opt.zero_grad(); ema.update(s)
    with applied(ema), torch.no_grad(): net.eval(); assert .8 < torch.linalg.matrix_norm(net.weight, 2) < 1.25

# --- one step --------------------------------------------------------------------------------------------------------
@settings(max_examples=15)
@given(st.integers(5, 40), st.integers(1, 6), st.integers(1, 5))
def test_accumulated_batches_are_one_batch(n, batch, accumulate):
    def run(batch, accumulate):
        task = Tagger(n=n, batch=batch, dropout=0., norm=False); t = trainer(task, accumulate=accumulate, epochs=2, max_grad_norm=.1)
        order = sequential(n, batch); task.plan = order
        t.train_mode(); losses = []
        for g in t.groups(): t.train_step(g); losses.append(t.interval.read()); t.interval = Means()
        return losses, task.net.state_dict()
    (a, wa), (b, wb) = run(batch*accumulate, 1), run(batch, accumulate)
    for x, y in zip(a, b, strict=True): assert x == pytest.approx(y, abs=2e-6)
    for k in wa: torch.testing.assert_close(wa[k], wb[k], atol=2e-5, rtol=1e-4)

def test_the_other_optimiser_is_left_alone():
    task = Gan(start=.5); t = trainer(task, epochs=2)
    task.G[3].weight.requires_grad_(False)                     # frozen by the user: stays so
    t = trainer(task, epochs=2)
    seen = []
    task.loss_gen_was, task.loss_gen = task.loss_gen, lambda b, c: (seen.append((task.D[2].weight.requires_grad, task.G[0].weight.requires_grad)), task.loss_gen_was(b, c))[1]
    t.train_mode(); d, frozen = task.D[2].weight.clone(), task.G[3].weight.clone()
    groups = [*t.groups()]
    for g in groups[:8]: t.train_step(g)
    assert torch.equal(task.D[2].weight, d) and set(seen) == {(False, True)}    # the discriminator has rested
    for g in groups[8:]: t.train_step(g)
    assert not torch.equal(task.D[2].weight, d) and torch.equal(task.G[3].weight, frozen)
    assert task.D[2].weight.requires_grad and not task.G[3].weight.requires_grad
    assert {'loss_gen', 'loss_disc', 'grad_norm_gen', 'grad_norm_disc', 'size'} == t.interval.read().keys()

def test_frozen_networks_stay_in_evaluation_mode():
    task = Tagger(); task.vae = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    seen = []; task.in_loss = lambda ctx: seen.append((task.net.training, task.vae[0].training))
    trainer(task).fit()
    assert set(seen) == {(True, False), (False, False)}        # in training, in validation

def test_rates_follow_schedule_and_layer_decay(tmp_path):
    class Layered(Tagger):
        def optims(self, total, per_epoch):
            groups = [dict(params=[*self.net[0].parameters(), *self.net[1].parameters()], lr_scale=.5), dict(params=self.net[4].parameters())]
            return dict(main=(torch.optim.AdamW(groups, lr=.01), lambda s: .1*(s + 1), ['net']))
    t = trainer(Layered(), steps=3); t.fit()
    assert [g['lr'] for g in t.parts['main'].opt.param_groups] == pytest.approx([.01*.3*.5, .01*.3])

def test_bf16_on_the_cpu():
    task, kinds = Tagger(), set()
    task.net[4].register_forward_hook(lambda m, i, o: kinds.add((m.training, o.dtype)))
    t = trainer(task, precision='bf16', epochs=6).fit()
    assert kinds == {(True, torch.bfloat16), (False, torch.float32)}           # validation keeps full precision
    assert all(p.dtype == torch.float32 for p in task.parameters()) and t.summary['loss'] < .65

def scaled(out):
    "A run with a gradient scaler, as with fp16 on a GPU"
    class Steep(Tagger):
        def loss_main(self, batch, ctx): loss, logs = super().loss_main(batch, ctx); return loss*1e6, logs
    t = trainer(Steep(), out, epochs=4, log_every=1, save_every='1 steps', keep_last=99)
    t.scaler = torch.amp.GradScaler('cpu', init_scale=2.**120, growth_interval=2)
    return t

def test_gradient_scaler_skips_infinite_gradients_and_is_saved(tmp_path):
    t = scaled(tmp_path/'a'); t.fit()
    log = [l for l in read_jsonl(tmp_path/'a/log.jsonl') if l['kind'] == 'step']
    assert log[0]['loss_scale'] == 2.**119 and log[0]['grad_norm'] is None and min(l['loss_scale'] for l in log) < 2.**115     # halved until gradients are finite
    half = RunFolder(tmp_path/'b').step(12); half.parent.mkdir(parents=True); (tmp_path/'a/checkpoints/step_00000012').rename(half)
    again = scaled(tmp_path/'b'); again.fit()
    for k, v in t.task.net.state_dict().items(): assert torch.equal(v, again.task.net.state_dict()[k])

def test_compiled_modules_keep_their_names():
    a, b = trainer(Tagger(dropout=0.), compile='eager', epochs=1).fit(), trainer(Tagger(dropout=0.), epochs=1).fit()
    for (k, x), (n, y) in zip(a.modules['net'].state_dict().items(), b.modules['net'].state_dict().items(), strict=True):
        assert k == n; torch.testing.assert_close(x, y)

def test_gradient_checkpointing_changes_no_gradient():
    class Vit(Task):
        def __init__(self):
            super().__init__()
            with seeded(0): self.net, x = timm.create_model('test_vit', num_classes=3), torch.randn(4, 3, 160, 160)
            self.source, self.plan = TensorSource(dict(x=x)), sequential(4, 2)
        def optims(self, total, per_epoch): return dict(main=(torch.optim.SGD(self.net.parameters(), .1), None, ['net']))
        def loss_main(self, batch, ctx): return self.net(batch['x']).pow(2).mean(), {}
    a, b = trainer(Vit(), gradient_checkpointing=True).fit(), trainer(Vit()).fit()
    assert a.task.net.grad_checkpointing and not b.task.net.grad_checkpointing
    for x, y in zip(a.task.parameters(), b.task.parameters()): torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)

# --- guards ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('deferred', [False, True])     # True: as on a GPU
def test_a_bad_sample_is_named(deferred, tmp_path):
    def run():
        t = trainer(Tagger(bad=17), tmp_path/'run', accumulate=2, save_every='1 steps', log_every=4); t.deferred = deferred
        t.fit()
    batches = Tagger().plan(0)
    bad = next(i for i, b in enumerate(batches) if 17 in b)
    assert bad//2 > 0
    with pytest.raises(NonFinite) as e: run()
    text, told = str(e.value), read_json(tmp_path/'run/nonfinite.json')
    assert text.startswith(f'{tmp_path}/run: step {bad//2 + 1}: the loss or its gradient is not finite; batch: ') and '\n' not in text
    assert text.endswith(f'last good checkpoint: step_{bad//2:08d}') and f'and {2*8 - 8} more' in text
    assert told == dict(step=bad//2 + 1, epoch=1, names=[f'{i}.jpg' for b in [*batches][bad//2*2:bad//2*2 + 2] for i in b]) and '17.jpg' in told['names']
    good = Checkpoint(tmp_path/f'run/checkpoints/step_{bad//2:08d}').tensors('net')
    assert all(v.isfinite().all() for v in good.values())

def test_a_bad_gradient_with_a_good_loss():
    task = Tagger(); was = task.loss_main
    task.loss_main = lambda b, c: (was(b, c)[0] + torch.sqrt(task.net[4].bias.sum()*0), {})     # 0 with an infinite slope
    with pytest.raises(NonFinite, match='step 1: the loss or its gradient'): trainer(task).fit()

def test_disk_full_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    out, real = tmp_path/'run', os.fsync
    t = trainer(Tagger(), out, save_every='2 steps', epochs=4)
    def full(fd):
        if t.step >= 4: raise OSError(errno.ENOSPC, 'No space left on device')
        real(fd)
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(VaetagError) as e: t.fit()
    assert str(e.value).endswith('cannot write: No space left on device') and '\n' not in str(e.value)
    monkeypatch.undo()
    assert RunFolder(out).latest().state['step'] == 2 and [*out.rglob('.*')] == [] and not (out/'lock').exists()
    t = trainer(Tagger(), out, save_every='2 steps', epochs=4).fit()
    assert t.step == t.total_steps and read_jsonl(out/'log.jsonl')[-1]['epoch'] == 4

def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path/'disk'; disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', disk], capture_output=True).returncode: pytest.skip('a small disk cannot be mounted here')
    try:
        t, real = trainer(Tagger(), disk/'run', save_every='2 steps', epochs=4), os.fsync
        def fill(fd):
            real(fd)
            if t.step >= 4 and not (disk/'ballast').exists():
                with open(disk/'ballast', 'wb', 0) as f, contextlib.suppress(OSError):
                    while f.write(b'0'*4096) == 4096: pass
        with pytest.MonkeyPatch.context() as m:
            m.setattr(os, 'fsync', fill)
            with pytest.raises(VaetagError, match='cannot write: No space left on device') as e: t.fit()
        assert '\n' not in str(e.value) and str(disk/'run') in str(e.value) and [*(disk/'run').rglob('.*')] == []
        saved = RunFolder(disk/'run').latest().state['step']
        (disk/'ballast').unlink()
        t = trainer(Tagger(), disk/'run', save_every='2 steps', epochs=4).fit()
        assert saved >= 2 and t.step == t.total_steps and read_jsonl(disk/'run/log.jsonl')[-1]['epoch'] == 4
    finally: subprocess.run(['umount', '-l', disk], check=True)   # tensors that are mapped into memory keep it busy for a while

def test_unwritable_folder(tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(VaetagError, match='file/run.*cannot write'): trainer(Tagger(), tmp_path/'file/run').fit()

def test_torn_checkpoints_are_passed_over(tmp_path, capsys, monkeypatch):
    out = tmp_path/'run'; monkeypatch.setenv('VAETAG_QUIET', '0')
    trainer(Tagger(), out, epochs=2, keep_last=3, save_every='4 steps').fit()
    last = sorted((out/'checkpoints').iterdir())[-1]
    data = (last/'net.safetensors').read_bytes(); (last/'net.safetensors').write_bytes(data[:-4])
    capsys.readouterr()
    t = trainer(Tagger(), out, epochs=3, save_every='4 steps').fit()
    assert f'net.safetensors has {len(data) - 4} of {len(data)} bytes; passed over' in capsys.readouterr().err
    assert t.step == t.total_steps and [l['epoch'] for l in read_jsonl(out/'log.jsonl') if l['kind'] == 'epoch'] == [1, 2, 3]

def test_bits_changed_within_a_tensor_file_are_an_error(tmp_path):
    out = tmp_path/'run'; trainer(Tagger(), out).fit()
    f = sorted((out/'checkpoints').iterdir())[-1]/'net.safetensors'
    f.write_bytes(b'\xff'*f.stat().st_size)
    with pytest.raises(VaetagError, match='not a whole safetensors file'): trainer(Tagger(), out, epochs=2).fit()

def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    out = tmp_path/'run'; trainer(Tagger(), out).fit()
    with pytest.raises(VaetagError, match=r"the run has the modules \['net'\], this task \['G', 'D'\]"): trainer(Gan(n=46, batch=8), out, epochs=2).fit()
    class Wide(Tagger):
        def __init__(self): super().__init__(); self.net[4] = nn.Linear(16, 5)
    with pytest.raises(VaetagError, match='does not fit the model: 4.bias has shape') as e: trainer(Wide(), out, epochs=2).fit()
    assert '\n' not in str(e.value)
    for n in (out/'checkpoints').iterdir(): write_json(n/'state.json', dict(format='lightning'))
    with pytest.raises(VaetagError, match='holds a run that has ended, without its checkpoints'): trainer(Tagger(), out).fit()

def test_another_seed_batch_size_or_setting_is_refused(tmp_path):
    out, config = tmp_path/'run', dict(batch_size=8, optim=dict(lr=.01), model=dict(d=8), sizes=(1, 2))
    run = lambda task=None, override=(), **kw: trainer(task, out, **{**dict(epochs=2, config=config), **kw}).fit(override=override)
    run(epochs=1)
    with pytest.raises(VaetagError, match='seed was 0, now 1'): run(seed=1)
    with pytest.raises(VaetagError, match='batch_size was 8, now 4'): run(Tagger(batch=4), config=dict(config, batch_size=4))
    with pytest.raises(VaetagError, match='optim.lr was 0.01, now 0.1'): run(config=dict(config, optim=dict(lr=.1)))
    with pytest.raises(VaetagError, match='precision was "auto", now "bf16"'): run(precision='bf16')
    with pytest.raises(VaetagError, match='the training data are not those'): run(Tagger(n=47))
    locked_task = Tagger(); locked_task.locked = ('model.*',)
    with pytest.raises(VaetagError, match='model.d was 8, now 9; use the old value or another folder$'): run(locked_task, True, config=dict(config, model=dict(d=9)))
    assert run(override=['optim.*'], config=dict(config, optim=dict(lr=.1)), workers=1).step == 12
    assert 'lr: 0.1' in (out/'config.yaml').read_text()

def test_a_changed_rate_takes_effect(tmp_path):
    class Hot(Tagger):
        def optims(self, total, per_epoch): return dict(main=(torch.optim.AdamW(self.net.parameters(), lr=self.lr, weight_decay=self.lr), None, ['net']))
    def run(lr, **kw): task = Hot(); task.lr = lr; return trainer(task, tmp_path/'run', config=dict(lr=lr), **kw)
    run(.01).fit()
    t = run(.5, epochs=2).fit(override=['lr'])
    g = t.parts['main'].opt.param_groups[0]; assert (g['lr'], g['weight_decay']) == (.5, .5)

def test_two_runs_in_one_folder(tmp_path):
    run, told = RunFolder(tmp_path/'run'), tmp_path/'log'
    with locked(run):
        assert processes(lambda: trainer(Tagger(), run.path).fit(), 1, told) == [1]
    assert f'process {os.getpid()} on ' in told.read_text() and 'is training in this folder' in told.read_text()
    assert processes(lambda: trainer(Tagger(), run.path).fit()) == [0]

def test_many_start_at_once_one_wins(tmp_path):
    def start():
        with locked(RunFolder(tmp_path/'run')): (tmp_path/f'{os.getpid()}').touch(); signal.pause()
    write_json(tmp_path/'run/lock/holder.json', dict(host='', pid=0, born=0.))        # garbage counts as a living one of another machine
    with pytest.raises(VaetagError, match='process 0 on '): locked(RunFolder(tmp_path/'run')).__enter__()
    write_json(tmp_path/'run/lock/holder.json', [])                                   # no holder at all: stale
    pids = []
    for i in range(6):
        pid = os.fork()
        if pid == 0:
            try: start()
            except VaetagError: os._exit(1)
            finally: os._exit(2)
        pids.append(pid)
    lost = 0
    while lost < 5: os.waitpid(-1, 0); lost += 1
    alive = [p for p in pids if (tmp_path/str(p)).exists()]
    assert len(alive) == 1
    os.kill(alive[0], signal.SIGKILL); os.waitpid(alive[0], 0)
    with locked(RunFolder(tmp_path/'run')): pass                                      # the winner died: stale again

def test_an_error_in_a_worker_is_one_line(tmp_path):
    class Broken(Noisy):
        def get(self, epoch, indices): raise VaetagError('0.jpg: cannot be read')
    task = Tagger(); task.source = Broken(46, 8, 0)
    with pytest.raises(VaetagError) as e: trainer(task, tmp_path/'run', workers=1).fit()
    assert str(e.value) == '0.jpg: cannot be read'

# --- the run ---------------------------------------------------------------------------------------------------------
def test_rhythms_of_a_run(tmp_path):
    t = trainer(Tagger(), tmp_path/'run', steps=14, eval_every='5 steps', eval_first=True, log_every=7, save_every=0).fit()
    log = read_jsonl(tmp_path/'run/log.jsonl')
    assert [(l['kind'], l['step']) for l in log] == [('eval', 0), ('eval', 5), ('epoch', 6), ('step', 7), ('eval', 10), ('epoch', 12), ('step', 14), ('eval', 14)]
    assert [*t.run.steps()] == [14] and t.epochs == 3 and (t.epoch, t.batch) == (2, 2)
    assert trainer(Tagger(), tmp_path/'run', steps=20, eval_every='5 steps', log_every=7).fit().step == 20   # on from mid-epoch

def test_best_is_the_best_and_the_average(tmp_path):
    class Worse(Tagger):
        def validate(self, trainer): return {'val/loss': {6: 3., 12: 1., 18: 2.}[trainer.step] + torch.rand(1).item()*0, 'w': self.net[4].weight[0, 0].item()}
    t = trainer(Worse(), tmp_path/'run', epochs=3, ema=.5, keep_last=1).fit()
    best = read_json(tmp_path/'run/best.json')
    assert best == dict(step=12, epoch=2, metric='ema/val/loss', value=1.)
    log = {l['epoch']: l for l in read_jsonl(tmp_path/'run/log.jsonl') if l['kind'] == 'epoch'}
    assert load_tensors(tmp_path/'run/best/net.safetensors')[0]['4.weight'][0, 0].item() == log[2]['ema/w'] != log[2]['w']
    assert [log[e]['best'] for e in (1, 2, 3)] == [True, True, False]
    assert [*t.run.steps()] == [12, 18]                     # the last, and that of the best step

def test_early_stop_ends_the_run(tmp_path):
    class Flat(Tagger):
        def validate(self, trainer): return {'val/loss': 1.}
    run = lambda **kw: trainer(Flat(), tmp_path/'run', callbacks=[EarlyStop(2), Plateau(1, .5)], **kw).fit()
    t = run(epochs=9)
    assert (t.epoch, read_json(tmp_path/'run/done.json')['reason']) == (3, 'val/loss has not become better than 1.0 in 2 validations')
    assert t.lr_factor == .25 and run(epochs=9).step == t.step      # it has ended: nothing to do

def test_a_figure_that_is_not_there(tmp_path):
    task = Tagger(); task.select = 'val/los'
    with pytest.raises(VaetagError, match="validation has no figure 'val/los'. Did you mean 'val/loss'"): trainer(task, tmp_path/'run').fit()

def test_without_validation_the_last_weights_are_the_best(tmp_path):
    task = Tagger(); task.validate = lambda t: {}
    t = trainer(task, tmp_path/'run', epochs=2).fit()
    assert torch.equal(load_tensors(tmp_path/'run/best/net.safetensors')[0]['0.weight'], t.task.net[0].weight)
    assert read_json(tmp_path/'run/best.json') == dict(step=12, epoch=2, metric=None, value=None)

def test_pictures_and_tensorboard(tmp_path):
    task = Tagger(); task.samples = lambda t: {'grid': Image.new('RGB', (4, 4), (t.step, 0, 0))}
    trainer(task, tmp_path/'run', callbacks=[Samples('4 steps'), TensorBoard()], log_every=2).fit()
    assert [p.name for p in (tmp_path/'run/samples').iterdir()] == ['step_00000004_grid.png']
    events, = (tmp_path/'run/tensorboard').iterdir()
    assert b'val/loss' in events.read_bytes() and b'grad_norm' in events.read_bytes()

def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = trainer(Tagger(), epochs=1).fit()
    assert t.fit() is t and [*tmp_path.iterdir()] == []

def test_rhythms_that_are_none():
    with pytest.raises(UsageError, match="'often' is no rhythm"): trainer(save_every='often')
    with pytest.raises(UsageError, match='eval_every: 10 minutes: a validation by the clock'): trainer(eval_every='10 minutes')

def test_a_signal_at_the_very_end_is_not_lost(tmp_path):
    task = Tagger(); t = trainer(task, tmp_path/'run')
    task.save_best = lambda d, tr: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): t.fit()
    assert (tmp_path/'run/done.json').exists()             # the run has ended, what comes after it has not

def test_stopped_and_gone_on_in_one_notebook(tmp_path):
    task = Tagger(); t = trainer(task, tmp_path/'run', save_every='2 steps', ema=.9)
    task.in_loss = lambda ctx: signal.raise_signal(signal.SIGINT) if ctx and ctx.step == 3 else None
    with pytest.raises(Stopped, match=f'stopped by SIGINT after step 4; {tmp_path}/run: saved; the same command goes on from there'): t.fit()
    task.in_loss = lambda ctx: None
    straight = trainer(Tagger(), ema=.9).fit()
    for x, y in zip(t.fit().task.parameters(), straight.task.parameters()): assert torch.equal(x, y)

def test_two_callbacks_of_a_class_have_their_own_memory(tmp_path):
    stops = lambda: [EarlyStop(9, 'val/loss'), EarlyStop(9, 'val/luck', 'max')]
    a = stops(); trainer(Tagger(), tmp_path/'run', callbacks=a).fit()
    b = stops(); trainer(Tagger(), tmp_path/'run', callbacks=b, epochs=2).load(RunFolder(tmp_path/'run').latest())
    assert [c.best for c in a] == [c.best for c in b] and len({c.best for c in b}) == 2

def test_a_run_in_another_thread():
    "A notebook server or a dashboard may train in a thread, where signals cannot be caught"
    t = trainer(Tagger()); th = threading.Thread(target=t.fit); th.start(); th.join()
    assert t.step == 6

def test_a_finished_run_with_its_marker_lost(tmp_path):
    t = trainer(Tagger(), tmp_path/'run').fit(); (tmp_path/'run/done.json').unlink()       # killed just before it was written
    before = (tmp_path/'run/log.jsonl').read_text()
    assert trainer(Tagger(), tmp_path/'run').fit().step == t.step and (tmp_path/'run/done.json').exists()
    assert (tmp_path/'run/log.jsonl').read_text() == before

def test_leftovers_of_a_run_without_checkpoint(tmp_path):
    (tmp_path/'run').mkdir(); (tmp_path/'run/log.jsonl').write_text('{"kind": "step", "step": 1}\n')
    trainer(Tagger(), tmp_path/'run', log_every=1).fit()
    assert [l['step'] for l in read_jsonl(tmp_path/'run/log.jsonl')] == [1, 2, 3, 4, 5, 6, 6]
