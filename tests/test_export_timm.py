"timm taggers as the folders of other programs: opened again by timm, by ONNX Runtime, by ourselves, with the same tags"
import numpy as np, onnxruntime as ort, pandas as pd, pytest, timm, torch
from PIL import Image, ImageOps
from test_export_pixels import by_the_card, comfyui
from vaetag_nb.core.io import load_tensors, read_json, save_tensors, write_csv, write_json
from vaetag_nb.core.rng import seeded
from vaetag_nb.data.square import Square
from vaetag_nb.data.tags import Vocab
from vaetag_nb.eval.scores import Scores, save_scores
from vaetag_nb.infer import Tagger
from vaetag_nb.models.foreign import generic_pixels, on_square, wd_pixels
from vaetag_nb.models.timm_folder import save_timm
from vaetag_nb.models.timm_tagger import create, heads_of
from vaetag_nb.publish import export as pe
from vaetag_nb.publish.dialects import Timm, Wd
from vaetag_nb.publish.onnx import to_onnx
from vaetag_nb.publish.timm_pixels import timm_pixels
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

VOCAB = Vocab(['general', 'sensitive', 'questionable', 'explicit', '1girl', 'long_hair', 'blush', 'hatsune_miku', 'vocaloid'], [9]*4 + [0]*3 + [4, 3], range(9, 0, -1))
FITTED = dict(rule='tag', split='val', min_positives=10, global_threshold=.5, category={'4': .55}, per_class_thresholds={'blush': dict(threshold=.45, f1_score=.8)})
PAD = Square((32, 32), mean=(.5, .4, .3), std=(.5, .6, .7))

def model(folder, square=PAD, name='test_resnet', vocab=VOCAB, k=2., **kw):
    "A model folder whose random scores are spread out"
    with seeded(0, 'toy'): net = create(name, len(vocab), square.size, **kw)
    for n, p in net.named_parameters():
        if n in heads_of(net) and p.ndim > 1: p.data.mul_(k)
    save_timm(folder, net, vocab, square, FITTED, dict(val=dict(mAP=.5)), train=dict(images=7))
    return Tagger.load(folder, device='cpu')

def export(*args): return shell('export', *map(str, args))
def sides(a, b, cut): return ((a >= cut) != (b >= cut)) & (abs(a - cut) > pe.NEAR)    # tags that change, but for those at their threshold

def test_a_run_as_timm_folder(tmp_path, capsys, monkeypatch):
    t, out = model(tmp_path/'run/best'), tmp_path/'timm'
    status, _, err = export(tmp_path/'run', '--format', 'timm', '--out', out)
    assert status == 0, err
    photos = pe.sample_pictures(tmp_path/'p')[:3]
    own, cut = np.stack([r.scores for r in t.tag(photos)]), t.thresholds()
    net = timm.create_model(f'local-dir:{out}', pretrained=True).eval()                                    # timm: its own loader, its own logits
    x = t.model.square.normalize(t.model.square.load(photos).images)
    with torch.no_grad(): assert abs(net(x).sigmoid().numpy() - own).max() < 1e-5
    cfg = read_json(out/'config.json')
    assert cfg['label_names'] == VOCAB.names and cfg['pretrained_cfg']['mean'] == [.5, .4, .3] and cfg['pretrained_cfg']['input_size'] == [3, 32, 32]
    m = ort.InferenceSession(str(out/'model.onnx'))                                                        # imgutils' steps: preprocess.json, then `prediction`
    assert [(o.name, o.shape) for o in m.get_outputs()] == [('embedding', ['batch', 96]), ('logits', ['batch', 9]), ('prediction', ['batch', 9])]
    y = m.run(['prediction'], {'input': np.stack([generic_pixels(Image.open(p).convert('RGB'), read_json(out/'preprocess.json')['test']) for p in photos])})[0]
    assert abs(y - own).max() < pe.NEAR and not sides(own, y, cut).any()
    again = Tagger.load(out, device='cpu')                                                                 # ourselves: the same tags
    got = np.stack([r.scores for r in again.tag(photos)])
    assert again.thresholds()[4:].tolist() == cut[4:].tolist() and abs(got - own).max() < pe.NEAR and not sides(own, got, cut)[:, 4:].any()
    made = read_json(out/'vaetag.json')
    assert made['source']['fingerprint'] == t.fingerprint and made['parity']['timm'] <= 1e-5 and made['parity']['probabilities'] <= 1e-5
    assert str(tmp_path) not in (out/'README.md').read_text() + (out/'vaetag.json').read_text()
    assert all(abs(p - own[2, VOCAB.index[tag]]) < 5e-2 for tag, p in by_the_card(out, photos[2], capsys, monkeypatch))
    assert export(tmp_path/'run', '--format', 'timm', '--check-only', out)[0] == 0                         # compared again; a folder that was changed is found out
    state = load_tensors(out/'model.safetensors')[0]
    save_tensors(out/'model.safetensors', state | {'fc.bias': state['fc.bias'] + .1})
    status, said, _ = export(tmp_path/'run', '--format', 'timm', '--check-only', out)
    assert status == 1 and 'ABOVE' in next(l for l in said.splitlines() if l.startswith('timm'))
    save_tensors(out/'model.safetensors', state | {'fc.bias': state['fc.bias'][1:]})
    status, _, err = export(tmp_path/'run', '--format', 'timm', '--check-only', out)
    assert status == 1 and 'timm cannot open it' in err

@pytest.mark.slow
def test_a_run_as_wd_folder(tmp_path, capsys, monkeypatch):
    "Rows without vocaloid, blue first, squares of another size than the network's"
    t, out = model(tmp_path/'run/best'), tmp_path/'wd'
    status, _, err = export(tmp_path/'run', '--format', 'wd', '--out', out, '--size', 48)
    assert status == 0, err
    photos = pe.sample_pictures(tmp_path/'p')[:3]
    own = np.stack([r.scores for r in t.tag(photos)])
    m = ort.InferenceSession(str(out/'model.onnx'))
    assert (m.get_inputs()[0].shape, [(o.name, o.shape) for o in m.get_outputs()]) == (['batch', 48, 48, 3], [('prediction', ['batch', 8]), ('embedding', ['batch', 96])])
    general, character = comfyui(out, photos[2])
    assert all(abs(p - own[2, VOCAB.index[n]]) < 5e-2 for n, p in {**general, **character}.items()) and (list(general), list(character)) == (['1girl', 'long_hair', 'blush'], ['hatsune_miku'])
    blue = timm.create_model(f'local-dir:{out}', pretrained=True).eval()                                   # wdv3-timm: white square, normalised, then red and blue exchanged
    mean, std = (torch.tensor(read_json(out/'config.json')['pretrained_cfg'][k]).view(3, 1, 1) for k in ('mean', 'std'))
    a = torch.stack([(torch.from_numpy(np.array(on_square(Image.open(p).convert('RGB'), 32))).permute(2, 0, 1)/255 - mean)/std for p in photos])
    with torch.no_grad(): assert abs(blue(a.flip(1)).sigmoid().numpy() - own[:, :8]).max() < pe.NEAR
    wd = Tagger.load(out, device='cpu')
    assert wd.model.meta['layout'] == 'wd' and abs(np.stack([r.scores for r in wd.tag(photos)]) - own[:, :8]).max() < pe.NEAR
    made = read_json(out/'vaetag.json')
    assert made['dropped'] == {'3': 1} and made['timm'] is True and made['fixed_size'] is None and {'timm', 'inv.npz', 'red is red', 'pictures'} <= set(made['parity'])
    assert all(abs(p - own[2, VOCAB.index[tag]]) < 5e-2 for tag, p in by_the_card(out, photos[2], capsys, monkeypatch))

def test_what_does_not_go(tmp_path):
    model(tmp_path/'m')
    model(tmp_path/'tall', Square((32, 64)), 'test_convnext')
    for args, status, words in [([tmp_path/'m', '--format', 'tim'], 2, "Did you mean 'timm'?"), ([tmp_path/'tall', '--format', 'wd'], 1, 'takes pictures of 32x64 pixels'),
                                ([tmp_path/'m', '--format', 'latent-onnx'], 2, "is a timm tagger; its formats are wd, timm, generic, cl, head, model"), ([tmp_path/'m', '--format', 'wd', '--vae', 'x'], 1, 'tagger of pixels'),
                                ([tmp_path/'m', '--format', 'wd', '--size', 0], 2, 'size = 0: at least 1')]:
        got, out, err = export(*args, '--out', tmp_path/'x')
        assert (got, out, err.count('\n')) == (status, '', 1) and words in err, err
    assert not (tmp_path/'x').exists()

@pytest.mark.slow
@pytest.mark.parametrize('square', [Square((32, 32), 'squash', 'bilinear'), Square((32, 32), 'crop', crop_pct=.9), Square((32, 32), channels='bgr')], ids=['squash', 'crop', 'bgr'])
def test_other_ways_to_prepare_a_picture(tmp_path, square, capsys, monkeypatch):
    "generic says them, wd measures what its clients' white square costs"
    t = model(tmp_path/'m', square, k=1.)                                                                  # at 32 pixels a sharp model tells resized-then-padded from padded-then-resized
    status, out, err = export(tmp_path/'m', '--format', 'wd,timm,generic', '--out', tmp_path/'x', '--size', 48)
    assert status == 0, err
    photo = pe.sample_pictures(tmp_path/'p')[0]
    own = t.tag(photo).scores
    for n in ('timm', 'generic'):
        assert abs(Tagger.load(tmp_path/'x'/n, device='cpu').tag(photo).scores - own).max() < pe.NEAR
        assert all(abs(p - own[VOCAB.index[tag]]) < 5e-2 for tag, p in by_the_card(tmp_path/'x'/n, photo, capsys, monkeypatch))
    beside = read_json(tmp_path/'x/wd/vaetag.json')['fixed_size']
    assert (beside is None) == (square.channels == 'bgr') and (beside is None or beside['pictures'] == 6 and beside['max'] > 0)

@pytest.mark.slow
def test_a_ground_that_clients_do_not_have(tmp_path):
    "clients of the generic dialect put what is transparent on white: a model that was trained on black is refused, and nothing is left"
    model(tmp_path/'m', Square((32, 32), background=(0, 0, 0)), k=3.)
    status, _, err = export(tmp_path/'m', '--format', 'generic', '--out', tmp_path/'x')
    assert status == 1 and 'transparent.png' in err and not (tmp_path/'x').exists()

@pytest.mark.slow
@pytest.mark.parametrize('name,width,inverse', [('resnet18', 512, True), ('caformer_s18', 2048, True), ('dla46_c', 256, True), ('deit_tiny_distilled_patch16_224', 192, False), ('levit_128s', 384, False), ('naflexvit_base_patch16_gap', 768, True)])
def test_one_architecture_for_each_kind_of_head(tmp_path, name, width, inverse):
    size = (224, 224) if name.startswith(('levit', 'deit')) else (64, 64)
    model(tmp_path/'m', Square(size, interpolation='bicubic'), name, k=1.)
    pe.export_pixels(tmp_path/'m', tmp_path/'x', 'wd', native_size=True)
    i = ort.InferenceSession(str(tmp_path/'x/model.onnx'))
    assert i.get_outputs()[1].shape == ['batch', width] and (tmp_path/'x/inv.npz').exists() == inverse
    assert (tmp_path/'x/model.safetensors').exists() == (not name.startswith('naflex'))

@pytest.mark.slow
def test_half_of_the_file(tmp_path):
    model(tmp_path/'m', k=1.)
    whole, half = (pe.export_pixels(tmp_path/'m', tmp_path/n, 'generic', half=n == 'half') for n in ('whole', 'half'))
    assert half['bytes'] < .7*whole['bytes'] and read_json(tmp_path/'half/vaetag.json')['onnx']['weights'] == 'fp16'

def test_exported_folders_as_contenders(tmp_path):
    "`eval compare` of a run, its timm folder and its wd folder: the same figures, but for the tags that wd has no place for; a difference that is none"
    t = model(tmp_path/'run/best')
    for d in (Timm(p := timm_pixels(t), None), Wd(p, 32)): (tmp_path/d.name).mkdir(); d.write(tmp_path/d.name)
    photos = pe.sample_pictures(tmp_path/'p')
    score = np.stack([r.scores for r in t.tag(photos)])
    labels = {str(f): ', '.join(n for n, s, m in zip(VOCAB.names[4:], row[4:], np.median(score, 0)[4:]) if s >= m) for f, row in zip(photos, score)}
    write_json(tmp_path/'data.json', labels)
    status, out, err = shell('eval', 'compare', *(str(tmp_path/n) for n in ('run', 'timm', 'wd')), '--truth', str(tmp_path/'data.json'), '--out', str(tmp_path/'c'), '--bootstrap', '20', '--min-positives', '1')
    assert status == 0, err
    c = read_json(tmp_path/'c/compare.json')
    assert set(c['models']) == {'run', 'timm', 'wd'} and c['counts']['images'] == 6 and c['counts']['tags'] == 8      # vocaloid is not in wd
    assert all(m['metrics']['mAP'] == pytest.approx(c['models']['run']['metrics']['mAP'], abs=.05) for m in c['models'].values())
    pair = next(p for p in c['pairs'] if {p['a'], p['b']} == {'run', 'timm'})
    assert pair['metrics']['mAP']['interval'][0] <= 0 <= pair['metrics']['mAP']['interval'][1]

STEPS = [dict(type='pad_to_size', size=[32, 32], interpolation='bicubic', background_color='white'), dict(type='maybe_to_tensor'), dict(type='normalize', mean=list(PAD.mean), std=list(PAD.std))]

class Wrapped(torch.nn.Module):
    "A network between what comes before and after it in a file"
    def __init__(self, net, before, after): super().__init__(); self.net, self.before, self.after = net, before, after
    def forward(self, x): return self.after(self.net(self.before(x)))

def on_white(path):
    im = ImageOps.exif_transpose(Image.open(path)).convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im).convert('RGB')

def published(kind, net, folder):
    "A network as others publish theirs: animetimm with torch weights or `onnx` alone, wd and cl as ONNX alone; what its client computes of a picture by way of the torch network"
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PAD.mean, PAD.std))
    before = dict(wd=lambda x: (x.permute(0, 3, 1, 2).flip(1)/255 - mean)/std, cl=lambda x: ((x.flip(1) + 1)/2 - mean)/std, onnx=lambda x: x).get(kind)   # blue first 0 to 255; blue first -1 to 1; normalised
    folder.mkdir()
    if kind == 'animetimm':
        save_tensors(folder/'model.safetensors', net.state_dict())
        write_json(folder/'config.json', dict(architecture='test_resnet', num_classes=len(VOCAB), pretrained_cfg=dict(input_size=[3, 32, 32])))
    else:
        x, after = torch.zeros(2, 32, 32, 3) if kind == 'wd' else torch.zeros(2, 3, 32, 32), torch.nn.Identity() if kind == 'cl' else torch.sigmoid
        proto = to_onnx(Wrapped(net, before, after).eval(), dict(input=x), ['prediction' if kind == 'onnx' else 'output'], dict(input={0: 'batch'}))
        (folder/('model_optimized.onnx' if kind == 'cl' else 'model.onnx')).write_bytes(proto.SerializeToString())
    names, cats = VOCAB.names, VOCAB.categories.tolist()
    if kind == 'cl': write_json(folder/'tag_mapping.json', {str(i): dict(tag=n, category={9: 'Rating', 0: 'General', 3: 'Copyright', 4: 'Character'}[c]) for i, (n, c) in enumerate(zip(names, cats))})
    elif kind == 'wd': VOCAB.write(folder/'selected_tags.csv')
    else:
        write_csv(folder/'selected_tags.csv', pd.DataFrame([dict(tag_id=i, name=n, category=c, best_threshold=.4 + .01*i) for i, (n, c) in enumerate(zip(names, cats))]))
        write_json(folder/'preprocess.json', dict(test=STEPS))
    @torch.inference_mode()
    def client(path):
        im = on_white(path)
        if kind in ('animetimm', 'onnx'): x = torch.from_numpy(generic_pixels(im, STEPS))[None]
        else:
            x = torch.from_numpy(np.ascontiguousarray(wd_pixels(im, 32)))[None]
            x = before(x if kind == 'wd' else x.permute(0, 3, 1, 2)/127.5 - 1)
        return net(x).sigmoid()[0].numpy()
    return client

@pytest.mark.parametrize('kind', ['animetimm', *(pytest.param(k, marks=pytest.mark.slow) for k in ('onnx', 'wd', 'cl'))])
def test_folders_of_others_as_contenders(tmp_path, kind):
    "`eval compare` opens a folder of another publisher, with torch weights or an ONNX file alone, and measures what its client computes"
    t = model(tmp_path/'m')
    client, photos, at = published(kind, t.model.net, tmp_path/'theirs'), pe.sample_pictures(tmp_path/'p'), tmp_path/'theirs'
    opened, want = Tagger.load(at, device='cpu'), np.stack([client(f) for f in photos])
    assert opened.model.meta['layout'] == (kind if kind in ('wd', 'cl') else 'generic') and ('.onnx' in opened.net.said) == (kind != 'animetimm')
    assert abs(np.stack([r.scores for r in opened.tag(photos)]) - want).max() < 1e-5 and np.ptp(want, 0).max() > .05
    save_scores(tmp_path/'client', Scores([str(f) for f in photos], want, VOCAB, opened.thresholds()))
    write_json(tmp_path/'data.json', {str(f): ', '.join(n for n, s, m in zip(VOCAB.names[4:], row[4:], np.median(want, 0)[4:]) if s <= m) for f, row in zip(photos, want)})
    status, out, err = shell('eval', 'compare', *(str(tmp_path/n) for n in ('theirs', 'client', 'm')), '--truth', str(tmp_path/'data.json'), '--out', str(tmp_path/'c'), '--bootstrap', '5', '--min-positives', '1')
    assert status == 0, err
    c = read_json(tmp_path/'c/compare.json')
    assert c['counts']['images'] == len(photos) and c['counts']['tags'] == len(VOCAB) and {n: m['kind'] for n, m in c['models'].items()} == dict(theirs='model', client='scores', m='model')
    figures = c['models']['theirs']['metrics']
    assert figures == pytest.approx(c['models']['client']['metrics'], abs=1e-9) and 0 < figures['mAP'] < 1
    table = pd.read_csv(tmp_path/'c/compare.csv')
    assert (table.ap_theirs - table.ap_client).abs().max() < 1e-9 and (table.f1_theirs == table.f1_client).all()
