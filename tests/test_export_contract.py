"What `vaetag export` promises whatever the model: worked examples of the layouts, whole folders of every kind, folders of diffusers, cards, licences, and what is left behind"
import csv, dataclasses as dc, re, shutil, signal
import diffusers, numpy as np, onnxruntime as ort, pytest, torch, yaml
from test_export_pixels import SQUARE, model as latent
from test_export_timm import PAD, VOCAB, model as timm_model
from test_latents_families import CASES
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import read_json, write_json
from vaetag_nb.core.rng import seeded
from vaetag_nb.data.square import Square
from vaetag_nb.data.tags import Vocab
from vaetag_nb.data.users import UserMap
from vaetag_nb.infer import Tagger
from vaetag_nb.latents.codec import Codec
from vaetag_nb.models.aligner import make_aligner
from vaetag_nb.models.aligner_folder import Aligner, head_for, load_aligner, save_aligner
from vaetag_nb.models.cyclegan import generator
from vaetag_nb.models.cyclegan_folder import CycleGan, save_cyclegan
from vaetag_nb.models.identity import Identity, identity_net, load_identity, save_identity
from vaetag_nb.models.linear_head import LinearHead, save_head
from vaetag_nb.models.timm_folder import save_timm
from vaetag_nb.models.timm_tagger import create
from vaetag_nb.publish import export as pe, onnx as po
from vaetag_nb.publish.dialects import Cl, Timm, Wd
from vaetag_nb.publish.pretrained import check_known, export_pretrained
from vaetag_nb.publish.timm_pixels import timm_pixels
from vaetag_nb.translate import Translator
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

def export(*args): return shell('export', *map(str, args))
def rows(path): return list(csv.DictReader(open(path, encoding='utf-8', newline='')))
def names(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())
def texts(folder): return ''.join(p.read_text(encoding='utf-8') for p in sorted(folder.rglob('*')) if p.suffix in ('.json', '.md', '.csv'))

def bare_model(folder, vocab):
    "A model folder of other tags, without fitted thresholds"
    with seeded(0, 'toy'): net = create('test_resnet', len(vocab), 32)
    save_timm(folder, net, vocab, PAD)
    return Tagger.load(folder, device='cpu')

def written(dialect, t, folder, size=32):
    folder.mkdir(parents=True)
    (d := dialect(t, size)).write(folder)
    return d

def test_worked_rows(tmp_path):
    "Seven tags are six rows of wd, without vocaloid, and seven of timm and cl; of two general tags alone wd makes seven"
    seven = Vocab(['general', 'sensitive', 'questionable', 'explicit', '1girl', 'hatsune_miku', 'vocaloid'], [9]*4 + [0, 4, 3])
    t = timm_pixels(bare_model(tmp_path/'m', seven))
    wd = written(Wd, t, tmp_path/'wd')
    assert [r['name'] for r in rows(tmp_path/'wd/selected_tags.csv')] == seven.names[:6] and wd.dropped == {3: 1}
    written(Timm, t, tmp_path/'timm')
    table = rows(tmp_path/'timm/selected_tags.csv')
    assert [r['name'] for r in table] == seven.names and list(table[0])[:8] == ['tag_id', 'name', 'category', 'count', 'best_threshold', 'best_f1', 'best_precision', 'best_recall']
    assert {r['category'] for r in table} == {str(c['category']) for c in read_json(tmp_path/'timm/categories.json')} and all(float(r['best_threshold']) == 0 for r in table[:4])
    assert {k: read_json(tmp_path/'timm/preprocess.json')[k] for k in ('test', 'val', 'pre')}['pre'] == [] and read_json(tmp_path/'timm/preprocess.json')['test'] == read_json(tmp_path/'timm/preprocess.json')['val']
    written(Cl, t, tmp_path/'cl')
    assert [(r['tag'], r['category']) for r in read_json(tmp_path/'cl/tag_mapping.json').values()][4:] == [('1girl', 'General'), ('hatsune_miku', 'Character'), ('vocaloid', 'Copyright')]
    bare = Vocab(['1girl', 'solo'], counts=[20, 10], tag_ids=[470575, 212816])
    t = timm_pixels(bare_model(tmp_path/'bare', bare))
    wd = written(Wd, t, tmp_path/'bare_wd')
    raw = (tmp_path/'bare_wd/selected_tags.csv').read_bytes()
    assert raw.decode().splitlines() == ['tag_id,name,category,count', '10000000,general,9,0', '10000001,sensitive,9,0', '10000002,questionable,9,0', '10000003,explicit,9,0', '470575,1girl,0,20', '212816,solo,0,10', '10000006,no_character,4,0']
    assert b'\r' not in raw and raw[:3] != b'\xef\xbb\xbf'
    p, _ = wd.graph(torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)))
    assert p[:, [0, 1, 2, 3, 6]].max() < 1e-12 < p[:, [4, 5]].min()
    same = wd.weights(torch.randn(2, 3, 32, 32)).sigmoid()                                                # the padded rows of the timm weights, too
    assert same[:, [0, 1, 2, 3, 6]].max() < 1e-12

def test_cl_folder(tmp_path):
    "Two files that the clients of the cl dialect load, all categories, logits; our own reader gives the same scores"
    t = timm_model(tmp_path/'run/best')
    status, out, err = export(tmp_path/'run', '--format', 'cl', '--out', tmp_path/'cl', '--size', 48, '--title', 'Mine', '--licence', 'MIT')
    assert status == 0, err
    assert names(tmp_path/'cl') == ['README.md', 'model_optimized.onnx', 'tag_mapping.json', 'vaetag.json'] and '9 tags, model_optimized.onnx of' in out
    m = ort.InferenceSession(str(tmp_path/'cl/model_optimized.onnx'))
    assert (m.get_inputs()[0].shape, [(o.name, o.shape) for o in m.get_outputs()]) == (['batch', 3, 48, 48], [('logits', ['batch', 9])])
    photos = pe.sample_pictures(tmp_path/'p')[:3]
    theirs = Tagger.load(tmp_path/'cl', device='cpu')
    assert theirs.model.meta['layout'] == 'cl' and list(theirs.vocab) == VOCAB.names and theirs.vocab.categories.tolist() == VOCAB.categories.tolist()
    assert max(abs(a.scores - b.scores).max() for a, b in zip(t.tag(photos), theirs.tag(photos))) < pe.NEAR
    assert export(tmp_path/'run', '--format', 'cl', '--check-only', tmp_path/'cl')[0] == 0
    status, _, err = export(tmp_path/'run', '--format', 'timm', '--out', tmp_path/'cl')                    # one folder, one form
    assert status == 2 and 'timm and cl do not go into one folder' in err and names(tmp_path/'cl')[1] == 'model_optimized.onnx'
    (tmp_path/'wd').mkdir()
    write_json(tmp_path/'wd/vaetag.json', dict(dialect='wd'))
    assert export(tmp_path/'run', '--format', 'timm', '--out', tmp_path/'wd')[0] == 2

def test_every_kind_whole(tmp_path):
    "`--format model` of each kind opens with no flag where nothing else is; no path of the machine, no split, no checkpoint"
    home = tmp_path/'secret_home'
    codec = Codec.random(dict(block_out_channels=[8, 8, 8, 8], layers_per_block=1, latent_channels=4, norm_num_groups=4, scaling_factor=.2), seed=1)
    codec.save(home/'vae')
    lost = codec.spec() | dict(source=str(home/'vae'))
    pixels = timm_model(home/'timm/best')
    save_cyclegan(home/'gan/best', CycleGan(*(generator('residual', 4, seed=1, name=n, ngf=8, n_res_blocks=1) for n in 'GF'), 'model', 1., lost, dict(size=32, fit='crop', filter='lanczos'), licence='cc-by-nc-4.0'))
    net = identity_net(users=2, space='pixels', backbone='resnet10t', channels=1, dim=8)
    save_identity(home/'judge/best', Identity(net.eval(), UserMap((3, 7)), 32, data=dict(folder=str(home/'walkers'))))
    head = LinearHead(np.random.default_rng(0).normal(size=(8, 3)), np.zeros(3), 'inv.npz', Vocab(['a', 'b', 'c']))
    save_head(home/'inv.npz', head)
    save_aligner(home/'aligner/best', Aligner(make_aligner('simple', 8), 'simple', 8, head_sha256=head.sha256, head_source=str(home/'inv.npz')))
    want = Translator.load(home/'gan', device='cpu').encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    for kind in ('timm', 'gan', 'judge', 'aligner', 'vae'):
        (home/kind/'split.json').write_text('{}'); (home/kind/'best/checkpoint.pt').write_bytes(b'x') if (home/kind/'best').is_dir() else None
        status, out, err = export(home/kind, '--format', 'model', '--out', tmp_path/'out'/kind)
        assert status == 0, err
    assert export(home/'judge', '--format', 'model', '--check-only', tmp_path/'out/judge')[0] == 0
    shutil.rmtree(home)
    out = tmp_path/'out'
    assert names(out/'gan') == ['F.safetensors', 'G.safetensors', 'README.md', 'model.json', 'vae/config.json', 'vae/diffusion_pytorch_model.safetensors', 'vaetag.json']
    assert names(out/'aligner') == ['README.md', 'inv.npz', 'metrics.json', 'model.json', 'model.safetensors', 'selected_tags.csv', 'vaetag.json']
    assert 'secret_home' not in texts(out) and 'license: cc-by-nc-4.0' in (out/'gan/README.md').read_text()
    photo = pe.sample_pictures(tmp_path/'p')[0]
    assert (Tagger.load(out/'timm', device='cpu')(photo).scores == pixels(photo).scores).all()
    assert torch.equal(Translator.load(out/'gan', device='cpu').encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), want)
    assert load_identity(out/'judge').fingerprint and head_for(out/'aligner', load_aligner(out/'aligner')).sha256 == head.sha256
    assert Codec.load(out/'vae').fingerprint == codec.fingerprint

def test_licences(tmp_path):
    "Weights that forbid commerce do not go out under a freer licence, unless a reason is given, which the card quotes; before anything is computed"
    latent(tmp_path/'m', SQUARE)
    meta = read_json(tmp_path/'m/model.json')
    write_json(tmp_path/'m/model.json', meta | dict(codec=meta['codec'] | dict(licence='flux-1-dev-non-commercial-license')))
    (tmp_path/'notes.md').write_text('Drawn by hand.')
    for format in ('model', 'wd', 'latent-onnx'):
        status, _, err = export(tmp_path/'m', '--format', format, '--out', tmp_path/'x', '--licence', 'mit')
        assert (status, err.count('\n')) == (1, 1 + (format == 'wd')) and 'freer than flux-1-dev-non-commercial-license' in err and '--licence-override REASON' in err
    assert export(tmp_path/'m', '--format', 'model', '--out', tmp_path/'x', '--notes', tmp_path/'lost.md')[::2] == (1, f'vaetag: --notes {tmp_path}/lost.md: no such file\n')
    assert export(tmp_path/'m', '--format', 'model', '--out', tmp_path/'x', '--licence-override', 'why')[0] == 2 and not (tmp_path/'x').exists()
    status, _, err = export(tmp_path/'m', '--format', 'model', '--out', tmp_path/'x', '--licence', 'mit', '--licence-override', 'bought', '--notes', tmp_path/'notes.md', '--title', 'Mine')
    card = (tmp_path/'x/README.md').read_text()
    assert status == 0 and 'license: mit' in card and '"bought"' in card and '- of the VAE: flux-1-dev' in card and '# Mine\n\nDrawn by hand.' in card
    export(tmp_path/'m', '--format', 'model', '--out', tmp_path/'y')
    card = (tmp_path/'y/README.md').read_text()
    assert 'license: other\nlicense_name: flux-1-dev-non-commercial-license' in card                        # what is known holds

@pytest.mark.parametrize('name', [n if n in ('tiny', 'wan22') else pytest.param(n, marks=pytest.mark.slow) for n in CASES if n not in ('tiny16', 'dcae_conv')])
def test_vaes_of_diffusers(tmp_path, name):
    "Every family of VAE, written by us, opened by its class of diffusers"
    cls, cfg, family, *_ = CASES[name]
    torch.manual_seed(0)
    getattr(diffusers, cls)(**cfg).eval().save_pretrained(tmp_path/'theirs')
    codec = Codec.load(tmp_path/'theirs', family=None if 'scaling_factor' in cfg else family)
    codec.save(tmp_path/'run/best/vae')
    done = export_pretrained(tmp_path/'run', tmp_path/'x')
    assert all(c['measured'] <= 1e-5 for c in done['checks']) and read_json(tmp_path/'x/config.json')['_class_name'] == cls
    space = {}
    exec(re.findall(r'```python\n(.*?)```', (tmp_path/'x/README.md').read_text(), re.S)[0].replace('FOLDER', str(tmp_path/'x')), space)
    assert space['latent'].shape[1] == codec.raw_channels

def test_a_vae_that_diffusers_lacks(tmp_path):
    with pytest.raises(VaetagError, match='--format model writes it'): check_known(dc.make_dataclass('C', ['cls_name'])('TAEF2'), 'my/vae')

def test_nothing_is_left_of_an_interrupted_export(tmp_path, monkeypatch):
    timm_model(tmp_path/'m')
    def stop(*a, **k): signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(pe, 'to_onnx', stop)
    with pytest.raises(KeyboardInterrupt): export(tmp_path/'m', '--format', 'wd', '--out', tmp_path/'x')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m']

def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    latent(tmp_path/'m', SQUARE)
    monkeypatch.setattr(po, 'LARGEST', 1000)
    status, _, err = export(tmp_path/'m', '--format', 'latent-onnx', '--out', tmp_path/'x')
    assert (status, err.count('\n')) == (1, 2) and '--weights fp16' in err and not (tmp_path/'x').exists()

def test_names_that_no_file_holds(tmp_path):
    "Line breaks and equal names are errors that name them; four ratings at most"
    bare_model(tmp_path/'five', Vocab(list('abcdefghi'), [9]*5 + [0]*4))
    status, _, err = export(tmp_path/'five', '--format', 'wd', '--out', tmp_path/'x')
    assert status == 1 and '5 rating tags' in err and 'a, b, c, d, e' in err and 'data filter' in err
    timm_model(tmp_path/'m')
    table = (tmp_path/'m/selected_tags.csv').read_text()
    (tmp_path/'m/selected_tags.csv').write_text(table.replace('long_hair', '1girl'))
    status, _, err = export(tmp_path/'m', '--format', 'wd', '--out', tmp_path/'x')
    assert (status, err.count('\n')) == (1, 1) and '1girl' in err
    (tmp_path/'m/selected_tags.csv').write_text(table.replace('long_hair', '"long\nhair"'))
    status, _, err = export(tmp_path/'m', '--format', 'wd', '--out', tmp_path/'x')
    assert (status, err.count('\n')) == (1, 1) and not (tmp_path/'x').exists()

def card_numbers(card, metrics):
    "All figures of a card, each beside its own in metrics.json"
    head = yaml.safe_load(card.split('---\n')[1])
    for r in head['model-index'][0]['results']:
        for m in r['metrics']: yield m['value'], metrics[r['dataset']['split']][m['type']], 0
    lines = [l.strip('| ').split('|') for l in card.split('## Results')[1].split('##')[0].splitlines() if l.startswith('|')]
    keys = {'mAP': 'mAP', 'micro-F1': 'f1_micro', 'macro-F1': 'f1_macro', 'precision': 'precision_micro', 'recall': 'recall_micro', 'images': 'n_samples'}
    for side, *cells in lines[2:]:
        for k, c in zip([k.strip() for k in lines[0]][-len(cells):], cells):
            if c.strip(): yield float(c), metrics[side.strip()][keys[k]], 5.1e-5

@pytest.mark.slow
def test_twice_the_same(tmp_path):
    "Export twice: the same bytes of CSV, JSON and card but for versions and times, the same scores to the bit; each figure of the card is that of metrics.json"
    t = timm_model(tmp_path/'m')
    metrics = dict(val=dict(mAP=.512345678, f1_micro=.4, f1_macro=.31, precision_micro=.5, recall_micro=.25, n_samples=40), test=dict(mAP=.4987654, f1_micro=.39, f1_macro=.3, n_samples=20))
    save_timm(tmp_path/'m', t.model.net, VOCAB, PAD, dict(t.model.thresholds), metrics)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)
    got = []
    for d in ('a', 'b'):
        assert export(tmp_path/'m', '--format', 'timm', '--out', tmp_path/d)[0] == 0
        manifest = {k: v for k, v in read_json(tmp_path/d/'vaetag.json').items() if k != 'versions'}
        got.append((names(tmp_path/d), manifest, {p.name: p.read_bytes() for p in (tmp_path/d).iterdir() if p.suffix in ('.csv', '.json', '.md', '.safetensors') and p.name != 'vaetag.json'},
                    ort.InferenceSession(str(tmp_path/d/'model.onnx')).run(['prediction'], dict(input=x))[0].tobytes()))
    assert got[0] == got[1]
    card, kept = (tmp_path/'a/README.md').read_text(), read_json(tmp_path/'a/metrics.json')
    pairs = list(card_numbers(card, kept))
    assert len(pairs) > 15 and all(abs(a - b) <= eps for a, b, eps in pairs) and str(tmp_path) not in texts(tmp_path/'a')
    cells = {r['category']: r['threshold'] for r in rows(tmp_path/'a/thresholds.csv')}
    assert '| character | 1 | 0.55 |' in card and cells['4'] == '0.55' and cells['9'] == '0.0'

@pytest.mark.slow
@pytest.mark.parametrize('name,width,side', [('vit_tiny_patch16_224', 192, 224), ('convnext_atto', 320, 64), ('swin_tiny_patch4_window7_224', 768, 224), ('eva02_tiny_patch14_224', 192, 224), ('resnet18', 512, 64)])
def test_parity_of_usual_networks(tmp_path, name, width, side):
    "ONNX Runtime within 1e-5 of PyTorch; eight tags at 448 from 224-pixel networks"
    eight = Vocab(VOCAB.names[:8], VOCAB.categories[:8])
    timm_model(tmp_path/'m', Square((side, side), mean=(.5,)*3, std=(.5,)*3), name, eight, k=1.)
    status, _, err = export(tmp_path/'m', '--format', 'wd', '--out', tmp_path/'x')
    assert status == 0, err
    m = ort.InferenceSession(str(tmp_path/'x/model.onnx'))
    assert (m.get_inputs()[0].shape, [o.shape for o in m.get_outputs()]) == (['batch', 448, 448, 3], [['batch', 8], ['batch', width]])
    p = read_json(tmp_path/'x/vaetag.json')['parity']
    print(name, p)
    assert p['probabilities'] <= 1e-5 and p['inv.npz'] <= 1e-4 and p['timm'] <= 1e-4 and p['company'] <= 1e-5
