"Runs that are killed and go on bit by bit, on one and more processes"
import json, os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from accelerate import PartialState
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from engine_toys import free_port, processes, result, train
from forked import ended, forked
from vaetag_nb.core.io import load_tensors, read_jsonl
from vaetag_nb.trainers.checkpoint import RunFolder

torch.set_num_threads(1)
HERE = Path(__file__).parent

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('VAETAG_QUIET', '1')

@pytest.fixture(scope='session', autouse=True)
def warm(tmp_path_factory):
    "What torch imports at its first step is imported before any process is forked"
    train('tagger', tmp_path_factory.mktemp('warm')/'run', epochs=1)

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
         for kind, world, where, workers in (('tagger', 1, 'loss', 2), ('tagger', 1, 'validate', 0), ('tagger', 1, 'save', 0),
                                             ('gan', 2, 'loss', 2), ('gan', 2, 'validate', 0), ('gan', 2, 'save', 0), ('tagger', 2, 'loss', 0))]
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

@pytest.mark.parametrize('sig,code', [('SIGINT', 130), ('SIGTERM', 143)])
def test_signal_to_the_loading_processes_too(sig, code, straight, tmp_path):
    out, kill = tmp_path/'run', dict(where='loss', step=4, signal=sig, group=True)
    assert processes(lambda: train('tagger', out, kill=kill, workers=2, **SETTINGS['tagger']), 1, tmp_path/'log') == [code]
    assert 'Traceback' not in (tmp_path/'log').read_text() and RunFolder(out).latest().state['step'] in (4, 5)
    assert processes(lambda: train('tagger', out, **SETTINGS['tagger'])) == [0]
    same(result(out), straight('tagger', 1))

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

def torchrun(out, kw, kill=None):
    "The `torchrun` program in a process of its own; its number"
    args = ['--nproc-per-node', '2', '--master-port', free_port(), str(HERE/'engine_toys.py'), 'tagger', str(out), json.dumps(kw), *([json.dumps(kill)] if kill else [])]
    return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', *args], env=dict(os.environ, OMP_NUM_THREADS='1', VAETAG_QUIET='1'), stderr=subprocess.DEVNULL).pid

def agent(out, kw, kill=None):
    "What `torchrun` does with a function instead of a program: torch's agent in a process of its own, its workers forked; its number"
    def launch():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        config = LaunchConfig(1, 1, 2, rdzv_backend='static', rdzv_endpoint=f'127.0.0.1:{free_port()}', rdzv_configs=dict(rank=0), start_method='fork', max_restarts=0)
        elastic_launch(config, worker)('tagger', str(out), kw, kill)
    return forked(launch)

def worker(kind, out, kw, kill):
    PartialState._reset_state()
    train(kind, out, kill=kill, **kw)

@pytest.mark.parametrize('launch', [agent, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_torchrun_killed_stopped_and_resumed(tmp_path, launch):
    out, slow = tmp_path/'run', dict(epochs=8, task=dict(pause=.01))
    assert ended(launch(out, slow, dict(where='loss', step=4, rank=1)), 300) > 0
    assert RunFolder(out).latest().state['step'] == 3
    p = launch(out, slow)
    while max((l['step'] for l in read_jsonl(out/'log.jsonl')), default=0) < 6 and os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None: time.sleep(.01)
    os.kill(p, signal.SIGTERM); assert ended(p, 300) > 0
    at = RunFolder(out).latest().state['step']
    assert f'stopped by SIGTERM after step {at}' in (out/'console.log').read_text() and not (out/'lock').exists() and 6 <= at < 16
    assert processes(lambda: train('tagger', out, epochs=8), 2) == [0, 0]
    assert processes(lambda: train('tagger', tmp_path/'straight', epochs=8), 2) == [0, 0]
    same(result(out), result(tmp_path/'straight'))

def test_three_processes(straight, tmp_path):
    "With three, the order in which gradients are added matters"
    out = tmp_path/'run'
    assert -signal.SIGKILL in processes(lambda: train('tagger', out, kill=dict(where='loss', step=4, rank=2), **SETTINGS['tagger']), 3)
    assert processes(lambda: train('tagger', out, **SETTINGS['tagger']), 3) == [0]*3
    same(result(out), straight('tagger', 3))

@pytest.mark.parametrize('n,worlds', [(33, (2, 3)), (35, (2,))])   # last batches of 1 and 3 rows: with one row, two of three have none
def test_many_processes_learn_what_one_learns(n, worlds, tmp_path):
    task = dict(n=n, dropout=0., norm=False)
    for world in (1, *worlds): assert processes(lambda: train('tagger', tmp_path/str(world), task=task, epochs=2), world) == [0]*world
    one = result(tmp_path/'1')['log']
    for world in worlds:
        for a, b in zip(one, result(tmp_path/str(world))['log'], strict=True):
            assert a.keys() == b.keys() and all(a[k] == b[k] or abs(a[k] - b[k]) < 1e-5 for k in a), (a, b)
        a, b = (load_tensors(tmp_path/w/'best/net.safetensors')[0] for w in ('1', str(world)))
        for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-6, rtol=1e-5)
