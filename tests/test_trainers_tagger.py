"The decoder's job on small scenes: finishes on awkward data, encodes once, overfits, resumes bit by bit, and says in one line what is wrong"
import json, os, signal, subprocess, sys, textwrap, time
import numpy as np, pytest, torch
from vaetag_nb.core.config import load, to_yaml
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.core.io import hash_tensors, load_tensors, read_json, read_jsonl
from vaetag_nb.data.images import to_float
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.latents.codec import Codec
from vaetag_nb.latents.store import LatentStore
from vaetag_nb.data.tags import Vocab
from vaetag_nb.models.latent_tagger import build_head, load_model, save_model
from vaetag_nb.models.pool import local_features
from vaetag_nb.trainers import tagger
from vaetag_nb.trainers.baselines import pooled
from vaetag_nb.trainers.full import FullConfig, FullVae, train_full
from vaetag_nb.trainers.judge import fit_probe
from vaetag_nb.trainers.pixels import VaeImages
from vaetag_nb.trainers.processes import Processes
from vaetag_nb.trainers.tagger import DecoderConfig, train_decoder

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Scenes of several shapes with soft labels and an absent tag, and a tiny VAE"
    d = tmp_path_factory.mktemp('decoder')
    make_scenes(d/'scenes', 36, seed=1, resolution=64)
    hard = json.loads((d/'scenes'/'data.json').read_text())
    soft = {k: ', '.join(f'{t.rpartition(":")[0]}:{w}' for t, w in zip(tags.split(', '), [1, .9, .6, .5]*20)) for k, tags in hard.items()}
    (d/'scenes'/'soft.json').write_text(json.dumps(soft))
    (d/'tags.csv').write_text((d/'scenes'/'tags.csv').read_text() + '999,never_seen,0,0\n')
    Codec.random(dict(latent_channels=4, block_out_channels=[8]*4, layers_per_block=1, norm_num_groups=4)).save(d/'vae')
    return d

def config(home, out, **more):
    return load(DecoderConfig, dict(out=str(out), data=dict(metadata=str(home/'scenes'/'soft.json'), tags=str(home/'tags.csv'), val=.2, test='.1'),
                image=dict(base_resolution=64, max_resolution=96, bucket_step=16), codec=dict(vae=str(home/'vae')), latents=dict(store=str(home/'store')),
                model=dict(d=16, depth=1, heads=2), eval=dict(baselines=False), epochs=2, batch_size=2, device='cpu', log_every=1), more)

def tensors(folder): return hash_tensors(load_tensors(folder/'model.safetensors')[0])

# --- (a), (c): it finishes, once ----------------------------------------------------------------------------------------
MODES = dict(simplified={}, standard=dict(mode='standard'), research=dict(mode='research'), contrastive=dict(semantic=dict(kind='contrastive', weight=.5)), asl=dict(classification=dict(kind='asl', class_balanced=True)), zlpr=dict(classification=dict(kind='zlpr')),
             two_way=dict(classification=dict(kind='two_way')), balanced=dict(classification=dict(kind='distribution_balanced')))

@pytest.mark.parametrize('mode', MODES)
def test_soft_labels_an_absent_tag_and_mixed_shapes_finish_in_every_mode(home, tmp_path, mode):
    r = train_decoder(config(home, tmp_path/'run', loss=MODES[mode], epochs=1))
    m = load_model(r.best)
    assert m.thresholds['split'] == 'val' and 'never_seen' in m.vocab and m.vocab.counts[m.vocab.index['never_seen']] == 0
    assert set(r.metrics) == {'val', 'test'} and all(np.isfinite(f['decoder']['f1_micro']) for f in r.metrics.values())
    assert len({tuple(s) for s in LatentStore.open(home/'store').shapes.tolist()}) > 1
    losses = [x['loss'] for x in read_jsonl(tmp_path/'run'/'log.jsonl') if 'loss' in x]
    assert losses and np.isfinite(losses).all()

@pytest.mark.parametrize('loss,names', [
    ({}, {'bce'}), (dict(mode='standard'), {'focal_balanced'}), (dict(mode='research'), {'focal', 'triplet', 'learned/focal', 'learned/triplet', 'triplet_valid'}),
    (dict(mode='custom', semantic=dict(weight=.5), classification=dict(class_balanced=True)), {'bce_balanced', 'triplet', 'triplet_valid'}),
    (dict(mode='research', weighting='fixed', semantic=dict(weight=.2)), {'focal', 'triplet', 'triplet_valid'})], ids=['simplified', 'standard', 'research', 'custom', 'overridden'])
@pytest.mark.parametrize('batch', [2, 8])
def test_each_mode_logs_its_own_terms(home, tmp_path, loss, names, batch):
    train_decoder(config(home, tmp_path/'run', loss=loss, epochs=1, batch_size=batch))
    steps = [x for x in read_jsonl(tmp_path/'run'/'log.jsonl') if x['kind'] == 'step']
    own = {'kind', 'step', 'epoch', 'loss', 'grad_norm', 'lr', 'img_s', 'mem_mb', 'loss_scale'}
    for x in steps: assert {k for k in x if not k.startswith('weight/')} - own == names
    if 'triplet' in names:
        assert sum(x['triplet_valid'] for x in steps) > 0
        if 'learned/focal' not in names: assert all(abs(x['loss'] - sum(x[f'weight/{k}']*x[k] for k in names if f'weight/{k}' in x)) < 1e-4 for x in steps)
        else: assert steps[0]['learned/focal'] == 1 and steps[-1]['learned/focal'] != 1

@pytest.mark.parametrize('head', [dict(head='plain'), dict(head='attention', spatial=False),
                                  dict(head='query', d=16, depth=1, heads=2, queries=5, gradient_checkpointing=True), dict(head='timm', name='resnet10t'), dict(d=16, depth=1, heads=2, skip=2, dropout=.1, gradient_checkpointing=True, probe_start=True)], ids=lambda h: h.get('head', 'pool'))
def test_every_head_trains(home, tmp_path, head):
    r = train_decoder(config(home, tmp_path/'run', model=head, epochs=1, ema=0.))
    assert load_model(r.best).head.kind == head.get('head', 'pool')

def test_muon_trains_queries(home, tmp_path):
    r = train_decoder(config(home, tmp_path/'run', model=dict(head='query', d=16, depth=1, heads=2), optim=dict(kind='muon'), epochs=1))
    assert load_model(r.best).head.queries.isfinite().all()

@pytest.mark.parametrize('model,text', [(dict(head='timm'), 'model.name: missing'), (dict(name='resnet10t'), 'model.name: given, contradicting model.head: pool'),
                                        (dict(head='query', heads=5), 'model.heads: 5 does not divide'), (dict(head='query', queries=0), 'model.queries: 0')])
def test_heads_that_cannot_be(home, tmp_path, model, text):
    with pytest.raises(UsageError, match=text): train_decoder(config(home, tmp_path/'run', model=model))

def test_a_head_that_starts_from_a_probe_says_what_the_probe_says(home, tmp_path):
    train_decoder(config(home, tmp_path/'seen', epochs=1))                       # fills the store
    cfg = tagger.check(config(home, tmp_path/'run', model=dict(d=16, depth=1, heads=2, skip=2, probe_start=True)))
    run = tagger.prepare(cfg, Processes('cpu'))
    task = tagger.DecoderTask(cfg, run.sources['train'], run.sources['val'], run.vocab, run.codec, run.preprocess)
    of = lambda z: pooled(local_features(z), 2)
    probe = fit_probe(run.sources['train'], run.sources['val'], of, cfg.seed)
    z = run.sources['val'].get(0, next(iter(task.val_plan(0))))['z']
    with torch.no_grad(): assert torch.allclose(task.head.eval()(z).sigmoid(), probe(of(z)), atol=1e-4)

def test_a_probe_joins_the_trained_head_and_does_no_harm_on_validation(home, tmp_path, capsys):
    store = dict(store=str(tmp_path/'store'))
    alone = train_decoder(config(home, tmp_path/'alone', latents=store, epochs=2, model=dict(d=16, depth=1, heads=2, skip=0)))
    r = train_decoder(config(home, tmp_path/'run', latents=store, epochs=2, model=dict(d=16, depth=1, heads=2, skip=0, probe_join=2)))
    assert 'model.probe_join: share' in ''.join(capsys.readouterr())
    assert load_model(r.best).head.args['skip'] == 2 and load_model(alone.best).head.args['skip'] == 0
    assert r.metrics['val']['decoder']['mAP'] >= read_json(tmp_path/'run'/'best.json')['value'] - 1e-6
    (tmp_path/'run'/'results.json').unlink()                                    # cut off after the model was written: it does not join twice
    again = train_decoder(config(home, tmp_path/'run', latents=store, epochs=2, model=dict(d=16, depth=1, heads=2, skip=0, probe_join=2)))
    assert again.metrics == r.metrics

def test_the_vae_stays_and_a_second_run_encodes_nothing(home, tmp_path, monkeypatch):
    vae = {p.name: p.read_bytes() for p in (home/'vae').iterdir()}
    cfg = dict(latents=dict(store=str(tmp_path/'store')), epochs=1)
    calls, encode = [], Codec.encode_raw
    monkeypatch.setattr(Codec, 'encode_raw', lambda self, x: calls.append(len(x)) or encode(self, x))
    train_decoder(config(home, tmp_path/'a', **cfg))
    assert sum(calls) == 36
    calls.clear()
    train_decoder(config(home, tmp_path/'b', seed=1, **cfg))
    assert calls == [] and {p.name: p.read_bytes() for p in (home/'vae').iterdir()} == vae

# --- (d), (f): it learns, and the cache tells the truth ------------------------------------------------------------------
def test_sixteen_images_are_overfitted(home, tmp_path):
    keys = list(json.loads((home/'scenes'/'data.json').read_text()).items())[:16]
    for name in ('few.json', 'same.json'): (home/'scenes'/name).write_text(json.dumps(dict(keys)))
    cfg = config(home, tmp_path/'run', epochs=40, batch_size=8, precision='no', optim=dict(kind='muon', lr=1e-2, weight_decay=0.), model=dict(d=64, depth=1, heads=2, drop_path=0.),
                 ema=0., eval=dict(every=20, baselines=False), save_every=40)
    cfg.data.metadata, cfg.data.val, cfg.data.test = str(home/'scenes'/'few.json'), str(home/'scenes'/'same.json'), None
    r = train_decoder(cfg)
    assert r.metrics['val']['decoder']['f1_micro'] >= .99

def test_pixels_cache_and_batch_size_agree(home, tmp_path):
    r = train_decoder(config(home, tmp_path/'run', epochs=1))
    head, codec, cfg = load_model(r.best).head, Codec.load(home/'vae'), config(home, tmp_path/'run')
    store = LatentStore.open(home/'store')
    side = store.index.iloc[0]
    pre = cfg.image.preprocess()
    x = to_float(pre.load([side['path']], (int(side['bucket_w']), int(side['bucket_h']))).images)
    row = np.array([0])
    with torch.no_grad():
        pixels, cached = head(codec.encode(x)), head(store.read_model(row))
        assert (pixels - cached).abs().max() < 2e-2                                # the cache holds fp16
        rows = np.flatnonzero((store.shapes == store.shapes[0]).all(1))[:8]
        z = store.read_model(rows)
        assert (head(z) - torch.cat([head(z[i:i+1]) for i in range(len(z))])).abs().max() < 1e-5

def test_noise_and_mirrored_variants_come_from_the_counters(home, tmp_path):
    cfg = dict(latents=dict(store=str(tmp_path/'store'), noise=.3), epochs=1)
    a, b = (train_decoder(config(home, tmp_path/n, image=dict(base_resolution=64, max_resolution=96, bucket_step=16, flip=True), **cfg)) for n in 'ab')
    assert tensors(a.best) == tensors(b.best) and len(LatentStore.open(tmp_path/'store')) == 72

def test_a_run_starts_from_another_models_rows_and_reads_it_once(home, tmp_path, monkeypatch):
    first = train_decoder(config(home, tmp_path/'a', epochs=1))
    old = load_model(first.best)
    cfg = config(home, tmp_path/'b', epochs=1, model=dict(d=16, depth=1, heads=2, init=str(first.best)), optim=dict(lr=1e-12, weight_decay=0.), ema=0.)
    read, load = [], tagger.load_model
    monkeypatch.setattr(tagger, 'load_model', lambda f, *a: (read.append(str(f)), load(f, *a))[1])
    new = load_model(train_decoder(cfg).best)
    assert read.count(str(first.best)) == 1
    assert torch.allclose(new.head.out.weight, old.head.out.weight, atol=1e-6) and torch.allclose(new.head.embed_patch.weight, old.head.embed_patch.weight, atol=1e-6)

@pytest.mark.parametrize('model,vae,text', [
    (dict(d=32, depth=1, heads=2), 'vae', 'with d 16, asked for is a pool head with d 32'), (dict(d=16, depth=1, heads=2, head='query'), 'vae', 'has a pool head with kind pool, asked for is a query head'),
    (dict(d=16, depth=1, heads=2), 'other', 'was made for latents of another VAE: fingerprint'), (dict(head='plain'), 'vae', 'asked for is a plain head'),
    (dict(d=16, depth=1, heads=2), 'wide', 'channels')], ids=['width', 'kind', 'VAE', 'plain', 'channels'])
@pytest.mark.parametrize('full', [False, True], ids=['decoder', 'full'])
def test_a_model_that_does_not_fit_is_refused_before_anything_is_encoded(home, tmp_path, monkeypatch, model, vae, text, full):
    for name, c, seed in (('other', 4, 1), ('wide', 8, 0)): Codec.random(dict(latent_channels=c, block_out_channels=[8]*4, layers_per_block=1, norm_num_groups=4), seed=seed).save(tmp_path/name)
    codec, own = Codec.load(home/'vae').spec(), tagger.HeadConfig(d=16, depth=1, heads=2)
    vocab = Vocab(['red', 'blue'])
    save_model(tmp_path/'old', build_head(own.spec(4, 2)), vocab, codec, dict())
    cfg = config(home, tmp_path/'run', codec=dict(vae=str(home/'vae' if vae == 'vae' else tmp_path/vae)), model=model | dict(init=str(tmp_path/'old')), latents=dict(store=str(tmp_path/'store')))
    if full: cfg = FullConfig(out=cfg.out, data=cfg.data, image=VaeImages(base_resolution=64, max_resolution=96, bucket_step=16), codec=cfg.codec, model=cfg.model, vae=FullVae(train='all' if vae == 'wide' else 'none'), batch_size=2, device='cpu')
    if vae == 'wide': text = 'with channels 4, asked for is a pool head with channels 8' if full else 'another VAE'   # a VAE that is trained may be another one
    monkeypatch.setattr(Codec, 'encode_raw', lambda *a: pytest.fail('something was encoded'))
    with pytest.raises(VaetagError) as e: (train_full if full else train_decoder)(cfg)
    assert str(e.value).startswith('model.init: ') and text in str(e.value) and len(str(e.value).splitlines()) == 1 and not (tmp_path/'store').exists()

# --- (j), (k): resume, two processes --------------------------------------------------------------------------------------
RUN = textwrap.dedent("""
    import sys
    from vaetag_nb.core.config import load
    from vaetag_nb.trainers.tagger import DecoderConfig, train_decoder
    if __name__ == '__main__': train_decoder(load(DecoderConfig, sys.argv[1]))
    """)

def start(tmp_path, cfg, name, launcher=()):
    (tmp_path/'run.py').write_text(RUN)
    (tmp_path/f'{name}.yaml').write_text(to_yaml(cfg))
    env = dict(os.environ, VAETAG_QUIET='1', OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, *launcher, str(tmp_path/'run.py'), str(tmp_path/f'{name}.yaml')], env=env, stderr=subprocess.PIPE, text=True)

@pytest.mark.slow
@pytest.mark.parametrize('loss', [{}, dict(mode='research')], ids=['bce', 'triplets, learned weights'])
def test_a_killed_run_goes_on_bit_by_bit(home, tmp_path, loss):
    more = dict(epochs=6, batch_size=4, accumulate=2, save_every='1 steps', model=dict(d=16, depth=2, heads=2, dropout=.2, drop_path=.3), workers=0, loss=loss)
    whole = train_decoder(config(home, tmp_path/'whole', **more))
    cfg = config(home, tmp_path/'cut', **more)
    p, steps = start(tmp_path, cfg, 'cut'), tmp_path/'cut'/'checkpoints'
    while p.poll() is None and not (steps.exists() and len(list(steps.glob('step_*'))) > 1): time.sleep(.02)
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (tmp_path/'cut'/'done.json').exists()
    again = train_decoder(cfg)
    assert tensors(again.best) == tensors(whole.best) and again.metrics == whole.metrics
    a, b = ([x['loss'] for x in read_jsonl(tmp_path/n/'log.jsonl') if 'loss' in x and 'img_s' in x] for n in ('whole', 'cut'))
    assert a == b

def one_and_two(home, tmp_path, port, **more):
    "Train on one process and, by `torchrun`, on two; their figures must agree"
    one = train_decoder(config(home, tmp_path/'one', **more))
    p = start(tmp_path, config(home, tmp_path/'two', **more), 'two', ('-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}'))
    _, err = p.communicate(timeout=300)
    assert p.returncode == 0, err[-2000:]
    two = read_json(tmp_path/'two'/'results.json')['figures']
    for s in one.metrics:
        for k in ('f1_micro', 'mAP'): assert abs(one.metrics[s]['decoder'][k] - two[s]['decoder'][k]) < 2e-3

@pytest.mark.slow
def test_two_processes_report_what_one_does(home, tmp_path):
    one_and_two(home, tmp_path, 29577, epochs=1, model=dict(d=16, depth=1, heads=2, drop_path=0.), batch_size=4)

# --- one line -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('change,text', [
    (dict(epochs=0), 'epochs: 0 is not at least 1'), (dict(batch_size=0), 'batch_size: 0'), (dict(data=dict(metadata=None)), 'data.metadata: not given'),
    (dict(model=dict(heads=5, d=16)), 'model.heads: 5 does not divide model.d: 16'), (dict(codec=dict(vae=None)), 'codec.vae: not given'),
    (dict(image=dict(base_resolution=96, max_resolution=64)), 'image.max_resolution = 64'), (dict(image=dict(base_resolution=60, max_resolution=96, bucket_step=12)), '8'),
    (dict(loss=dict(semantic=dict(kind='contrastive'))), 'loss.semantic.kind: contrastive does nothing with loss.semantic.weight: 0'),
    (dict(loss=dict(weighting='learned')), 'loss.weighting: learned weighs terms against each other, but loss.semantic.weight: 0'),
    (dict(loss=dict(semantic=dict(weight=1., mining='batch'))), 'loss.semantic.mining: batch needs batch_size of 8'),
    (dict(loss=dict(mode='research', semantic=dict(on='pooled'))), 'loss.semantic.on: pooled'),
    (dict(loss=dict(mode='research'), latents=dict(mixup=.4)), 'latents.mixup: 0.4 does not go with loss.semantic.mining: plan'),
    (dict(codec=dict(sample='sample')), 'codec.sample'), (dict(model=dict(skip=0, probe_start=True)), 'model.probe_start'), (dict(model=dict(probe_join=2)), 'model.skip: 0 (now 4)'), (dict(model=dict(skip=2, probe_join=2)), 'model.probe_join: 2'), (dict(latents=dict(zoom=1)), 'latents.zoom')])
def test_wrong_settings_are_usage_errors(home, tmp_path, change, text):
    with pytest.raises(UsageError) as e: train_decoder(config(home, tmp_path/'run', **change))
    assert text in str(e.value) and len(str(e.value).splitlines()) == 1

@pytest.mark.parametrize('change,text', [
    (dict(data=dict(metadata='nowhere.json')), 'nowhere.json'), (dict(codec=dict(vae='nowhere')), 'nowhere'), (dict(model=dict(d=16, depth=1, heads=2, init='nowhere')), 'nowhere: no such model folder')])
def test_missing_files_are_named(home, tmp_path, change, text):
    with pytest.raises(VaetagError) as e: train_decoder(config(home, tmp_path/'run', **change))
    assert text in str(e.value) and len(str(e.value).splitlines()) == 1

def test_too_many_broken_pictures_stop_the_run_before_it_starts(home, tmp_path):
    for p in (home/'scenes'/'images').glob('*.png'): (tmp_path/p.name).write_bytes(p.read_bytes()[:60] if p.stem < '000005' else p.read_bytes())
    (tmp_path/'data.json').write_text(json.dumps({p.name: 'red' for p in sorted(tmp_path.glob('*.png'))}))
    with pytest.raises(VaetagError, match=r'\d of the \d+ pictures looked at \(of 36\) cannot be used'): train_decoder(config(home, tmp_path/'run', data=dict(metadata=str(tmp_path/'data.json'), tags=None), latents=dict(store=str(tmp_path/'store'))))
    assert not (tmp_path/'run'/'checkpoints').exists()
