"What the evaluation verbs write in two processes is what they write in one, to the byte"
import json, shutil
import numpy as np, pytest, timm, torch
from PIL import Image
from engine_toys import processes
from test_recon import StandIn
from toy_tagger import toy_tagger
from vaetag_nb.cli import run
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import save_tensors
from vaetag_nb.core.rng import np_rng, seeded
from vaetag_nb.trainers.processes import Processes, dealt

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A tagger, its scenes, two folders of pictures, a torn picture in each, and a network of timm"
    d = tmp_path_factory.mktemp('two')
    toy_tagger(d, n=10, steps=2)
    for side, tint in (('real', 0), ('made', 60)):
        for i in range(9):
            p = d/side/'ab'[i % 2]/f'{i}.png'; p.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np_rng(0, side, i).integers(0, 150, (24, 24, 3)) + [tint, 40, 90]).astype(np.uint8)).save(p)
        (d/side/'torn.png').write_bytes(b'torn')
    with seeded(0, 'timm'): net = timm.create_model('test_efficientnet', num_classes=5)
    (d/'net').mkdir(); save_tensors(d/'net/model.safetensors', net.state_dict())
    (d/'net/config.json').write_text(json.dumps(dict(architecture='test_efficientnet', num_classes=5, pretrained_cfg=dict(input_size=[3, 32, 32], crop_pct=1.0, mean=[.5]*3, std=[.5]*3))))
    return d

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

def leave(status):
    "End a process of `processes` with a status"
    if status: e = VaetagError(f'status {status}'); e.exit_code = status; raise e

def both_ways(place, tmp_path, monkeypatch, args, status=0, first=lambda d: None):
    "Run a verb with the folder OUT of its arguments in one process and in two; the files of both"
    torch.set_num_threads(1)
    monkeypatch.setenv('VAETAG_QUIET', '1')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'none'))
    out = {}
    for world in (1, 2):
        monkeypatch.setenv('VAETAG_CACHE', str(tmp_path/f'cache{world}'))
        d = tmp_path/'out'
        if d.exists(): shutil.rmtree(d)
        d.mkdir(); first(d)
        job = lambda: leave(run([a.replace('OUT', str(d)) for a in map(str, args)]))
        assert processes(job, world) == [status]*world
        out[world] = contents(d)
    assert out[1] and out[1] == out[2]
    return out[1]

def test_generation(place, tmp_path, monkeypatch):
    made = both_ways(place, tmp_path, monkeypatch, ['eval', 'generation', '--gen', place/'made', '--ref', place/'real', '--features', f'timm:{place/"net"}', '--per-class', '--batch-size', 4, '--out', 'OUT/g'], 1)
    r = json.loads(made['g/generation.json'])
    assert r['counts'] | dict(n_gen=9, n_ref=9, failed=2) == r['counts'] and r['metrics']['fd_timm'] > 0 and set(r['classes']) == {'a', 'b'}
    a, b = ({p.name for p in (tmp_path/f'cache{w}').rglob('*.safetensors')} for w in (1, 2))
    assert a == b and len(a) == 1                                          # one process keeps the features

def test_fid_stats(place, tmp_path, monkeypatch):
    made = both_ways(place, tmp_path, monkeypatch, ['eval', 'fid-stats', 'OUT/p', '--features', f'timm:{place/"net"}', '--vectors', '--batch-size', 2], 1, lambda d: shutil.copytree(place/'real', d/'p'))
    assert 'p/fid_stats.npz' in made and sum(n.endswith('.npy') for n in made) == 9

def test_recon(place, tmp_path, monkeypatch):
    with seeded(1, 'stand-in'): torch.jit.script(StandIn()).save(str(tmp_path/'inception.pt'))
    made = both_ways(place, tmp_path, monkeypatch, ['eval', 'recon', '--data', place/'made', '--bootstrap', 20, '--batch-size', 2, '--inception-weights', tmp_path/'inception.pt', '--device', 'cpu', '--out', 'OUT/r'], 1)
    r = json.loads(made['r/reconstruction.json'])
    assert r['counts']['n'] == 9 and r['metrics']['rfid'] > 0 and list(json.loads(made['r/errors.json'])) == ['torn.png'] and 'r/reconstructions.png' in made

def test_tagger_and_compare(place, tmp_path, monkeypatch):
    data = ['--tags', place/'scenes/tags.csv', '--device', 'cpu', '--batch-size', 3]
    made = both_ways(place, tmp_path, monkeypatch, ['eval', 'tagger', '--model', 'OUT/m', '--data', place/'scenes/data.json', *data, '--fit-thresholds', '--min-positives', 1, '--bootstrap', 5,
                     '--save-predictions', 'OUT/s', '--suspects', 'OUT/suspects.csv', '--out', 'OUT/e'], first=lambda d: shutil.copytree(place/'model', d/'m'))
    assert {'e/evaluation_results.csv', 's/scores.safetensors', 'suspects.csv', 'm/optimal_thresholds.json'} <= set(made) and json.loads(made['e/evaluation_results_overall.json'])['n_samples'] == 10
    shutil.copytree(tmp_path/'out/s', place/'s')
    made = both_ways(place, tmp_path, monkeypatch, ['eval', 'compare', place/'model', place/'s', '--truth', place/'scenes/data.json', *data, '--bootstrap', 5, '--min-positives', 1, '--thresholds', 'pr', '--out', 'OUT/c'])
    assert json.loads(made['c/compare.json'])['counts']['images'] == 10

def test_a_failure_of_one_is_the_failure_of_all():
    def mine(p, n, bad):
        for i in range(p.rank, n, 3):
            if i == bad: raise VaetagError(f'{i}: torn')
            yield i
    def job(n, bad):
        p = Processes('cpu')
        try: leave(0 if [*dealt(p, mine(p, n, bad), at_once=2)] == [*range(n)] else 3)
        except VaetagError as e: leave(4 if str(e) == ('7: torn' if p.rank == 1 else 'process 1: 7: torn') else 3)
    assert processes(lambda: job(9, 7), 3) == [4]*3 and [processes(lambda: job(n, 7), 3) for n in (1, 7)] == [[0]*3]*2
