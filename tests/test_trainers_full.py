"""`train full`: tags move the encoder, the decoder stays with it, and the run is as exact as any other"""
import json, os, signal, subprocess, sys, textwrap
import numpy as np, pytest, torch
from vaetag_nb.core.config import load, to_yaml
from vaetag_nb.core.errors import UsageError
from vaetag_nb.core.io import hash_tensors, load_tensors, read_json, read_jsonl
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.infer import Tagger
from vaetag_nb.latents.codec import Codec
from vaetag_nb.models.latent_tagger import load_model
from vaetag_nb.trainers.full import FullConfig, FullTask, check_full, train_full

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Scenes of several shapes with soft labels and an absent tag, and a tiny VAE"
    d = tmp_path_factory.mktemp('full')
    make_scenes(d/'scenes', 30, seed=1, resolution=64)
    hard = json.loads((d/'scenes'/'data.json').read_text())
    soft = {k: ', '.join(f'{t.rpartition(":")[0]}:{w}' for t, w in zip(tags.split(', '), [1, .9, .6, .5]*20)) for k, tags in hard.items()}
    (d/'scenes'/'soft.json').write_text(json.dumps(soft)); (d/'scenes'/'few.json').write_text(json.dumps(dict(list(soft.items())[:12])))
    (d/'tags.csv').write_text((d/'scenes'/'tags.csv').read_text() + '999,never_seen,0,0\n')
    Codec.random(dict(latent_channels=4, block_out_channels=[8]*4, layers_per_block=1, norm_num_groups=4)).save(d/'vae')
    return d

def config(home, out, **more):
    return load(FullConfig, dict(out=str(out), data=dict(metadata=str(home/'scenes'/'soft.json'), tags=str(home/'tags.csv'), val=.2, test='.1'),
                image=dict(base_resolution=64, max_resolution=96, bucket_step=16), codec=dict(vae=str(home/'vae')),
                model=dict(d=16, depth=1, heads=2, drop_path=0.), epochs=1, batch_size=2, device='cpu', log_every=1), more)

def vae(folder): return hash_tensors(load_tensors(folder/'vae/diffusion_pytorch_model.safetensors')[0])
def head(folder): return hash_tensors(load_tensors(folder/'model.safetensors')[0])

@pytest.mark.parametrize('mode', ['simplified', 'standard', 'research'])
def test_soft_labels_an_absent_tag_and_mixed_shapes_finish_in_every_mode(home, tmp_path, mode):
    r = train_full(config(home, tmp_path/'run', loss=dict(mode=mode)))
    m = load_model(r.best)
    assert m.thresholds['split'] == 'val' and m.vocab.counts[m.vocab.index['never_seen']] == 0 and set(r.metrics) == {'val', 'test'}
    steps = [l for l in read_jsonl(tmp_path/'run/log.jsonl') if l['kind'] == 'step']
    assert {'classification', 'semantic', 'recon', 'kl', 'triplet_valid'} <= set(steps[0]) and ('learned/kl' in steps[0]) == (mode == 'research')
    assert all(np.isfinite(l['loss']) for l in steps) and any(l['triplet_valid'] > 0 for l in steps)
    assert read_json(r.best/'drift.json')['distance'] > 0
    tagger = Tagger.load(r.best, device='cpu')                      # the folder carries its own VAE
    assert tagger.codec.fingerprint == m.codec['fingerprint'] != Codec.load(home/'vae').fingerprint

@pytest.mark.parametrize('head,rates', [('pool', (3e-4, .05)), ('query', (3e-4, .05)), ('timm', (3e-4, .05)), ('plain', (1e-4, 1e-6)), ('attention', (1e-4, 1e-6))])
def test_every_head_has_its_rates(home, tmp_path, head, rates):
    o = check_full(config(home, tmp_path/'run', model=dict(head=head, name='resnet10t' if head == 'timm' else None)))[0].optim
    assert (o.lr, o.weight_decay, o.vae_lr) == (*rates, 1e-5)

def test_a_query_head_learns_with_the_vae(home, tmp_path):
    r = train_full(config(home, tmp_path/'run', data=dict(metadata=str(home/'scenes'/'few.json'), val=.3), model=dict(head='query', d=16, depth=1, heads=2, queries=5)))
    assert load_model(r.best).head.kind == 'query' and r.metrics

@pytest.mark.parametrize('train', ['none', 'encoder', 'decoder'])
def test_only_what_shall_move_moves(home, tmp_path, train):
    r = train_full(config(home, tmp_path/'run', vae=dict(train=train)))
    before = Codec.load(home/'vae').vae.state_dict()
    if train == 'none':
        assert not (r.best/'vae').exists() and load_model(r.best).codec['fingerprint'] == Codec.load(home/'vae').fingerprint
        return
    moved = {k.split('.')[0] for k, v in Codec.load(r.best/'vae').vae.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and moved <= (dict(encoder={'encoder', 'quant_conv'}, decoder={'decoder', 'post_quant_conv'})[train])

def test_classification_alone_moves_the_encoder_by_a_step_of_its_own_rate(home, tmp_path):
    alone = dict(mode='custom', classification=dict(weight=1), recon=dict(weight=0))
    big, small = (train_full(config(home, tmp_path/str(lr), loss=alone, optim=dict(vae_lr=lr))) for lr in (1e-4, 1e-9))
    a, b = (read_json(r.best/'drift.json')['distance'] for r in (big, small))
    assert a > 1e-4 > b

def test_each_picture_is_read_once_a_batch_encoded_once_and_decoded_once(home, tmp_path, monkeypatch):
    task, seen = [], dict(files=[], encoded=[], decoded=[])
    from vaetag_nb.bucketing import Preprocess
    from vaetag_nb.trainers import full
    real = full.full_task
    monkeypatch.setattr(full, 'full_task', lambda *a: task.append(real(*a)) or task[0])
    train_full(config(home, tmp_path/'run'))
    t = task[0]
    rows, load_, enc, dec = t.plan(0)[0], Preprocess.load, Codec.encode_raw, t.vae.decode
    monkeypatch.setattr(Preprocess, 'load', lambda self, paths, *a, **k: seen['files'].extend(paths) or load_(self, paths, *a, **k))
    monkeypatch.setattr(Codec, 'encode_raw', lambda self, x: seen['encoded'].append(len(x)) or enc(self, x))
    t.vae.decode = lambda z: seen['decoded'].append(len(z)) or dec(z)
    from vaetag_nb.trainers.plan import Slice
    from vaetag_nb.trainers.task import Ctx
    b = t.source.get(0, rows)
    t.loss_net(b, Ctx(Slice(0, 0, rows, len(rows), len(rows)), 0, 0.))
    assert len(set(seen['files'])) == len(seen['files']) == len(b['pixels']) and seen['encoded'] == [len(b['pixels'])] and seen['decoded'] == [len(rows)]

def test_a_stopped_run_ends_as_one_that_was_not(home, tmp_path, monkeypatch):
    more = dict(data=dict(metadata=str(home/'scenes'/'few.json'), tags=str(home/'tags.csv'), val=.2, test='.1'), epochs=2, batch_size=3, accumulate=2, ema=.9, loss=dict(mode='research'), image=dict(base_resolution=64, max_resolution=96, bucket_step=16, crop='random', flip=True))
    whole = train_full(config(home, tmp_path/'whole', **more))
    real, n = FullTask.loss_net, []
    def stop(self, *a):
        n.append(1)
        if len(n) == 5: signal.raise_signal(signal.SIGTERM)
        return real(self, *a)
    monkeypatch.setattr(FullTask, 'loss_net', stop)
    with pytest.raises(Exception, match='stopped by SIGTERM after step 3'): train_full(config(home, tmp_path/'cut', **more))
    monkeypatch.setattr(FullTask, 'loss_net', real)
    cut = train_full(config(home, tmp_path/'cut', **more))
    assert (vae(cut.best), head(cut.best)) == (vae(whole.best), head(whole.best)) and cut.metrics == whole.metrics

RUN = textwrap.dedent("""
    import sys
    from vaetag_nb.core.config import load
    from vaetag_nb.trainers.full import FullConfig, train_full
    if __name__ == '__main__': train_full(load(FullConfig, sys.argv[1]))
    """)

@pytest.mark.slow
def test_two_processes_report_what_one_does(home, tmp_path):
    more = dict(batch_size=4)
    one = train_full(config(home, tmp_path/'one', **more))
    (tmp_path/'run.py').write_text(RUN)
    (tmp_path/'two.yaml').write_text(to_yaml(config(home, tmp_path/'two', **more)))
    p = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=29583', str(tmp_path/'run.py'), str(tmp_path/'two.yaml')],
                       env=dict(os.environ, VAETAG_QUIET='1', OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr[-2000:]
    two = read_json(tmp_path/'two/results.json')['figures']
    for s in one.metrics:
        for k in ('f1_micro', 'mAP'): assert abs(one.metrics[s]['decoder'][k] - two[s]['decoder'][k]) < 2e-2
    a, b = ([l for l in read_jsonl(tmp_path/n/'log.jsonl') if l['kind'] == 'epoch'][-1] for n in ('one', 'two'))
    assert a['val/psnr'] == pytest.approx(b['val/psnr'], abs=.01) and a['val/classification'] == pytest.approx(b['val/classification'], abs=2e-3)

@pytest.mark.parametrize('change,text', [
    (dict(loss=dict(mode='custom', classification=dict(weight=1))), 'loss.recon.weight'), (dict(loss=dict(classification=dict(weight=0))), 'loss.classification.weight'),
    (dict(optim=dict(vae_lr=0)), 'optim.vae_lr'), (dict(codec=dict(vae=None)), 'codec.vae: not given'), (dict(model=dict(probe_start=True)), 'model.probe_start')])
def test_wrong_settings_are_usage_errors(home, tmp_path, change, text):
    with pytest.raises(UsageError, match=text) as e: train_full(config(home, tmp_path/'run', **change))
    assert len(str(e.value).splitlines()) == 1
