"Taggers of pixels through `Tagger`: folders, kills, verbs and dashboards, with tiny timm networks."
import os, time
import numpy as np, pytest
from PIL import Image
from forked import forked, killed
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import read_json, read_jsonl
from vaetag_nb.core.rng import np_rng, seeded
from vaetag_nb.data.tags import Vocab
from vaetag_nb.infer import Tagger
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
    here, there = os.pipe()
    def tag():
        t = Tagger.load(d/'run', device='cpu')
        real, n = t.score_images, [0]
        def slow(x):
            n[0] += 1
            if n[0] == 4: os.write(there, b'now'); time.sleep(60)
            return real(x)
        t.score_images = slow
        t.tag_folder(d/'in', tmp_path/'out', format='jsonl', batch_size=2)
    p = forked(tag); os.close(there)
    assert os.read(here, 3) == b'now'
    killed(p); os.close(here)
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
