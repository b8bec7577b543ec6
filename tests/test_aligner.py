"Aligners end to end: resumed bit by bit wherever killed, the same from every kind of file, small and odd sets, old samples, and what is wrong is said in one line."
import getpass, json, os, pickle, signal, subprocess, sys
import numpy as np, onnx, pytest, torch
from engine_toys import processes
from forked import ended, forked
from toy_tagger import toy_tagger
from vaetag_nb.align import AlignedTagger, evaluate_aligner
from vaetag_nb.core.config import load
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import hash_file, load_tensors, read_json, read_jsonl
from vaetag_nb.data.embeddings import hub_block, hub_samples
from vaetag_nb.data.table import EmbeddingTable     # where it is also found
from vaetag_nb.data.tags import Vocab
from vaetag_nb.models.aligner import make_aligner
from vaetag_nb.models.aligner_folder import Aligner, load_aligner, save_aligner
from vaetag_nb.models.linear_head import LinearHead, read_head, save_head
from vaetag_nb.publish.aligners import export_aligner
from vaetag_nb.trainers import aligner
from vaetag_nb.trainers.aligner import AlignerConfig, AlignerTask, train_aligner
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Embeddings of a made-up tagger in several kinds of file, and its head"
    d, r = tmp_path_factory.mktemp('aligner'), np.random.default_rng(0)
    u = r.normal(size=(700, 24)); u /= np.linalg.norm(u, axis=1, keepdims=True)
    e = (u*np.exp(1.5 + .6*u[:, :1] + .5*abs(u[:, 1:2]))).astype(np.float16)
    head = LinearHead(r.normal(size=(24, 5)), r.normal(size=5), 'inv.npz', Vocab(['safe', 'girl', 'tree', 'miku', 'band'], [9, 0, 0, 4, 3]))
    save_head(d/'inv.npz', head)
    for name, kind in (('half', np.float16), ('single', np.float32), ('double', np.float64)): np.savez(d/f'{name}.npz', embs=e.astype(kind))
    np.savez_compressed(d/'packed.npz', embs=e, preds=head.logits(torch.from_numpy(e).float()).sigmoid().numpy())
    return d

def config(home, out, **more): return load(AlignerConfig, dict(out=str(out), epochs=4, batch_size=64, log_every=1, device='cpu', data=dict(embeddings=[str(home/'half.npz')], head=str(home/'inv.npz'))), more)

def result(run): return load_tensors(run/'best/model.safetensors')[0], [{k: v for k, v in r.items() if k not in ('img_s', 'mem_mb')} for r in read_jsonl(run/'log.jsonl')]

@pytest.fixture(scope='module')
def straight(home): train_aligner(config(home, home/'straight')); return result(home/'straight')

@pytest.mark.parametrize('step', [1, 13, 20])
def test_killed_and_resumed_is_never_stopped(home, straight, tmp_path, monkeypatch, step):
    def job():
        own = AlignerTask.loss_net
        def loss(self, batch, ctx):
            if ctx.step == step: os.kill(os.getpid(), signal.SIGKILL)
            return own(self, batch, ctx)
        monkeypatch.setattr(AlignerTask, 'loss_net', loss)
        monkeypatch.setattr(aligner, 'Trainer', lambda *a, save_every, **k: Trainer(*a, save_every='5 steps', **k))
        train_aligner(config(home, tmp_path/'run'))
    Trainer = aligner.Trainer
    assert ended(forked(job)) == -signal.SIGKILL
    train_aligner(config(home, tmp_path/'run'))
    (w, log), (w0, log0) = result(tmp_path/'run'), straight
    assert w.keys() == w0.keys() and all(torch.equal(w[k], w0[k]) for k in w0) and log == log0

def test_the_log_has_a_row_for_each_split(straight):
    rows = [r for r in straight[1] if r['kind'] in ('eval', 'epoch')]
    assert [r['split'] for r in rows] == ['train', 'test']*5 and rows[1]['step'] == 0
    for r in rows: assert {'epoch', 'split', 'loss', 'loss_floor', 'loss_excess', 'emb_cos', 'emb_norms', 'emb_norms_rel', 'norm_log', 'pred_mse', 'agreement_f1', 'lr'} <= r.keys()
    assert rows[-1]['pred_mse'] < rows[1]['pred_mse']     # and the untrained one, in the second row, is the ridge

def test_two_processes_measure_what_one_does_and_one_writes(home, tmp_path, monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    plain = dict(epochs=2, model=dict(dropout_rate=0.))     # what falls out is drawn by each process for itself
    train_aligner(config(home, tmp_path/'one', **plain))
    assert processes(lambda: train_aligner(config(home, tmp_path/'two', **plain)) and 0, 2, tmp_path/'log') == [0, 0], (tmp_path/'log.1').read_text()
    (w1, log1), (w2, log2) = result(tmp_path/'one'), result(tmp_path/'two')
    assert [{k: r.get(k) for k in ('kind', 'step', 'epoch', 'split')} for r in log1] == [{k: r.get(k) for k in ('kind', 'step', 'epoch', 'split')} for r in log2]     # each row once
    for a, b in zip(log1, log2): assert all(abs(v - b[k]) <= 1e-5*max(1, abs(v)) for k, v in a.items() if isinstance(v, float) and k != 'grad_norm')
    assert all((w1[k] - w2[k]).abs().max() < 1e-4 for k in w1)
    a, b = (read_json(tmp_path/n/'best/evaluation.json') for n in ('one', 'two'))
    assert a['rows'] == b['rows'] and a['baselines'] == b['baselines'] and abs(a['test']['pred_mse']/b['test']['pred_mse'] - 1) < 1e-3
    files = lambda n: {p.relative_to(tmp_path/n).as_posix() for p in (tmp_path/n).rglob('*') if p.is_file()}
    assert files('one') == files('two') and 'ridge penalty' in (tmp_path/'log.0').read_text() and 'ridge penalty' not in (tmp_path/'log.1').read_text()

def test_tensorboard_has_the_names_of_the_original_and_no_name_of_the_machine_is_published(home, tmp_path):
    board = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    train_aligner(config(home, tmp_path/'run', epochs=2, track='tensorboard'))
    seen = lambda d: {t: [e.value for e in b.Scalars(t)] for b in [board.EventAccumulator(str(d)).Reload()] for t in b.Tags()['scalars']}
    own = seen(tmp_path/'run/tensorboard')
    assert {*(f'{s}/{k}' for s in ('train', 'test') for k in ('loss', 'emb_cos', 'emb_norms', 'pred_mse')), 'train/learning_rate'} <= own.keys()
    assert all(len(own[k]) == 3 for k in ('test/loss', 'train/learning_rate')) and 0 < own['train/learning_rate'][-1] <= 1e-3     # before the first epoch, and after each
    log = [r for r in read_jsonl(tmp_path/'run/log.jsonl') if r.get('split') == 'test']
    assert np.allclose(own['test/pred_mse'], [r['pred_mse'] for r in log]) and any(str(tmp_path).encode() in p.read_bytes() for p in (tmp_path/'run/tensorboard').iterdir())
    export_aligner(tmp_path/'run', tmp_path/'out')
    a = {p.name: p.read_bytes() for p in (tmp_path/'out').iterdir()}
    logs = [n for n in a if n.startswith('events')]
    assert len(logs) == 1 and logs[0].endswith('.anon.0') and logs[0].split('.')[3].isdigit()
    assert seen(tmp_path/'out') == own and not any(x.encode() in b''.join(a.values()) for x in (str(tmp_path), os.uname().nodename, f'/{getpass.getuser()}/'))
    assert a['metrics.json'].decode().split('"')[1::2] == ['emb_cos', 'emb_norms', 'epoch', 'loss', 'pred_mse']

def test_an_architecture_of_an_installed_package(home, tmp_path, monkeypatch):
    "As pip leaves it: a module and the .dist-info beside it"
    (tmp_path/'lib/aligner_of_others-1.dist-info').mkdir(parents=True)
    (tmp_path/'lib/aligner_of_others.py').write_text('''import torch
class Halves(torch.nn.Module):
    "Two halves, each with a length of its own."
    def __init__(self, n:int, hidden:int=4): super().__init__(); self.length = torch.nn.Sequential(torch.nn.Linear(n, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 2))
    def forward(self, x): return x*self.length(x).exp().repeat_interleave(x.shape[1]//2, 1)
''')
    (tmp_path/'lib/aligner_of_others-1.dist-info/METADATA').write_text('Metadata-Version: 2.1\nName: aligner-of-others\nVersion: 1\n')
    (tmp_path/'lib/aligner_of_others-1.dist-info/entry_points.txt').write_text('[vaetag_nb.aligners]\nhalves = aligner_of_others:Halves\nlost = aligner_of_others:Lost\n')
    monkeypatch.syspath_prepend(str(tmp_path/'lib'))
    status, out, _ = shell('models', 'aligner', 'halves', '--width', '24')
    assert status == 0 and 'Two halves, each with a length of its own.' in out and 'hidden=4' in out
    run = train_aligner(config(home, tmp_path/'run', epochs=2, model=dict(name='halves', options=dict(hidden=6))))
    a = load_aligner(run.best)                                  # by its name
    assert type(a.net).__name__ == 'Halves' and a.options == dict(hidden=6)
    with pytest.raises(VaetagError, match="model.name: lost: .*Lost"): train_aligner(config(home, tmp_path/'none', model=dict(name='lost')))

def in_the_cache(cache, kind, repo, files):
    "Lay files out as the hub's cache does"
    d = cache/f"{kind}--{repo.replace('/', '--')}"
    (d/'refs').mkdir(parents=True); (d/'refs/main').write_text('0'*40)
    for name, data in files.items(): p = d/'snapshots'/('0'*40)/name; p.parent.mkdir(parents=True, exist_ok=True); p.write_bytes(data)

def test_hub_names_are_found_in_its_cache_offline(home, tmp_path, monkeypatch):
    in_the_cache(tmp_path, 'datasets', 'deepghs/wd14_tagger_inversion', {f'SwinV2_v3/{n}.npz': (home/'half.npz').read_bytes() for n in ('samples_200', 'training_data_part3')})
    in_the_cache(tmp_path, 'models', 'deepghs/wd14_tagger_with_embeddings', {'SmilingWolf/wd-swinv2-tagger-v3/inv.npz': (home/'inv.npz').read_bytes()})
    in_the_cache(tmp_path, 'models', 'SmilingWolf/wd-swinv2-tagger-v3', {'selected_tags.csv': (home/'selected_tags.csv').read_bytes()})
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True); monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    run = train_aligner(config(home, tmp_path/'run', epochs=1, model=dict(tagger='SwinV2_v3'), data=dict(embeddings=['hub:SwinV2_v3/samples_200', 'hub:SwinV2_v3/part3'], head='hub:SwinV2_v3')))
    assert read_json(run.best/'evaluation.json')['rows'] == dict(test=280, train=1120) and read_json(run.best/'model.json')['head_source'] == 'hub:SwinV2_v3'
    a = AlignedTagger.load(run.best)                            # its head is resolved again
    assert list(a.vocab.names) == ['safe', 'girl', 'tree', 'miku', 'band'] and hub_samples('SwinV2_v3', 200).name == 'samples_200.npz' and hub_block('SwinV2_v3', 3).name == 'training_data_part3.npz'

def test_embeddings_of_our_own_tagger_come_back_to_its_tags(tmp_path):
    toy_tagger(tmp_path, n=24, steps=20)
    job = lambda *args: (lambda s, o, e: o if s == 0 else pytest.fail(e))(*shell(*map(str, args)))
    job('tag', tmp_path/'scenes/images', '--model', tmp_path/'model', '--emit', 'embeddings', '--out', tmp_path/'emb.npz', '--device', 'cpu')
    job('train', 'aligner', '--data.embeddings', tmp_path/'emb.npz', '--data.head', tmp_path/'model', '--out', tmp_path/'run', '--epochs', 3, '--device', 'cpu')
    m = json.loads(job('eval', 'aligner', tmp_path/'run', '--data', tmp_path/'emb.npz', '--device', 'cpu', '--json'))
    assert m['agreement_f1'] >= .98 and m['pred_mse'] < m['baselines']['identity']['pred_mse']
    e = np.load(tmp_path/'emb.npz')
    np.savez(tmp_path/'unit.npz', embs=e['embs']/np.linalg.norm(e['embs'], axis=1, keepdims=True), paths=e['paths'])
    rows = json.loads(job('tag', '--embeddings', tmp_path/'unit.npz', '--aligner', tmp_path/'run', '--device', 'cpu'))
    assert list(rows) == list(e['paths']) and all(set(r) >= {'rating', 'general', 'character'} for r in rows.values())
    names = read_head(tmp_path/'model').vocab.names
    own = {(p, t) for p, q in zip(e['paths'], e['preds']) for t in np.asarray(names)[q >= .35]}
    back = {(p, t) for p, r in rows.items() for k, tags in r.items() if k != 'rating' for t in tags}
    assert len(own) > 20 and 2*len(own & back)/(len(own) + len(back)) >= .98

def test_every_kind_of_file_gives_the_same_figures(home, straight, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    base = read_json(home/'straight/best/evaluation.json')['test']
    for name in ('single', 'double', 'packed'):
        got = train_aligner(config(home, tmp_path/name, data=dict(embeddings=[str(home/f'{name}.npz')]))).metrics
        assert all(abs(got[k] - base[k]) <= 1e-4*max(1, abs(base[k])) for k in base if base[k] is not None), name

def test_fewer_rows_than_a_batch_and_files_for_the_test(home, tmp_path):
    np.savez(tmp_path/'few.npz', embs=np.load(home/'single.npz')['embs'][:9])
    run = train_aligner(config(home, tmp_path/'few', batch_size=256, data=dict(embeddings=[str(tmp_path/'few.npz')])))
    assert read_json(run.best/'evaluation.json')['rows'] == dict(test=2, train=7)
    run = train_aligner(config(home, tmp_path/'two', epochs=1, data=dict(test=[str(tmp_path/'few.npz')])))
    assert read_json(run.best/'evaluation.json')['rows'] == dict(test=9, train=700)

@pytest.mark.slow
def test_better_than_the_ridge_and_the_classic_of_its_size(tmp_path):
    "5000 directions whose length depends on the absolute value of a coordinate, 30 epochs"
    r = np.random.default_rng(0)
    u = r.normal(size=(5000, 64)); u /= np.linalg.norm(u, axis=1, keepdims=True)
    np.savez(tmp_path/'emb.npz', embs=(u*np.exp(1 + .5*u[:, :1] + .3*abs(u[:, 1:2]))).astype(np.float32))
    save_head(tmp_path/'inv.npz', LinearHead(r.normal(size=(64, 50)), np.full(50, -1.)))
    def best(name, **loss):
        run = train_aligner(load(AlignerConfig, dict(out=str(tmp_path/f'{name}{len(loss)}'), epochs=30, device='cpu', model=dict(name=name), loss=loss, data=dict(embeddings=[str(tmp_path/'emb.npz')], head=str(tmp_path/'inv.npz')))))
        return run.metrics['pred_mse'], read_json(run.best/'evaluation.json')['baselines']['ridge']['pred_mse']
    ours, ridge = best('posnum')
    classic = min(best('num2')[0], best('num2', norm=0.)[0])      # with our loss, and with its own
    assert ours <= .2*ridge and ours <= .2*classic, (ours, ridge, classic)

@pytest.mark.slow
def test_a_file_larger_than_the_memory_allowed(tmp_path):
    "2 GB of half precision, predictions computed again: what the process holds for itself stays below a quarter of the file and 1 GB; pages of the mapped file are the system's, which takes them back at will"
    n, width, block = 2_000_000, 512, 100_000
    (tmp_path/'emb').mkdir()
    a, r = np.lib.format.open_memmap(tmp_path/'emb/embs.npy', 'w+', np.float16, (n, width)), np.random.default_rng(0)
    for i in range(0, n, block): a[i:i+block] = r.standard_normal((block, width), np.float32)
    size = a.nbytes; a.flush(); del a
    save_head(tmp_path/'inv.npz', LinearHead(r.normal(size=(width, 300))/20, np.full(300, -2.)))
    (tmp_path/'job.py').write_text("""import json, sys, threading, time
from vaetag_nb.core.config import load
from vaetag_nb.trainers.aligner import AlignerConfig, train_aligner
most = [0]
def held(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))*1024
def watch():
    while True: most[0] = max(most[0], held()); time.sleep(.02)
threading.Thread(target=watch, daemon=True).start()
d = sys.argv[1]
train_aligner(load(AlignerConfig, dict(out=d + '/run', epochs=1, batch_size=1024, device='cpu', data=dict(embeddings=[d + '/emb'], head=d + '/inv.npz', split=[.95, .05]))))
json.dump(dict(held=most[0]), open(d + '/peak.json', 'w'))
""")
    subprocess.run([sys.executable, str(tmp_path/'job.py'), str(tmp_path)], check=True, env=dict(os.environ, VAETAG_QUIET='1'))
    (tmp_path/'emb/embs.npy').unlink()
    held = read_json(tmp_path/'peak.json')['held']
    print(f'held at most {held/2**20:.0f} MB, allowed {(size/4 + 2**30)/2**20:.0f} MB')
    assert held < size/4 + 2**30

@pytest.mark.slow
def test_inputs_of_something_else(home, tmp_path):
    "Directions that are turned a little: only `residual` can turn them back"
    e, r = np.load(home/'single.npz')['embs'], np.random.default_rng(1)
    turn = np.linalg.qr(np.eye(24) + .2*r.normal(size=(24, 24)))[0]
    np.savez(tmp_path/'other.npz', embs=e, inputs=e@turn)
    best = {n: train_aligner(config(home, tmp_path/n, epochs=40, batch_size=32, model=dict(name=n), data=dict(embeddings=[str(tmp_path/'other.npz')]))) for n in ('posnum', 'residual')}
    assert best['residual'].metrics['pred_mse'] < .5*best['posnum'].metrics['pred_mse'] and best['residual'].metrics['emb_cos'] > best['posnum'].metrics['emb_cos']

@pytest.fixture(scope='module')
def exported(home, straight): export_aligner(home/'straight', home/'out/SwinV2_v3_mine'); return home/'out/SwinV2_v3_mine'

def test_export_gives_the_same_tags(home, exported):
    a = AlignedTagger.load(exported, home/'inv.npz', device='cpu')
    t = EmbeddingTable.read(home/'single.npz')
    agree = evaluate_aligner(home/'straight', [home/'single.npz'])
    assert agree['agreement_f1'] > .98 and len(a.tag(t)) == 700
    text = b''.join(p.read_bytes() for p in exported.iterdir())
    assert os.uname().nodename.encode() not in text and str(home).encode() not in text and not list(exported.rglob('*.data')) and not list(exported.rglob('*.pt'))
    assert (exported/'metrics.json').read_text() == json.dumps(json.loads((exported/'metrics.json').read_text()), sort_keys=True, indent=4)

@pytest.mark.parametrize('slash, name', [('/', None), ('', 'SwinV2_v3_mine')])
def test_publish_lists_exactly_the_exported_files(home, exported, slash, name, monkeypatch):
    monkeypatch.setattr('socket.socket.connect', lambda *a: pytest.fail('the network was asked'))
    status, out, err = shell('publish', f'{home}/straight{slash}', '--repo', 'me/aligners', '--licence', 'mit', *(['--name', name] if name else []), '--dry-run', '--json')
    files = [f['path'] for f in json.loads(out)['files']]
    assert status == 0 and files == [f'{name or "straight"}/{f}' for f in ('evaluation.json', 'metrics.json', 'model.json', 'model.onnx', 'model.safetensors', 'model_with_fc.onnx')]
    for f in json.loads(out)['files']: assert f['path'].endswith('model.json') or f['sha256'] == hash_file(exported/f['path'].split('/')[1])     # written again, the same
    assert ('clients ask for TAGGER_NAME' in err) == (name is None)
    assert shell('publish', f'{home}/straight', '--repo', 'aligners', '--dry-run')[0] == 1 and shell('publish', f'{home}/straight', '--repo', 'me/x', '--dry-run')[0] == 1   # no owner; no licence

def test_old_samples_in_lmdb(home, tmp_path):
    lmdb = pytest.importorskip('lmdb')
    e = np.load(home/'half.npz')['embs']
    def write(path, rows):
        with lmdb.open(str(path), map_size=2**24) as env, env.begin(write=True) as t:
            for i, x in enumerate(rows): t.put(f'sample_{i}'.encode(), pickle.dumps(x))
    write(tmp_path/'old', [(e[i], np.full(5, .5, np.float32)) for i in range(20)])
    status, out, _ = shell('migrate', 'lmdb', str(tmp_path/'old'), str(tmp_path/'new'))
    t = EmbeddingTable.read(tmp_path/'new')
    assert status == 0 and len(t) == 20 and t.tags == 5 and np.array_equal(t.gather('embs', range(20)), e[:20].astype(np.float32))
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'evil'),)
    write(tmp_path/'bad', [(e[0], None), Evil()])
    status, _, err = shell('migrate', 'lmdb', str(tmp_path/'bad'), str(tmp_path/'none'))
    assert status == 1 and 'sample_1: holds more than arrays' in err and not (tmp_path/'evil').exists() and not (tmp_path/'none').exists()

@pytest.mark.parametrize('change, status, why', [
    (dict(data=dict(split=[.9, .2])), 2, 'sum to 1'), (dict(model=dict(name='identity')), 2, 'has nothing to learn'), (dict(model=dict(layers=[.5])), 2, 'model.layers: posnum has no such option'),
    (dict(model=dict(n=8)), 1, 'model.n: 8'), (dict(eval=dict(pick_by='mse')), 2, 'eval.pick_by'), (dict(optim=dict(lr=0)), 2, 'optim.lr'), (dict(loss=dict(pred=0, norm=0)), 2, 'loss: weights'),
    (dict(data=dict(head='hub:Swin')), 2, "tagger: 'Swin'"), (dict(data=dict(embeddings=['hub:SwinV2_v3/samples_3'])), 2, 'samples')])
def test_what_is_wrong_is_one_line(home, tmp_path, change, status, why):
    with pytest.raises(VaetagError) as e: train_aligner(config(home, tmp_path/'run', **change))
    assert e.value.exit_code == status and why in str(e.value) and '\n' not in str(e.value) and not (tmp_path/'run/best').exists()

def test_a_loss_that_is_not_finite_names_step_rows_and_checkpoint(home, tmp_path):
    with pytest.raises(VaetagError, match=r'run: step 2: the loss or its gradient is not finite; batch: half.npz:\d+, .* and 56 more; last good checkpoint: none'):
        train_aligner(config(home, tmp_path/'run', optim=dict(lr=1e38, max_grad_norm=0)))

def test_what_cannot_be_exported_leaves_nothing(home, exported, tmp_path, monkeypatch):
    (tmp_path/'run/checkpoints').mkdir(parents=True)
    status, _, err = shell('export', str(tmp_path/'run'), '--format', 'aligner', '--out', str(tmp_path/'x'))
    assert status == 1 and 'run: no aligner: looked for best/model.json' in err
    status, _, err = shell('publish', str(tmp_path/'run'), '--repo', 'me/x', '--licence', 'mit', '--dry-run')
    assert status == 1 and 'run: no model folder: lacks model.json' in err
    monkeypatch.setattr('vaetag_nb.publish.aligners.to_onnx', lambda graph, example, outputs, *a: onnx.load(exported/('model.onnx' if len(outputs) == 1 else 'model_with_fc.onnx')))
    save_aligner(tmp_path/'other', Aligner(make_aligner('posnum', 24), 'posnum', 24))           # the graph is another's
    with pytest.raises(VaetagError, match=r'ONNX and PyTorch differ: model.onnx, 1 row: [\d.]+ at embedding, more than 1e-05; nothing was written') as e: export_aligner(tmp_path/'other', tmp_path/'x', home/'inv.npz')
    assert '\n' not in str(e.value) and not (tmp_path/'x').exists()

@pytest.mark.parametrize('rows, why', [
    (np.ones((3, 8), np.float32), 'row 0: an embedding of width 8; the aligner takes the width 24'),
    (np.ones((3, 24), np.float32)*np.float32([[1], [0], [1]]), 'the first is row 1 of'), (np.ones((3, 24), np.float32)*np.float32([[1], [1], [np.nan]]), 'the first is row 2 of')])
def test_rows_that_cannot_be_tagged_are_named(home, straight, tmp_path, rows, why):
    np.savez(tmp_path/'bad.npz', embs=rows)
    status, out, err = shell('tag', '--embeddings', str(tmp_path/'bad.npz'), '--aligner', str(home/'straight'), '--head', str(home/'inv.npz'), '--device', 'cpu', '--out', str(tmp_path/'tags.json'))
    assert status == 1 and why in err and 'bad.npz' in err and 'Traceback' not in err and not (tmp_path/'tags.json').exists()

def test_offline_hub_names_say_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True); monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(VaetagError, match='SwinV2_v3/samples_200.npz of deepghs/wd14_tagger_inversion is not in the hub.s cache and cannot be downloaded.*hf download .* name the path of the file'): EmbeddingTable.read('hub:SwinV2_v3/samples_200')
