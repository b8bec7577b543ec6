"Latent taggers as ONNX files: every head, both spaces, and what is said when it cannot be"
import csv, json, sys
import numpy as np, pytest, torch
from torch import nn
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.data.tags import Vocab
from vaetag_nb.latents.convention import Convention
from vaetag_nb.models.latent_tagger import build_head, load_model, save_model
from vaetag_nb.publish import onnx as po
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

FLUX = Convention(scale=.3611, shift=.1159)
FLUX2 = Convention(shift=tuple(np.linspace(-.1, .1, 16)), std=tuple(np.linspace(.8, 1.2, 16)), patch=2)

def tagger(folder, convention=FLUX, **spec):
    "A model folder with a head of random weights"
    torch.manual_seed(0)
    head = build_head(dict(channels=16, num_tags=5, **spec))
    with torch.no_grad(): head.out.weight.normal_(std=.1)
    codec = {'class': 'AutoencoderKL', 'family': 'flux', 'fingerprint': 'ab'*32, 'latent_channels': 16, 'factor': 8*convention.patch, 'convention': convention.to_dict()}
    save_model(folder, head, Vocab(['safe', 'null', 'a,b', 'c', 'd'], [9, 0, 0, 0, 4]), codec, dict(resolution=64), dict(global_threshold=.3, per_class_thresholds={'c': dict(threshold=.6)}))
    return load_model(folder)

def export(*args): return shell('export', *map(str, args))

def test_without_the_extra(tmp_path, monkeypatch):
    tagger(tmp_path/'m', kind='plain')
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    status, out, err = export(tmp_path/'m', '--format', 'latent-onnx', '--out', tmp_path/'x')
    assert (status, out, err.count('\n')) == (1, '', 1) and "pip install 'vaetag_nb[onnx]'" in err and 'onnxscript' in err and not (tmp_path/'x').exists()

def test_what_cannot_be_exported(tmp_path):
    (tmp_path/'run/checkpoints').mkdir(parents=True)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/diary.txt').write_text('dear diary')
    tagger(tmp_path/'m', kind='plain', shape=[8, 8])
    for args, status, words in [(['nowhere', '--out', 'x'], 1, 'nowhere: no such run or model folder'), ([tmp_path/'run', '--out', 'x'], 1, 'a run without best/model.json'),
                                ([tmp_path/'mine', '--out', 'x'], 1, 'neither a run nor a model folder'), ([tmp_path/'m', '--out', tmp_path/'mine'], 1, 'holds no vaetag.json'),
                                ([tmp_path/'m', '--out', 'x', '--latent-size', '16,16'], 2, 'the head takes 8,8 only'), ([tmp_path/'m', '--out', 'x', '--space', 'scale_shift'], 2, 'scale_shift'),
                                ([tmp_path/'m', '--check-only', tmp_path/'mine'], 1, 'vaetag.json')]:
        got, out, err = export(*args, '--format', 'latent-onnx')
        assert (got, out, err.count('\n')) == (status, '', 1) and words in err, err
    assert (tmp_path/'mine/diary.txt').exists()

HEADS = dict(pool=dict(kind='pool', d=32, depth=1, heads=2, skip=4, stem=1, stem_width=16), query=dict(kind='query', d=32, depth=1, heads=2), plain=dict(kind='plain'),
             plain_of_one_size=dict(kind='plain', shape=[6, 8]), attention=dict(kind='attention', attention_heads=4, cross_attention=True),
             original=dict(kind='attention', attention_heads=4, cross_attention=True, collapse=True), resnet=dict(kind='timm', name='resnet10t'))

@pytest.mark.slow
@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('space', ['model', 'raw'])
def test_every_head(tmp_path, name, space):
    convention = FLUX2 if space == 'raw' and name in ('pool', 'plain') else FLUX
    model = tagger(tmp_path/'m', convention, **HEADS[name])
    status, out, err = export(tmp_path/'m', '--format', 'latent-onnx', '--out', tmp_path/'x', '--space', space, '--json')
    assert status == 0, err
    assert sorted(p.name for p in (tmp_path/'x').iterdir()) == ['README.md', 'model.onnx', 'selected_tags.csv', 'vaetag.json']
    run = po.run_onnx(tmp_path/'x/model.onnx')
    for b, h, w in ((1, 6, 8), *(() if 'shape' in HEADS[name] else ((5, 32, 32), (2, 9, 14)))):
        z = torch.randn(b, 16, h, w)
        e, x, p = run(convention.invert(z) if space == 'raw' else z)
        with torch.no_grad(): want = model.head(z)
        assert np.abs(x - want.numpy()).max() < 1e-4*max(1, want.abs().max()) and np.abs(p - want.sigmoid().numpy()).max() < 1e-5
        assert e.shape == model.head.embed(z).shape
    rows = list(csv.DictReader(open(tmp_path/'x/selected_tags.csv', encoding='utf-8')))
    assert [(r['name'], r['best_threshold']) for r in rows] == [('safe', '0.0'), ('null', '0.3'), ('a,b', '0.3'), ('c', '0.6'), ('d', '0.3')]
    assert export(tmp_path/'m', '--format', 'latent-onnx', '--check-only', tmp_path/'x')[0] == 0
    text = ''.join((tmp_path/'x'/f).read_text() for f in ('README.md', 'vaetag.json'))
    assert str(tmp_path) not in text and str(tmp_path).encode() not in (tmp_path/'x/model.onnx').read_bytes()
    assert json.loads((tmp_path/'x/vaetag.json').read_text())['latent']['space'] == space

@pytest.mark.slow
def test_nothing_is_left_of_a_file_that_differs(tmp_path):
    tagger(tmp_path/'m', kind='plain')
    status, _, err = export(tmp_path/'m', '--format', 'latent-onnx', '--out', tmp_path/'x', '--tolerance', -1)
    assert status == 1 and 'nothing was written' in err and sorted(p.name for p in tmp_path.iterdir()) == ['m']

class Gram(nn.Module):
    def forward(self, x): return torch.linalg.eigvalsh(x @ x.mT)

@pytest.mark.slow
def test_an_operator_that_onnx_lacks():
    with pytest.raises(VaetagError, match='not exportable to ONNX: 0: operator aten._linalg_eigh'): po.to_onnx(nn.Sequential(Gram()), dict(x=torch.randn(2, 3, 3)), ['y'], {})
