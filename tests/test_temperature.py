"`eval tagger --fit-temperature`: one factor for each category, the same scores wherever the model goes."
import dataclasses as dc
import numpy as np, pytest, torch
from PIL import Image
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import read_json
from vaetag_nb.core.rng import np_rng, seeded
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.data.table import TagTable
from vaetag_nb.eval.scores import read_scores
from vaetag_nb.evaluate import adopt, evaluate_tagger
from vaetag_nb.infer import Tagger
from vaetag_nb.models.timm_folder import save_timm
from vaetag_nb.models.timm_tagger import create, square_of
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    d = tmp_path_factory.mktemp('scenes')
    make_scenes(d, 24, seed=2, resolution=64)
    return d, TagTable.read(d/'data.json', tags=d/'tags.csv')

@pytest.fixture
def model(scenes, tmp_path):
    "A model folder with random weights, whose scores are near 0 and 1"
    vocab = scenes[1].vocab
    with seeded(0, 'net'): net = create('test_resnet', len(vocab), 32)
    net.get_classifier().weight.data.mul_(30)
    save_timm(tmp_path/'m', net, vocab, square_of(net, 32))
    return tmp_path/'m'

def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}
def scores(folder, paths): return np.stack([r.scores for r in Tagger.load(folder, device='cpu').tag(list(paths), batch_size=8)])
def fit(scenes, model, *more): return shell('eval', 'tagger', '--model', str(model), '--data', str(scenes[0]/'data.json'), '--tags', str(scenes[0]/'tags.csv'), '--device', 'cpu', '--min-positives', '3', *map(str, more))

def test_the_verb_fits_reports_and_stores(scenes, model, tmp_path):
    before = scores(model, scenes[1].paths)
    status, out, err = fit(scenes, model, '--fit-temperature', '--out', tmp_path/'o', '--save-predictions', tmp_path/'s')
    assert status == 0, err
    line = next(l for l in out.splitlines() if l.startswith('temperature, fitted on data.json: general '))
    said, meta = read_json(tmp_path/'o/evaluation_results_overall.json'), read_json(model/'model.json')
    t = said['temperature']
    assert f"nll {t['before']['nll']:.4f} -> {t['after']['nll']:.4f}, ece {t['before']['ece']:.4f} -> {t['after']['ece']:.4f}" in line
    assert t['after']['nll'] == said['nll'] < t['before']['nll'] and t['after']['ece'] == said['ece'] < t['before']['ece']
    assert meta['temperature'] == {k: t[k] for k in ('split', 'category')} and meta['thresholds'] is None
    own, after = Tagger.load(model).model.temperature, scores(model, scenes[1].paths)
    logit = lambda p: np.log(p/(1 - p))
    mid = (before > 1e-4) & (before < 1 - 1e-4)
    assert np.abs(logit(after.astype(float)) - logit(before.astype(float))/own)[mid].max() < 1e-2
    kept = read_scores(tmp_path/'s')
    assert np.abs(kept.scores - after[[list(scenes[1].ids).index(i) for i in kept.ids]]).max() < 1e-6
    assert kept.model['fingerprint'] == said['inputs']['model'] == Tagger.load(model).fingerprint

def test_again_is_the_same_and_replaces_its_own_result(scenes, model, tmp_path):
    both = '--fit-temperature', '--fit-thresholds', '--out', tmp_path/'o'
    assert fit(scenes, model, *both)[0] == 0
    first = contents(model)
    status, _, err = fit(scenes, model, *both)
    assert status == 0 and contents(model) == first, err
    t = read_json(model/'optimal_thresholds.json')
    assert t == read_json(tmp_path/'o/optimal_thresholds.json')
    rep = evaluate_tagger(model, scenes[1], device='cpu')          # thresholds are of the scores that the folder gives now
    assert rep['f1_macro'] == pytest.approx(read_json(tmp_path/'o/evaluation_results_overall.json')['f1_macro'], abs=1e-6)

def test_what_is_refused_changes_nothing(scenes, model):
    assert fit(scenes, model, '--fit-thresholds')[0] == 0
    first = contents(model)
    status, _, err = fit(scenes, model, '--fit-temperature')
    assert status == 2 and 'has fitted thresholds, and the scores that they cut move; add --fit-thresholds' in err
    status, _, err = fit(scenes, model, '--fit-temperature', '--fit-thresholds', '--min-positives', '999999')
    assert status == 1 and 'no category has 999999 positives: no temperature can be fitted, nothing was changed' in err
    assert contents(model) == first

def test_bins_and_pictures_computed_twice(scenes, model, monkeypatch):
    "Without room for the logits, and with scores in bins, the same factors are found"
    from vaetag_nb import evaluate as ev
    new, again, _ = ev.calibrated(Tagger.load(model, device='cpu'), scenes[1], 'val', .5, 'hist', 5, 3, limit=100)
    assert again is None
    rep = evaluate_tagger(model, scenes[1], temperature=True, mode='hist', min_positives=3, device='cpu')
    assert rep['temperature']['category'] == new.model.meta['temperature']['category'] and rep['mode'] == 'hist'

@pytest.mark.parametrize('dialect', ['timm', 'wd'])
def test_exported_scores_are_those_of_the_model(scenes, model, tmp_path, dialect):
    pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')
    from vaetag_nb.publish.export import export_pixels
    files = [tmp_path/f'{i}.png' for i in range(4)]                 # of the network's own size: no client resizes them
    for i, f in enumerate(files): Image.fromarray(np_rng('picture', i).integers(0, 256, (32, 32, 3), np.uint8)).save(f)
    cold = scores(model, files)
    adopt(model, None, dict(split='val', category={'0': 5., '4': 2.}))
    export_pixels(model, tmp_path/'out', dialect, size=32)
    ours, theirs, v = scores(model, files), scores(tmp_path/'out', files), Tagger.load(tmp_path/'out', device='cpu').vocab
    at = [(i, v.index[n]) for i, n in enumerate(scenes[1].vocab.names) if n in v.index]
    mine, other = zip(*at)
    assert len(at) > 3 and np.abs(ours[:, mine] - theirs[:, other]).max() < 1e-4 < np.abs(ours - cold).max()

def test_a_run_goes_on_without_and_says_so(scenes, tmp_path, monkeypatch):
    from vaetag_nb.core.config import load
    from vaetag_nb.core.progress import heard
    from vaetag_nb.trainers.timm import train_timm
    from vaetag_nb.trainers.timm_settings import TimmConfig
    monkeypatch.setenv('VAETAG_QUIET', '1'); torch.set_num_threads(1)
    cfg = load(TimmConfig, dict(data=dict(table=str(scenes[0]/'data.json')), preprocess=dict(size=32), model=dict(name='test_convnext', pretrained=False), split=dict(val=.25, test=.25),
                                out=str(tmp_path), name='run', epochs=1, batch_size=8, device='cpu'))
    best = train_timm(cfg).best
    adopt(best, None, dict(split='val', category={'0': 2.}))
    with heard() as said: tuned = train_timm(dc.replace(cfg, name='tuned', finetune=str(tmp_path/'run')))
    assert sum('its temperature is left behind' in l for l in said) == 1 and 'temperature' not in read_json(tuned.best/'model.json')
    (tmp_path/'run/results.json').unlink()                         # so that best/ is written anew, whatever the second epoch brings
    train_timm(dc.replace(cfg, epochs=2), resume=tmp_path/'run')
    assert (tmp_path/'run/console.log').read_text().count('the temperature in best/ is of those weights') == 1
    assert 'temperature' not in read_json(best/'model.json')
    assert 'its temperature is left behind' in (tmp_path/'tuned/console.log').read_text()

def test_a_folder_with_a_wrong_factor_is_one_line(scenes, model):
    text = (model/'model.json').read_text()
    (model/'model.json').write_text(text.replace('"num_classes"', '"temperature": {"category": {"0": -1}}, "num_classes"'))
    with pytest.raises(VaetagError, match=r'model.json: temperature.category.0: -1 is no factor above 0'): Tagger.load(model)

def test_a_folder_that_names_its_categories_is_measured(scenes, model, tmp_path):
    adopt(model, None, dict(split='val', category={'general': 2., 'character': 3.}))
    status, out, err = shell('eval', 'tagger', '--model', str(model), '--data', str(scenes[0]/'data.json'), '--tags', str(scenes[0]/'tags.csv'), '--device', 'cpu')
    assert status == 0 and out.endswith('temperature, fitted on val: general 2, character 3\n'), err

def test_the_card_tells_of_the_last_one_and_keeps_the_rest(model):
    card = model/'README.md'
    first = card.read_text(encoding='utf-8')
    for t in (2., 3.):
        adopt(model, None, dict(split='val', category={'0': t}))
        text = card.read_text(encoding='utf-8')
        assert text.startswith(first.rstrip('\n')) and text.count('## Temperature') == 1 and f'general {t:g} (' in text
    card.write_text(text + '\n## Thanks\n\nTo all.\n', encoding='utf-8')
    adopt(model, None, dict(split='val', category={'0': 4.}))
    assert '## Thanks\n\nTo all.\n' in (text := card.read_text(encoding='utf-8')) and text.count('## Temperature') == 1 and 'general 4 (' in text
