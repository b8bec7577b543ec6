"The decoder without its cache: every batch encoded anew, with views that seed and epoch decide, and a VAE that stays"
import json, signal
import numpy as np, pytest, torch
from PIL import Image
from test_trainers_tagger import config, home, one_and_two, tensors  # noqa: F401 (home is a fixture)
from vaetag_nb.core.config import to_yaml
from vaetag_nb.core.errors import UsageError
from vaetag_nb.core.io import hash_tensors, read_jsonl
from vaetag_nb.data.images import to_float
from vaetag_nb.latents.codec import Codec
from vaetag_nb.latents.store import LatentStore
from vaetag_nb.models.latent_tagger import load_model
from vaetag_nb.trainers import tagger
from vaetag_nb.trainers.fresh import FreshPictures
from vaetag_nb.trainers.processes import Processes
from vaetag_nb.trainers.tagger import DecoderTask, train_decoder
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

SIZES = dict(base_resolution=64, max_resolution=96, bucket_step=16)
VIEWS = dict(image=dict(SIZES, crop='random', flip=True), latents=dict(cache=False, zoom=.3, noise=.1))

def steps(out): return [x for x in read_jsonl(out/'log.jsonl') if x['kind'] == 'step']

def test_without_views_it_learns_what_the_cache_teaches(home, tmp_path):
    more = dict(precision='no', loss=dict(mode='research'), epochs=1)
    a, b = (train_decoder(config(home, tmp_path/n, latents=dict(store=str(tmp_path/'store'), dtype='fp32', cache=c), **more)) for n, c in (('a', True), ('b', False)))
    x, y = steps(tmp_path/'a'), steps(tmp_path/'b')
    assert len(x) == len(y) > 10 and [l['triplet_valid'] for l in x] == [l['triplet_valid'] for l in y] and x[0]['loss'] == pytest.approx(y[0]['loss'], rel=1e-5)
    assert [l['loss'] for l in x] == pytest.approx([l['loss'] for l in y], rel=1e-2)
    assert load_model(a.best).preprocess == load_model(b.best).preprocess and load_model(a.best).codec == load_model(b.best).codec

def test_the_number_of_workers_changes_nothing(home, tmp_path):
    a, b = (train_decoder(config(home, tmp_path/n, workers=w, epochs=1, batch_size=4, loss=dict(mode='research'), **VIEWS)) for n, w in (('a', 0), ('b', 2)))
    assert tensors(a.best) == tensors(b.best) and [x['loss'] for x in steps(tmp_path/'a')] == [x['loss'] for x in steps(tmp_path/'b')]
    other = train_decoder(config(home, tmp_path/'c', seed=1, epochs=1, batch_size=4, loss=dict(mode='research'), **VIEWS))
    assert tensors(other.best) != tensors(a.best)
    assert load_model(a.best).preprocess['crop'] == 'center'                        # what a tagger shall do is not random

def test_each_picture_is_encoded_once_an_epoch_and_the_vae_stays(home, tmp_path, monkeypatch):
    seen, codecs, encode, load = [], [], Codec.encode_raw, Codec.load
    def watched(self, x):
        seen.append((len(x), x.dtype, torch.is_grad_enabled(), torch.is_autocast_enabled('cpu'), self.vae.training, any(p.requires_grad for p in self.vae.parameters())))
        return encode(self, x)
    def loaded(*a, **k):
        codecs.append(load(*a, **k))
        return codecs[-1]
    monkeypatch.setattr(Codec, 'encode_raw', watched)
    monkeypatch.setattr(Codec, 'load', loaded)
    files = {p.name: p.read_bytes() for p in (home/'vae').iterdir()}
    first = config(home, tmp_path/'run', precision='bf16', **VIEWS)
    first.codec.batch_size, first.latents.store = 2, None
    train_decoder(first)
    sides = {k: len(t) for k, t in tagger.read_sides(first.data, first.out, first.seed).items()}
    assert sum(n for n, *_ in seen) == 2*sides['train'] + sides['val'] + sides['test'] and {s[1:] for s in seen} <= {(torch.float32, g, False, False, False) for g in (False, True)}
    assert max(n for n, *_ in seen) <= 2 and len(LatentStore.open(tmp_path/'run/latents')) == sides['val'] + sides['test']
    assert len(codecs) == 1 and hash_tensors(codecs[0].vae.state_dict()) == hash_tensors(load(home/'vae').vae.state_dict())
    assert files == {p.name: p.read_bytes() for p in (home/'vae').iterdir()}
    seen.clear()
    train_decoder(config(home, tmp_path/'again', epochs=1, eval=dict(baselines=True), **{**VIEWS, 'latents': dict(VIEWS['latents'], store=str(tmp_path/'run/latents'))}))
    assert sum(n for n, *_ in seen) == 2*sides['train']                             # once as they are, for the probes, and once for the epoch

def test_a_stopped_run_ends_as_one_that_was_not(home, tmp_path, monkeypatch):
    more = dict(epochs=2, batch_size=3, accumulate=2, ema=.9, loss=dict(mode='research'), **VIEWS)
    whole = train_decoder(config(home, tmp_path/'whole', **more))
    real, n = DecoderTask.loss_head, []
    def stop(self, *a):
        n.append(1)
        if len(n) == 7: signal.raise_signal(signal.SIGTERM)
        return real(self, *a)
    monkeypatch.setattr(DecoderTask, 'loss_head', stop)
    with pytest.raises(Exception, match='stopped by SIGTERM'): train_decoder(config(home, tmp_path/'cut', **more))
    monkeypatch.setattr(DecoderTask, 'loss_head', real)
    cut = train_decoder(config(home, tmp_path/'cut', **more))
    assert tensors(cut.best) == tensors(whole.best) and cut.metrics == whole.metrics

def task_of(cfg):
    cfg = tagger.check(cfg)
    run = tagger.prepare(cfg, Processes('cpu'))
    return run, DecoderTask(cfg, run.learn, run.sources['val'], run.vocab, run.codec, run.preprocess, run.encoder, run.sources.get('train'))

def test_a_crop_keeps_the_shape_of_its_bucket_and_lies_in_the_picture(home, tmp_path):
    cfg = config(home, tmp_path/'run', image=dict(SIZES, crop='random'), latents=dict(cache=False, store=str(home/'views')))
    run, task = task_of(cfg)
    src = run.learn
    assert isinstance(src, FreshPictures) and len(set(src.groups.tolist())) > 1
    still = {i: FreshPictures(run.sides['train'], cfg.image.plain(), 0).read(0, np.array([i]))[i] for i in range(len(src))}
    moved = set()
    for epoch in (0, 1):
        for rows in task.plan(epoch):
            b = src.get(epoch, rows)
            assert [tuple(x.shape[1:]) for x in b['pixels']] == [tuple(src.sizes[i][::-1]) for i in rows.tolist()]
            moved |= {i for x, i in zip(b['pixels'], rows.tolist()) if not torch.equal(x, still[i])}
    other = {i for i, (w, h) in enumerate(zip(run.sides['train'].width, run.sides['train'].height)) if w*src.sizes[i][1] != h*src.sizes[i][0]}
    assert moved and moved <= other                                                 # only what is wider or higher than its bucket can move

def test_validation_has_no_views(home, tmp_path):
    run, task = task_of(config(home, tmp_path/'run', **VIEWS))
    val, codec, pre = run.sources['val'], Codec.load(home/'vae'), config(home, tmp_path/'run').image.preprocess()
    for e in (0, 3):
        rows = next(iter(task.val_plan(e)))
        x = [pre.apply(Image.open(val.paths[i]))[0] for i in rows]
        z = codec.encode(to_float(torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2)))
        assert (val.get(e, rows)['z'] - z).abs().max() < 2e-2                       # the store holds fp16

def test_stored_latents_are_no_draws(home, tmp_path):
    with pytest.raises(UsageError, match='or latents.cache: false'): train_decoder(config(home, tmp_path/'run', codec=dict(vae=str(home/'vae'), sample='sample')))

@pytest.mark.slow
def test_draws_of_the_posterior(home, tmp_path):
    run = [train_decoder(config(home, tmp_path/f'{n}', epochs=1, batch_size=8, latents=dict(cache=False), codec=dict(vae=str(home/'vae'), sample=s))) for n, s in enumerate(['sample', 'sample', 'mode'])]
    assert tensors(run[0].best) == tensors(run[1].best) != tensors(run[2].best)

def test_a_torn_picture_is_left_out(home, tmp_path, capsys):
    for p in (home/'scenes'/'images').glob('*.png'): (tmp_path/p.name).write_bytes(p.read_bytes())
    (tmp_path/'data.json').write_text(json.dumps({p.name: 'red' if i % 3 else 'red, blue' for i, p in enumerate(sorted(tmp_path.glob('*.png')))}))
    cfg = lambda n, **more: config(home, tmp_path/n, epochs=1, data=dict(metadata=str(tmp_path/'data.json'), tags=None, val=.2), latents=dict(cache=False), **more)
    train = tagger.read_sides(cfg('a').data, tmp_path/'a', 0)['train']
    bad = [p for p in train.paths][0]
    data = open(bad, 'rb').read()
    open(bad, 'wb').write(data[:len(data)//2])                                      # its header still says a size
    run = tagger.prepare(tagger.check(cfg('a', eval=dict(baselines=True))), Processes('cpu'))
    assert len(run.learn) == len(train) - 1 and bad not in run.learn.paths           # encoding it for the probes has told
    r = train_decoder(cfg('b', batch_size=8))                                       # nobody has tried before training
    assert np.isfinite(r.metrics['val']['decoder']['mAP']) and f'{bad}: left out' in capsys.readouterr().err

def test_a_probe_to_start_from_is_fitted_to_the_pictures_as_they_are(home, tmp_path):
    r = train_decoder(config(home, tmp_path/'run', epochs=1, model=dict(d=16, depth=1, heads=2, skip=2, probe_start=True), image=VIEWS['image'], latents=dict(VIEWS['latents'], store=str(tmp_path/'store'))))
    assert load_model(r.best).head.args['skip'] == 2 and len(LatentStore.open(tmp_path/'store')) == 36

def test_from_the_command_line(home, tmp_path):
    (tmp_path/'run.yaml').write_text(to_yaml(config(home, tmp_path/'run', epochs=1)))
    status, out, err = shell('train', 'decoder', str(tmp_path/'run.yaml'), '--latents.no-cache', '--latents.store', str(tmp_path/'store'), '--image.crop', 'random', '--image.flip', '--json')
    assert status == 0, err
    assert set(json.loads(out)['metrics']) == {'val', 'test'} and 'cache: false' in (tmp_path/'run/config.yaml').read_text()
    assert len(LatentStore.open(tmp_path/'store')) < 36

@pytest.mark.slow
def test_two_processes_report_what_one_does(home, tmp_path):
    one_and_two(home, tmp_path, 29591, epochs=1, model=dict(d=16, depth=1, heads=2, drop_path=0.), batch_size=4, precision='no', **VIEWS)
    assert [x['loss'] for x in steps(tmp_path/'one')] == pytest.approx([x['loss'] for x in steps(tmp_path/'two')], rel=1e-3)
