"""Programs of others, unmodified, in an environment of their own, on what we export: the scores are ours.

`make test-clients` makes that environment and runs this; without it all is skipped. A client is a script of tests/clients, run by the other environment's python:
it knows nothing of this package. What was measured is printed at the end, and written to the file that VAETAG_CLIENTS_FIGURES names."""
import csv, functools, json, os, shutil, subprocess
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from vaetag_nb.core.config import load
from vaetag_nb.core.io import write_json
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

PYTHON, OLD, KOHYA, FIGURES = (os.environ.get(k) for k in ('VAETAG_CLIENTS', 'VAETAG_CLIENTS_OLD', 'VAETAG_KOHYA', 'VAETAG_CLIENTS_FIGURES'))
pytestmark = [pytest.mark.clients, pytest.mark.skipif(PYTHON is None, reason='VAETAG_CLIENTS does not name the python of an environment with the clients: make test-clients')]
HERE = Path(__file__).parent/'clients'
CATEGORIES = dict(light_background=9, dark_background=9, heart=4, crescent=4, red_circle=4, night_sky=3, border=1, drop_shadow=5)  # of drawn tags; the others are general
NEAR, CHARACTER = 2e-2, .3      # what another way to prepare a picture may change; threshold for characters, which few scenes show

def clean(**more): return {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'HF_', 'VAETAG'))} | dict(HF_HUB_OFFLINE='1') | more # the environment of a client

def client(script, ask, home, python=PYTHON)->object: # what it prints, read as JSON
    "Run a script of tests/clients, offline, with `home` as the home of the hub's cache"
    (home/'ask.json').write_text(json.dumps(ask, default=str))
    done = subprocess.run([Path(python).absolute(), HERE/f'{script}.py', home/'ask.json'], env=clean(HF_HOME=str(home)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])

@pytest.fixture(scope='module')
def holds(request, tmp_path_factory):
    "Asserts that a difference is within its limit; all are printed at the end"
    seen = []
    def within(program, form, what, measured, limit):
        seen.append(dict(program=program, format=form, what=what, measured=float(f'{measured:.2g}'), limit=limit))
        assert measured <= limit, f'{program}, {form}: {what}: {measured:.2e}, more than {limit:g}'
    yield within
    plugin = request.config.pluginmanager.get_plugin
    with plugin('capturemanager').global_and_fixture_disabled():
        plugin('terminalreporter').write('\n' + ''.join(f"{s['program'] + ', ' + s['format']:50} {s['what']:48} {s['measured']:.1e} of {s['limit']:g}\n" for s in seen))
    if FIGURES: write_json(Path(FIGURES), dict(versions=client('versions', {}, tmp_path_factory.mktemp('versions')), figures=seen))

class Models:
    "Two taggers that were trained on a few drawn scenes, their exports and their scores"
    def __init__(self, d):
        from vaetag_nb.data.synth import make_scenes
        from vaetag_nb.data.tags import Vocab
        from vaetag_nb.publish.export import sample_pictures
        self.d = d
        make_scenes(d/'scenes', 320, 5)
        v = Vocab.read(d/'scenes/tags.csv')
        Vocab(list(v), [CATEGORIES.get(n, 0) for n in v], v.counts).write(d/'tags.csv')
        self.pictures = sample_pictures(d/'golden') + sorted((d/'scenes/images').iterdir())[:6]

    @functools.cache
    def run(self, kind):    # folder; pixels: a network of timm, latents: the demo's
        if kind == 'latents':
            from vaetag_nb.demo import demo_config
            from vaetag_nb.trainers.tagger import train_decoder
            return train_decoder(demo_config(self.d/'scenes', self.d/kind, 6, data=dict(tags=str(self.d/'tags.csv')), eval=dict(min_positives=5, baselines=False))).out
        from vaetag_nb.trainers.timm import train_timm
        from vaetag_nb.trainers.timm_settings import TimmConfig
        return train_timm(load(TimmConfig, dict(out=str(self.d), name=kind, device='cpu', epochs=3, batch_size=16, workers=0, data=dict(table=str(self.d/'scenes/data.json')),
            vocab=dict(csv=str(self.d/'tags.csv')), split=dict(val=.2, test=.1), preprocess=dict(size=192, mean=(.5, .45, .4), std=(.25, .3, .35)),
            model=dict(name='test_vit', pretrained=False, drop_path_rate=0.), optim=dict(lr=1e-3), eval=dict(min_positives=5)))).out    # sharper, it tells resized from padded first

    @functools.cache
    def tagger(self, kind):
        from vaetag_nb.publish.export import pixel_tagger
        return pixel_tagger(self.run(kind), 448)

    @functools.cache
    def folder(self, kind, form): # as `vaetag export` writes it
        out = self.d/f'{kind}-{form}'
        status, _, err = shell('export', str(self.run(kind)), '--format', form, '--out', str(out), '--licence', 'apache-2.0')
        assert status == 0, err
        return out

    @functools.cache
    def copies(self, name): # paths of the pictures; rgb: without what makes them transparent; large: 512 pixels wide or high
        (self.d/name).mkdir(exist_ok=True)
        for p in self.pictures:
            im = Image.open(p)
            im = im.convert('RGB') if name == 'rgb' else im.resize(tuple(max(1, 512*n//max(im.size)) for n in im.size), Image.Resampling.NEAREST)
            im.save(self.d/name/p.name)
        return [self.d/name/p.name for p in self.pictures]

    @functools.cache
    def scores(self, kind, at=448, of=None): # {tag: (pictures,)}: of `vaetag tag`; `at`: side of the white square, for a tagger that was trained on other pictures
        t, paths = self.tagger(kind), self.copies(of) if of else self.pictures
        return dict(zip(t.vocab, (t.own(paths) if t.faithful else t.seen(paths, at)).T))

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    os.environ['VAETAG_QUIET'] = '1'
    torch.set_num_threads(1)
    return Models(tmp_path_factory.mktemp('clients'))

both = pytest.mark.parametrize('kind', ['pixels', 'latents'])

def installed(folder, for_client, home, name='')->list: # what it tells the user to call
    "As `vaetag publish --local` puts it there for a client"
    status, out, err = shell('publish', str(folder), '--repo', 'me/x', '--local', '--client', for_client, '--home', str(home), '--licence', 'apache-2.0', '--json', *(['--name', name] if name else []))
    assert status == 0, err
    return json.loads(out)['call']

def random(*shape, seed): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def csv_rows(path):
    with open(path, encoding='utf-8', newline='') as f: return list(csv.DictReader(f))

def table(folder): return {r['name']: r for r in csv_rows(folder/'selected_tags.csv')} # {tag: row}, in the order of the outputs
def named(folder, *categories): return [n for n, r in table(folder).items() if int(r['category']) in categories]
def score(ours, name, i): return float(ours[name][i]) if name in ours else 0. # a padded row is 0

def apart(ours, theirs)->float: # `ours`: {tag: (pictures,)}; `theirs`: {tag: score} of each picture
    "The largest difference of the scores that a client gives"
    return max(abs(score(ours, n, i) - p) for i, said in enumerate(theirs) for n, p in said.items())

def same_tags(ours, theirs, cut, near=NEAR): # `cut`: {tag: threshold} of all tags that the client could have named
    "A client names the tags that are at their threshold or above, but for those as near to it as the ways to prepare a picture are apart"
    for i, said in enumerate(theirs):
        assert set(said) <= cut.keys()
        for n, t in cut.items(): assert (n in said) == ((p := score(ours, n, i)) >= t) or abs(p - t) <= near, (i, n, p, t)

# --- timm

@pytest.mark.parametrize('source', ['local-dir', 'hf-hub'])
def test_timm(models, tmp_path, holds, source):
    "The same probabilities from the same numbers; and of square pictures by way of timm's own transform"
    folder, t = models.folder('pixels', 'timm'), models.tagger('pixels')
    call, = [c for c in installed(folder, 'timm' if source == 'local-dir' else 'hf', tmp_path/'home') if c.startswith('timm.create_model')]
    square = [p for p in models.pictures if Image.open(p).width == Image.open(p).height > 8]
    np.save(tmp_path/'x.npy', t.square.normalize(t.square.load(models.pictures).images).numpy())
    home = tmp_path/'home'
    got = client('timm_scores', dict(name=call.split('"')[1], inputs=tmp_path/'x.npy', pictures=square), home)
    ours = np.stack([*models.scores('pixels').values()], 1)
    assert got['labels'] == list(table(folder)) == list(t.vocab)
    holds(f'timm {source}', 'timm', 'probabilities', abs(got['inputs'] - ours).max(), 1e-5)
    holds(f'timm {source}', 'timm', 'square pictures by its own transform', abs(got['pictures'] - ours[[models.pictures.index(p) for p in square]]).max(), NEAR)

def test_wdv3_timm(models, tmp_path, holds):
    from vaetag_nb.models.foreign import wd_pixels
    folder, t = models.folder('pixels', 'wd'), models.tagger('pixels')
    got = client('wdv3_timm', dict(name=f'local-dir:{folder}', csv=folder/'selected_tags.csv', pictures=models.pictures), tmp_path)
    assert [list(r) for r in got[0].values()] == [named(folder, 9), named(folder, 0), named(folder, 4)]
    got = [{n: p for g in r.values() for n, p in g.items()} for r in got]
    x = np.stack([wd_pixels(Image.open(p), t.native[0])[:, :, ::-1] for p in models.pictures])     # resized as the client does, red first
    exact = t.net(t.square.normalize(torch.from_numpy(x).byte().permute(0, 3, 1, 2)))[1].sigmoid().detach().numpy()
    holds('wdv3-timm, its steps', 'wd', 'probabilities', apart(dict(zip(t.vocab, exact.T)), got), 1e-4)
    holds('wdv3-timm, its steps', 'wd', 'pictures as vaetag tag resizes them', apart(models.scores('pixels'), got), NEAR)

# --- dghs-imgutils

@pytest.mark.parametrize('kind,form', [('pixels', 'timm'), ('latents', 'generic')])
def test_imgutils_multilabel(models, tmp_path, holds, kind, form):
    folder, t = models.folder(kind, form), models.tagger(kind)
    assert any('multilabel_timm_predict(img, repo_id="me/x")' in c for c in installed(folder, 'hf', tmp_path))
    got, rows = client('imgutils_multilabel', dict(repo='me/x', pictures=models.pictures), tmp_path), table(folder)
    ours = models.scores(kind, t.native[0])
    holds('imgutils multilabel_timm_predict', form, f'scores, {kind}', apart(ours, [dict(zip(rows, r['prediction'])) for r in got]), NEAR)
    by_category = {int(r['category']): float(r['threshold']) for r in csv_rows(folder/'thresholds.csv')}
    for group, c in dict(general=0, character=4, rating=9).items():
        names = named(folder, c)
        same_tags(ours, [r[group] for r in got], {n: float(rows[n]['best_threshold']) for n in names})      # none given: each tag has its own
        same_tags(ours, [r['at'][group] for r in got], dict.fromkeys(names, .3))
        same_tags(ours, [r['category'][group] for r in got], dict.fromkeys(names, by_category[c]))
        assert c != 9 or all(len(r[group]) == len(names) for r in got)                                        # ratings come back whole
    assert {r['all'] for r in got} == {len({r['category'] for r in rows.values()})} and len(got[0]['embedding']) == t.head[0].shape[1]

@both
def test_imgutils_wd14(models, tmp_path, holds, kind):
    folder = models.folder(kind, 'wd')
    installed(folder, 'imgutils-wd14', tmp_path)
    at = [i for i, p in enumerate(models.pictures) if Image.open(p).mode != 'L']     # the client takes a grey picture for its own mask, whatever the model
    got = client('imgutils_wd14', dict(repo='me/x', character=CHARACTER, pictures=[models.pictures[i] for i in at]), tmp_path)
    ours = {n: s[at] for n, s in models.scores(kind).items()}
    holds('imgutils get_wd14_tags', 'wd', f'scores, {kind}', apart(ours, [dict(zip(table(folder), r['prediction'])) for r in got['tags']]), NEAR)
    for r in got['tags']: assert list(r['rating']) == named(folder, 9)
    for group, cut in dict(general=dict.fromkeys(named(folder, 0), .35), character=dict.fromkeys(named(folder, 4), CHARACTER)).items(): same_tags(ours, [r[group] for r in got['tags']], cut)
    holds('imgutils convert_wd14_emb_to_prediction', 'wd', f'probabilities out of embeddings, {kind}', max(abs(np.subtract(a['prediction'], b['prediction'])).max() for a, b in zip(got['tags'], got['again'])), 1e-4)
    tags = lambda side: [(list(r['general']), list(r['character'])) for r in got[side]]
    assert tags('tags') == tags('again')

@pytest.fixture(scope='module')
def aligner(models):
    "A run for the latent tagger's embeddings, and those"
    from vaetag_nb.trainers.aligner import AlignerConfig, train_aligner
    d = models.d/'aligner'
    status, _, err = shell('tag', str(models.d/'scenes/images'), '--model', str(models.run('latents')), '--emit', 'embeddings', '--out', str(d/'emb.npz'))
    assert status == 0, err
    train_aligner(load(AlignerConfig, dict(out=str(d/'SwinV2_v3_mine'), epochs=20, batch_size=64, device='cpu', data=dict(embeddings=[str(d/'emb.npz')], head=str(models.run('latents'))))))
    return d/'SwinV2_v3_mine', np.load(d/'emb.npz')['embs'][:12].astype(np.float32)

def test_imgutils_aligner(models, aligner, tmp_path, holds):
    "Lengths given back to directions, and tags of those by the head of the exported tagger"
    from vaetag_nb.align import AlignedTagger
    run, e = aligner
    folder, t = models.folder('latents', 'wd'), models.tagger('latents')
    installed(folder, 'imgutils-wd14', tmp_path)
    assert any('denormalizer_name="mine"' in c for c in installed(run, 'imgutils-aligner', tmp_path))
    np.save(tmp_path/'u.npy', e/np.linalg.norm(e, axis=1, keepdims=True))
    got = client('imgutils_aligner', dict(directions=tmp_path/'u.npy', tagger='SwinV2_v3', name='mine', repo='me/x', character=CHARACTER), tmp_path)
    want = AlignedTagger.load(run, device='cpu').embed(np.load(tmp_path/'u.npy')).numpy()
    for k, w in dict(one=want[0], two=want, three=want.reshape(2, 6, -1)).items():
        assert np.shape(got[k]) == w.shape
        holds('imgutils denormalize_wd14_emb', 'aligner', f'{w.ndim}-D', abs(np.asarray(got[k]) - w).max()/max(1, abs(want).max()), 1e-5)
    ours = dict(zip(t.vocab, torch.sigmoid(torch.from_numpy(want)@t.head[0].T + t.head[1]).detach().numpy().T))
    holds('imgutils convert_wd14_emb_to_prediction', 'aligner', 'denormalize=True, probabilities', apart(ours, [r['rating'] | r['general'] | r['character'] for r in got['tags']]), 1e-4)
    for group, cut in dict(general=dict.fromkeys(named(folder, 0), .35), character=dict.fromkeys(named(folder, 4), CHARACTER)).items(): same_tags(ours, [r[group] for r in got['tags']], cut, 1e-4)

# --- programs that read an ONNX file and a list of tags

@both
def test_comfyui(models, tmp_path, holds, kind):
    "Of pictures without transparency, which ComfyUI drops before its nodes see it"
    folder = models.folder(kind, 'wd')
    installed(folder, 'comfyui', tmp_path)
    got = client('comfyui', dict(model=tmp_path/'x', pictures=models.copies('rgb')), tmp_path)
    assert [list(r) for r in got[0].values()] == [named(folder, 0), named(folder, 4)]
    holds('ComfyUI-WD14-Tagger, its steps', 'wd', f'scores, {kind}', apart(models.scores(kind, of='rgb'), [r['general'] | r['character'] for r in got]), NEAR)

@both
def test_corkborg(models, tmp_path, holds, kind):
    "Of pictures as large as the input and larger: smaller ones these programs do not enlarge, whatever the model"
    folder = models.folder(kind, 'wd')
    got = client('corkborg', dict(model=folder/'model.onnx', csv=folder/'selected_tags.csv', pictures=models.copies('large')), tmp_path)
    assert [list(r) for r in got[0].values()] == [named(folder, 9), named(folder, 0, 4)]
    holds('corkborg, picobyte, their steps', 'wd', f'scores, {kind}', apart(models.scores(kind, of='large'), [r['ratings'] | r['tags'] for r in got]), NEAR)

CL = {9: 'Rating', 0: 'General', 4: 'Character', 3: 'Copyright', 5: 'Meta', 1: 'Artist'}

@both
def test_cl(models, tmp_path, holds, kind):
    "All categories, logits within"
    t = models.tagger(kind)
    got = client('cl_tagger', dict(folder=models.folder(kind, 'cl'), pictures=models.pictures), tmp_path)
    for c, word in CL.items(): assert list(got[0][word]) == [n for n, k in zip(t.vocab, t.vocab.categories) if k == c]
    holds('programs for cl taggers, their steps', 'cl', f'scores, {kind}', apart(models.scores(kind), [{n: p for g in r.values() for n, p in g.items()} for r in got]), NEAR)

@pytest.mark.skipif(KOHYA is None, reason='VAETAG_KOHYA does not name finetune/tag_images_by_wd14_tagger.py of kohya-ss/sd-scripts')
@pytest.mark.parametrize('form', ['wd', 'cl'])
@both
def test_kohya(models, tmp_path, kind, form):
    "The script itself, on what it imports of its repository done again; pictures larger than its input, which it shrinks by area"
    t = models.tagger(kind)
    call, = installed(models.folder(kind, form), 'kohya', tmp_path/'models', 'mine' if kind == 'pixels' and form == 'cl' else '')
    shutil.copytree(models.copies('large')[0].parent, tmp_path/'pictures')
    run = [Path(PYTHON).absolute(), KOHYA, tmp_path/'pictures', *call.split(' DIR ')[1].split(), '--thresh', '.4', '--batch_size', '4', '--caption_separator', '|']
    done = subprocess.run([*map(str, run)], env=clean(PYTHONPATH=str(HERE/'kohya')), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [[n for n in (tmp_path/'pictures'/p.with_suffix('.txt').name).read_text(encoding='utf-8').strip().split('|') if n] for p in models.pictures]
    assert any(said)
    names = named(models.folder(kind, 'wd'), 0, 4) if form == 'wd' else [n for n, c in zip(t.vocab, t.vocab.categories) if c != 9]
    same_tags(models.scores(kind, of='large'), said, dict.fromkeys(names, .4), 5e-2)

@pytest.mark.parametrize('which', ['newest', pytest.param('1.15', marks=pytest.mark.skipif(OLD is None, reason='VAETAG_CLIENTS_OLD names no python with ONNX Runtime 1.15'))])
@pytest.mark.parametrize('kind,form', [('pixels', 'wd'), ('pixels', 'timm'), ('pixels', 'cl'), ('latents', 'wd'), ('latents', 'generic'), ('latents', 'cl')])
def test_runtimes(models, tmp_path, holds, kind, form, which):
    from vaetag_nb.publish.dialects import DIALECTS
    file = models.folder(kind, form)/('model_optimized.onnx' if form == 'cl' else 'model.onnx')
    d = DIALECTS[form](models.tagger(kind), 448)
    np.save(tmp_path/'x.npy', x := np.stack([d.prepare(p) for p in models.pictures[:3]]))
    got = client('runtime', dict(model=file, inputs=tmp_path/'x.npy'), tmp_path, OLD if which == '1.15' else PYTHON)
    assert got['input'] == ['input', ['batch', *x.shape[1:]]] and list(got['outputs']) == d.outputs and (which == 'newest' or got['version'].startswith('1.15'))
    with torch.no_grad(): want = d.graph(torch.from_numpy(x))
    for n, w in zip(got['outputs'], want if isinstance(want, tuple) else [want]):
        holds(f"ONNX Runtime {got['version']}", form, f'{n}, {kind}', float(abs(np.asarray(got['outputs'][n]) - w.numpy()).max()/max(1, abs(w).max())), 1e-4)

@pytest.mark.parametrize('kind,form', [('pixels', 'wd'), ('pixels', 'timm'), ('pixels', 'cl'), ('latents', 'wd'), ('latents', 'generic'), ('latents', 'cl')])
def test_cards(models, tmp_path, holds, kind, form):
    "The lines of each card, run beside the files where this package is not"
    folder, at = models.folder(kind, form), tmp_path/'x'
    shutil.copytree(folder, at)
    got = []
    for p in models.pictures[:2]:
        shutil.copyfile(p, at/'picture.jpg')
        got.append({n: float(v) for n, v in (l.rsplit(' ', 1) for l in client('card', dict(folder=at), tmp_path)['said'])})
    t, ours = models.tagger(kind), models.scores(kind, models.tagger(kind).native[0] if form == 'generic' else 448)
    holds(f'lines of the card of {form}', form, f'scores, {kind}', apart(ours, got), NEAR)
    fixed = {n: .75 if c == 4 else .35 for n, c in zip(t.vocab, t.vocab.categories) if c != 9 and (form == 'cl' or c in (0, 4))}
    same_tags(ours, got, fixed if form in ('wd', 'cl') else {n: float(r['best_threshold']) for n, r in table(folder).items() if r['category'] != '9'})

ODD = ['a,b', 'say_"hi"', "l'\u00e9t\u00e9", '\u7a7a', ':d', 're:zero', '2024', 'x_(y)', 'null', 'nan', 'a b', '#1', '=1+1', 'blush']

def test_odd_names(tmp_path, monkeypatch):
    "Every client reads each name as it is; only what pandas takes for a missing value by default is lost, and said"
    from test_export_timm import model
    from vaetag_nb.data.tags import Vocab
    monkeypatch.delenv('VAETAG_QUIET', raising=False)
    vocab = Vocab(['general', 'sensitive', 'questionable', 'explicit', *ODD, 'miku_(2)'], [9]*4 + [0]*len(ODD) + [4], range(30, 30 - 5 - len(ODD), -1))
    model(tmp_path/'m', vocab=vocab, k=1.)
    for form in ('wd', 'timm', 'cl'):
        status, _, err = shell('export', str(tmp_path/'m'), '--format', form, '--out', str(tmp_path/form), '--licence', 'mit')
        assert status == 0 and 'null, nan' in err, err
    for form in ('wd', 'timm'):
        got = client('names', dict(csv=tmp_path/form/'selected_tags.csv'), tmp_path)
        assert got['csv'] == got['keep'] == list(vocab) and got['pandas'] == ['nan' if n in ('null', 'nan') else n for n in vocab], form
    shutil.copyfile(tmp_path/'wd/model.onnx', tmp_path/'x.onnx'); shutil.copyfile(tmp_path/'wd/selected_tags.csv', tmp_path/'x.csv')
    picture = tmp_path/'p.png'
    Image.effect_noise((64, 64), 90).convert('RGB').save(picture)
    got, = client('comfyui', dict(model=tmp_path/'x', pictures=[picture]), tmp_path)
    assert (list(got['general']), list(got['character'])) == (ODD, ['miku_(2)'])
    got, = client('cl_tagger', dict(folder=tmp_path/'cl', pictures=[picture]), tmp_path)
    assert (list(got['General']), list(got['Character'])) == (ODD, ['miku_(2)'])
    installed(tmp_path/'timm', 'hf', tmp_path)
    got, = client('imgutils_multilabel', dict(repo='me/x', pictures=[picture]), tmp_path)
    assert set(got['at']['general']) <= set(ODD) and len(got['rating']) == 4

@pytest.mark.skipif(OLD is None, reason='VAETAG_CLIENTS_OLD names no python with ONNX Runtime 1.15')
def test_other_files_in_two_runtimes(models, aligner, tmp_path, holds):
    "Heads alone, aligners and weights in half precision: ONNX Runtime 1.15 opens them as the newest does, with the same numbers"
    for run, form, more in ((models.run('latents'), 'latent-onnx', []), (aligner[0], 'aligner', []), (models.run('pixels'), 'generic', ['--weights', 'fp16'])):
        status, _, err = shell('export', str(run), '--format', form, '--out', str(tmp_path/form), *more, '--licence', 'apache-2.0')
        assert status == 0, err
    t, width = models.tagger('pixels'), aligner[1].shape[1]
    shapes = {'latent-onnx/model.onnx': (2, 8, 12, 16), 'aligner/model.onnx': (3, width), 'aligner/model_with_fc.onnx': (3, width), 'generic/model.onnx': (2, 3, *t.native)}
    for file, shape in shapes.items():
        np.save(tmp_path/'x.npy', random(*shape, seed=2).numpy())
        new, old = (client('runtime', dict(model=tmp_path/file, inputs=tmp_path/'x.npy'), tmp_path, p)['outputs'] for p in (PYTHON, OLD))
        far = max(abs(np.subtract(new[k], old[k])).max()/max(1, abs(np.asarray(new[k])).max()) for k in new)
        holds('ONNX Runtime 1.15 beside the newest', file.split('/')[0] + (', half weights' if 'generic' in file else ''), Path(file).name, far, 1e-5)

# --- diffusers

def pretrained(src, out): # as `vaetag export` writes it
    status, _, err = shell('export', str(src), '--format', 'diffusers', '--out', str(out), '--licence', 'apache-2.0')
    assert status == 0, err
    return out

def test_diffusers_vae(tmp_path, holds):
    from vaetag_nb.latents.codec import Codec, posterior
    codec, x = Codec.embedded(), random(2, 3, 64, 48, seed=0).clamp(-1, 1)
    codec.save(tmp_path/'own')
    np.save(tmp_path/'x.npy', x.numpy())
    got = client('diffusers_parts', dict(folder=pretrained(tmp_path/'own', tmp_path/'vae'), inputs=tmp_path/'x.npy', vae=codec.cls_name), tmp_path)
    with torch.no_grad(): z = posterior(codec.vae.encode(x))[0]; y = codec.vae.decode(z).sample
    for k, w in dict(latents=z, pictures=y).items(): holds(f'diffusers {codec.cls_name}', 'diffusers', k, abs(np.asarray(got[k]) - w.numpy()).max(), 1e-5)

def test_diffusers_latent_diffusion(tmp_path, holds):
    "VAE, network and scheduler of a model of users; the lines of the card draw a picture"
    from test_users import TINY, drawn
    from vaetag_nb.models.diffusion_folder import load_diffusion
    from vaetag_nb.models.sampling import scheduler_of
    from vaetag_nb.trainers.diffusion import train_diffusion
    from vaetag_nb.trainers.diffusion_settings import diffusion_config
    drawn(tmp_path/'set')
    train_diffusion(diffusion_config(TINY, dict(out=str(tmp_path/'run'), data=dict(folders=str(tmp_path/'set')))))
    m, folder, times, users = load_diffusion(tmp_path/'run'), pretrained(tmp_path/'run', tmp_path/'out'), [1, 500, 999], [0, 1, 2]
    noise, scheduler = random(3, *m.shape, seed=1), scheduler_of(m.noise)
    np.save(tmp_path/'x.npy', random(2, m.channels, m.resolution, m.resolution, seed=0).numpy())
    np.save(tmp_path/'noise.npy', noise.numpy())
    got = client('diffusers_parts', dict(folder=folder, inputs=tmp_path/'x.npy', noise=tmp_path/'noise.npy', times=times, users=users, sub='vae', vae=m.codec.cls_name,
                 unet=type(m.net.unet).__name__, scheduler=type(scheduler).__name__), tmp_path)
    with torch.no_grad(): y = m.net(noise, torch.tensor(times), torch.tensor(users))
    holds(f'diffusers {type(m.net.unet).__name__}', 'diffusers', 'what the network predicts', abs(np.asarray(got['network']) - y.numpy()).max(), 1e-5)
    assert np.allclose(got['alphas'], scheduler.alphas_cumprod, atol=1e-7)
    assert client('card', dict(folder=folder, after='## Use with diffusers alone'), tmp_path)['shape'] == [1, m.channels, m.resolution, m.resolution]
