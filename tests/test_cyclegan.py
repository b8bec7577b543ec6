"`train cyclegan`: goes on bit by bit wherever it was killed, learns, reads every form of latents, the original's checkpoints, and says what is wrong."
import os, re, signal, time
from dataclasses import replace
import numpy as np, pytest, torch, torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from engine_toys import processes
from vaetag_nb.core.config import load, to_yaml
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import load_tensors, load_tree, read_json, read_jsonl
from vaetag_nb.eval.features import KINDS, RandomFeatures
from vaetag_nb.latents.files import latent_files, pack
from vaetag_nb.models.cyclegan_folder import Space, load_cyclegan
from vaetag_nb.models.cyclegan_original import original_cyclegan, read_original
from vaetag_nb.trainers import checkpoint, engine
from vaetag_nb.trainers.checkpoint import RunFolder
from vaetag_nb.trainers.cyclegan import gan_task, train_cyclegan
from vaetag_nb.trainers.cyclegan_data import LatentSide, PairSource
from vaetag_nb.trainers.cyclegan_losses import latent_fd, latent_features
from vaetag_nb.trainers.cyclegan_settings import CycleGanConfig
from vaetag_nb.trainers.cyclegan_task import CycleGanTask
from vaetag_nb.trainers.processes import Processes
from vaetag_nb.trainers.unpaired import unpaired
from vaetag_nb.verbs.base import shell
from vaetag_nb.verbs.train import _gan_config

torch.set_num_threads(1)
MOVE = torch.tensor([.8, -.8, 0, .4]).view(4, 1, 1)
TINY = dict(model=dict(ngf=8, n_res_blocks=1, ndf=8, d_layers=1), buffer=dict(size=3), batch_size=2, epochs=2, save_every='1 steps', log_every=2, device='cpu')

@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path_factory):
    monkeypatch.setenv('VAETAG_QUIET', '1')
    monkeypatch.setitem(KINDS, 'toy', lambda *_: RandomFeatures('toy'))   # quick; `random` itself is refused
    monkeypatch.setenv('VAETAG_CACHE', str(tmp_path_factory.getbasetemp()/'cache'))

def latents(folder, n, b=False, seed=0, sizes=((8, 8), (8, 10))):
    "Noise as latents, of two shapes; those of B are weaker and moved"
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed + b)
    for i in range(n):
        z = torch.randn(4, *sizes[i % len(sizes)], generator=g)
        np.save(folder/f'{i:03d}.npy', (z*.7 + MOVE if b else z).numpy())

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    d = tmp_path_factory.mktemp('gan')
    latents(d/'a', 11); latents(d/'b', 7, True)
    return d

def config(home, out, **more): return load(CycleGanConfig, TINY, dict(out=str(out), data=dict(a_dir=str(home/'a'), b_dir=str(home/'b'))), more)

def log_of(out): return [{k: v for k, v in l.items() if k not in ('time_sec', 'img_s', 'mem_mb')} for l in read_jsonl(out/'log.jsonl')]

def result(out):
    "All that must be the same: the last checkpoint, the best weights, the log without times"
    last = RunFolder(out).latest().path
    loop = load_tree(last/'loop.safetensors'); loop['callbacks'].pop('GanLog')
    files = {f'{f.parent.name}/{f.name}': f.read_bytes() for d in (last, out/'best') for f in sorted(d.iterdir()) if f.name not in ('loop.safetensors', 'state.json')}
    return dict(files=files, loop=loop, log=log_of(out), best=read_json(out/'best.json'), domains=read_json(out/'domains.json'))

def same(a, b):
    assert a['log'] == b['log'] and a['files'].keys() == b['files'].keys()
    for f in a['files']: assert a['files'][f] == b['files'][f], f
    assert a == b

def struck(cfg, where, step, rank=0):
    "Train, and be killed: in the generators' turn, in the discriminators', or in the middle of a save"
    strike = lambda: os.kill(os.getpid(), signal.SIGKILL)
    mine = lambda: int(os.environ.get('RANK', 0)) == rank
    if where == 'save':
        write = checkpoint.save_tree
        def torn(path, tree, metadata=None):
            if path.parent.name.startswith(f'.step_{step:08d}'): path.write_bytes(b'half'); strike()
            write(path, tree, metadata)
        checkpoint.save_tree = torn
    else:
        real = getattr(CycleGanTask, f'loss_{where}')
        def loss(self, batch, ctx):
            out = real(self, batch, ctx)
            if ctx.step == step and mine(): strike()
            return out
        setattr(CycleGanTask, f'loss_{where}', loss)
    train_cyclegan(cfg)

@pytest.fixture(scope='module')
def straight(home, tmp_path_factory):
    "The result of a run that was never stopped"
    runs = {}
    def get(world=1, **more):
        key = world, str(more)
        if key not in runs:
            out = tmp_path_factory.mktemp('straight')/'run'
            if world == 1: train_cyclegan(config(home, out, **more))
            else: assert processes(lambda: train_cyclegan(config(home, out, **more)), world) == [0]*world
            runs[key] = result(out)
        return runs[key]
    return get

# --- resume ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('where,step,workers,more', [pytest.param('disc', 3, 0, {}, marks=pytest.mark.slow), ('gen', 8, 2, dict(ema=.9)), pytest.param('save', 7, 0, {}, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_never_stopped(home, straight, tmp_path, where, step, workers, more):
    out = tmp_path/'run'
    assert processes(lambda: struck(config(home, out, **more), where, step)) == [-signal.SIGKILL]
    assert processes(lambda: train_cyclegan(config(home, out, workers=workers, **more))) == [0]
    a, b = result(out), straight(**more)
    same(a, b)
    last = f"step_{len([l for l in b['log'] if l['kind'] == 'epoch'])*5:08d}"
    assert {f'{last}/{n}.safetensors' for n in ('G', 'F', 'D_A', 'D_B', 'optim_gen', 'optim_disc', 'buffers', *(('G_ema', 'F_ema') if more else ()))} <= set(a['files'])
    buffers = load_tensors(RunFolder(out).latest().path/'buffers.safetensors')[0]
    assert {k: len(v) for k, v in buffers.items()} == {f'{d}/4x8x{w}': 3 for d in 'AB' for w in (8, 10)}   # full

def pictured(folder, out, best='fid', **more): # latents of the embedded VAE, whose decoded pictures are compared
    if not folder.exists():
        for k, move in dict(a=0., b=1.).items():
            (folder/k).mkdir(parents=True)
            for i in range(10): np.save(folder/k/f'{i}.npy', torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(i)).add(move).numpy())
    return load(CycleGanConfig, TINY, dict(out=str(out), data=dict(a_dir=str(folder/'a'), b_dir=str(folder/'b'), latents_scaled=True), codec=dict(vae='embedded'), epochs=3, preview=dict(every_epochs=0),
                                           eval=dict(best=best, every_epochs=2, features=['toy'])), more)

@pytest.mark.parametrize('best', ['fid', pytest.param('last', marks=pytest.mark.slow)])
def test_decoded_pictures_choose_and_a_resumed_run_is_the_same(tmp_path, best):
    cfg = lambda n: pictured(tmp_path/'data', tmp_path/n, best)
    train_cyclegan(cfg('straight'))
    assert processes(lambda: struck(cfg('killed'), 'gen', 9)) == [-signal.SIGKILL]    # in the third epoch, after a look at the second
    train_cyclegan(cfg('killed'))
    a, b = (result(tmp_path/n) for n in ('killed', 'straight'))
    a, b = ({**r, 'domains': None} for r in (a, b))
    same(a, b)
    seen = {l['step']: l['val_fd_toy'] for l in b['log'] if 'val_fd_toy' in l}
    assert [k for k, v in seen.items() if v is not None] == [0, 8, 12]     # before the first step, after the second epoch, at the end
    if best == 'last': assert b['best'] == dict(step=12, epoch=3, metric=None, value=None)
    else: assert b['best']['metric'] == 'val_fd_toy' and b['best']['value'] == min(v for v in seen.values() if v is not None)
    assert load_cyclegan(tmp_path/'killed').meta['metrics']['val_fd_toy'] == (seen[12] if best == 'last' else b['best']['value'])

@pytest.mark.slow
def test_two_processes_see_the_same_pictures(tmp_path):
    train_cyclegan(pictured(tmp_path/'data', tmp_path/'one'))
    assert processes(lambda: train_cyclegan(pictured(tmp_path/'data', tmp_path/'two')), 2) == [0, 0]
    first = lambda n: next(l['val_fd_toy'] for l in log_of(tmp_path/n) if l.get('val_fd_toy'))
    assert first('one') == pytest.approx(first('two'), rel=1e-6)    # before the first step; later the buffers differ

@pytest.mark.slow
def test_two_processes_killed_and_resumed(home, straight, tmp_path):
    out = tmp_path/'run'
    status = processes(lambda: struck(config(home, out), 'disc', 6, rank=1), 2)
    assert status[1] == -signal.SIGKILL and status[0] != 0
    assert processes(lambda: train_cyclegan(config(home, out)), 2) == [0, 0]
    same(result(out), straight(2))

@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_another_number_goes_on(home, tmp_path):
    even = tmp_path/'even'
    latents(even/'a', 8, sizes=((8, 8),)); latents(even/'b', 4, True, sizes=((8, 8),))
    cfg = lambda n, **k: config(even, tmp_path/n, buffer=dict(size=0), epochs=2, save_every=1, **k)
    train_cyclegan(cfg('one'))
    assert processes(lambda: train_cyclegan(cfg('two')), 2) == [0, 0]
    for x, y in zip(log_of(tmp_path/'one'), log_of(tmp_path/'two')):
        for k in x: assert x[k] == pytest.approx(y[k], abs=1e-5), k
    assert processes(lambda: train_cyclegan(replace(cfg('two'), epochs=3, schedule=replace(cfg('two').schedule, constant_epochs=1, decay_epochs=1)), override=True)) == [0]

@pytest.mark.slow
def test_a_rate_that_is_overridden_takes_effect_and_other_data_do_not(home, tmp_path, capsys):
    cfg = config(home, tmp_path/'run', epochs=1)
    train_cyclegan(cfg)
    more = replace(cfg, epochs=2, optim=replace(cfg.optim, lr=1e-3))
    with pytest.raises(VaetagError, match=r'optim.lr was 0.0002, now 0.001'): train_cyclegan(more)
    train_cyclegan(more, override=True)
    e = [l for l in read_jsonl(tmp_path/'run/log.jsonl') if l['kind'] == 'epoch']
    assert e[0]['lr_G'] < 2e-4 < e[-1]['lr_G']
    with pytest.raises(VaetagError, match='model.ngf was 8, now 16'): train_cyclegan(replace(cfg, model=replace(cfg.model, ngf=16)), override=True)
    with pytest.raises(VaetagError, match='data.latent_divisor was 1.0, now 2.0'): train_cyclegan(replace(cfg, data=replace(cfg.data, latent_divisor=2.)), override=True)

def test_changed_latents_are_refused(home, tmp_path):
    for s in 'ab': latents(tmp_path/s, 5, s == 'b')
    cfg = config(tmp_path, tmp_path/'run', epochs=1)
    train_cyclegan(cfg)
    np.save(tmp_path/'a/000.npy', np.ones((4, 8, 8), np.float32))
    with pytest.raises(VaetagError, match='not those that this run was started with'): train_cyclegan(replace(cfg, epochs=2, schedule=replace(cfg.schedule, constant_epochs=0, decay_epochs=1)), override=True)

# --- one step ------------------------------------------------------------------------------------------------------------
def test_the_generators_turn_changes_nothing_of_the_discriminators(home, tmp_path, monkeypatch):
    seen, real = [], engine.Trainer.update
    state = lambda t, names: {f'{n}.{k}': v.clone() for n in names for k, v in t.task.get_submodule(n).state_dict().items()}
    def update(self, name, part, figures):
        mine, other = (('G', 'F'), ('D_A', 'D_B')) if name == 'gen' else (('D_A', 'D_B'), ('G', 'F'))
        before = state(self, mine), state(self, other)
        grads = [p.grad is not None for n in other for p in self.task.get_submodule(n).parameters()]
        out = real(self, name, part, figures)
        after = state(self, mine), state(self, other)
        seen.append((name, any(grads), any(not torch.equal(v, before[0][k]) for k, v in after[0].items()), all(torch.equal(v, before[1][k]) for k, v in after[1].items())))
        return out
    monkeypatch.setattr(engine.Trainer, 'update', update)
    with_d = []
    real_gen = CycleGanTask.loss_gen
    def loss_gen(self, batch, ctx):
        then = {f'{n}.{k}': v.clone() for n in ('D_A', 'D_B') for k, v in self.get_submodule(n).state_dict().items()}
        out = real_gen(self, batch, ctx)
        with_d.append(all(torch.equal(v, then[f'{n}.{k}']) for n in ('D_A', 'D_B') for k, v in self.get_submodule(n).state_dict().items()))
        return out
    monkeypatch.setattr(CycleGanTask, 'loss_gen', loss_gen)
    train_cyclegan(config(home, tmp_path/'run', epochs=1))
    assert len(seen) == 10 and {s[0] for s in seen} == {'gen', 'disc'} and all(not g and moved and still for _, g, moved, still in seen) and all(with_d)

def test_not_finite_stops_before_the_step_and_names_the_files(home, tmp_path, monkeypatch):
    real = CycleGanTask.loss_gen
    def loss_gen(self, batch, ctx):
        loss, logs = real(self, batch, ctx)
        return (loss*float('nan'), logs) if ctx.step == 3 else (loss, logs)
    monkeypatch.setattr(CycleGanTask, 'loss_gen', loss_gen)
    with pytest.raises(VaetagError, match=r'step 4: .*batch: 0\d\d.npy.*last good checkpoint: step_00000003'): train_cyclegan(config(home, tmp_path/'run'))

@pytest.mark.slow
@pytest.mark.parametrize('more', [dict(loss=dict(gan='hinge', distance='huber', lambda_id=0)), dict(loss=dict(gan='logistic', distance='l2'), accumulate=2, optim=dict(max_grad_norm=1.)),
    dict(model=dict(generator='classic', discriminator='classic', ngf=8, ndf=8, n_res_blocks=1)), dict(model=dict(generator='classic_dw', discriminator='classic_dw', ngf=8, ndf=8, n_res_blocks=1, out_activation='tanh')),
    dict(precision='bf16', data=dict(preload='never', length='3', space='raw', latent_divisor=2.)), dict(steps=5, epochs=None, model=dict(ngf=6, norm='instance', n_res_blocks=1, ndf=8, d_layers=1, spectral_norm=False))], ids=range(6))
def test_every_setting_trains(home, tmp_path, more):
    base = config(home, tmp_path/'run', epochs=1)
    cfg = load(CycleGanConfig, base, more)
    r = train_cyclegan(cfg)
    last = [l for l in read_jsonl(r.out/'log.jsonl') if l['kind'] == 'epoch'][-1]
    assert all(np.isfinite(v) for v in last.values() if isinstance(v, float))
    l = cfg.resolved().loss
    total = last['loss_gan_G'] + last['loss_gan_F'] + l.lambda_cyc*last['loss_cyc'] + l.lambda_cyc*l.lambda_id*last.get('loss_id', 0.)
    assert last['loss_G'] == pytest.approx(total, rel=1e-5) and ('loss_id' in last) == (l.lambda_id > 0)
    assert last['loss_D'] == pytest.approx(l.d_scale*(last['loss_D_A'] + last['loss_D_B']), rel=1e-5)
    m = load_cyclegan(r.out)
    assert m.translate(torch.randn(1, 4, 8, 8)).shape == (1, 4, 8, 8)

# --- data ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_all_forms_of_latents_train_to_the_same_weights(home, tmp_path):
    def written(form):
        for s in 'ab':
            (tmp_path/form/s).mkdir(parents=True)
            for f in latent_files(home/s):
                z, p = torch.from_numpy(np.load(home/s/f)), tmp_path/form/s/f.replace('.npy', '')
                if form == 'safetensors': save_file(dict(latent=z), f'{p}.safetensors')
                else: torch.save(dict(tensor=z, batch=z[None], dict=dict(latent=z, other=1))[form], f'{p}.PT')
        return load_tensors(train_cyclegan(config(tmp_path/form, tmp_path/form/'run', epochs=1)).best/'G.safetensors')[0]
    want = load_tensors(train_cyclegan(config(home, tmp_path/'run', epochs=1)).best/'G.safetensors')[0]
    for form in ('tensor', 'batch', 'dict', 'safetensors'):
        got = written(form)
        assert all(torch.equal(v, got[k]) for k, v in want.items()), form

def test_chosen_samples_are_listed(home, tmp_path):
    r = train_cyclegan(config(home, tmp_path/'run', epochs=1, data=dict(a_dir=str(home/'a'), b_dir=str(home/'b'), max_a=3)))
    listed = read_json(r.out/'domains.json')
    assert (len(listed['A']['train']), len(listed['A']['val']), len(listed['B']['train'])) == (3, 2, 7) and listed['B']['train'] == listed['B']['val']

# --- the command and its errors --------------------------------------------------------------------------------------------
def run(*args): return shell('train', 'cyclegan', *map(str, args))

def test_the_command(home, tmp_path):
    (tmp_path/'run.yaml').write_text(to_yaml(config(home, tmp_path/'run', epochs=1)))
    assert _gan_config([str(tmp_path/'run.yaml')])[0] == config(home, tmp_path/'run', epochs=1)
    status, out, _ = run(tmp_path/'run.yaml', '--dry-run')
    assert status == 0 and 'receptive_field' in out and 'memory_mb' in out and not (tmp_path/'run').exists()
    assert run(tmp_path/'run.yaml')[0] == 0
    status, out, err = run(tmp_path/'run.yaml')
    assert (status, err) == (0, '') and str(tmp_path/'run/best') in out
    for more, told in ((('--optim.lr', '1'), 'or override it (--override)'), (('--batch-size', '3'), 'or another folder')):
        status, _, err = run(tmp_path/'run.yaml', *more)
        assert status == 1 and err.rstrip().endswith(told)

WRONG = [('', dict(data=dict(a_dir=None)), 2, 'data.a_dir: not given'), ('', dict(data=dict(a_dir='{d}/none')), 1, 'data.a_dir: {d}/none: no such folder'),
    ('', dict(data=dict(a_dir='{d}/empty')), 1, 'holds neither latents (.pt, .safetensors, .npy) nor pictures'),
    ('', dict(data=dict(latents_scaled=True)), 1, 'data.latents_scaled: true needs the scale and shift to undo'),
    ('', dict(data=dict(latents_scaled=True), codec=dict(family='flux')), 1, 'flux has 16 channels, the latents have 4'),
    ('', dict(codec=dict(family='sd15')), 1, 'look scaled'), ('', dict(model=dict(in_channels=3)), 1, 'model.in_channels: 3, but'),
    ('', dict(model=dict(d_layers=4)), 1, 'these networks need 16'), ('', dict(data=dict(latent_divisor=-1.)), 2, 'data.latent_divisor: -1.0'),
    ('', dict(buffer=dict(prob=2.)), 2, 'buffer.prob: 2.0'), ('', dict(buffer=dict(size=-1)), 2, 'buffer.size: -1 is not at least 0'), ('', dict(epochs=0), 2, 'epochs: 0 is not at least 1'),
    ('loss: {gan: wgan}', {}, 2, "loss.gan: 'wgan' is none of 'lsgan'"), ('epochs: many', {}, 2, "epochs: expected int, got 'many'"), ('', dict(batch_size=0), 2, 'batch_size: 0'), ('', dict(epochs=3, steps=3), 2, 'epochs: 3 and steps: 3'),
    ('', dict(model=dict(out_activation='tanh')), 2, 'tanh with generator residual'), ('', dict(model=dict(out_activation='gelu')), 2, "'gelu' is none of"),
    ('', dict(epochs=6, schedule=dict(rule='original', constant_epochs=1, decay_epochs=2)), 2, '4 of 6 epochs would train at rate 0'),
    ('', dict(model=dict(init='{d}/none')), 1, 'model.init: {d}/none: no such'),
    ('[1, 2]', {}, 2, 'expected a mapping, got list'), ('loss: {lambda_cycle: 3}', {}, 2, "loss.lambda_cycle: no such setting. Did you mean 'lambda_cyc'"),
    ('data: {latents_scaled: "false"}', {}, 2, 'data.latents_scaled: expected bool'), ('schedule: {rule: cosine}', {}, 2, "schedule.rule: 'cosine' is none of")]

@pytest.mark.parametrize('text,change,status,words', WRONG, ids=range(len(WRONG)))
def test_wrong_settings_are_said_in_one_line(home, tmp_path, text, change, status, words):
    (tmp_path/'empty').mkdir()
    fill = lambda x: {k: fill(v) for k, v in x.items()} if isinstance(x, dict) else x.format(d=tmp_path) if isinstance(x, str) else x
    (tmp_path/'c.yaml').write_text(text or to_yaml(load(CycleGanConfig, config(home, tmp_path/'run'), fill(change))))
    got, _, err = run(tmp_path/'c.yaml')
    assert got == status and words.format(d=tmp_path) in err and err.count('\n') == 1 and not (tmp_path/'run').exists(), err

def test_what_a_run_remarks_before_it_begins(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('VAETAG_QUIET', '')
    def said(**more):
        gan_task(config(home, tmp_path/'run', **more).resolved(), Processes('cpu'))
        return capsys.readouterr().err
    tanh = dict(model=dict(TINY['model'], generator='classic', out_activation='tanh'))
    at = lambda d: dict(data=dict(a_dir=str(home/'a'), b_dir=str(home/'b'), latent_divisor=d))
    assert re.search(r'model.out_activation: tanh: 3\d\.\d\d% of A and \d+\.\d\d% of B lie outside', said(**tanh)) and 'tanh' not in said(**tanh, **at(10.))
    assert 'no VAE (codec.vae): no previews' in said() and 'previews' not in said(preview=dict(every_epochs=0))
    assert re.search(r'nowhere: no such VAE file or folder.*; no previews', said(codec=dict(vae=str(tmp_path/'nowhere'))))
    assert 'sees 38 latents, more than the 8 of the smallest latent' in said(model=dict(TINY['model'], d_layers=3)) and 'fewer than batch_size 9: each batch holds all of them' in said(batch_size=9)

BAD = [(dict(image=torch.zeros(4, 8, 8)), 'expected is the key latent'), (torch.zeros(8, 8), 'shape [8, 8]'), (torch.full((4, 8, 8), float('inf')), 'not finite'),
    (b'', 'not a torch file, but an empty one'), (b'hello world', 'not a torch file, but a text file'), (torch.zeros(3, 8, 8), '3 channels'), (torch.zeros(4, 1, 8), 'latent of 1 x 8; these networks need 2')]

def test_a_pickle_that_wants_code_is_not_run(home, tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'run by the pickle'),)
    (tmp_path/'x').mkdir()
    for i, x in enumerate((Evil(), dict(latent=Evil()))): torch.save(x, tmp_path/f'x/{i}.pt')
    torch.save(dict(cfg={}, G={}, F={}, rng=Evil()), tmp_path/'last.pt')
    base = ('--out', str(tmp_path/'run'), '--device', 'cpu', '--data.a-dir', str(tmp_path/'x'), '--data.b-dir', str(home/'b'))
    for args, file in ((('train', 'cyclegan', *base), 'x/0.pt'), (('migrate', 'cyclegan', str(tmp_path/'last.pt'), '--out', str(tmp_path/'m')), 'last.pt')):
        status, _, err = shell(*args)
        assert status == 1 and f'{tmp_path/file}: this pickle needs more than tensors' in err
    assert not {'run by the pickle', 'run', 'm'} & {p.name for p in tmp_path.iterdir()}

@pytest.mark.parametrize('bad,words', BAD, ids=range(7))
def test_bad_latents_are_named(home, tmp_path, bad, words):
    for s in 'ab': latents(tmp_path/s, 4, s == 'b')
    p = tmp_path/'a/bad.pt'
    if isinstance(bad, bytes): p.write_bytes(bad)
    else: torch.save(bad, p)
    with pytest.raises(VaetagError) as e: train_cyclegan(config(tmp_path, tmp_path/'run'))
    assert words in str(e.value) and 'bad.pt' in str(e.value) and not (tmp_path/'run').exists()

# --- checkpoints of the original ---------------------------------------------------------------------------------------------
class OldBlock(nn.Module):
    "Written from the description of the layout, not from our networks"
    def __init__(self, w, split):
        super().__init__()
        conv = lambda: [nn.Conv2d(w, w, 3, groups=w, bias=False), nn.Conv2d(w, w, 1, bias=False)] if split else [nn.Conv2d(w, w, 3, bias=False)]
        norm = lambda: nn.InstanceNorm2d(w, eps=1e-5)
        self.block = nn.Sequential(nn.ReflectionPad2d(1), *conv(), norm(), nn.ReLU(True), nn.ReflectionPad2d(1), *conv(), norm())
    def forward(self, x): return x + self.block(x)

class Old(nn.Module):
    def __init__(self, *layers): super().__init__(); self.net = nn.Sequential(*layers)
    def forward(self, x): return self.net(x)

def old_generator(split, w=8, n=2):
    k = 5 if split else 7
    return Old(nn.ReflectionPad2d(k//2), nn.Conv2d(4, w, k, bias=False), nn.InstanceNorm2d(w), nn.ReLU(True), *(OldBlock(w, split) for _ in range(n)), nn.ReflectionPad2d(k//2), nn.Conv2d(w, 4, k))

def old_discriminator(split, w=8):
    sn, k, s = nn.utils.spectral_norm, *((4, 2) if split else (3, 1))
    return Old(sn(nn.Conv2d(4, w, k, s, 1)), nn.LeakyReLU(.2), sn(nn.Conv2d(w, 2*w, k, s, 1, bias=False)), nn.LeakyReLU(.2), sn(nn.Conv2d(2*w, 1, 3, 1, 1)))

@pytest.mark.parametrize('split', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_a_checkpoint_of_the_original_loads_translates_and_is_gone_on_from(home, tmp_path, split):
    torch.manual_seed(int(split))
    G, Fn, DA, DB = old_generator(split), old_generator(split), old_discriminator(split), old_discriminator(split)
    og, od = (torch.optim.Adam([*a.parameters(), *b.parameters()], 2e-4, (.5, .999)) for a, b in ((G, Fn), (DA, DB)))
    x = torch.randn(2, 4, 8, 8)
    for _ in range(3):
        (DB(G(x)).square().mean() + DA(Fn(x)).square().mean()).backward(); og.step(); od.step(); og.zero_grad(); od.zero_grad()
    path = tmp_path/'last.pt'
    torch.save(dict(cfg=dict(model=dict(in_channels=4, ngf=8, n_res_blocks=2, out_activation='linear', d_layers=3), data=dict(latents_scaled=False, latent_divisor=10.)),
                    G=G.state_dict(), F=Fn.state_dict(), D_A=DA.state_dict(), D_B=DB.state_dict(), opt_G=og.state_dict(), opt_D=od.state_dict(), epoch=3, sched_G={}, rng=None), path)
    o, kind = read_original(path), 'classic_dw' if split else 'classic'
    assert (o.G.kind, o.epoch, o.unused) == (kind, 3, ['rng', 'sched_G'])
    with torch.no_grad():
        assert torch.equal(o.G(x), G(x)) and torch.equal(o.F(x), Fn(x))
        assert torch.allclose(o.D_A.eval()(x), DA.eval()(x), atol=1e-6)
        assert torch.allclose(original_cyclegan(path).translate(10*x), 10*G(x), atol=1e-5)
    cfg = config(home, tmp_path/'run', epochs=1, model=dict(generator=kind, discriminator=kind, ngf=8, ndf=8, n_res_blocks=2, init=str(path)), data=dict(a_dir=str(home/'a'), b_dir=str(home/'b'), latent_divisor=10.))
    started = []
    real = CycleGanTask.optims
    def optims(self, *a):
        out = real(self, *a); started.append((self, out)); return out
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(CycleGanTask, 'optims', optims)
        r = train_cyclegan(cfg)
    steps = {int(s['step']) for o in started[0][1].values() for s in o[0].state.values()}
    assert steps == {3 + 5}                                  # Adam went on counting from the original's three
    assert load_cyclegan(r.out).G.spec()['kind'] == kind

@pytest.mark.slow
def test_a_model_folder_starts_a_run(home, tmp_path):
    first = train_cyclegan(config(home, tmp_path/'one', epochs=1))
    G = load_tensors(first.best/'G.safetensors')[0]
    cfg = config(home, tmp_path/'two', epochs=1, model=TINY['model'] | dict(init=str(first.out)))
    got = []
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(CycleGanTask, 'validate', lambda self, t, real=CycleGanTask.validate: (got.append({k: v.clone() for k, v in self.G.state_dict().items()}), real(self, t))[1])
        train_cyclegan(cfg)
    assert all(torch.equal(v, G[k]) for k, v in got[0].items())
    with pytest.raises(VaetagError, match='model.init'): train_cyclegan(config(home, tmp_path/'three', model=dict(ngf=16, init=str(first.out))))

# --- it learns -----------------------------------------------------------------------------------------------------------------
def toy_latents(seed, n=256, b=False, side=16, b_move=True):
    "The toy of the specification: smooth noise; B is an independent draw, weaker, and moved"
    z = F.interpolate(torch.randn(n, 4, 6, 6, generator=torch.Generator().manual_seed(seed)), size=(side, side), mode='bicubic')
    z = z/z.std()
    return z*.7 + MOVE if b else z

def toy(tmp_path, seed=0, n=256, side=16, **more):
    "Train on the toy; distance at the start and after, cycle and identity error on fresh latents, and whether the guard spoke"
    for s in 'ab':
        (tmp_path/s).mkdir()
        for i, z in enumerate(toy_latents(100*seed + (s == 'b'), n, s == 'b', side)): np.save(tmp_path/s/f'{i:03d}.npy', z.numpy())
    cfg = load(CycleGanConfig, dict(out=str(tmp_path/'run'), data=dict(a_dir=str(tmp_path/'a'), b_dir=str(tmp_path/'b'), space='raw', val=0.), batch_size=8, seed=seed, device='cpu',
                                    steps=600, model=dict(ngf=32, n_res_blocks=4), schedule=dict(constant_epochs=200, decay_epochs=0)), more)
    r = train_cyclegan(cfg)
    m, last = load_cyclegan(r.out), RunFolder(r.out).latest()
    for k in 'GF': getattr(m, k).load_state_dict(last.tensors(k))
    a, b = toy_latents(1000 + seed, n, False, side), toy_latents(2000 + seed, n, True, side)
    y = m.translate(a)
    real = latent_features(b)
    return dict(start=latent_fd(latent_features(a), real), fd=latent_fd(latent_features(y), real), cyc=float((m.translate(y, 'b2a') - a).abs().mean()),
                id=float((m.translate(b) - b).abs().mean()), warned='loss.lambda_cyc' in (r.out/'console.log').read_text())

def test_it_learns_a_little_in_seconds(tmp_path):
    r = toy(tmp_path, n=32, side=8, steps=60, model=dict(ngf=8, n_res_blocks=1, ndf=16, d_layers=1), optim=dict(lr=2e-3), save_every=0, data=dict(length='30'))
    assert r['fd'] < .5*r['start'] and r['cyc'] < .3, r

@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_the_toy(tmp_path, seed):
    r = toy(tmp_path, seed, save_every=0)
    print(r)
    assert r['start'] == pytest.approx(1.79, abs=.15) and r['fd'] <= .15 and r['cyc'] <= .10 and r['id'] <= .05 and not r['warned'], r

@pytest.mark.slow
def test_the_default_generator_keeps_more_than_the_classic_one(tmp_path):
    for k in ('residual', 'classic'): (tmp_path/k).mkdir()
    ours, theirs = (toy(tmp_path/k, save_every=0, model=dict(generator=k, ngf=32, n_res_blocks=4)) for k in ('residual', 'classic'))
    print(ours, theirs)
    assert ours['cyc'] <= theirs['cyc']/3 and ours['id'] <= theirs['id']/3 and ours['fd'] <= 1.5*theirs['fd'], (ours, theirs)

@pytest.mark.slow
def test_the_guard_speaks(tmp_path):
    r = toy(tmp_path, loss=dict(lambda_cyc=10.), save_every=0)
    print(r)
    assert r['warned'] and r['fd'] > .9*r['start'], r

# --- speed ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_loader_is_ten_times_faster_than_a_file_each(tmp_path):
    (tmp_path/'a').mkdir()
    for i in range(1000): torch.save(torch.randn(4, 32, 32), tmp_path/'a'/f'{i:04d}.pt')
    files = sorted((tmp_path/'a').iterdir())
    side = LatentSide(pack(tmp_path/'a', tmp_path/'s'), np.arange(1000), Space())
    src, plan = PairSource(side, side), unpaired(side.shape_ids, side.shape_ids, 4, 0)(0)
    def seconds(fn):
        t = time.perf_counter(); fn()
        return time.perf_counter() - t
    each = min(seconds(lambda: [torch.load(f, map_location='cpu', weights_only=True) for f in files]) for _ in range(3))/1000
    ours = min(seconds(lambda: [src.latents(src.get(0, plan[i])) for i in range(len(plan))]) for _ in range(3))/2000
    print(f'torch.load {each*1e3:.3f} ms, store {ours*1e3:.4f} ms')
    assert each >= 10*ours
