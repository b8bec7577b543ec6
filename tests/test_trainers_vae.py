"""`train vae`: it learns from nothing, does not spoil what is good, goes on where it stopped, and its terms do what they say."""
import signal
import numpy as np, pytest, torch
from vaetag_nb.core.config import load
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.core.io import load_tensors, read_json, read_jsonl, write_json
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.latents.codec import Codec
from vaetag_nb.trainers.drift import Drift
from vaetag_nb.trainers.pixels import Pictures
from vaetag_nb.trainers.plan import Slice
from vaetag_nb.trainers.task import Ctx
from vaetag_nb.trainers.vae import VaeConfig, VaeTask, train_vae
from vaetag_nb.weighting import kl_elements

LAYOUT = dict(latent_channels=4, block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False)

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    out = tmp_path_factory.mktemp('scenes')
    make_scenes(out, 24, seed=11, resolution=64)
    return out/'data.json'

@pytest.fixture(scope='module')
def few(scenes):
    "Half of the scenes, for what needs no more: 3 batches an epoch"
    write_json(scenes.parent/'few.json', dict(list(read_json(scenes).items())[:12]))
    return scenes.parent/'few.json'

@pytest.fixture(scope='module')
def started(scenes, tmp_path_factory):
    "A VAE that has begun to learn"
    return train_vae(config(scenes, tmp_path_factory.mktemp('started')/'run', epochs=1)).best/'vae'

def config(scenes, out, **more):
    base = dict(data=dict(metadata=str(scenes), val=.25), codec=dict(init='random', config=LAYOUT), optim=dict(kind='muon', lr=4e-3),
                image=dict(base_resolution=48, max_resolution=80, bucket_step=8, window=32), out=str(out), epochs=6, batch_size=3, log_every=1)
    return load(VaeConfig, base, more)

def weights(run): return load_tensors(run.best/'vae/diffusion_pytorch_model.safetensors')[0]

def test_it_learns_from_random_weights_and_writes_a_vae_that_loads(scenes, tmp_path):
    run = train_vae(config(scenes, tmp_path/'run', epochs=8))
    epochs = [l for l in read_jsonl(tmp_path/'run/log.jsonl') if l['kind'] == 'epoch']
    best = min(epochs, key=lambda l: l['val/loss'])
    assert epochs[-1]['val/psnr'] > epochs[0]['val/psnr']+2 and run.metrics['val/psnr'] == best['val/psnr']
    codec = Codec.load(run.best/'vae')
    x = torch.rand(2, 3, 48, 64)*2-1
    assert codec.decode(codec.encode(x)).shape == x.shape
    z = read_json(run.best/'drift.json')
    assert codec.convention.scale == z['fits']['scale'] and codec.convention.shift == z['fits']['shift']
    assert (tmp_path/'run/samples').is_dir() and len(list((tmp_path/'run/samples').iterdir())) == 8

def test_latents_of_a_fresh_vae_have_unit_scale(scenes, tmp_path):
    run = train_vae(config(scenes, tmp_path/'run', epochs=2))
    codec, cfg = Codec.load(run.best/'vae'), config(scenes, tmp_path/'run')
    from vaetag_nb.data.images import to_float
    from vaetag_nb.trainers.cached import read_sides
    val = read_sides(cfg.data, cfg.out, method='random', labelled=False)['val']
    z = [codec.encode(to_float(cfg.image.preprocess().load([p], (w//8*8, h//8*8))[0])) for p, w, h in zip(val.paths, val.width, val.height)]
    z = torch.cat([x.flatten() for x in z])
    assert float(z.std()) == pytest.approx(1, abs=.02) and abs(float(z.mean())) < .02

@pytest.mark.parametrize('train,moves', [('decoder', ('decoder', 'post_quant_conv')), ('encoder', ('encoder', 'quant_conv'))])
def test_only_the_chosen_half_moves(scenes, started, tmp_path, train, moves):
    vae = started
    before = load_tensors(vae/'diffusion_pytorch_model.safetensors')[0]
    run = train_vae(config(scenes, tmp_path/train, epochs=1, codec=dict(vae=str(vae), init=None, config=None), vae=dict(train=train)))
    after = {f'{f.stem[4:]}.{k}': v for f in sorted((run.out/'checkpoints').iterdir())[-1].glob('vae.*.safetensors') for k, v in load_tensors(f)[0].items()}
    assert {k.split('.')[0] for k in after} == {m for m in moves if any(k.startswith(m) for k in before)}
    assert any(not torch.equal(before[k], v) for k, v in after.items())
    for k, v in weights(run).items(): assert k.startswith(moves) or torch.equal(v, before[k]), k
    assert read_json(vae/'config.json')['scaling_factor'] == read_json(run.best/'vae/config.json')['scaling_factor']
    drift = [l.get('val/drift') for l in read_jsonl(run.out/'log.jsonl') if l['kind'] == 'epoch'][-1]
    assert drift is None if train == 'decoder' else drift > 0

def test_the_weight_of_kl_moves_the_kl(scenes, tmp_path):
    kl = {w: train_vae(config(scenes, tmp_path/str(w), epochs=1, loss=dict(kl=dict(weight=w)))).metrics['val/kl'] for w in (0, 1e-2, 1.)}
    assert kl[0] > kl[1e-2] > 3*kl[1.]

def test_the_decoder_sees_draws_in_training_and_the_mean_in_evaluation(scenes, tmp_path):
    cfg = config(scenes, tmp_path/'run')
    codec = cfg.codec.start(0)
    src = Pictures(*pictures(scenes), cfg.image, 0)
    task = VaeTask(codec, src, Pictures(*pictures(scenes), cfg.image.plain(), 0), cfg, dict(recon=1., kl=0.), fresh=True)
    batch, seen, real = src.get(0, np.arange(3)), [], task.vae.decode
    task.vae.decode = lambda z: seen.append(z) or real(z)
    ctx = lambda epoch: Ctx(Slice(epoch, 0, np.arange(3), 3, 3), 0, 0.)
    a, b, c = (task.loss_vae(batch, ctx(e))[0].item() for e in (0, 1, 0))
    assert a == c != b and not torch.equal(seen[0], seen[1])
    half = {k: v[1:] for k, v in batch.items()}                       # what another process may get
    task.loss_vae(half, ctx(0))
    assert torch.allclose(seen[-1], seen[0][1:], atol=1e-5)
    x = torch.zeros(1, 3, 48, 64)
    with torch.no_grad(): assert torch.equal(task.reconstruct(x), task.reconstruct(x)) and torch.equal(seen[-1], codec.encode_raw(x)[0])

def pictures(scenes):
    from vaetag_nb.data.table import TagTable
    t = TagTable.read(scenes).with_sizes()
    return t.paths, t.width, t.height

def test_batches_are_functions_of_epoch_and_picture(scenes, tmp_path):
    cfg = config(scenes, tmp_path)
    src = Pictures(*pictures(scenes), cfg.image, 3)
    whole = src.get(1, np.array([5, 2, 9]))['pixels']
    assert torch.equal(whole[1], src.get(1, np.array([2]))['pixels'][0])
    assert not torch.equal(whole, src.get(2, np.array([5, 2, 9]))['pixels'])
    assert whole.shape == (3, 3, 32, 32) and whole.dtype == torch.uint8

@pytest.mark.parametrize('more', [{}, dict(loss=dict(recon=dict(adv=.01, adv_start=.2)))], ids=['alone', 'with a critic'])
def test_a_stopped_run_ends_as_one_that_was_not(few, tmp_path, monkeypatch, more):
    run = lambda name: train_vae(config(few, tmp_path/name, epochs=2, **more))
    whole, real, n = run('whole'), VaeTask.loss_vae, []
    def stop(self, *a):
        n.append(1)
        if len(n) == 4: signal.raise_signal(signal.SIGTERM)                # after the first of 3 batches of the second epoch
        return real(self, *a)
    monkeypatch.setattr(VaeTask, 'loss_vae', stop)
    with pytest.raises(VaetagError, match='stopped by SIGTERM after step 4'): run('cut')
    monkeypatch.setattr(VaeTask, 'loss_vae', real)
    cut = run('cut')
    for k, v in weights(whole).items(): assert torch.equal(v, weights(cut)[k]), k
    assert cut.metrics == whole.metrics

def test_unreadable_pictures_are_left_out_and_named(scenes, tmp_path, capsys):
    paths, w, h = pictures(scenes)
    bad = tmp_path/'torn.png'; bad.write_bytes(open(paths[0], 'rb').read()[:400])
    src = Pictures([*paths[:2], str(bad)], w[:3], h[:3], config(scenes, tmp_path).image, 0)
    assert len(src.get(0, np.arange(3))['pixels']) == 2
    assert 'torn.png: left out' in capsys.readouterr().err
    with pytest.raises(VaetagError, match='torn.png'): src.get(0, np.array([2]))

@pytest.mark.parametrize('change,text', [
    (dict(image=dict(window=33)), 'image.window: 33 is no multiple of 2'), (dict(image=dict(window=96)), 'the smallest prepared picture'),
    (dict(optim=dict(lr=0)), 'optim.lr: 0.0 is not above 0'), (dict(vae=dict(train='decoder')), 'codec.init: random'),
    (dict(image=dict(bucket_step=7)), 'is no multiple of 2'), (dict(codec=dict(init=None)), 'codec.vae: not given')])
def test_settings_that_cannot_be(scenes, tmp_path, change, text):
    with pytest.raises(UsageError, match=text): train_vae(config(scenes, tmp_path/'run', **change))

def test_kl_is_that_of_torch():
    g = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 3, 4, 4, generator=g)
    from torch.distributions import Normal, kl_divergence
    assert torch.allclose(kl_elements(mean, logvar), kl_divergence(Normal(mean, (logvar/2).exp()), Normal(0., 1.)), atol=1e-5)

def going_on(out, scenes, window, epochs):
    "`train vae` with its defaults, on from the VAE that ships: PSNR before, after each epoch, and of what is kept; drift of what is kept"
    run = train_vae(load(VaeConfig, dict(data=dict(metadata=str(scenes/'data.json')), codec=dict(vae='embedded'), out=str(out), epochs=epochs,
                    image=dict(base_resolution=96, max_resolution=160, bucket_step=16, window=window))))
    psnr = [l['val/psnr'] for l in read_jsonl(out/'log.jsonl') if 'val/psnr' in l]
    return psnr[0], psnr[-1], run.metrics['val/psnr'], read_json(run.best/'drift.json')['distance']

def test_going_on_from_the_embedded_vae_does_not_spoil_it(tmp_path):
    make_scenes(tmp_path/'s', 48, seed=12)
    start, end, kept, drift = going_on(tmp_path/'run', tmp_path/'s', 64, 2)
    assert start > 27 and end > start-.1 and kept > start-.1 and drift < Drift.limit

@pytest.mark.slow
@pytest.mark.parametrize('window,gain', [(None, .2), (64, -.1)])
def test_the_demo_set_does_not_spoil_it(tmp_path, window, gain):
    make_scenes(tmp_path/'s', 200, seed=0)
    start, end, kept, drift = going_on(tmp_path/'run', tmp_path/'s', window, 4)
    assert min(end, kept) > start+gain and drift < Drift.limit

@pytest.mark.parametrize('mode,terms', [('simplified', {'recon', 'kl', 'semantic'}), ('standard', {'recon', 'kl', 'semantic'}), ('research', {'recon', 'kl', 'semantic', 'learned/recon', 'learned/kl', 'learned/semantic'})])
def test_every_mode_finishes_and_logs_its_terms(scenes, tmp_path, mode, terms):
    cfg = config(scenes, tmp_path/'run', epochs=1, batch_size=2, loss=dict(mode=mode), image=dict(base_resolution=48, max_resolution=80, bucket_step=16))
    cfg.image.window = None                                             # buckets and triplets together
    run = train_vae(cfg)
    steps = [l for l in read_jsonl(tmp_path/'run/log.jsonl') if l['kind'] == 'step']
    assert terms <= set(steps[0]) and ('learned/recon' in steps[0]) == (mode == 'research')
    assert any(l['triplet_valid'] > 0 for l in steps) and all(np.isfinite(l['loss']) for l in steps)
    weight = dict(simplified=0, standard=1e-6).get(mode)
    if weight is not None: assert steps[0]['loss'] == pytest.approx(steps[0]['recon']+.001*steps[0]['semantic']+weight*steps[0]['kl'], rel=1e-5)
    assert (run.best/'vae/config.json').exists()

def test_a_critic_learns_beside_the_vae_and_is_not_kept_with_it(scenes, tmp_path):
    whole = train_vae(config(scenes, tmp_path/'whole', epochs=1, loss=dict(recon=dict(adv=.01, adv_start=.2))))
    steps = [l for l in read_jsonl(tmp_path/'whole/log.jsonl') if l['kind'] == 'step']
    assert {'adv', 'critic_right', 'loss_vae', 'loss_critic', 'lr_critic'} <= set(steps[0]) and steps[0]['adv'] == 0 != steps[-1]['adv']
    assert not any('critic' in k or 'adversary' in k for k in weights(whole))

@pytest.mark.parametrize('change,text', [
    (dict(loss=dict(semantic=dict(on='embedding'))), 'loss.semantic.on: embedding'), (dict(loss=dict(mode='custom', kl=dict(weight=1))), 'loss.recon.weight'),
    (dict(loss=dict(semantic=dict(kind='contrastive', weight=0))), 'loss.semantic.kind: contrastive does nothing with loss.semantic.weight: 0'), (dict(loss=dict(semantic=dict(mining='batch'))), 'loss.semantic.mining: batch needs batch_size of 8'),
    (dict(loss=dict(weighting='learned', kl=dict(weight=0), semantic=dict(weight=0))), 'loss.weighting'), (dict(loss=dict(kl=dict(weight=-1))), 'loss.kl.weight: -1')])
def test_terms_that_contradict_each_other(scenes, tmp_path, change, text):
    with pytest.raises(UsageError, match=text): train_vae(config(scenes, tmp_path/'run', **change))

@pytest.mark.parametrize('net,file', [('alex', 'alexnet-owt-7be5be79.pth'), ('squeeze', 'squeezenet1_1-b8a52dc0.pth')])
def test_the_perceptual_term_needs_its_network_and_pulls_on_the_vae(few, tmp_path, monkeypatch, net, file):
    import torchvision
    for where in ('VAETAG_WEIGHTS', 'TORCH_HOME'): monkeypatch.setenv(where, str(tmp_path/where))
    perceptual = lambda weight, **more: dict(loss=dict(recon=dict(perceptual=weight, perceptual_net=net, **more)))
    with pytest.raises(VaetagError, match=f'loss.recon.perceptual: .*{file}.*loss.recon.perceptual_weights'): train_vae(config(few, tmp_path/'none', epochs=1, **perceptual(.5)))
    (tmp_path/'VAETAG_WEIGHTS').mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({k: v for k, v in dict(alex=torchvision.models.alexnet, squeeze=torchvision.models.squeezenet1_1)[net](weights=None).state_dict().items() if k.startswith('features')}, tmp_path/'VAETAG_WEIGHTS'/file)
    runs = {p: train_vae(config(few, tmp_path/f'run{p}', epochs=1, **perceptual(p))) for p in (0., 5.)}
    steps = [l for l in read_jsonl(tmp_path/'run5.0/log.jsonl') if 'perceptual' in l and 'recon' in l]
    assert steps and all(l['perceptual'] > 0 for l in steps)
    a, b = map(weights, runs.values())
    assert a.keys() == b.keys() and any(not torch.equal(a[k], b[k]) for k in a)    # no part of the network is kept, and it moved the VAE
