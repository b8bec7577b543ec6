"""Programs of others, unmodified, in an environment of their own, on what we export: the scores are ours.

`make test-clients` makes the environment and runs this; without it all is skipped. A client is a script of tests/clients, run there by the other
environment's python: it knows nothing of this package. What is measured is printed at the end."""
import csv, functools, json, os, shutil, subprocess
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image

PYTHON, OLD, KOHYA = (os.environ.get(k) for k in ('VAETAG_CLIENTS', 'VAETAG_CLIENTS_OLD', 'VAETAG_KOHYA'))
pytestmark = [pytest.mark.clients, pytest.mark.skipif(PYTHON is None, reason='VAETAG_CLIENTS does not name the python of an environment with the clients: make test-clients')]
HERE = Path(__file__).parent/'clients'
CATEGORIES = dict(light_background=9, dark_background=9, heart=4, crescent=4, red_circle=4, night_sky=3, border=1, drop_shadow=5)  # of drawn tags, whose own is 0
NEAR, CHARACTER = 2e-2, .3      # what another way to prepare a picture may change; threshold for characters, which few scenes show

def clean(**more): return {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'HF_', 'VAETAG'))} | more # the environment of a client

def client(script, ask, home, python=PYTHON)->object: # what it prints, read as JSON
    "Run a script of tests/clients, offline, with `home` as the hub's cache"
    (home/'ask.json').write_text(json.dumps(ask, default=str))
    done = subprocess.run([Path(python).absolute(), HERE/f'{script}.py', home/'ask.json'], env=clean(HF_HOME=str(home), HF_HUB_OFFLINE='1'), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])

@pytest.fixture(scope='module')
def holds(request):
    "Asserts that a difference is within its limit; all are printed at the end"
    seen = []
    def within(what, measured, limit):
        seen.append((what, measured, limit))
        assert measured <= limit, f'{what}: {measured:.2e}, more than {limit:g}'
    yield within
    plugin = request.config.pluginmanager.get_plugin
    with plugin('capturemanager').global_and_fixture_disabled(): plugin('terminalreporter').write('\n' + ''.join(f'{what:70} {m:.1e} of {l:g}\n' for what, m, l in seen))

class Models:
    "Two taggers that were trained on a few drawn scenes, their exports, their scores, and an aligner"
    def __init__(self, d):
        from vaetag_nb.data.synth import make_scenes
        from vaetag_nb.data.tags import Vocab
        from vaetag_nb.publish.export import sample_pictures
        import vaetag_nb.cli  # noqa: F401 (registers all verbs)
        self.d = d
        make_scenes(d/'scenes', 320, 5)
        v = Vocab.read(d/'scenes/tags.csv')
        Vocab(list(v), [CATEGORIES.get(n, 0) for n in v], v.counts).write(d/'tags.csv')
        self.pictures = [p for p in sample_pictures(d/'golden')] + sorted((d/'scenes/images').iterdir())[:6]

    @functools.cache
    def run(self, kind):    # folder; pixels: timm's own network, latents: the demo's
        from vaetag_nb.core.config import load
        if kind == 'latents':
            from vaetag_nb.demo import demo_config
            from vaetag_nb.trainers.tagger import train_decoder
            return train_decoder(demo_config(self.d/'scenes', self.d/kind, 6, data=dict(tags=str(self.d/'tags.csv')), eval=dict(min_positives=5, baselines=False))).out
        from vaetag_nb.trainers.timm import train_timm
        from vaetag_nb.trainers.timm_settings import TimmConfig
        return train_timm(load(TimmConfig, dict(out=str(self.d), name=kind, device='cpu', epochs=6, batch_size=16, workers=0, data=dict(table=str(self.d/'scenes/data.json')), vocab=dict(csv=str(self.d/'tags.csv')),
            split=dict(val=.2, test=.1), preprocess=dict(size=192, mean=(.5, .45, .4), std=(.25, .3, .35)), model=dict(name='test_vit', pretrained=False, drop_path_rate=0.), optim=dict(lr=3e-3), eval=dict(min_positives=5)))).out

    @functools.cache
    def tagger(self, kind):
        from vaetag_nb.publish.export import pixel_tagger
        return pixel_tagger(self.run(kind), 448)

    @functools.cache
    def folder(self, kind, dialect): # as `vaetag export` writes it
        from vaetag_nb.verbs.base import shell
        out = self.d/f'{kind}-{dialect}'
        status, _, err = shell('export', str(self.run(kind)), '--format', dialect, '--out', str(out))
        assert status == 0, err
        return out

    @functools.cache
    def copies(self, name): # paths of the pictures; rgb: without what makes them transparent, as ComfyUI hands them on; large: 512 pixels wide or high
        (self.d/name).mkdir(exist_ok=True)
        for p in self.pictures:
            im = Image.open(p)
            im = im.convert('RGB') if name == 'rgb' else im.resize(tuple(max(1, 512*n//max(im.size)) for n in im.size), Image.Resampling.NEAREST)
            im.save(self.d/name/p.name)
        return [self.d/name/p.name for p in self.pictures]

    @functools.cache
    def scores(self, kind, at=None, of=None): # {tag: (pictures,)}: of `vaetag tag`; `at`: side of the white square, for a tagger that was trained on other pictures
        t, paths = self.tagger(kind), self.copies(of) if of else self.pictures
        return dict(zip(t.vocab, (t.own(paths) if t.faithful else t.seen(paths, at)).T))

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    os.environ['VAETAG_QUIET'] = '1'
    torch.set_num_threads(1)
    return Models(tmp_path_factory.mktemp('clients'))

both = pytest.mark.parametrize('kind', ['pixels', 'latents'])

def ours_of(ours, name, i): return float(ours[name][i]) if name in ours else 0.      # a padded row is 0

def apart(ours, theirs)->float: # `ours`: {tag: (pictures,)}; `theirs`: {tag: score} of each picture
    "The largest difference of the scores that a client gives"
    return max(abs(ours_of(ours, n, i) - p) for i, said in enumerate(theirs) for n, p in said.items())

def same_tags(ours, theirs, cut, near=NEAR): # `cut`: {tag: threshold} of all tags that the client could have named
    "A client names the tags that are at their threshold or above, but for those as near to it as the ways to prepare a picture are apart"
    for i, said in enumerate(theirs):
        assert said.keys() <= cut.keys()
        for n, t in cut.items(): assert (n in said) == ((p := ours_of(ours, n, i)) >= t) or abs(p - t) <= near, (i, n, p, t)

def csv_rows(path):
    with open(path, encoding='utf-8', newline='') as f: return list(csv.DictReader(f))

def table(folder): # the CSV of an export: {tag: row}
    return {r['name']: r for r in csv_rows(folder/'selected_tags.csv')}

def categories(folder): # {tag: its category}, in the order of the outputs
    if (folder/'selected_tags.csv').exists(): return {n: int(r['category']) for n, r in table(folder).items()}
    from vaetag_nb.models.foreign import cl_vocab
    v = cl_vocab(folder/'tag_mapping.json')
    return dict(zip(v, v.categories.tolist()))

def of(folder, *kinds): return [n for n, c in categories(folder).items() if c in kinds]

def cached(home, repo, files): # `files`: {path in the repository: file}
    "The hub's cache as if they had been fetched"
    base = home/'hub'/f"models--{repo.replace('/', '--')}"
    (base/'refs').mkdir(parents=True, exist_ok=True)
    (base/'refs/main').write_text('0'*40)
    for name, file in files.items():
        (to := base/'snapshots'/('0'*40)/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)

def whole(folder): return {p.relative_to(folder).as_posix(): p for p in folder.rglob('*') if p.is_file()}

# --- timm

@pytest.mark.parametrize('source', ['local-dir', 'hf-hub'])
def test_timm(models, tmp_path, holds, source):
    "The same probabilities from the same numbers; and of square pictures by way of timm's own transform"
    folder, t = models.folder('pixels', 'timm'), models.tagger('pixels')
    cached(tmp_path, 'me/timm', whole(folder))
    square = [p for p in models.pictures if Image.open(p).size[0] == Image.open(p).size[1] > 8]
    np.save(tmp_path/'x.npy', t.square.normalize(t.square.load(models.pictures).images).numpy())
    got = client('timm_scores', dict(name=f'local-dir:{folder}' if source == 'local-dir' else 'hf-hub:me/timm', inputs=tmp_path/'x.npy', pictures=square), tmp_path)
    ours = np.stack([*models.scores('pixels').values()], 1)
    assert got['labels'] == list(table(folder)) == list(t.vocab)
    holds(f'timm {source}: probabilities', abs(got['inputs'] - ours).max(), 1e-5)
    at = [models.pictures.index(p) for p in square]
    holds(f"timm {source}: its own transform, square pictures", abs(got['pictures'] - ours[at]).max(), NEAR)

def test_wdv3_timm(models, tmp_path, holds):
    from vaetag_nb.models.foreign import wd_pixels
    folder = models.folder('pixels', 'wd')
    got = client('wdv3_timm', dict(name=f'local-dir:{folder}', csv=folder/'selected_tags.csv', pictures=models.pictures), tmp_path)
    assert [list(r) for r in got[0].values()] == [of(folder, 9), of(folder, 0), of(folder, 4)]
    got = [{n: p for g in r.values() for n, p in g.items()} for r in got]
    t = models.tagger('pixels')
    x = np.stack([wd_pixels(Image.open(p), t.native[0])[:, :, ::-1] for p in models.pictures])     # as the client resizes them, red first
    exact = t.net(t.square.normalize(torch.from_numpy(x).byte().permute(0, 3, 1, 2)))[1].sigmoid().detach().numpy()
    holds('wdv3-timm, pictures as it resizes them', apart(dict(zip(t.vocab, exact.T)), got), 1e-4)
    holds('wdv3-timm', apart(models.scores('pixels'), got), NEAR)

# --- dghs-imgutils

@pytest.mark.parametrize('kind,dialect', [('pixels', 'timm'), ('latents', 'generic')])
def test_imgutils_multilabel(models, tmp_path, holds, kind, dialect):
    folder = models.folder(kind, dialect)
    cached(tmp_path, 'me/tagger', whole(folder))
    got = client('imgutils_multilabel', dict(repo='me/tagger', pictures=models.pictures), tmp_path)
    ours, rows = models.scores(kind, models.tagger(kind).native[0]), table(folder)
    holds(f'imgutils multilabel_timm_predict, {kind}', apart(ours, [dict(zip(rows, r['prediction'])) for r in got]), NEAR)
    by_category = {int(r['category']): float(r['threshold']) for r in csv_rows(folder/'thresholds.csv')}
    for group, c in dict(general=0, character=4, rating=9).items():
        names = of(folder, c)
        same_tags(ours, [r[group] for r in got], {n: float(rows[n]['best_threshold']) for n in names})      # none given: each tag has its own
        same_tags(ours, [r['at'][group] for r in got], dict.fromkeys(names, .3))
        same_tags(ours, [r['category'][group] for r in got], dict.fromkeys(names, by_category[c]))
        assert c != 9 or all(len(r[group]) == len(names) for r in got)                                        # ratings come back whole
    assert {r['all'] for r in got} == {len({r['category'] for r in rows.values()})} and len(got[0]['embedding']) == models.tagger(kind).head[0].shape[1]

@both
def test_imgutils_wd14(models, tmp_path, holds, kind):
    folder = models.folder(kind, 'wd')
    cached(tmp_path, 'deepghs/wd14_tagger_with_embeddings', {f'me/x/{f}': folder/f for f in ('model.onnx', 'inv.npz')})
    cached(tmp_path, 'me/x', {'selected_tags.csv': folder/'selected_tags.csv'})
    coloured = [p for p in models.pictures if Image.open(p).mode != 'L']     # the client takes a grey picture for its own mask, whatever the model
    at, got = [models.pictures.index(p) for p in coloured], client('imgutils_wd14', dict(repo='me/x', character=CHARACTER, pictures=coloured), tmp_path)
    ours = {n: s[at] for n, s in models.scores(kind, 448).items()}
    holds(f'imgutils get_wd14_tags, {kind}', apart(ours, [dict(zip(table(folder), r['prediction'])) for r in got['tags']]), NEAR)
    for r in got['tags']: assert list(r['rating']) == of(folder, 9)
    for group, cut in dict(general=dict.fromkeys(of(folder, 0), .35), character=dict.fromkeys(of(folder, 4), CHARACTER)).items(): same_tags(ours, [r[group] for r in got['tags']], cut)
    same = max(abs(np.subtract(a['prediction'], b['prediction'])).max() for a, b in zip(got['tags'], got['again']))
    holds(f'imgutils convert_wd14_emb_to_prediction, {kind}', same, 1e-4)
    assert [(list(a['general']), list(a['character'])) for a in got['tags']] == [(list(a['general']), list(a['character'])) for a in got['again']]

# --- programs that read model.onnx and selected_tags.csv

@both
def test_comfyui(models, tmp_path, holds, kind):
    folder = models.folder(kind, 'wd')
    for f, to in (('model.onnx', 'mine.onnx'), ('selected_tags.csv', 'mine.csv')): shutil.copyfile(folder/f, tmp_path/to)
    got = client('comfyui', dict(model=tmp_path/'mine', pictures=models.copies('rgb')), tmp_path)
    assert [list(r) for r in got[0].values()] == [of(folder, 0), of(folder, 4)]
    holds(f'ComfyUI-WD14-Tagger, {kind}', apart(models.scores(kind, 448, 'rgb'), [r['general'] | r['character'] for r in got]), NEAR)

@both
def test_corkborg(models, tmp_path, holds, kind):
    "Of pictures as large as the input and larger: smaller ones these programs do not enlarge, whatever the model"
    folder = models.folder(kind, 'wd')
    got = client('corkborg', dict(model=folder/'model.onnx', csv=folder/'selected_tags.csv', pictures=models.copies('large')), tmp_path)
    assert [list(r) for r in got[0].values()] == [of(folder, 9), of(folder, 0, 4)]
    holds(f'corkborg, picobyte, {kind}', apart(models.scores(kind, 448, 'large'), [r['ratings'] | r['tags'] for r in got]), 5e-2)

@pytest.mark.skipif(KOHYA is None, reason='VAETAG_KOHYA does not name finetune/tag_images_by_wd14_tagger.py of kohya-ss/sd-scripts')
@pytest.mark.parametrize('dialect', ['wd', 'cl'])
@both
def test_kohya(models, tmp_path, kind, dialect):
    "The script itself, on what it imports of its repository done again; pictures as large as its input and larger, which it shrinks by area"
    folder, place = models.folder(kind, dialect), tmp_path/'models'/('me_x' if dialect == 'wd' else 'me_x/mine')
    shutil.copytree(folder, place)
    shutil.copytree(models.copies('large')[0].parent, tmp_path/'pictures')
    run = [Path(PYTHON).absolute(), KOHYA, tmp_path/'pictures', '--onnx', '--repo_id', 'me/x' if dialect == 'wd' else 'me/x/mine', '--model_dir', tmp_path/'models', '--thresh', '.4', '--batch_size', '4', '--caption_separator', '|']
    done = subprocess.run([*map(str, run)], env=clean(PYTHONPATH=str(HERE/'kohya'), HF_HUB_OFFLINE='1'), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [{n: None for n in (tmp_path/'pictures'/p.with_suffix('.txt').name).read_text().strip().split('|') if n} for p in models.pictures]
    assert any(said)
    same_tags(models.scores(kind, 448, 'large'), said, {n: .4 for n, c in categories(folder).items() if c != 9}, 5e-2)

# --- aligners

def test_imgutils_aligner(models, tmp_path, holds):
    "Lengths given back to directions, and tags of those, by the head of the exported tagger"
    from vaetag_nb.align import AlignedTagger
    from vaetag_nb.core.config import load
    from vaetag_nb.publish.aligners import export_aligner
    from vaetag_nb.trainers.aligner import AlignerConfig, train_aligner
    from vaetag_nb.verbs.base import shell
    status, _, err = shell('tag', str(models.d/'scenes/images'), '--model', str(models.run('latents')), '--emit', 'embeddings', '--out', str(tmp_path/'emb.npz'))
    assert status == 0, err
    train_aligner(load(AlignerConfig, dict(out=str(tmp_path/'run'), epochs=20, batch_size=64, device='cpu', data=dict(embeddings=[str(tmp_path/'emb.npz')], head=str(models.run('latents'))))))
    export_aligner(tmp_path/'run', tmp_path/'Mine_all')
    folder = models.folder('latents', 'wd')
    cached(tmp_path, 'deepghs/embedding_aligner', {'Mine_all/model.onnx': tmp_path/'Mine_all/model.onnx'})
    cached(tmp_path, 'deepghs/wd14_tagger_with_embeddings', {'me/x/inv.npz': folder/'inv.npz'})
    cached(tmp_path, 'me/x', {'selected_tags.csv': folder/'selected_tags.csv'})
    e = np.load(tmp_path/'emb.npz')['embs'][:12].astype(np.float32)
    np.save(tmp_path/'u.npy', e/np.linalg.norm(e, axis=1, keepdims=True))
    got = client('imgutils_aligner', dict(directions=tmp_path/'u.npy', name='all', repo='me/x', character=CHARACTER), tmp_path)
    ours = AlignedTagger.load(tmp_path/'run', device='cpu')
    want = ours.embed(np.load(tmp_path/'u.npy')).numpy()
    size = max(1, abs(want).max())
    for k, w in dict(one=want[0], two=want, three=want.reshape(2, 6, -1)).items():
        assert np.shape(got[k]) == w.shape
        holds(f'imgutils denormalize_wd14_emb, {w.ndim}-D, of the largest number', abs(np.asarray(got[k]) - w).max()/size, 1e-5)
    t = models.tagger('latents')
    own = dict(zip(t.vocab, torch.sigmoid(torch.from_numpy(want)@t.head[0].T + t.head[1]).detach().numpy().T))
    holds('imgutils convert_wd14_emb_to_prediction, denormalize=True', apart(own, [r['rating'] | r['general'] | r['character'] for r in got['tags']]), 1e-4)
    for group, cut in dict(general=dict.fromkeys(of(folder, 0), .35), character=dict.fromkeys(of(folder, 4), CHARACTER)).items(): same_tags(own, [r[group] for r in got['tags']], cut, 1e-4)

# --- ONNX Runtime

@pytest.mark.parametrize('which', ['newest', pytest.param('1.15', marks=pytest.mark.skipif(OLD is None, reason='VAETAG_CLIENTS_OLD names no python with ONNX Runtime 1.15'))])
@pytest.mark.parametrize('kind,dialect', [('pixels', 'wd'), ('pixels', 'timm'), ('latents', 'wd'), ('latents', 'generic')])
def test_runtimes(models, tmp_path, holds, kind, dialect, which):
    folder, t = models.folder(kind, dialect), models.tagger(kind)
    x = np.random.default_rng(0).normal(size=(3, 3, *t.native)).astype(np.float32)
    if dialect == 'wd': x = np.stack([wd_pixels_of(p) for p in models.pictures[:3]])
    np.save(tmp_path/'x.npy', x)
    got = client('runtime', dict(model=folder/'model.onnx', inputs=tmp_path/'x.npy'), tmp_path, OLD if which == '1.15' else PYTHON)
    assert got['input'] == ['input', ['batch', *x.shape[1:]]] and list(got['outputs']) == dict(wd=['prediction', 'embedding']).get(dialect, ['embedding', 'logits', 'prediction']) and (which == 'newest' or got['version'].startswith('1.15'))
    want = graph_of(t, dialect)(torch.from_numpy(x))
    for n, w in zip(got['outputs'], want): holds(f"ONNX Runtime {got['version']}, {kind} as {dialect}: {n}", float(abs(np.asarray(got['outputs'][n]) - w.detach().numpy()).max()/max(1, abs(w).max())), 1e-4)

def wd_pixels_of(path):
    from vaetag_nb.models.foreign import wd_pixels
    return wd_pixels(Image.open(path), 448)

def graph_of(t, dialect):
    from vaetag_nb.publish.dialects import DIALECTS
    return DIALECTS[dialect](t, 448).graph

# --- diffusers

def test_diffusers_vae(models, tmp_path, holds):
    from vaetag_nb.latents.codec import Codec, posterior
    codec = Codec.embedded()
    codec.save(tmp_path/'vae')
    x = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    np.save(tmp_path/'x.npy', x.numpy())
    got = client('diffusers_parts', dict(folder=tmp_path/'vae', inputs=tmp_path/'x.npy', vae=codec.cls_name), tmp_path)
    with torch.no_grad(): z = posterior(codec.vae.encode(x))[0]; y = codec.vae.decode(z).sample
    holds(f'diffusers {codec.cls_name}: latents', abs(np.asarray(got['latents']) - z.numpy()).max(), 1e-5)
    holds(f'diffusers {codec.cls_name}: pictures', abs(np.asarray(got['pictures']) - y.numpy()).max(), 1e-5)

def test_diffusers_latent_diffusion(models, tmp_path, holds):
    "VAE, network and scheduler of a model of users"
    from test_users import TINY, drawn
    from vaetag_nb.models.diffusion_folder import load_diffusion
    from vaetag_nb.models.sampling import scheduler_of
    from vaetag_nb.trainers.diffusion import train_diffusion
    from vaetag_nb.trainers.diffusion_settings import diffusion_config
    drawn(tmp_path/'set')
    train_diffusion(diffusion_config(TINY, dict(out=str(tmp_path/'run'), data=dict(folders=str(tmp_path/'set')))))
    folder, m = tmp_path/'run/best', load_diffusion(tmp_path/'run')
    gen = torch.Generator().manual_seed(0)
    x, noise, times, users = torch.randn(2, m.channels, m.resolution, m.resolution, generator=gen), torch.randn(3, *m.shape, generator=gen), [1, 500, 999], [0, 1, 2]
    for n, v in dict(x=x, noise=noise).items(): np.save(tmp_path/f'{n}.npy', v.numpy())
    scheduler = scheduler_of(m.noise)
    got = client('diffusers_parts', dict(folder=folder, inputs=tmp_path/'x.npy', noise=tmp_path/'noise.npy', times=times, users=users, sub='vae', vae=m.codec.cls_name,
                 unet=type(m.net.unet).__name__, scheduler=type(scheduler).__name__), tmp_path)
    with torch.no_grad(): y = m.net(noise, torch.tensor(times), torch.tensor(users))
    holds('diffusers: network of a latent diffusion model', abs(np.asarray(got['network']) - y.numpy()).max(), 1e-5)
    assert np.allclose(got['alphas'], scheduler.alphas_cumprod, atol=1e-7)
