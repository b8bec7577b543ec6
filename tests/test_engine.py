"Runs that are killed and go on bit by bit, one and two processes, accumulation, precision, hostile run folders"
import json, os, random, shutil, signal, socket, subprocess, sys, time, traceback
from pathlib import Path
import numpy as np, pytest, torch, torch.nn.functional as F
from accelerate import PartialState
from hypothesis import given, strategies as st
from torch import nn
from engine_toys import Gan, Tagger, result, train
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.core.io import load_tensors, read_json, read_jsonl, write_json
from vaetag_nb.core.rng import np_rng
from vaetag_nb.trainers import engine
from vaetag_nb.trainers.callbacks import Checkpointer, EarlyStop, Plateau, Samples, TensorBoard
from vaetag_nb.trainers.checkpoint import Checkpoint, RunFolder, locked
from vaetag_nb.trainers.engine import Trainer
from vaetag_nb.trainers.optim import constant, cosine, linear, one_cycle
from vaetag_nb.trainers.plan import PlanSampler, fingerprint, shuffled
from vaetag_nb.trainers.processes import Processes, copy_from_main, on_main, sum_gradients
from vaetag_nb.trainers.runtime import Means, NonFinite, Stopped
from vaetag_nb.trainers.task import Task, TensorSource

torch.set_num_threads(1)
HERE = Path(__file__).parent

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('VAETAG_QUIET', '1')

@pytest.fixture(scope='session', autouse=True)
def warm(tmp_path_factory):
    "What torch imports at its first step is imported before any process is forked"
    train('tagger', tmp_path_factory.mktemp('warm')/'run', epochs=1)

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return str(s.getsockname()[1])

def child(fn, env, log):
    "Fork a process that calls `fn()`; its number"
    pid = os.fork()
    if pid: return pid
    code = 99
    try:
        PartialState._reset_state(); os.environ.update(env)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        fn(); code = 0
    except VaetagError as e: os.write(2, f'{e}\n'.encode()); code = getattr(e, 'exit_code', 1)
    except BaseException: os.write(2, traceback.format_exc().encode())
    finally: os._exit(code)

def processes(fn, world=1, log=os.devnull, timeout=90)->list:
    "Run `fn()` in `world` processes, as torchrun would; their exit statuses, a signal as a negative number"
    env = lambda r: dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=port) if world > 1 else {}
    port = free_port()
    pids = [child(fn, env(r), log if world == 1 or log == os.devnull else f'{log}.{r}') for r in range(world)]
    ended, late = {}, time.monotonic() + timeout
    while len(ended) < world and time.monotonic() < late:
        for p in pids:
            if p not in ended and (done := os.waitpid(p, os.WNOHANG))[0]: ended[p] = os.waitstatus_to_exitcode(done[1])
        time.sleep(.005)
    for p in set(pids) - ended.keys(): os.kill(p, signal.SIGKILL); os.waitpid(p, 0)
    assert len(ended) == world, f'hangs: of {pids} only {ended} ended'
    return [ended[p] for p in pids]

def same(a, b):
    "Are two results equal, bit by bit?"
    assert a.keys() == b.keys() and a['files'].keys() == b['files'].keys()
    assert a['log'] == b['log']
    for f in a['files']: assert a['files'][f] == b['files'][f], f
    assert a == b

# --- kill and resume -------------------------------------------------------------------------------------------------
SETTINGS = dict(tagger=dict(accumulate=5), gan=dict(accumulate=2))   # the last group of an epoch is short in both

@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    "The result of a run that was never stopped"
    runs = {}
    def get(kind, world):
        if (kind, world) not in runs:
            out = tmp_path_factory.mktemp(f'{kind}{world}')/'run'
            assert processes(lambda: train(kind, out, **SETTINGS[kind]), world) == [0]*world
            runs[kind, world] = result(out)
        return runs[kind, world]
    return get

draw = random.Random(0)
KILLS = [(kind, world, dict(where=where, step=draw.randrange(1, 7), rank=draw.randrange(world)), workers)
         for kind in ('tagger', 'gan') for world in (1, 2) for where, workers in (('loss', 2), ('validate', 0), ('save', 0))]
show = lambda v: '-'.join(map(str, v.values())) if isinstance(v, dict) else str(v)

@pytest.mark.parametrize('kind,world,kill,workers', KILLS, ids=show)
def test_killed_and_resumed_is_never_stopped(kind, world, kill, workers, straight, tmp_path):
    if kill['where'] == 'save': kill = dict(kill, rank=0)   # only the first process writes
    out = tmp_path/'run'
    status = processes(lambda: train(kind, out, kill=kill, **SETTINGS[kind]), world)
    assert status[kill['rank']] == -signal.SIGKILL and 0 not in status
    assert not (out/'done.json').exists()
    assert processes(lambda: train(kind, out, workers=workers, **SETTINGS[kind]), world) == [0]*world
    same(result(out), straight(kind, world))
    assert [p for p in out.rglob('.*')] == [] and not (out/'lock').exists()

@pytest.mark.parametrize('world', [1, 2])
@pytest.mark.parametrize('kind,sig,code', [('tagger', 'SIGTERM', 143), ('gan', 'SIGINT', 130)])
def test_signal_saves_and_stops(kind, sig, code, world, straight, tmp_path):
    out, kill = tmp_path/'run', dict(where='loss', step=4, rank=world - 1, signal=sig)
    assert processes(lambda: train(kind, out, kill=kill, **SETTINGS[kind]), world, tmp_path/'log') == [code]*world
    said = (tmp_path/('log' if world == 1 else 'log.0')).read_text()
    assert f'stopped by {sig} after step 5' in said and 'Traceback' not in said
    assert RunFolder(out).latest().state['step'] == 5      # not a multiple of save_every
    assert processes(lambda: train(kind, out, workers=1, **SETTINGS[kind]), world) == [0]*world
    same(result(out), straight(kind, world))

def test_signal_while_validating_is_heeded_there(straight, tmp_path):
    out, kill = tmp_path/'run', dict(where='validate', step=6, signal='SIGTERM')
    assert processes(lambda: train('tagger', out, kill=kill, **SETTINGS['tagger'])) == [143]
    state = RunFolder(out).latest().state
    assert (state['step'], state['epoch'], state['evaluated']) == (6, 2, 4)   # the validation of this epoch is still to be done
    assert processes(lambda: train('tagger', out, **SETTINGS['tagger'])) == [0]
    same(result(out), straight('tagger', 1))

def test_killed_again_and_again(straight, tmp_path):
    out = tmp_path/'run'
    for step in 1, 2, 4, 7:
        assert processes(lambda: train('gan', out, kill=dict(where='loss', step=step), **SETTINGS['gan'])) == [-signal.SIGKILL]
    assert processes(lambda: train('gan', out, **SETTINGS['gan'])) == [0]
    same(result(out), straight('gan', 1))

def test_an_error_on_one_process_ends_all(tmp_path):
    status = processes(lambda: train('tagger', tmp_path/'run', kill=dict(where='raise', step=3, rank=1)), 2, tmp_path/'log')
    assert status[1] == 1 and status[0] != 0
    assert (tmp_path/'log.1').read_text() == '0.jpg: cannot be read\n'

def test_other_number_of_processes_goes_on(tmp_path):
    out = tmp_path/'run'
    assert processes(lambda: train('gan', out, kill=dict(where='loss', step=5), **SETTINGS['gan']), 2)[0] == -signal.SIGKILL
    assert processes(lambda: (os.environ.pop('VAETAG_QUIET'), train('gan', out, **SETTINGS['gan'])), 1, tmp_path/'log') == [0]
    assert 'processes was 2, now 1; the run goes on, but not bit by bit' in (tmp_path/'log').read_text()
    assert [l['step'] for l in read_jsonl(out/'log.jsonl') if l['kind'] == 'epoch'] == [4, 8, 12, 16]

def torchrun(*args, **kw):
    env = dict(os.environ, OMP_NUM_THREADS='1', VAETAG_QUIET='1')
    return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', free_port(), str(HERE/'engine_toys.py'), *map(str, args)], env=env, **kw)

def test_torchrun_killed_and_resumed(straight, tmp_path):
    out, settings = tmp_path/'run', json.dumps(SETTINGS['gan'])
    assert torchrun('gan', out, settings, json.dumps(dict(where='loss', step=5, rank=1)), stderr=subprocess.DEVNULL).wait(90) != 0
    assert RunFolder(out).latest().state['step'] == 3
    assert torchrun('gan', out, settings).wait(90) == 0
    same(result(out), straight('gan', 2))

def test_sigterm_to_torchrun_saves(tmp_path):
    out, slow = tmp_path/'run', dict(epochs=4, task=dict(pause=.02))
    p = torchrun('tagger', out, json.dumps(slow), stderr=subprocess.DEVNULL)
    while not (out/'log.jsonl').exists() and p.poll() is None: time.sleep(.02)
    p.terminate(); assert p.wait(90) != 0
    at = RunFolder(out).latest().state['step']
    assert f'stopped by SIGTERM after step {at}' in (out/'console.log').read_text() and not (out/'lock').exists()
    assert processes(lambda: train('tagger', out, epochs=4), 2) == [0, 0]
    assert processes(lambda: train('tagger', tmp_path/'straight', epochs=4), 2) == [0, 0]
    same(result(out), result(tmp_path/'straight'))
