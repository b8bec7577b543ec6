"Aligners end to end: resumed bit by bit wherever killed, the same from every kind of file, small and odd sets, old samples, and what is wrong is said in one line."
import json, os, signal, subprocess
import numpy as np, pytest, torch
from forked import ended, forked
from vaetag_nb.align import AlignedTagger, evaluate_aligner
from vaetag_nb.core.config import load
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import load_tensors, read_json, read_jsonl
from vaetag_nb.data.embeddings import EmbeddingTable
from vaetag_nb.data.tags import Vocab
from vaetag_nb.models.linear_head import LinearHead, save_head
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
def test_inputs_of_something_else(home, tmp_path):
    "Directions that are turned a little: only `residual` can turn them back"
    e, r = np.load(home/'single.npz')['embs'], np.random.default_rng(1)
    turn = np.linalg.qr(np.eye(24) + .2*r.normal(size=(24, 24)))[0]
    np.savez(tmp_path/'other.npz', embs=e, inputs=e@turn)
    best = {n: train_aligner(config(home, tmp_path/n, epochs=40, batch_size=32, model=dict(name=n), data=dict(embeddings=[str(tmp_path/'other.npz')]))) for n in ('posnum', 'residual')}
    assert best['residual'].metrics['pred_mse'] < .5*best['posnum'].metrics['pred_mse'] and best['residual'].metrics['emb_cos'] > best['posnum'].metrics['emb_cos']

def test_export_gives_the_same_tags(home, straight, tmp_path):
    r = export_aligner(home/'straight', tmp_path/'SwinV2_v3_mine')
    a = AlignedTagger.load(tmp_path/'SwinV2_v3_mine', home/'inv.npz', device='cpu')
    t = EmbeddingTable.read(home/'single.npz')
    agree = evaluate_aligner(home/'straight', [home/'single.npz'])
    assert agree['agreement_f1'] > .98 and len(a.tag(t)) == 700
    text = b''.join(p.read_bytes() for p in (tmp_path/'SwinV2_v3_mine').iterdir())
    assert os.uname().nodename.encode() not in text and str(home).encode() not in text and not list(tmp_path.rglob('*.data')) and not list(tmp_path.rglob('*.pt'))
    assert (tmp_path/'SwinV2_v3_mine/metrics.json').read_text() == json.dumps(json.loads((tmp_path/'SwinV2_v3_mine/metrics.json').read_text()), sort_keys=True, indent=4)

@pytest.mark.parametrize('slash', ['', '/'])
def test_publish_lists_exactly_the_exported_files(home, straight, slash, monkeypatch):
    monkeypatch.setattr('socket.socket.connect', lambda *a: pytest.fail('the network was asked'))
    status, out, err = shell('publish', f'{home}/straight{slash}', '--repo', 'me/aligners', '--licence', 'mit', '--dry-run', '--json')
    files = [f['path'] for f in json.loads(out)['files']]
    assert status == 0 and files == [f'straight/{f}' for f in ('evaluation.json', 'metrics.json', 'model.json', 'model.onnx', 'model.safetensors', 'model_with_fc.onnx')]
    assert 'clients ask for TAGGER_NAME' in err
    assert shell('publish', f'{home}/straight', '--repo', 'aligners', '--dry-run')[0] == 1 and shell('publish', f'{home}/straight', '--repo', 'me/x', '--dry-run')[0] == 1   # no owner; no licence

@pytest.mark.parametrize('name, noted', [('SwinV2_v3_mine', False), ('mine', True)])
def test_publish_under_a_name_of_ones_own(home, straight, name, noted):
    status, out, err = shell('publish', f'{home}/straight', '--repo', 'me/aligners', '--licence', 'mit', '--name', name, '--dry-run', '--json')
    assert status == 0 and {f['path'].split('/')[0] for f in json.loads(out)['files']} == {name} and ('clients ask for TAGGER_NAME' in err) == noted

@pytest.mark.slow
@pytest.mark.skipif('VAETAG_CLIENTS' not in os.environ, reason='VAETAG_CLIENTS does not name the python of an environment with dghs-imgutils')
def test_the_unchanged_client_loads_an_export(home, straight, tmp_path):
    snapshots = tmp_path/'hub/models--deepghs--embedding_aligner'
    (snapshots/'refs').mkdir(parents=True); (snapshots/'refs/main').write_text('0'*40)
    folder = snapshots/'snapshots'/('0'*40)/'SwinV2_v3_mine'
    folder.parent.mkdir(parents=True); export_aligner(home/'straight', folder)
    x = np.load(home/'single.npz')['embs'][:12]
    np.save(tmp_path/'x.npy', x/np.linalg.norm(x, axis=1, keepdims=True))
    (tmp_path/'client.py').write_text("""import sys, numpy as np
from imgutils.tagging import denormalize_wd14_emb
x = np.load(sys.argv[1])
got = [denormalize_wd14_emb(v, model_name='SwinV2_v3', denormalizer_name='mine') for v in (x[0], x, x.reshape(3, 4, -1))]
assert [g.shape for g in got] == [x[0].shape, x.shape, (3, 4, x.shape[1])]
np.savez(sys.argv[2], one=got[0], two=got[1], three=got[2].reshape(x.shape))
""")
    own = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'HF_HUB_CACHE')} | dict(HF_HOME=str(tmp_path), HF_HUB_OFFLINE='1')
    subprocess.run([os.environ['VAETAG_CLIENTS'], str(tmp_path/'client.py'), str(tmp_path/'x.npy'), str(tmp_path/'y.npz')], env=own, check=True)
    y, want = np.load(tmp_path/'y.npz'), AlignedTagger.load(home/'straight', device='cpu').embed(np.load(tmp_path/'x.npy')).numpy()
    for k, w in dict(one=want[0], two=want, three=want).items(): assert np.abs(y[k] - w).max() <= 1e-5*max(1, np.abs(w).max())

def test_old_samples_in_lmdb(home, tmp_path):
    lmdb = pytest.importorskip('lmdb')
    import pickle
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

@pytest.mark.parametrize('rows, why', [
    (np.ones((3, 8), np.float32), 'row 0: an embedding of width 8; the aligner takes the width 24'),
    (np.ones((3, 24), np.float32)*np.float32([[1], [0], [1]]), 'the first is row 1 of'), (np.ones((3, 24), np.float32)*np.float32([[1], [1], [np.nan]]), 'the first is row 2 of')])
def test_rows_that_cannot_be_tagged_are_named(home, straight, tmp_path, rows, why):
    np.savez(tmp_path/'bad.npz', embs=rows)
    status, out, err = shell('tag', '--embeddings', str(tmp_path/'bad.npz'), '--aligner', str(home/'straight'), '--head', str(home/'inv.npz'), '--device', 'cpu', '--out', str(tmp_path/'tags.json'))
    assert status == 1 and why in err and 'bad.npz' in err and 'Traceback' not in err and not (tmp_path/'tags.json').exists()

def test_offline_hub_names_say_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True); monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(VaetagError, match='SwinV2_v3/samples_200.npz of deepghs/wd14_tagger_inversion is not in the hub.s cache and cannot be downloaded.*name its path'): EmbeddingTable.read('hub:SwinV2_v3/samples_200')
