"The files that the verbs write, against the lists of the contract: names, keys, order, values"
import csv, json, os, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from toy_tagger import toy_tagger
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.core.io import load_tensors
from vaetag_nb.data.images import fit_box
from vaetag_nb.latents.codec import Codec
from vaetag_nb.resolutions import Resolutions
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    d = tmp_path_factory.mktemp('files')
    toy_tagger(d, 24, 3)
    old = os.getcwd(); os.chdir(d)
    yield d
    os.chdir(old)

def ok(line):
    status, out, err = shell(*line.split())
    assert status == 0, err
    return out

def read(p): return json.loads(Path(p).read_text(encoding='utf-8'))

def test_validate_writes_the_reports(home):
    data = read('scenes/data.json')
    keys = list(data)
    bad = data | {keys[0]: 'red:2, red', keys[1]: 'nosuch, red', keys[2]: None, 'gone.png': 'red', keys[3]: 7}
    Path('scenes/bad.json').write_text(json.dumps(bad))
    status, out, err = shell(*'data validate --json-path scenes/bad.json --tags-csv-path scenes/tags.csv --output-dir v --fix'.split())
    assert status == 1
    assert list(read('v/summary.json')) == ['total_images', 'existing_images', 'missing_images', 'unreadable_images', 'empty_label_images', 'images_with_unknown_tags', 'bad_weights',
                                            'duplicate_tags', 'duplicate_keys', 'bad_records', 'top_tags']
    assert {p.name for p in Path('v').iterdir()} >= {'summary.json', 'missing_images.json', 'unreadable_images.json', 'empty_label_images.json', 'unknown_tags_by_image.json', 'bad_weights_by_image.json'}
    assert read('v/missing_images.json') == ['gone.png'] and read('v/unknown_tags_by_image.json') == {keys[1]: ['nosuch']} and read('v/bad_weights_by_image.json') == {keys[0]: ['red:2']}
    assert read('v/empty_label_images.json') == [keys[2]]
    fixed = read('scenes/bad.cleaned.json')
    assert fixed[keys[0]] == fixed[keys[1]] == 'red:1.0' and keys[2] not in fixed and keys[3] not in fixed
    ok('data validate --json-path scenes/bad.cleaned.json --tags-csv-path scenes/tags.csv --output-dir v2')

def test_the_test_set(home):
    for extra in ('', ' --no-stratify', ' --tags-csv scenes/tags.csv', ' --seed 3'):
        made = [Path(f'parts{i}{abs(hash(extra))}') for i in (0, 1)]
        for m in made: ok(f'data testset --source-json scenes/data.json --output-dir {m} --test-ratio 0.1{extra}')
        names = ['data.json', 'tags.csv', 'test.json', 'train.json']
        assert sorted(p.name for p in made[0].iterdir()) == names and [(made[0]/n).read_bytes() for n in names] == [(made[1]/n).read_bytes() for n in names]
        data, train, test = (read(made[0]/f'{n}.json') for n in ('data', 'train', 'test'))
        assert (len(data), len(test), len(train)) == (24, 2, 22) and list(data) == [k for k in data if k in train or k in test] and not set(train) & set(test)
        assert all((made[0]/k).is_file() for k in data)         # keys are relative to the folder
        rows = list(csv.DictReader(open(made[0]/'tags.csv')))
        if 'tags-csv' in extra: assert [r['name'] for r in rows] == [r['name'] for r in csv.DictReader(open('scenes/tags.csv'))]
        else: assert rows == sorted(rows, key=lambda r: (-int(r['count']), r['name']))
        ok(f'data validate --json-path {made[0]}/test.json --tags-csv-path {made[0]}/tags.csv --output-dir v3')

KEYS = ['count', 'unreadable', 'distinct_resolutions', 'top_resolutions', 'top_ratios', 'width', 'height', 'square_share', 'strategy', 'suggested_resolution', 'buckets']

def test_resolutions(home):
    out = ok('data resolutions --json-path scenes/data.json --output-dir r --image.base-resolution 48 --image.max-resolution 96 --image.bucket-step 16 --batch-size 5')
    d, rows = read('r/resolutions.json'), pd.read_csv('r/resolutions.csv')
    sizes = pd.Series([Image.open(Path('scenes', k)).size for k in read('scenes/data.json')])
    counts = sizes.value_counts()
    assert list(d)[:len(KEYS)] == KEYS and d['count'] == 24 == rows.images.sum() == sum(b['images'] for b in d['buckets']) and d['distinct_resolutions'] == len(counts)
    assert dict(zip(zip(rows.width, rows.height), rows.images)) == counts.to_dict() and d['top_resolutions'][0][1] == counts.max()
    w, h = np.array(sizes.tolist()).T
    assert d['width'] == dict(min=w.min(), max=w.max(), mean=round(w.mean(), 2)) and d['square_share'] == round((w == h).mean(), 6)
    assert d['suggested_resolution'] == max(64, int((w*h).mean()**.5/64)*64) and d['plan']['kept'] == 24
    report = Path('r/resolutions.md').read_text()
    assert all(b['bucket'] in report and b['bucket'] in out for b in d['buckets']) and Image.open('r/resolutions.png').size[0] > 1000

pre = st.sampled_from([Preprocess(base=48, max=96, step=16), Preprocess(base=32, max=64, step=32, fit='squash'), *(Preprocess(bucketing=False, resolution=48, fit=f) for f in ('crop', 'pad', 'squash'))])

@settings(max_examples=25)
@given(pre, st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=40), st.randoms())
def test_what_becomes_of_each_picture(pre, sizes, random):
    w, h = np.array(sizes).T
    r = Resolutions('x', [str(i) for i in range(len(w))], w, h, {}, pre, 4)
    for i, f in enumerate(r.fate.itertuples()):
        x0, y0, x1, y1 = fit_box(w[i], h[i], *map(int, pre.sizes[f.bucket]), pre.fit)
        inside = (min(x1, w[i]) - max(x0, 0))*(min(y1, h[i]) - max(y0, 0))
        assert f.kept == pytest.approx(inside/(w[i]*h[i]))
    d = r.to_dict()
    assert sum(b['images'] for b in d['buckets']) == d['plan']['kept'] == len(w) == r.sizes.images.sum() == r.ratios.images.sum()
    order = list(range(len(w))); random.shuffle(order)
    again = Resolutions('x', [str(i) for i in order], w[order], h[order], {}, pre, 4).to_dict()
    assert {k: v for k, v in again.items() if k not in ('cropping', 'plan')} == {k: v for k, v in d.items() if k not in ('cropping', 'plan')}

OVERALL = ['accuracy', 'hamming_loss', *(f'{m}_{a}' for a in ('micro', 'macro', 'weighted') for m in ('precision', 'recall', 'f1')), 'mAP', 'mAP_micro', 'mAP_weighted',
           'avg_precision', 'avg_recall', 'avg_f1', 'exact_match_rate', 'n_samples', 'n_classes', 'n_classes_with_positives', 'threshold_source']

def test_evaluation_files_and_thresholds(home):
    out = ok('eval tagger --model model --data scenes/data.json --out e')
    assert list(read('e/evaluation_results_overall.json'))[:len(OVERALL)] == OVERALL
    assert list(pd.read_csv('e/evaluation_results.csv').columns)[:7] == ['class_name', 'precision', 'recall', 'f1', 'ap', 'support', 'threshold'] and 'class_name' in out
    whole = {f.name: f.read_bytes() for f in Path('e').iterdir()}
    ok('eval tagger --model model --data scenes/data.json --out e --batch-size 5')                             # the same evaluation may be written again
    assert read('e/evaluation_results_overall.json')['inputs'] == json.loads(whole['evaluation_results_overall.json'])['inputs']
    whole = {f.name: f.read_bytes() for f in Path('e').iterdir()}
    shutil.copy('scenes/data.json', 'scenes/other.json'); shutil.copytree('model', 'moved')
    for more, key in (('--model model --data scenes/data.json --thresholds .25', 'thresholds'), ('--model model --data scenes/other.json', 'data'), ('--model model --data scenes/data.json --seed 3', 'seed')):
        status, _, err = shell(*f'eval tagger {more} --out e'.split())
        assert status == 1 and f'vaetag: e: holds the result of another run (its inputs.{key} differs); choose another folder, or --overwrite\n' in err, err
    assert {f.name: f.read_bytes() for f in Path('e').iterdir()} == whole
    ok('eval tagger --model moved --data scenes/data.json --out e')                                            # a model is what it holds, not where it lies
    ok('eval tagger --model model --data scenes/data.json --thresholds .25 --out e --overwrite')
    assert set(pd.read_csv('e/evaluation_results.csv').threshold) == {.25}
    before = Path('model/model.json').read_bytes()
    shutil.copytree('model', 'fitted')
    ok('eval tagger --model fitted --data scenes/data.json --fit-thresholds --min-positives 3 --out f')
    t = read('f/optimal_thresholds.json')
    assert list(t)[:8] == ['global_threshold', 'global_f1', 'per_class_thresholds', 'rule', 'objective', 'min_positives', 'split', 'n_samples'] and read('fitted/optimal_thresholds.json') == t
    assert all(list(v) == ['threshold', 'f1_score', 'positives', 'source'] and v['source'] == ('tag' if v['positives'] >= 3 else 'global') for v in t['per_class_thresholds'].values())
    assert Path('model/model.json').read_bytes() == before
    ok('eval tagger --model model --data scenes/data.json --thresholds f/optimal_thresholds.json --out g')     # a file of thresholds ...
    ok('eval tagger --model fitted --data scenes/data.json --out h')                                           # ... is what the fitted model uses
    for key in OVERALL[:-1]: assert read('g/evaluation_results_overall.json')[key] == read('h/evaluation_results_overall.json')[key] == read('f/evaluation_results_overall.json')[key], key
    named = pd.read_csv('g/evaluation_results.csv').set_index('class_name').threshold
    assert all(named[k] == pytest.approx(v['threshold']) for k, v in t['per_class_thresholds'].items())
    ok('eval tagger --model model --data scenes/data.json --thresholds f/optimal_thresholds.json --out f --overwrite')
    assert read('f/optimal_thresholds.json') == t                                                              # what was given stays
    ok('eval tagger --model fitted --data scenes/data.json --fit-thresholds --min-positives 3 --out f --overwrite')
    ok('eval tagger --model model --data scenes/data.json --thresholds .25 --out f --overwrite')               # nothing of another evaluation stays
    assert not Path('f/optimal_thresholds.json').exists() and {p.name for p in Path('f').iterdir()} == {p.name for p in Path('e').iterdir()}

def test_a_part_without_a_list_is_measured_for_every_tag_of_the_model(home):
    Path('scenes/few.json').write_text(json.dumps(dict(list(read('scenes/data.json').items())[:5])))
    figures = lambda more: json.loads(ok(f'eval tagger --model model --data scenes/few.json --thresholds .02 --json{more}'))
    bare, listed = figures(''), figures(' --tags scenes/tags.csv')
    assert bare == listed and bare['n_classes_with_positives'] < bare['n_classes'] and bare['fp_on_unsupported'] > 0
    assert json.loads(ok('eval tagger --model model --data scenes/few.json --json'))['threshold_source'] == "the model's own"

def test_a_dump_says_its_space_and_its_vae(home):
    ok('latents encode scenes/images --vae model/vae --out dump.safetensors --format safetensors --dtype fp32 --image.base-resolution 48 --image.max-resolution 96 --image.bucket-step 8')
    ok('tag --from-latents dump.safetensors --model model --out from_dump'); ok('tag scenes/images --model model --out from_pixels')
    a, b = (read(f'{d}/classification_results.json') for d in ('from_dump', 'from_pixels'))
    assert list(a) == list(b) and all({t['tag'] for t in a[k]['predicted_tags']} == {t['tag'] for t in b[k]['predicted_tags']} for k in a)
    status, out, err = shell(*'tag --from-latents dump.safetensors --space model --model model'.split())
    assert status == 2 and 'space raw' in err

def test_records_without_labels_are_left_out_unless_asked_for(home):
    data = read('scenes/data.json')
    Path('scenes/some.json').write_text(json.dumps({k: ('' if i < 4 else v) for i, (k, v) in enumerate(data.items())}))
    n = lambda more='': json.loads(ok(f'eval tagger --model model --data scenes/some.json --json{more}'))['n_samples']
    assert (n(), n(' --keep-unlabelled')) == (20, 24)

@pytest.mark.parametrize('fit', ['crop', 'pad', 'squash'])
def test_fit_without_buckets(home, fit):
    ok(f'latents encode scenes/images --vae model/vae --out {fit}.safetensors --format safetensors --dtype fp32 --image.no-bucketing --image.resolution 64 --image.fit {fit}')
    z = load_tensors(f'{fit}.safetensors')[0]
    same = {f: Path(f'{f}.safetensors').exists() and all((load_tensors(f'{f}.safetensors')[0][k] == v).all() for k, v in z.items()) for f in ('crop', 'pad', 'squash') if f != fit}
    assert len(z) == 24 and {tuple(v.shape) for v in z.values()} == {(4, 16, 16)} and not any(same.values())
    codec, name = Codec.load('model/vae', family=None), next(k for k in z if Image.open(k).size[0] != Image.open(k).size[1])
    im = Image.open(name).convert('RGB')
    if fit == 'squash': im = im.resize((64, 64), Image.Resampling.BILINEAR)         # as VAE-Tagger did
    elif fit == 'crop':
        (w, h), s = im.size, min(im.size)
        im = im.crop(((w - s)//2, (h - s)//2, (w - s)//2 + s, (h - s)//2 + s)).resize((64, 64), Image.Resampling.LANCZOS)
    else:
        (w, h), s = im.size, max(im.size)
        frame = Image.new('RGB', (s, s), 'white'); frame.paste(im, ((s - w)//2, (s - h)//2))
        im = frame.resize((64, 64), Image.Resampling.LANCZOS)
    x = torch.from_numpy(np.array(im)).permute(2, 0, 1)[None].float()/127.5 - 1
    with torch.inference_mode(): assert (codec.encode_raw(x)[0][0] - z[name]).abs().max() < 5e-3

def test_one_verb_lists_merges_and_filters(home):
    Path('mine.csv').write_text('name,category,count\nmiku,character,7\nred,general,1000\n')
    ok('data vocab scenes/data.json mine.csv --out v.csv')
    rows = pd.read_csv('v.csv', dtype=dict(name=str))
    assert list(rows.columns) == ['tag_id', 'name', 'category', 'count'] and rows.name[0] == 'red' and rows.name.iloc[-1] == 'miku' and rows['count'][0] > 1000
    ok('data vocab v.csv --out w.csv --categories character'); assert pd.read_csv('w.csv').name.tolist() == ['miku']
    first = list(dict.fromkeys(t.rpartition(':')[0].strip() for v in read('scenes/data.json').values() for t in v.split(',')))
    ok('data vocab scenes/data.json --order file --out met.csv'); assert pd.read_csv('met.csv', dtype=str).name.tolist() == first

def test_evidence_is_a_picture_for_each_tag(home):
    folder = Path('scenes/images'); first = sorted(folder.iterdir())[0]
    tag = list(csv.DictReader(open('model/selected_tags.csv', encoding='utf-8')))[0]['name']
    ok(f'tag {first} --model model --out heat --evidence {tag}')
    (made,) = Path('heat/evidence').iterdir()
    assert made.name.startswith(first.name) and Image.open(made).mode == 'RGB'
    assert shell(*f'tag {first} --model model --evidence {tag}'.split())[0] == 2
    assert shell(*f'tag {first} --model model --out heat2 --evidence nosuchtag'.split())[0] == 1 and not Path('heat2').exists()
