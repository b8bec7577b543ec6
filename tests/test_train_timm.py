"A pixel tagger is trained from a folder, stopped, gone on with, made longer and given other tags; wrong ways to do so are one line"
import dataclasses as dc, os, shutil, signal
import numpy as np, pytest, scipy.sparse as sp, timm, torch
from engine_toys import processes
from forked import ended, forked
from vaetag_nb.core.config import load
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import hash_tensors, load_tensors, read_json, read_jsonl
from vaetag_nb.data.split import Split
from vaetag_nb.data.tags import Vocab
from vaetag_nb.models.timm_folder import load_timm
from vaetag_nb.trainers import timm as tt
from vaetag_nb.trainers.timm import TimmTaggerTask, train_timm
from vaetag_nb.trainers.timm_settings import TimmConfig
from vaetag_nb.trainers.timm_task import TimmTask
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

HERE = os.path.join(os.path.dirname(__file__), '..', 'data')
TINY = dict(device='cpu', batch_size=6, log_every=1, workers=0, preprocess=dict(size=32), model=dict(name='test_convnext', pretrained=False),
            split=dict(val=.2, test=.2), optim=dict(lr=3e-3), eval=dict(min_positives=2))

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "The sidecar sample in a folder of its own: with six pictures at a time a few batches are an epoch"
    d = tmp_path_factory.mktemp('timm')
    shutil.copytree(f'{HERE}/sidecars', d/'in')
    return d

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('VAETAG_QUIET', '1'); torch.set_num_threads(1)

def config(home, out, name='run', **more): return load(TimmConfig, TINY, dict(data=dict(images=str(home/'in')), out=str(out), name=name, epochs=2), more)
def steps(run): return [x for x in read_jsonl(run/'log.jsonl') if x['kind'] == 'step']
def losses(run): return [x['loss'] for x in steps(run)]
def same(*runs):
    "The last checkpoints of two runs hold the same weights but for rounding"
    x, y = (load_tensors(sorted((r.out/'checkpoints').iterdir())[-1]/'net.safetensors')[0] for r in runs)
    for k in x: torch.testing.assert_close(x[k], y[k], atol=1e-6, rtol=0)
def weights(run): return hash_tensors(load_tensors(sorted((run/'checkpoints').iterdir())[-1]/'net.safetensors')[0])

FLAGS = '--device cpu --batch-size 6 --workers 0 --preprocess.size 32 --model.name test_convnext --model.pretrained False --split.val .2 --split.test .2 --epochs 1 --log-every 1'.split()

def test_from_a_folder_to_a_model(home, tmp_path):
    status, out, err = shell('train', 'timm', '--data.images', str(home/'in'), '--out', str(tmp_path), '--name', 'a', *FLAGS, '--json')
    assert status == 0, err
    run = tmp_path/'a'
    sides, figures = Split.read(run/'split.parquet'), read_json(run/'results.json')['figures']
    assert sides.sizes == dict(train=14, val=5, test=5) and set(figures) == {'val', 'test'} and set(figures['test']) == {'timm', 'timm at 0.35', 'frequency'}
    for f in ('evaluation_results.csv', 'evaluation_results_overall.json', 'categories.csv', 'reliability.csv'): assert (run/'eval/val'/f).is_file() and (run/'eval/test'/f).is_file()
    for f in ('config.yaml', 'console.log', 'log.jsonl', 'selected_tags.csv'): assert (run/f).is_file()
    step, epoch = steps(run)[0], [x for x in read_jsonl(run/'log.jsonl') if x['kind'] == 'epoch'][0]
    assert {'step', 'epoch', 'loss', 'lr', 'grad_norm', 'img_s', 'mem_mb', 'loss_scale'} <= set(step) and {'val/loss', 'val/map_macro', 'val/f1_macro', 'val/f1_micro', 'best'} <= set(epoch)
    m = load_timm(run/'best')
    assert m.meta['split_fingerprint'] == sides.fingerprint and m.meta['metrics']['test'] == figures['test']['timm'] and m.meta['train']['images'] == 14
    assert len(m.vocab) == m.net.num_classes and set(m.thresholds['per_class_thresholds']) == set(m.vocab.names) and m.square.size == (32, 32)
    said = (run/'console.log').read_text()          # what was said before there was a log, and the groups of the optimiser, once
    assert f"{home/'in'}: Vocab({len(m.vocab)} tags" in said and said.count('decay  tensors  parameters') == 1, said
    again = shell('train', 'timm', str(run/'config.yaml'), '--name', 'b')       # the file alone repeats the run
    assert again[0] == 0, again[2]
    assert losses(tmp_path/'b') == losses(run) and load_timm(tmp_path/'b/best').fingerprint == m.fingerprint

@pytest.mark.slow
def test_four_epochs_are_two_and_two(home, tmp_path):
    steady = dict(optim=dict(scheduler='constant', lr=3e-3), ema=dict(decay=.9), accumulate=2, model=dict(drop_path_rate=.3))
    whole = train_timm(config(home, tmp_path, 'whole', **{**steady, 'epochs': 4}))
    half = train_timm(config(home, tmp_path, 'half', **steady))
    status, _, err = shell('train', 'timm', '--resume', str(half.out), '--epochs', '4')
    assert status == 0, err
    assert (half.out/'console.log').read_text().count('4 epochs, 8 steps') == 1 and 'goes on after step' in (half.out/'console.log').read_text()
    assert losses(half.out) == losses(whole.out) and weights(half.out) == weights(whole.out) and read_json(half.out/'results.json') == read_json(whole.out/'results.json')
    before = (half.out/'log.jsonl').read_bytes()
    named = shell('train', 'timm', '--resume', str(half.out), '--name', 'longer', '--epochs', '5')
    assert named[0] == 0 and (half.out/'log.jsonl').read_bytes() == before and losses(tmp_path/'longer')[:len(losses(whole.out))] == losses(whole.out)
    assert len(losses(tmp_path/'longer')) == len(losses(whole.out))*5//4

@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(home, tmp_path, monkeypatch):
    more = dict(save_minutes=0, save_every=1, sampler=dict(kind='repeat', t=.5), augment=dict(mixup=.4, rotate=10, cutout=.1))
    whole = train_timm(config(home, tmp_path, 'whole', **more))
    real = TimmTask.loss_net
    def die(self, batch, ctx):
        if ctx.step == len(losses(whole.out)) - 1: os.kill(os.getpid(), signal.SIGKILL)     # in the last epoch, after some of its steps
        return real(self, batch, ctx)
    def cut():
        TimmTask.loss_net = die
        train_timm(config(home, tmp_path, 'cut', **more))
    assert ended(forked(cut)) == -signal.SIGKILL and not (tmp_path/'cut/results.json').exists()
    cut = train_timm(resume=tmp_path/'cut')
    assert losses(cut.out) == losses(whole.out) and weights(cut.out) == weights(whole.out) and cut.metrics == whole.metrics

@pytest.mark.slow
def test_small_batches_add_up_to_a_large_one(home, tmp_path):
    "Six and three pictures in groups of two: 14 training pictures end in a short group, and it counts by its pictures"
    still = dict(epochs=1, model=dict(drop_path_rate=0.), optim=dict(name='momentum', scheduler='constant', warmup=0, lr=1e-3))
    a = train_timm(config(home, tmp_path, 'a', **still))
    b = train_timm(config(home, tmp_path, 'b', **{**still, 'batch_size': 3, 'accumulate': 2}))
    assert losses(b.out) == pytest.approx(losses(a.out), rel=1e-6) and len(losses(a.out)) == 3
    same(a, b)
    shutil.copytree(home/'in', tmp_path/'in')
    for name in map(os.path.basename, TimmTaggerTask(config(home, tmp_path, **still)).sides.tables['train'].paths[:2]): (tmp_path/'in'/name).write_bytes(b'torn')
    torn = {**still, 'data': dict(images=str(tmp_path/'in'), max_bad=.2), 'split': dict(file=str(a.out/'split.parquet'))}   # and so does what could be read of a group
    c, d = train_timm(config(home, tmp_path, 'c', **torn)), train_timm(config(home, tmp_path, 'd', **{**torn, 'batch_size': 3, 'accumulate': 2}))
    assert losses(d.out) == pytest.approx(losses(c.out), rel=1e-6) and losses(c.out) != losses(a.out)
    same(c, d)

@pytest.mark.slow
def test_two_processes_measure_what_one_does(home, tmp_path):
    still = dict(epochs=1, model=dict(drop_path_rate=0.), optim=dict(scheduler='constant', warmup=0, lr=1e-3))
    one = train_timm(config(home, tmp_path, 'one', **still))
    assert processes(lambda: train_timm(config(home, tmp_path, 'two', **{**still, 'batch_size': 3})) and 0, 2) == [0, 0]
    two = read_json(tmp_path/'two/results.json')['figures']
    for side, n in (('val', 5), ('test', 5)):
        assert two[side]['timm']['n_samples'] == n                  # nobody twice, nobody lost
        for k in ('mAP', 'f1_micro', 'f1_macro'): assert two[side]['timm at 0.35'][k] == pytest.approx(one.metrics[side]['timm at 0.35'][k], abs=1e-6)
    assert losses(tmp_path/'two') == pytest.approx(losses(one.out), rel=1e-5)

# --- other tags -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def first(home, tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('VAETAG_QUIET', '1')
        return train_timm(config(home, tmp_path_factory.mktemp('first'), 'first', epochs=1))

def scores(folder, home):
    m = load_timm(folder)
    x = m.square.load(sorted((home/'in').glob('*.png'))[:6]).images
    with torch.no_grad(): return m.vocab.names, m.net(m.square.normalize(x))

@pytest.mark.slow
def test_finetuning_keeps_rows_by_name(home, tmp_path, first):
    old = load_timm(first.best).vocab.names
    Vocab([*old[4:], 'new_tag', 'sun']).write(tmp_path/'tags.csv')
    status, out, err = shell('train', 'timm', '--data.images', str(home/'in'), '--out', str(tmp_path), '--name', 'b', '--finetune', str(first.out), '--vocab.csv', str(tmp_path/'tags.csv'),
                             '--rename', f'{old[0]}=sun', '--device', 'cpu', '--batch-size', '6', '--workers', '0', '--epochs', '1', '--split.val', '.2', '--split.test', '.2', '--optim.lr', '1e-9')
    assert status == 0, err                             # network and size are those of the model
    assert f'{len(old)-3} copied (1 renamed), 1 new, 3 removed' in (tmp_path/'b/console.log').read_text()
    report, m = read_json(tmp_path/'b/head_transfer.json'), load_timm(tmp_path/'b/best')
    assert report['counts'] == dict(copied=len(old)-3, renamed=1, new=1, removed=3) and report['new'] == ['new_tag'] and report['renamed'] == {old[0]: 'sun'} and report['removed'] == old[1:4]
    assert m.meta['architecture']['name'] == 'test_convnext' and m.square.size == (32, 32) and m.meta['base']['source'] == 'first'
    (n0, a), (n1, b) = scores(first.best, home), scores(tmp_path/'b/best', home)
    torch.testing.assert_close(b[:, [n1.index(t) for t in old[4:]]], a[:, 4:], atol=1e-3, rtol=1e-3)  # a step of 1e-9 apart
    torch.testing.assert_close(b[:, n1.index('sun')], a[:, 0], atol=1e-3, rtol=1e-3)

@pytest.mark.slow
def test_new_tags_leave_the_old_ones_alone(home, tmp_path, first):
    "Only new classes are annotated: the scores of the others stay, to the bit, whatever is learned and decayed"
    old = load_timm(first.best).vocab.names
    Vocab([*old, 'extra']).write(tmp_path/'tags.csv')
    (tmp_path/'in').mkdir()
    for i, p in enumerate(sorted((home/'in').glob('*.png'))): shutil.copy(p, tmp_path/'in'); (tmp_path/f'in/{p.stem}.txt').write_text('extra' if i % 2 else '')
    more = dict(data=dict(images=str(tmp_path/'in')), vocab=dict(csv=str(tmp_path/'tags.csv')), finetune=str(first.out), model=dict(freeze='backbone'), loss=dict(tags='new'),
                optim=dict(lr=.1, weight_decay=.5, decay_all=True), ema=dict(decay=.9))
    none = train_timm(config(home, tmp_path, 'none', **{**more, 'optim': dict(lr=1e-30, weight_decay=0.)}))
    run = train_timm(config(home, tmp_path, 'run', **more))
    (names, a), (_, b) = scores(none.best, home), scores(run.best, home)
    assert torch.equal(a[:, :len(old)], b[:, :len(old)]) and not torch.equal(a[:, len(old):], b[:, len(old):])
    x, y = load_timm(none.best).net.state_dict(), load_timm(run.best).net.state_dict()
    assert all(torch.equal(x[k], y[k]) for k in x if not k.startswith('head.fc'))        # the backbone, statistics included, too
    was, now = (load_timm(f).thresholds['per_class_thresholds'] for f in (first.best, run.best))
    assert all(now[n]['source'] == 'kept' and now[n]['threshold'] == pytest.approx(was[n]['threshold'], rel=1e-6) for n in old) and now['extra']['source'] == 'tag'
    assert run.metrics['val']['timm']['n_classes_with_positives'] == 1 and 0 < run.metrics['val']['timm']['f1_micro'] <= 1
    again = train_timm(resume=run.out, cfg=dc.replace(tt.run_settings(run.out), epochs=3))   # the rows are held after a resume, too
    assert torch.equal(scores(again.best, home)[1][:, :len(old)], a[:, :len(old)])

def test_a_checkpoint_of_the_original_is_finetuned(home, tmp_path):
    "Read directly: network, size and preparation are its own; with only a new tag annotated, its threshold goes on to decide"
    old = timm.create_model('test_convnext', num_classes=3)
    c = dict(MODEL_NAME='test_convnext', IMAGE_SIZE=32, NORM_MEAN=[.5]*3, NORM_STD=[.25]*3, INFERENCE_THRESHOLD=.45)
    torch.save(dict(model_state_dict={f'module.{k}': v for k, v in old.state_dict().items()}, tags_list=['circle', 'square', 'old'], config_dict=c, epoch=3), tmp_path/'x_best.pth.tar')
    args = ('train', 'timm', '--data.images', str(home/'in'), '--out', str(tmp_path), '--finetune', str(tmp_path/'x_best.pth.tar'), '--device', 'cpu', '--batch-size', '6', '--workers', '0', '--split.val', '.2',
            '--split.test', '.2', '--epochs', '1', '--freeze', 'backbone', '--eval.min-positives', '1')
    Vocab(['circle', 'square', 'red']).write(tmp_path/'tags.csv')
    status, _, err = shell(*args, '--vocab.csv', str(tmp_path/'tags.csv'), '--loss.tags', 'new')
    assert status == 0, err
    m = load_timm(tmp_path/'run/best')
    assert (m.square.mode, m.square.interpolation, m.square.size, m.square.std) == ('squash', 'bilinear', (32, 32), (.25,)*3) and m.meta['architecture']['name'] == 'test_convnext'
    assert read_json(tmp_path/'run/head_transfer.json')['counts'] == dict(copied=2, renamed=0, new=1, removed=1)
    assert m.cut()[:2].tolist() == [np.float32(.45)]*2 and m.thresholds['per_class_thresholds']['circle']['source'] == 'kept'
    assert torch.equal(m.net.head.fc.weight[:2], old.head.fc.weight[:2])
    code, _, err = shell('train', 'timm', '--resume', str(tmp_path/'run'), '--epochs', '2', '--loss.tags', 'all', '--override')     # no tag is held any more
    assert code == 0 and {x['source'] for x in load_timm(tmp_path/'run/best').thresholds['per_class_thresholds'].values()}.isdisjoint({'kept'}), err

def test_a_pickle_that_runs_code_is_not_finetuned(home, tmp_path):
    torch.save(dict(model_state_dict={}, tags_list=['a'], config_dict=dict(MODEL_NAME=os.system)), tmp_path/'x.pth.tar')
    fails(1, 'x.pth.tar: this pickle needs more than tensors', '--trust')('train', 'timm', '--data.images', str(home/'in'), '--out', str(tmp_path), '--finetune', str(tmp_path/'x.pth.tar'))

def test_settings_of_a_network_on_the_command_line():
    from vaetag_nb.verbs.base import parse
    from vaetag_nb.verbs.train import _flags
    Flags = _flags()[1]
    said = lambda *a: parse(Flags, ['--model.kwargs', *a], 'train timm', Flags(), '').model.kwargs
    assert said('depths', '1', '2', '3') == dict(depths=[1, 2, 3]) and said('a', '2', 'b', '.5') == dict(a=2, b=.5) and said('a', 'True', 'b', 'x') == dict(a=True, b='x')

@pytest.mark.slow
def test_the_head_first_then_all(home, tmp_path):
    run = lambda n, **m: train_timm(config(home, tmp_path, n, model=dict(freeze='backbone', **m), epochs=2))
    body = lambda step: {k: v for k, v in load_tensors(step/'net.safetensors')[0].items() if not k.startswith('head.fc')}
    run('head'), run('both', freeze_epochs=1)
    (a, b), (c, d) = (sorted((tmp_path/n/'checkpoints').iterdir()) for n in ('head', 'both'))
    assert hash_tensors(body(a)) == hash_tensors(body(b)) == hash_tensors(body(c)) != hash_tensors(body(d))
    assert load_tensors(a/'net.safetensors')[0]['head.fc.weight'].equal(load_tensors(c/'net.safetensors')[0]['head.fc.weight'])

# --- pictures that cannot be read -----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_unreadable_pictures_leave_their_batch(home, tmp_path):
    shutil.copytree(home/'in', tmp_path/'in')
    (tmp_path/'in/000003.png').write_bytes(b'torn')
    more = dict(data=dict(images=str(tmp_path/'in')), batch_size=1, epochs=1)
    run = train_timm(config(home, tmp_path, 'a', **more))                   # a batch of its own, and 1 of 24 is below the share allowed
    assert (run.out/'console.log').read_text().count('000003.png: ') == 1 and 'not an image' in (run.out/'console.log').read_text()
    for i in (5, 7): (tmp_path/f'in/00000{i}.png').write_bytes(b'')
    with pytest.raises(VaetagError, match=r'data.max_bad: \d of 24 pictures cannot be read, .*where 5.0% are allowed: .*png: '): train_timm(config(home, tmp_path, 'b', **more))

def test_a_loss_that_is_not_finite_names_the_files(home, tmp_path):
    with pytest.raises(VaetagError, match=r'step \d+: the loss or its gradient is not finite; batch: .*png'): train_timm(config(home, tmp_path, 'a', optim=dict(lr=1e30, max_grad_norm=0.)))

# --- one line -------------------------------------------------------------------------------------------------------------
def fails(status, *says):
    def check(*args):
        code, out, err = shell(*args)
        line = err.strip().splitlines()[-1]
        assert code == status and line.startswith('vaetag: ') and 'Traceback' not in err, (code, err[-800:])
        for s in says: assert s in line, line
    return check

@pytest.mark.parametrize('flags,says', [
    ('--loss.name bce2', "--loss.name: 'bce2' is none of"), ('--optim.name adamww', "optim.name: 'adamww' is no optimiser of timm. Did you mean"), ('--optim.scheduler cosin', "Did you mean 'cosine'"),
    ('--sampler.kind balance', "Did you mean 'balanced'"), ('--split.method hsh', "Did you mean 'hash'"), ('--optim.lrr 1', 'no such flag: --optim.lrr'), ('--epochs 0', 'epochs: 0 is not at least 1'),
    ('--resume a --finetune b', '--resume and --finetune'), ('--split.val .6 --split.test .5', 'split'), ('--model.freeze-epochs 2', 'model.freeze_epochs: 2 contradicts model.freeze: none'),
    ('--optim.name sgd --optim.momentum 0', 'optim.name: sgd'), ('--device cuda', 'cuda'), ('--augment.flip 2', 'augment.flip: 2')])
def test_wrong_arguments_exit_2(home, tmp_path, flags, says):
    if flags == '--device cuda' and torch.cuda.is_available(): pytest.skip('there is a GPU')
    fails(2, says)('train', 'timm', '--data.images', str(home/'in'), '--out', str(tmp_path), *FLAGS, *flags.split())

def write(path, text): path.write_text(text, encoding='utf-8'); return str(path)

def test_what_cannot_be_trained_exits_1(home, tmp_path):
    train = lambda *flags: ('train', 'timm', '--out', str(tmp_path/'runs'), *FLAGS, *flags)
    data = '--data.images', str(home/'in')
    fails(1, 'lost')(*train('--data.images', str(tmp_path/'lost')))
    (tmp_path/'empty').mkdir(); fails(1, 'no image', '.png')(*train('--data.images', str(tmp_path/'empty')))
    (tmp_path/'alone').mkdir(); shutil.copy(home/'in/000001.png', tmp_path/'alone'); fails(1, '1 images, 0 sidecars')(*train('--data.images', str(tmp_path/'alone')))
    fails(1, "no column 'name'", "'tag'")(*train(*data, '--vocab.csv', write(tmp_path/'a.csv', 'tag\nred\n')))
    fails(1, "'red' in lines 2, 4")(*train(*data, '--vocab.csv', write(tmp_path/'b.csv', 'name\nred\nblue\nred\n')))
    fails(1, 'none of the 1 has a count of 5')(*train(*data, '--vocab.csv', write(tmp_path/'c.csv', 'name,count\nred,3\n'), '--vocab.min-count', '5'))
    fails(1, 'not one of the', 'carries a tag')(*train(*data, '--vocab.csv', write(tmp_path/'d.csv', 'name\nno_such_tag\n')))
    fails(1, 'split: 24 records give')(*train(*data, '--split.val', '.01'))
    fails(1, '3 numbers for')(*train(*data, '--loss.pos-weight', '1', '2', '3'))
    fails(1, 'ti.yaml: optim.lrr: no such setting', 'lr')('train', 'timm', write(tmp_path/'ti.yaml', 'optim: {lrr: 1}\n'), *data)
    fails(2, "ch.yaml: optim.scheduler: 'cos' is none of")('train', 'timm', write(tmp_path/'ch.yaml', 'optim: {scheduler: cos}\n'), *data)
    fails(1, 'lost.yaml')('train', 'timm', str(tmp_path/'lost.yaml'))
    shutil.copytree(home/'in', tmp_path/'odd'); (tmp_path/'odd/000002.txt').write_bytes(b'red,\xff')
    fails(1, '000002.txt', 'byte 4')(*train('--data.images', str(tmp_path/'odd')))
    fails(1, 'lost')(*train(*data, '--finetune', str(tmp_path/'lost')))
    fails(1, "model.name: 'no_such_net'")(*train(*data, '--model.name', 'no_such_net'))
    assert not (tmp_path/'runs/run/best').exists()

def test_what_cannot_be_gone_on_with(home, tmp_path, first):
    run = str(tmp_path/'first'); shutil.copytree(first.out, run)
    before = {p: p.read_bytes() for p in (tmp_path/'first').rglob('*') if p.is_file()}
    go = lambda *flags: ('train', 'timm', '--resume', run, *flags)
    fails(1, 'the run has ended: 1 epochs', '--epochs 2')(*go())
    fails(2, 'batch_size was 6, now 7', '--override')(*go('--epochs', '2', '--batch-size', '7'))
    fails(1, 'another vocabulary (1 classes', '--finetune')(*go('--epochs', '2', '--vocab.csv', write(tmp_path/'a.csv', 'name\nred\n')))
    fails(1, 'another split', '--finetune')(*go('--epochs', '2', '--split.val', '.3'))
    fails(1, 'another architecture (model.name was test_convnext, now test_vit)', '--finetune')(*go('--epochs', '2', '--model.name', 'test_vit'))
    fails(1, 'there; give the run another name')(*go('--epochs', '2', '--name', 'first', '--out', str(first.out.parent)))
    fails(1, 'no run of train timm')('train', 'timm', '--resume', str(tmp_path))
    assert {p: p.read_bytes() for p in (tmp_path/'first').rglob('*') if p.is_file()} == before
    other = ('train', 'timm', '--data.images', str(home/'in'), '--out', str(tmp_path), *FLAGS)
    fails(1, 'test_vit')(*other, '--name', 'b', '--finetune', run, '--model.name', 'test_vit')
    code, out, err = shell(*go('--epochs', '2', '--optim.lr', '1e-4', '--override'))
    assert code == 0 and len(losses(tmp_path/'first')) == 6, err

# --- every other setting --------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize('more', [
    dict(loss=dict(name='asl', gamma_pos=1), optim=dict(name='lamb', layer_decay=.7, scheduler='step', step_epochs=1)), dict(loss=dict(name='focal', alpha=.5), optim=dict(scheduler='onecycle'), precision='bf16'),
    dict(loss=dict(name='bce_mean', tag_weights='freq', smoothing=.1), optim=dict(scheduler='plateau', patience=1), eval=dict(patience=1, select='loss')), dict(loss=dict(name='two_way'), sampler=dict(kind='balanced', max_per_tag=3)),
    dict(loss=dict(name='zlpr'), model=dict(grad_checkpointing=True), preprocess=dict(mode='crop')), dict(loss=dict(name='distribution_balanced'), eval=dict(select='f1_micro'), track='tensorboard', save_minutes=1),
    dict(model=dict(name='test_resnet', head_bias='timm'), optim=dict(name='sgd', decay_all=True, max_grad_norm=0.), eval=dict(select='f1_macro'), ema=dict(decay=.9))], ids=list('abcdefg'))
def test_settings_that_go_together(home, tmp_path, more):
    run = train_timm(config(home, tmp_path, **more))
    m = load_timm(run.best)
    assert m.thresholds and np.isfinite(losses(run.out)).all() and m.meta['train']['loss'] == more.get('loss', {}).get('name', 'bce')
    if more.get('track'): assert list((run.out/'tensorboard').iterdir())
    if 'patience' in more.get('eval', {}): assert read_json(run.out/'best.json')['metric'] == 'val/loss'
    if 'ema' in more: assert read_json(run.out/'best.json')['metric'] == 'ema/val/f1_macro'

@pytest.mark.slow
def test_validation_keeps_no_scores_beyond_its_limit(home, tmp_path):
    "200 batches through the same pictures: neither the meter nor the process grows, and gradients stay off"
    import psutil
    from vaetag_nb.eval.tagging import MultiLabelMeter
    from vaetag_nb.trainers.engine import Trainer
    task = TimmTaggerTask(config(home, tmp_path, batch_size=2))
    source = task.others['val']
    source.paths, source.labels = source.paths*80, sp.vstack([source.labels]*80).tocsr()
    t, m, seen = Trainer(task, epochs=1, device='cpu'), MultiLabelMeter(task.vocab, .35, limit=1 << 12), []
    with t.weights():
        for _ in range(3):
            task.measure(t, 'val', [m]); seen.append((m.nbytes, psutil.Process().memory_info().rss))
            assert not torch.is_grad_enabled()
    assert len(m) == 3*400 and seen[1][0] == seen[2][0] and seen[2][1] - seen[1][1] < 4 << 20

# --- what the specification promises of the demo data (section 7) -----------------------------------------------------------
@pytest.mark.slow
def test_drawn_scenes_are_learned(tmp_path):
    "The recipe of the tutorial on other scenes: tags of a fifth of the pictures, the smallest ConvNeXt, under a minute; thresholds that were fitted are no worse than .35"
    from vaetag_nb.data.synth import make_scenes
    from vaetag_nb.data.table import TagTable
    make_scenes(tmp_path/'scenes', 1000, seed=11, resolution=64)
    found = TagTable.read(tmp_path/'scenes/data.json')
    found.vocab.select(found.counts() >= 200).write(tmp_path/'tags.csv')
    r = train_timm(load(TimmConfig, dict(name='a', out=str(tmp_path), device='cpu', workers=0, epochs=9, batch_size=32, data=dict(table=str(tmp_path/'scenes/data.json')),
        vocab=dict(csv=str(tmp_path/'tags.csv')), split=dict(val=.15, test=.2), preprocess=dict(size=48, mode='squash'), augment=dict(flip=0.), optim=dict(name='muon', lr=.02),
        model=dict(name='test_convnext3', pretrained=False, drop_path_rate=0., kwargs=dict(ls_init_value=1.)), eval=dict(select='f1_macro', min_positives=20))))
    own, fixed, chance = (r.metrics['test'][k]['f1_macro'] for k in ('timm', 'timm at 0.35', 'frequency'))
    assert own >= .8 and own >= fixed > chance, (own, fixed, chance)
