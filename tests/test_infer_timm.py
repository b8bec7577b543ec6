"Taggers of pixels through `Tagger`: folders, kills, verbs and dashboards, with tiny timm networks."
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from forked import killed_in_the_middle
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import read_json, read_jsonl
from vaetag_nb.core.rng import np_rng, seeded
from vaetag_nb.data.tags import Vocab
from vaetag_nb.infer import Tagger
from vaetag_nb.models.foreign import fitted, on_square
from vaetag_nb.models.timm_folder import save_timm
from vaetag_nb.models.timm_tagger import create, square_of
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

VOCAB = Vocab(['general', 'explicit', '1girl', 'long_hair', 'blush', 'hatsune_miku'], [9, 9, 0, 0, 0, 4])

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "(folder, tagger, pictures) of a run with random weights whose scores are spread out"
    d = tmp_path_factory.mktemp('toy')
    with seeded(0, 'toy'): net = create('test_resnet', len(VOCAB), 32)
    net.get_classifier().weight.data.mul_(30)
    save_timm(d/'run/best', net, VOCAB, square_of(net, 32), dict(global_threshold=.5, per_class_thresholds={'blush': dict(threshold=.3)}))
    (d/'in/deep').mkdir(parents=True)
    for k in range(12):
        a = np_rng('toy', k).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(a).resize((40 + k, 30 + 2*k), Image.Resampling.BICUBIC).save(d/'in'/('deep' if k % 3 == 0 else '')/f'{k:02}.png')
    return d, Tagger.load(d/'run', device='cpu'), sorted((d/'in').rglob('*.png'))

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('VAETAG_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'

def test_batches_of_any_size_agree(toy):
    one, eight, five = (np.stack([r.scores for r in toy[1].tag(toy[2], batch_size=b)]) for b in (1, 8, 5))
    assert abs(one - eight).max() <= 1e-5 and abs(one - five).max() <= 1e-5
    assert np.ptp(one, 0).max() > .05                                      # the pictures do differ
    tags = lambda b: [list(r.tags) for r in toy[1].tag(toy[2], batch_size=b)]
    assert tags(1) == tags(8)

def test_a_tagger_of_one_tag(toy, tmp_path):
    with seeded(0, 'one'): net = create('test_resnet', 1, 32)
    save_timm(tmp_path/'m', net, Vocab(['solo']), square_of(net, 32), dict(global_threshold=.01, per_class_thresholds={}))
    t = Tagger.load(tmp_path/'m', device='cpu')
    assert [list(r.tags) for r in t.tag(toy[2][:3], batch_size=2)] == [['solo']]*3 and t.tag(toy[2][0]).scores.shape == (1,)
    status, out, err = shell('tag', str(toy[2][0]), '--model', str(tmp_path/'m'), '--device', 'cpu', '--format', 'table')
    assert status == 0 and 'solo' in out, err

def test_what_a_tagger_of_pixels_lacks_and_has(toy, tmp_path):
    _, t, files = toy
    assert t.name == 'run' and 'test_resnet' in repr(t)
    for act in (lambda: t.codec, lambda: t.latents(files[0]), lambda: t.tag_latents(files[0]), lambda: Tagger.load(toy[0]/'run', vae='embedded')):
        with pytest.raises(VaetagError, match='no latents and no VAE|tagger of pixels'): act()
    assert t.evidence(files[0], ['1girl']).shape[:2] == (1, 1)
    assert [p.name for p in t.write_heat_maps(files[0], ['blush'], tmp_path)] == [f'{files[0].name}.blush.png']
    status, out, err = shell('tag', str(toy[0]/'in'), '--model', str(toy[0]/'run'), '--device', 'cpu', '--out', str(tmp_path/'o'), '--evidence', 'blush')
    assert status == 0 and len(list((tmp_path/'o/evidence').rglob('*.png'))) == 12, err

def test_kill_and_go_on(toy, tmp_path, cache):
    "kill -9 in the middle; the same command ends with the files of an undisturbed run and computes at most one batch twice"
    d, tagger, files = toy
    tagger.tag_folder(d/'in', tmp_path/'whole', format='jsonl', batch_size=2)
    killed_in_the_middle(lambda: Tagger.load(d/'run', device='cpu'), lambda t: t.tag_folder(d/'in', tmp_path/'out', format='jsonl', batch_size=2), 4)
    assert len(read_jsonl(tmp_path/'out/predictions.jsonl')) == 6
    report = tagger.tag_folder(d/'in', tmp_path/'out', format='jsonl', batch_size=2)
    assert (report.reused, report.tagged) == (6, 6)
    assert (tmp_path/'out/predictions.jsonl').read_bytes() == (tmp_path/'whole/predictions.jsonl').read_bytes()
    assert not list(cache.rglob('*.jsonl')) and not list(tmp_path.rglob('*.tmp'))

def test_dashboard_and_evaluation(toy, tmp_path):
    from vaetag_nb.dashboards import Predictions
    from vaetag_nb.data.table import TagTable
    from vaetag_nb.evaluate import measure_tagger
    d, tagger, files = toy
    view = Predictions(tagger, files[:3], side=64)
    view.where.value = '1girl'
    assert view.image.value and not view.recon.value and view.heat.value and 'input 3x32x32' in view.note.value
    from vaetag_nb.core.io import write_json
    write_json(tmp_path/'data.json', {str(f): '1girl' if k % 2 else 'blush, long_hair' for k, f in enumerate(files)})
    m = measure_tagger(tagger, TagTable.read(tmp_path/'data.json'))
    assert len(m) == 12

def test_torn_pictures_in_a_folder(toy, tmp_path):
    d, tagger, files = toy
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.png').write_bytes(files[0].read_bytes()); (tmp_path/'in/b.png').write_bytes(files[1].read_bytes()[:60]); (tmp_path/'in/c.png').write_bytes(b'')
    status, out, err = shell('tag', str(tmp_path/'in'), '--model', str(d/'run'), '--out', str(tmp_path/'o'), '--device', 'cpu')
    assert status == 1 and '2 of 3 images failed' in err
    by = {x['path']: x for x in read_json(tmp_path/'o/predictions.json')['images']}
    assert by['a.png']['error'] is None and by['b.png']['error'] and by['c.png']['error'] and set(read_json(tmp_path/'o/errors.json')) == {'b.png', 'c.png'}
    assert by['a.png']['rating']['tag'] in ('general', 'explicit') and not {'general', 'explicit'} & {t['tag'] for t in by['a.png']['tags']}
    assert shell('tag', str(tmp_path/'in'), '--model', str(d/'run'), '--out', str(tmp_path/'o'), '--device', 'cpu', '--skip-errors')[0] == 0

# the verb

def tag(toy, *args): return shell('tag', *map(str, args), '--model', str(toy[0]/'run'), '--device', 'cpu')

def test_classic_text_is_that_of_timm_cv(toy, tmp_path):
    d, tagger, files = toy
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.png').write_bytes(files[0].read_bytes()); (tmp_path/'in/b.png').write_bytes(b'torn')
    s = tagger.tag(files[0]).scores
    for args, t in (([], 0.5), (['--threshold', '0.25'], 0.25), (['--threshold', '1'], 1.0)):
        status, out, err = tag(toy, tmp_path/'in', '--format', 'classic', *args)
        got = sorted(((v, n) for n, v in zip(VOCAB, s) if v > t), key=lambda x: -x[0])
        said = f'预测标签 (置信度 > {t}):\n' + ''.join(f'  {n}: {v:.4f}\n' for v, n in got) if got else f'  没有标签的置信度高于阈值 {t}\n'
        assert out == f'\n图片: a.png\n{said}{"-"*30}\n\n图片: b.png\n  图片处理失败\n{"-"*30}\n' and status == 1, out
    assert tag(toy, tmp_path/'in', '--format', 'classic', '--skip-errors')[0] == 0
    for args, words in ((['--threshold', 'general=.3'], 'one threshold for all tags'), (['--out', tmp_path/'x'], '--format classic is printed')):
        status, out, err = tag(toy, tmp_path/'in', '--format', 'classic', *args)
        assert status == 2 and words in err and err.count('\n') == 1

def test_table_scores_and_embeddings(toy, tmp_path):
    from vaetag_nb.eval.scores import read_scores
    d, tagger, files = toy
    status, out, err = tag(toy, d/'in', '--format', 'table', '--threshold', 'general=0,character=.0')
    assert status == 0 and out.count('\n  rating\n') == 12 and '\n  character\n' in out and out.startswith('01.png  ')
    status, out, err = tag(toy, d/'in', '--out', tmp_path/'o', '--save-predictions', tmp_path/'s', '--emit', 'embeddings')
    assert status == 0, err
    s, z = read_scores(tmp_path/'s'), np.load(tmp_path/'o/embeddings.npz', allow_pickle=False)
    own = {r.path: r.scores for r in tagger.tag(d/'in')}
    assert s.ids == z['paths'].tolist() == sorted(own) and abs(s.scores - np.stack([own[i] for i in s.ids])).max() < 1e-5
    w, b = (p.detach().numpy() for p in (tagger.model.net.get_classifier().weight, tagger.model.net.get_classifier().bias))
    assert abs(1/(1 + np.exp(-(z['embs'] @ w.T + b))) - z['preds']).max() < 1e-5
    assert s.thresholds.tolist() == tagger.thresholds().tolist() and s.model['fingerprint'] == tagger.fingerprint
    status, out, err = tag(toy, d/'in', '--emit', 'embeddings')
    assert (status, err) == (2, 'vaetag: --emit: needs --out, the folder for embeddings.npz\n')

def test_whole_scores_come_from_the_pass_that_tags(toy, tmp_path, monkeypatch):
    "--save-predictions and --emit compute no picture twice, and change no file; a picture that fails is left out of them, and the exit status is 1"
    from vaetag_nb.eval.scores import read_scores
    from vaetag_nb.networks import PixelNetwork
    d, tagger, files = toy
    seen, real = [], PixelNetwork.of_inputs
    monkeypatch.setattr(PixelNetwork, 'of_inputs', lambda self, x: (seen.append(len(x)), real(self, x))[1])
    def run(where, *args):
        seen.clear()
        status, out, err = tag(toy, *args)
        return status, out.replace(str(where), ''), sum(seen), {p.relative_to(where).as_posix(): p.read_bytes() for p in where.rglob('*') if p.is_file()}
    whole = lambda k: ['--save-predictions', tmp_path/f's{k}'] + ['--emit', 'embeddings']*(k < 3)
    for k, more in enumerate((['--format', 'json'], ['--format', 'jsonl'], ['--format', 'txt'], ['--format', 'classic'], [])):
        a, b = ((tmp_path/f'{n}{k}', ['--out', tmp_path/f'{n}{k}']*(k < 3)) for n in 'ab')
        status, out, n, plain = run(a[0], d/'in', *a[1], *more)
        assert (status, n, len(plain) > 0) == (0, 12, k < 3)
        if k == 2: plain_captions = plain
        status, out_b, n, kept = run(b[0], d/'in', *b[1], *more, *whole(k))
        emb = kept.pop('embeddings.npz', None)
        assert (status, out_b, n, kept) == (0, out, 12, plain) and (emb is None) == (k > 2) and len(read_scores(tmp_path/f's{k}').ids) == 12
    before = read_scores(tmp_path/'s2').scores
    status, _, n, kept = run(tmp_path/'b2', d/'in', '--out', tmp_path/'b2', '--format', 'txt', *whole(2))                  # captions are there: nothing is tagged, all is seen
    kept.pop('embeddings.npz')
    assert (status, n, kept) == (0, 12, plain_captions)
    assert (read_scores(tmp_path/'s2').scores == before).all()
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.png').write_bytes(files[0].read_bytes()); (tmp_path/'in/b.png').write_bytes(b'torn')
    for k, (more, says) in enumerate(((['--out', tmp_path/'e'], '1 of 2 images failed'), ([], 'b.png: not an image'))):
        status, out, err = tag(toy, tmp_path/'in', *more, '--save-predictions', tmp_path/f'f{k}')
        assert status == 1 and says in err and '1 pictures could not be read and are left out' in err and read_scores(tmp_path/f'f{k}').ids == ['a.png'], err

def test_scores_that_are_kept_tell_of_pictures_that_were_done_and_fail(toy, tmp_path):
    "A caption that is there does not hide that its picture cannot be read: it is counted, named, and the exit status is 1"
    from vaetag_nb.eval.scores import read_scores
    d, tagger, files = toy
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.png').write_bytes(files[0].read_bytes()); (tmp_path/'in/b.png').write_bytes(files[1].read_bytes()[:60])
    for n in 'ab': (tmp_path/f'in/{n}.txt').write_text('solo')
    status, out, err = tag(toy, tmp_path/'in', '--format', 'txt', '--save-predictions', tmp_path/'s')
    assert status == 1 and '0 tagged, 1 done before, 1 failed' in err and '1 of 2 images failed, see ' in err and read_scores(tmp_path/'s').ids == ['a.png'], err
    assert set(read_json(tmp_path/'in/errors.json')) == {'b.png'} and (tmp_path/'in/b.txt').read_text() == 'solo'
    (tmp_path/'in/a.png').unlink(); (tmp_path/'in/a.txt').unlink()
    status, out, err = tag(toy, tmp_path/'in', '--format', 'txt', '--save-predictions', tmp_path/'none')
    assert status == 1 and 'vaetag: none of the 1 pictures could be read; the first: b.png: ' in err and 'Traceback' not in err and not (tmp_path/'none').exists(), err

def test_without_the_folders_in_the_folder(toy, tmp_path):
    "--no-recursive, in every way in which a folder is tagged"
    from vaetag_nb.eval.scores import read_scores
    d, tagger, files = toy
    flat = sorted(f.name for f in files if f.parent == d/'in')
    assert 0 < len(flat) < 12
    said = lambda out: [line.split('  ')[0] for line in out.splitlines() if line.endswith(tuple('0123456789')) and 'x' in line and not line.startswith(' ')]
    status, out, err = tag(toy, d/'in', '--no-recursive', '--format', 'table')
    assert status == 0 and said(out) == flat, err
    status, out, err = tag(toy, d/'in', '--no-recursive', '--out', tmp_path/'o', '--save-predictions', tmp_path/'s', '--emit', 'embeddings', '--evidence', 'blush')
    assert status == 0, err
    names = lambda at: sorted(x['path'] for x in read_json(at/'predictions.json')['images'])
    assert names(tmp_path/'o') == read_scores(tmp_path/'s').ids == np.load(tmp_path/'o/embeddings.npz', allow_pickle=False)['paths'].tolist() == flat
    assert sorted(f.relative_to(tmp_path/'o/evidence').as_posix() for f in (tmp_path/'o/evidence').rglob('*.png')) == [f'{n}.blush.png' for n in flat]
    status, out, err = tag(toy, d/'in', '--no-recursive', '--out', tmp_path/'t', '--format', 'txt')
    assert status == 0 and sorted(f.relative_to(tmp_path/'t').as_posix() for f in (tmp_path/'t').rglob('*.txt')) == [n.replace('.png', '.txt') for n in flat], err
    assert tag(toy, d/'in', '--out', tmp_path/'p')[0] == 0 and len(names(tmp_path/'p')) == 12          # the default, as before
    status, out, err = tag(toy, files[0], '--no-recursive')
    assert (status, err) == (2, f'vaetag: --no-recursive: is about a folder of pictures, {files[0]} is none; leave it out\n')

def test_a_folder_at_an_address(toy, tmp_path):
    import fsspec
    d, tagger, files = toy
    far = fsspec.filesystem('memory')
    for f in files[:4]: far.pipe(f'/pictures/{f.relative_to(d/"in").as_posix()}', f.read_bytes())
    status, out, err = tag(toy, 'memory://pictures', '--out', tmp_path/'o')
    assert status == 0, err
    own = {r.path: list(r.tags) for r in tagger.tag(d/'in')}
    got = {x['path']: [t['tag'] for t in x['tags']] for x in read_json(tmp_path/'o/predictions.json')['images']}
    assert len(got) == 4 and all(own[p] == t for p, t in got.items())
    assert tag(toy, 'memory://pictures', '--out', tmp_path/'c', '--format', 'txt')[0] == 0 and len(list((tmp_path/'c').rglob('*.txt'))) == 4
    status, out, err = tag(toy, 'memory://pictures', '--format', 'txt')
    assert status == 2 and 'not on this machine' in err
    assert tag(toy, 'memory://nothing', '--out', tmp_path/'o')[0] == 1
    one = files[1].relative_to(d/'in').as_posix()
    assert tag(toy, f'memory://pictures/{one}', '--out', tmp_path/'one', '--evidence', 'blush')[0] == 0
    assert [p.relative_to(tmp_path/'one').as_posix() for p in (tmp_path/'one').rglob('*.png')] == [f'evidence/{one}.blush.png']

def test_captions_beside_the_pictures_need_no_out(toy, tmp_path):
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.png').write_bytes(toy[2][0].read_bytes())
    assert tag(toy, tmp_path/'in', '--format', 'txt', '--threshold', '0', '--caption.rating', 'first')[0] == 0
    first, *rest = (tmp_path/'in/a.txt').read_text(encoding='utf-8').split(', ')
    assert first in ('general', 'explicit') and sorted(rest) == sorted(VOCAB.names[2:])

def test_the_ending_of_out_is_its_format(toy, tmp_path):
    for name, format in (('a.csv', 'csv'), ('a.jsonl', 'jsonl'), ('a.json', 'json')):
        assert tag(toy, toy[0]/'in', '--out', tmp_path/name)[0] == tag(toy, toy[0]/'in', '--out', tmp_path/'folder', '--format', format)[0] == 0
        assert (tmp_path/name).read_bytes() == (tmp_path/f'folder/predictions.{format}').read_bytes()
    assert tag(toy, toy[2][0], '--out', tmp_path/'one.csv')[0] == 0 and (tmp_path/'one.csv').read_text().startswith('path,tag,category,score,threshold\n')
    status, out, err = tag(toy, toy[0]/'in', '--out', tmp_path/'b.csv', '--format', 'json')
    assert status == 2 and 'b.csv: a file of this ending is csv, and json is asked for' in err and not (tmp_path/'b.csv').exists()

def test_short_flags_of_captions(toy, tmp_path):
    (tmp_path/'i.csv').write_text('antecedent,consequent\nhatsune_miku,vocaloid\n')
    long = ['--caption.first', 'blush', '1girl', '--caption.replace', 'long_hair', 'hair', '--caption.underscores', 'spaces', '--caption.blacklist', 'none', 'ex*', '--caption.prefix', 'x_y', '--caption.no-character-first']
    short = ['--first', 'blush,1girl', '--replace', 'long_hair=hair', '--underscores', 'spaces', '--blacklist=none,ex*', '--prefix', 'x_y', '--no-character-first']
    for where, flags in (('a', long), ('b', short), ('c', [*short, '--implications', tmp_path/'i.csv', '--implied', 'add'])):
        status, out, err = tag(toy, toy[0]/'in', '--format', 'txt', '--threshold', '0', '--out', tmp_path/where, *flags)
        assert status == 0, err
    a, b, c = ([p.read_text() for p in sorted((tmp_path/x).rglob('*.txt'))] for x in 'abc')
    assert a == b and len(a) == 12 and a[0].startswith('x_y, blush, 1girl, ') and ', hair' in a[0] and ', hatsune miku' in a[0]
    assert all(set(y.split(', ')) - set(x.split(', ')) == {'vocaloid'} for x, y in zip(b, c))
    assert tag(toy, toy[0]/'in', '--format', 'txt', '--underscore', 'spaces')[0] == 2

def test_nothing_is_fitted_to_pictures_without_tags(toy, tmp_path):
    d = tmp_path/'in'; d.mkdir()
    for f in toy[2][:2]: (d/f.name).write_bytes(f.read_bytes()); (d/f.name).with_suffix('.txt').write_text('')
    before = {p.name: p.read_bytes() for p in (toy[0]/'run/best').iterdir()}
    VOCAB.write(tmp_path/'tags.csv')
    for more, says in (([], 'not one of the 2 pictures carries a tag'), (['--tags', tmp_path/'tags.csv'], 'no tag has a positive')):
        status, out, err = shell('eval', 'tagger', '--model', str(toy[0]/'run'), '--data', str(d), '--fit-thresholds', '--keep-unlabelled', '--out', str(tmp_path/'o'), *map(str, more))
        assert status == 1 and says in err.splitlines()[-1], err
    assert before == {p.name: p.read_bytes() for p in (toy[0]/'run/best').iterdir()} and not (tmp_path/'o').exists()
    status, out, err = shell('eval', 'tagger', '--model', str(toy[0]/'run'), '--data', str(d), '--keep-unlabelled', '--device', 'abacus')
    assert status == 2 and "device 'abacus' is not there" in err

def test_what_does_not_go_together_is_said_before_the_work(toy, tmp_path):
    d, tagger, files = toy
    keep = '--save-predictions', tmp_path/'s'
    for args, says in ((('--top-k', '0', *keep), 'top_k 0: at least 1'), (('--threshold', 'nope=.3', *keep), "threshold: 'nope' is neither a tag of the model nor a category"), (('--rule', 'mcut', *keep), '--save-predictions needs one for each tag'),
                       (('--threshold', 'rating=.5'), "'rating': a rating has no threshold")):
        status, out, err = tag(toy, d/'in', *args)
        assert (status, out) == (2, '') and says in err and err.count('\n') == 1, err
    assert not (tmp_path/'s').exists()
    status, _, err = shell('tag', str(files[0]), '--decoder', 'head.bin', '--layout', 'wd')
    assert status == 2 and '--layout: is that of a published tagger' in err and err.count('\n') == 1

def test_a_named_file_has_its_company_beside_it(toy, tmp_path):
    "Embeddings and heat maps lie in the folder of the result file"
    d, tagger, files = toy
    status, out, err = tag(toy, files[1], '--out', tmp_path/'o/o.json', '--emit', 'embeddings', '--evidence', 'blush')
    assert status == 0, err
    assert sorted(p.relative_to(tmp_path/'o').as_posix() for p in (tmp_path/'o').rglob('*') if p.is_file()) == ['classification_results.json', 'embeddings.npz', f'evidence/{files[1].name}.blush.png', 'o.json']

def test_captions_replace_as_the_contract_writes_it(toy, tmp_path):
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.png').write_bytes(toy[2][0].read_bytes())
    assert tag(toy, tmp_path/'in', '--format', 'txt', '--threshold', '0', '--caption.replace', '1girl=girl', 'blush=', '--caption.sort', 'vocab')[0] == 0
    assert (tmp_path/'in/a.txt').read_text(encoding='utf-8') == 'girl, long_hair, hatsune_miku'

def test_an_onnx_file_is_not_called_bf16(toy, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    from vaetag_nb import infer
    from vaetag_nb.models.foreign import OnnxNetwork
    monkeypatch.setattr(infer, 'bf16_works', lambda d: True)
    class File(OnnxNetwork):
        def __init__(self): torch.nn.Module.__init__(self)
        def to(self, device): return self
    model = SimpleNamespace(net=File(), square=toy[1].model.square, meta=dict(architecture=dict(name='model.onnx')), vocab=VOCAB)
    assert Tagger(model, device='cpu', precision='auto').precision == 'fp32'
    with pytest.raises(VaetagError, match='precision bf16: model.onnx is computed as its file was written'): Tagger(model, device='cpu', precision='bf16')
    assert Tagger(toy[1].model, device='cpu', precision='auto').precision == 'bf16'

# published folders

def published(folder, layout, toy):
    "The toy network as others publish theirs; a wd stem reads blue first"
    from safetensors.torch import save_file
    from vaetag_nb.core.io import write_json
    m = toy[1].model
    state = {k: v.clone().contiguous() for k, v in m.net.state_dict().items()}
    first = m.net.pretrained_cfg['first_conv'] + '.weight'
    if layout == 'wd': state[first] = state[first].flip(1).contiguous()
    folder.mkdir()
    save_file(state, folder/'model.safetensors')
    square = m.square.to_dict()
    write_json(folder/'config.json', dict(architecture='test_resnet', num_classes=len(VOCAB), pretrained_cfg=dict(input_size=[3, *square['size']], mean=square['mean'], std=square['std'], interpolation='bicubic')))
    rows = [f'{i},{n},{c},1' for i, (n, c) in enumerate(zip(VOCAB, VOCAB.categories))]
    if layout == 'wd': (folder/'selected_tags.csv').write_text('\n'.join(['tag_id,name,category,count', *rows]), encoding='utf-8')
    else:
        (folder/'selected_tags.csv').write_text('\n'.join(['tag_id,name,category,count,best_threshold', *(f'{r},{.3 if n == "blush" else .5}' for n, r in zip(VOCAB, rows))]), encoding='utf-8')
        steps = [dict(type='pad_to_size', size=square['size'][::-1], background_color='white', interpolation='bicubic'), dict(type='maybe_to_tensor'), dict(type='normalize', mean=square['mean'], std=square['std'])]
        write_json(folder/'preprocess.json', dict(test=steps, val=steps, pre=[]))
    return folder

@pytest.mark.parametrize('layout', ['wd', 'generic'])
def test_published_folders_give_the_scores_of_their_client(toy, tmp_path, layout):
    d, own, files = toy
    t = Tagger.load(published(tmp_path/'theirs', layout, toy), device='cpu', layout='wd' if layout == 'wd' else None)   # two ratings only: it is not taken for wd by itself
    assert t.model.meta['layout'] == layout
    sq, got = own.model.square, np.stack([r.scores for r in t.tag(files)])
    mean, std = (np.float32(v)[:, None, None] for v in (sq.mean, sq.std))
    def client(path):                                                      # wdv3-timm: square, resize; imgutils: resize, then pad
        im = Image.open(path).convert('RGB')
        a = np.asarray(on_square(im, 32) if layout == 'wd' else fitted(im, dict(type='pad_to_size', size=[32, 32])), np.float32)
        return own.model.net(torch.from_numpy((a.transpose(2, 0, 1)/255 - mean)/std)[None]).sigmoid()[0].detach().numpy()
    assert abs(got - np.stack([client(f) for f in files])).max() < 1e-5
    assert t.thresholds()[2:].tolist() == np.float32([.5, .5, .3, .5] if layout == 'generic' else [.35, .35, .35, .75]).tolist()
    status, out, err = shell('tag', str(d/'in'), '--model', str(tmp_path/'theirs'), '--layout', layout, '--device', 'cpu', '--out', str(tmp_path/'o'))
    assert status == 0 and len(read_json(tmp_path/'o/predictions.json')['images']) == 12, err
