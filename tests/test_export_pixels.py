"Latent taggers as pixel taggers: other programs' steps on the written folders, what cannot be, and what is left behind"
import csv
import numpy as np, onnxruntime as ort, pytest, torch
from PIL import Image
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import read_json
from vaetag_nb.data.tags import Vocab
from vaetag_nb.infer import Tagger
from vaetag_nb.latents.codec import Codec, Convention
from vaetag_nb.models.foreign import generic_pixels, wd_pixels
from vaetag_nb.models.latent_tagger import build_head, save_model
from vaetag_nb.publish import export as pe
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

TINY = dict(_class_name='AutoencoderTiny', latent_channels=4, encoder_block_out_channels=[8]*3, decoder_block_out_channels=[8]*3, num_encoder_blocks=[1]*3, num_decoder_blocks=[1]*3)
KL = dict(block_out_channels=[8, 8], layers_per_block=1, latent_channels=4, norm_num_groups=4, use_quant_conv=True, use_post_quant_conv=True, mid_block_add_attention=True)
VOCAB = Vocab(['general', 'sensitive', 'questionable', 'explicit', '1girl', 'null', 'hatsune_miku', 'vocaloid'], [9]*4 + [0, 0, 4, 3], range(8, 0, -1))

def model(folder, pre, vae=TINY, convention=Convention(2., .1), vocab=VOCAB, **spec):
    "A model folder with a VAE inside, weights random"
    codec = Codec.random(vae, convention, seed=1)
    torch.manual_seed(0)
    head = build_head(dict(dict(kind='plain') | spec, channels=codec.channels, num_tags=len(vocab)))
    with torch.no_grad(): head.out.weight.normal_(std=.3)
    thresholds = dict(global_threshold=.5, per_class_thresholds={vocab[5]: dict(threshold=.45, f1_score=.8)}) if len(vocab) > 5 else None
    save_model(folder, head, vocab, codec.spec() | dict(source='vae'), pre.to_dict(), thresholds, dict(val=dict(mAP=.5)), more=lambda d: codec.save(d/'vae'))
    return Tagger.load(folder, device='cpu')

def by_the_card(folder, picture, capsys, monkeypatch)->list:
    "What the lines of the card print: (tag, score)"
    Image.open(picture).save(folder/'picture.jpg', quality=100)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec((folder/'README.md').read_text(encoding='utf-8').split('```python')[1].split('```')[0], {})
    return [(n, float(p)) for n, p in (l.rsplit(' ', 1) for l in capsys.readouterr().out.splitlines())]

SQUARE = Preprocess(bucketing=False, resolution=64, fit='pad', filter='bicubic')

def comfyui(folder, path):
    "ComfyUI-WD14-Tagger's reading steps (publish.md 3.7): general tags end at the first row `4`, Lanczos resize, then pad"
    m = ort.InferenceSession(str(folder/'model.onnx'))
    size = m.get_inputs()[0].shape[1]
    im = Image.open(path)
    k = float(size)/max(im.size)
    im = im.resize(tuple(int(x*k) for x in im.size), Image.LANCZOS)
    ground = Image.new('RGB', (size, size), (255, 255, 255))
    ground.paste(im, ((size - im.size[0])//2, (size - im.size[1])//2))
    x = np.expand_dims(np.array(ground).astype(np.float32)[:, :, ::-1], 0)
    tags, general, character = [], None, None
    with open(folder/'selected_tags.csv', encoding='utf-8') as f:
        reader = csv.reader(f)
        next(reader)
        for row in reader:
            if general is None and row[2] == '0': general = reader.line_num - 2
            elif character is None and row[2] == '4': character = reader.line_num - 2
            tags.append(row[1])
    p = list(zip(tags, m.run([m.get_outputs()[0].name], {m.get_inputs()[0].name: x})[0][0]))
    return dict(p[general:character]), dict(p[character:])

def test_clients_of_the_wd_dialect(tmp_path, capsys, monkeypatch):
    t = model(tmp_path/'run/best', SQUARE)
    status, out, err = shell('export', str(tmp_path/'run'), '--format', 'wd', '--out', str(tmp_path/'wd'), '--size', '128')
    assert status == 0, err
    assert 'null' in err and 'red is red' in out                                            # pandas' defaults lose the tag: said
    m = ort.InferenceSession(str(tmp_path/'wd/model.onnx'))
    i = m.get_inputs()[0]
    assert (i.name, i.shape, [(o.name, o.shape) for o in m.get_outputs()]) == ('input', ['batch', 128, 128, 3], [('prediction', ['batch', 7]), ('embedding', ['batch', 256])])
    with open(tmp_path/'wd/selected_tags.csv', encoding='utf-8') as f: rows = list(csv.reader(f))
    assert rows[0] == ['tag_id', 'name', 'category', 'count'] and [r[1] for r in rows[1:]] == VOCAB.names[:7] and [r[2] for r in rows[1:]] == ['9']*4 + ['0']*2 + ['4']
    assert read_json(tmp_path/'wd/vaetag.json')['dropped'] == {'3': 1} and read_json(tmp_path/'wd/vaetag.json')['fixed_size'] is None
    photo = pe.sample_pictures(tmp_path/'p')[2]
    general, character = comfyui(tmp_path/'wd', photo)
    assert (list(general), list(character)) == (['1girl', 'null'], ['hatsune_miku'])
    own = t.tag(photo)
    for name, p in {**general, **character}.items(): assert abs(p - own.scores[VOCAB.index[name]]) < 5e-2
    own = Tagger.load(tmp_path/'run', device='cpu').tag(photo).scores
    said = dict(by_the_card(tmp_path/'wd', photo, capsys, monkeypatch))
    assert said and all(abs(p - own[VOCAB.index[n]]) < 5e-2 for n, p in said.items()) and set(said) <= {'1girl', 'null', 'hatsune_miku'}
    inv = np.load(tmp_path/'wd/inv.npz')
    p, e = m.run(None, {'input': wd_pixels(Image.open(photo), 128)[None].copy()})
    assert abs(1/(1 + np.exp(-(e @ inv['weights'] + inv['bias']))) - p).max() < 1e-4

def test_what_cannot_be_a_pixel_tagger(tmp_path):
    model(tmp_path/'m', Preprocess(base=64, max=128, step=16))
    model(tmp_path/'bare', SQUARE, vocab=Vocab(['1girl', 'solo']))
    model(tmp_path/'lost', SQUARE)
    import shutil
    shutil.rmtree(tmp_path/'lost/vae')
    for args, status, words in [([tmp_path/'m', '--format', 'wd', '--out', tmp_path/'x', '--size', 102], 2, 'size = 102 is no multiple of 4'),
                                ([tmp_path/'m', '--format', 'wd,wd', '--out', tmp_path/'x'], 2, 'one at a time'),
                                ([tmp_path/'m', '--format', 'wb', '--out', tmp_path/'x'], 2, "Did you mean 'wd'?"),
                                ([tmp_path/'bare', '--format', 'wd', '--out', tmp_path/'x', '--no-pad'], 1, 'lacks general, sensitive, questionable, explicit, no_character'),
                                ([tmp_path/'lost', '--format', 'wd', '--out', tmp_path/'x'], 1, 'no VAE in it')]:
        got, out, err = shell('export', *map(str, args))
        assert (got, out, err.count('\n')) == (status, '', 1) and words in err, err
    assert not (tmp_path/'x').exists()

def test_nothing_is_left_of_a_folder_that_differs(tmp_path, monkeypatch):
    model(tmp_path/'m', SQUARE)
    class Proto:                                                                             # the exporter takes seconds: a file is put in its place
        def SerializeToString(self): return b'x'
    monkeypatch.setattr(pe, 'to_onnx', lambda *a: Proto())
    with pytest.raises(VaetagError, match='onnxruntime cannot open it'): pe.export_pixels(tmp_path/'m', tmp_path/'x', size=64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m']

@pytest.mark.slow
@pytest.mark.parametrize('dialect', ['wd', 'generic', 'cl'])
@pytest.mark.parametrize('name', ['kl', 'tiny'])
def test_both_dialects_of_buckets(tmp_path, dialect, name, capsys, monkeypatch):
    pool = dict(kind='pool', d=32, depth=1, heads=2, skip=2)
    t = model(tmp_path/'m', Preprocess(base=64, max=128, step=16), *((KL, Convention(.2, .1)) if name == 'kl' else ()), **pool)
    done = pe.export_pixels(tmp_path/'m', tmp_path/'x', dialect, size=64)
    assert done['fixed_size']['trained'].startswith('buckets of 64 to 128') and done['native'] == [64, 64] and done['fixed_size']['max'] > 0
    assert (tmp_path/'x/README.md').read_text(encoding='utf-8').count('white square of 64 pixels') == 1
    if dialect == 'generic':
        import pandas as pd
        df = pd.read_csv(tmp_path/'x/selected_tags.csv', keep_default_na=False)
        assert df.name.tolist() == VOCAB.names and df.best_threshold.tolist() == [0]*4 + [.5, .45, .5, .5]
        assert {c['category'] for c in read_json(tmp_path/'x/categories.json')} == set(df.category)
        path = pe.sample_pictures(tmp_path/'p')[2]
        assert all(n in VOCAB.index for n, _ in by_the_card(tmp_path/'x', path, capsys, monkeypatch))
        x = generic_pixels(Image.open(path), read_json(tmp_path/'x/preprocess.json')['test'])[None]
        m = ort.InferenceSession(str(tmp_path/'x/model.onnx'))
        assert [o.name for o in m.get_outputs()] == ['embedding', 'logits', 'prediction']
        assert abs(m.run(['prediction'], {'input': x})[0][0] - Tagger.load(tmp_path/'m', device='cpu').tag(Image.open(path).resize((64, 64), Image.LANCZOS)).scores).max() < 1e-4

@pytest.mark.slow
def test_half_of_the_file(tmp_path):
    model(tmp_path/'m', SQUARE)
    whole, half = (pe.export_pixels(tmp_path/'m', tmp_path/n, size=64, half=n == 'half') for n in ('whole', 'half'))
    assert half['bytes'] < .6*whole['bytes'] and read_json(tmp_path/'half/vaetag.json')['onnx']['weights'] == 'fp16'
    assert all(c['measured'] <= c['limit'] for c in pe.check_pixels(tmp_path/'m', tmp_path/'half'))
