"Every wrong input of the contract: one line on standard error that names it, the exit status, and nothing half done"
import gc, json, os, pickle, shutil, signal
from pathlib import Path
import pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from toy_tagger import toy_tagger
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.core.config import to_yaml
from vaetag_nb.trainers.full import FullConfig
from vaetag_nb.trainers.tagger import DecoderConfig
from vaetag_nb.trainers.timm_settings import TimmConfig
from vaetag_nb.trainers.vae import VaeConfig
from vaetag_nb.verbs.base import shell

SMALL = '--image.no-bucketing', '--image.resolution', '64'

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a data set, a trained model and a collection of wrong files, the working folder of the tests"
    d = tmp_path_factory.mktemp('home')
    toy_tagger(d, 12, 2)
    toy_vae = d/'model/vae/diffusion_pytorch_model.safetensors'
    some, two = [f'scenes/images/{i:06}.png' for i in (0, 1)], dict.fromkeys([f'scenes/images/{i:06}.png' for i in (0, 1)], 'red')
    files = {'empty.json': {}, 'list.json': [1], 'gone.json': {'x.png': 'red', 'y.png': 'red'}, 'one.json': {some[0]: 'red'}, 'torn.json': '{"a": 1,\n "b"',
             'weight.json': two | {some[0]: 'red:7'}, 'unknown.json': two | {some[0]: 'nosuch'}, 'record.json': two | {some[0]: 5}, 'broken.json': two | {'bad.png': 'red'},
             'half.json': two | {'x.png': 'red', 'y.png': 'red'}, 'key.json': dict(scaling_facto=1), 'contra.json': dict(latent_channels=5), 'nolabels.json': dict.fromkeys(some, '')}
    for n, x in files.items(): (d/n).write_text(x if isinstance(x, str) else json.dumps(x))
    for n, x in {'noname.csv': 'tag,count\na,1\n', 'twice.csv': 'name\na\nb\na\n', 'blank.csv': 'name\na\n""\n', 'none.csv': 'name\n'}.items(): (d/n).write_text(x)
    (d/'bad.png').write_bytes(b'no picture'); (d/'torn.safetensors').write_bytes(b'abc'); (d/'nothing').mkdir(); (d/'pics').mkdir()
    for f in some: shutil.copy(d/f, d/'pics')
    shutil.copy(d/'bad.png', d/'pics')
    w = load_file(toy_vae)
    save_file({'some.key': torch.zeros(2)}, d/'strange.safetensors')
    name = sorted(w)[0]
    shutil.copytree(d/'model/vae', d/'shape'); save_file(w | {name: torch.zeros(3, 5)}, d/'shape/diffusion_pytorch_model.safetensors')
    save_file(dict(latent=torch.randn(4, 8, 8)), d/'z.safetensors'); save_file(dict(latent=torch.full((4, 8, 8), torch.nan)), d/'nan.safetensors')
    save_file(dict(latent=torch.randn(5, 8, 8)), d/'five.safetensors')
    for n, drop in {'novae': 'vae', 'nohead': 'model.safetensors', 'moved': None, 'fewer': None}.items():
        shutil.copytree(d/'model', d/n)
        if drop: (shutil.rmtree if drop == 'vae' else os.remove)(d/n/drop)
    rows = (d/'model/selected_tags.csv').read_text().splitlines()
    (d/'moved/selected_tags.csv').write_text('\n'.join([rows[0], rows[2], rows[1], *rows[3:]]) + '\n')
    (d/'fewer/selected_tags.csv').write_text('\n'.join(rows[:-2]) + '\n')
    old = os.getcwd(); os.chdir(d)
    yield d
    os.chdir(old)

def fails(command, status, *says):
    "Run a command that must fail: its status, and one line that says all of `says`"
    got, out, err = shell(*(command.split() if isinstance(command, str) else command))
    lines = [l for l in err.replace('\r', '\n').splitlines() if l.startswith('vaetag: ')]
    assert got == status, (command, got, err)
    assert len(lines) == 1 and 'Traceback' not in err, err
    for s in says: assert s in lines[0], (command, s, lines[0])
    return lines[0]

IN = 'scenes/data.json'

@pytest.mark.parametrize('command, path', [
    ('data stats lost.json', 'lost.json'), ('data validate --json-path lost.json', 'lost.json'), ('data testset --source-json lost.json --output-dir o', 'lost.json'),
    ('data resolutions --json-path lost.json', 'lost.json'), ('data vocab lost.json', 'lost.json'), ('data split lost.json', 'lost.json'), (f'data stats {IN} --tags lost.csv', 'lost.csv'),
    (f'data testset --source-json {IN} --output-dir o --tags-csv lost.csv', 'lost.csv'), (f'data stats {IN} --split lost.parquet', 'lost.parquet'), ('latents info lost', 'lost'), ('latents check lost', 'lost'),
    ('latents encode --data lost.json --out o', 'lost.json'), (f'latents encode --data {IN} --vae lost.safetensors --out o', 'lost.safetensors'), ('latents encode lost --out o', 'lost'),
    ('tag lost.png --model model', 'lost.png'), ('tag bad.png --model lost', 'lost'), ('tag --from-latents lost --model model', 'lost'), (f'eval tagger --model lost --data {IN}', 'lost'),
    ('eval tagger --model model --data lost.json', 'lost.json'), (f'eval tagger --model model --data {IN} --thresholds lost.json', 'lost.json'), ('train decoder lost.yaml', 'lost.yaml')])
def test_a_path_that_is_not_there_is_named(home, command, path):
    fails(command, 1, path)
    assert not (home/'o').exists()

@pytest.mark.parametrize('command, says', [
    *[(f'data testset --source-json {IN} --output-dir o --test-ratio {r}', f'--test-ratio {float(r)}: must lie between 0 and 1') for r in ('0', '1', '-1', '2', 'nan')],
    ('data synth --output-dir o --num-images 0', '--num-images 0: at least 1'), (f'data split {IN} --val 0 --out o', '--no-val'), (f'data split {IN} --rest hash --out o', '--rest: is how newest draws'), (f'data split {IN} --group-by sha256 phash:20 --out o', "'phash:20': from 0 to 16 bits"), (f'data split {IN} --val 1 --out o', 'val 1 and test 0.1'),
    (f'latents encode --data {IN} --vae a --codec.vae b --out o', '--vae a and --codec.vae b'), ('train decoder --optim.lr fast', "--optim.lr: 'fast' is not a number"), ('train decoder --optim.lrr 1', 'no such flag: --optim.lrr. Did you mean --optim.lr'),
    ('train decoder --model.head pol', "--model.head: 'pol' is none of pool, query, timm, plain, attention. Did you mean 'pool'"), ('train decoder --epochs', '--epochs: needs a value'),
    (f'data stats {IN} --max-bad 2', 'max_bad 2.0'), (f'data stats {IN} --max-bad -1', 'max_bad -1.0'), ('data vocab', 'no source'), (f'data vocab {IN} --top 0', 'top 0'),
    (f'data vocab {IN} --categories hero', 'artist'), (f'latents encode --data {IN} --out o --image.base-resolution 1024 --image.max-resolution 512', 'image.max_resolution = 512 is not a whole number from 1024'),
    (f'latents encode --data {IN} --out o --image.bucket-step 0', 'image.bucket_step = 0'), (f'latents encode --data {IN} --out o --image.bucket-step 60', 'image.bucket_step = 60 is no multiple of 8, which the model needs: take 56 or 64'),
    (f'latents encode --data {IN} --out o --image.base-resolution 500', 'image.base_resolution = 500 is no multiple of 8'), (f'latents encode --data {IN} --out o --image.no-bucketing --image.resolution 100', 'image.resolution = 100'),
    (f'latents encode --data {IN} --out o --codec.batch-size 0', 'codec.batch_size = 0'), (f'latents encode --data {IN} --out o --part 3/3', '--part 3/3'), (f'latents encode --data {IN} --out o --format npz --dtype bf16', 'bf16'),
    (f'latents encode --data {IN} --out o --format json --part 0/2', '--part'), (f'latents encode pics --data {IN} --out o', 'either IMAGES or --data'), ('latents encode --out o', 'either IMAGES or --data'),
    ('tag pics --model model --batch-size 0', 'batch_size 0'), ('tag pics --model model --threshold 2', 'threshold 2'), ('tag pics --model model --threshold x', '0.3 or general=.3'), ('tag pics --model model --threshold hero=.3', 'hero'),
    ('tag pics --model model --top-k 0', 'top_k 0'), ('tag pics --model model --rule mcut --threshold .3', 'mcut'), ('tag pics --model model --device gpu7', "device 'gpu7'"), ('tag --model model', 'either IMAGES or --from-latents'),
    ('tag --from-latents z.safetensors --model model', 'raw or model or scale_shift'), ('tag --from-latents z.safetensors --space raw --model model --out o --format txt', 'format txt'),
    (f'eval tagger --model model --data {IN} --thresholds 1.5', '--thresholds 1.5'), (f'eval tagger --model model --data {IN} --side test', '--split and --side'), (f'eval tagger --model model --data {IN} --batch-size 0', 'batch_size 0'),
    (f'eval tagger --model model --data {IN} --bootstrap -1', '-1 draws'), (f'eval tagger --model model --data {IN} --fit-thresholds --thresholds .3', '--fit-thresholds'),
    ('nonsense', "no such verb: 'nonsense'"), ('data statz', "Did you mean 'data stats'"), (f'data split {IN} --metod random', '--method'), ('data stats', 'data stats --help'), (f'data testset --source-json {IN} --output-dir o --test-ratio x', '--test-ratio'),
    ('data resolutions --json-path scenes --image.fit fill', 'is none of crop, pad, squash'), ('data resolutions --json-path scenes --batch-size 0', 'batch_size = 0')])
def test_wrong_arguments(home, command, says):
    fails(command, 2, says)
    assert not (home/'o').exists()

VERBS = ('data stats {}', 'data validate --output-dir v --json-path {}', 'data testset --output-dir o --source-json {}', 'data split {} --out q.parquet', 'data resolutions --json-path {}',
         'data vocab {}', 'latents encode --out o --data {}', 'eval tagger --model model --data {}')

@pytest.mark.parametrize('verb', VERBS)
def test_files_that_hold_no_data_set(home, verb):
    fails(verb.format('empty.json'), 1, 'empty.json', 'no record')
    fails(verb.format('torn.json'), 1, 'torn.json', 'line 2, column 5')
    fails(verb.format('list.json'), 1, 'list.json', 'found a list')

@pytest.mark.parametrize('verb', [v for v in VERBS if 'testset' not in v and 'validate' not in v and 'vocab' not in v])
def test_no_readable_image_is_counted_by_reason(home, verb): fails(verb.format('gone.json'), 1, 'gone.json', '2 missing images', 'x.png: image not found')

@pytest.mark.parametrize('command, says', [
    ('data testset --output-dir o --source-json one.json', ('one.json', '1 usable record')), ('data split one.json --out q.parquet', ('train 1, val 0, test 0',)), ('eval tagger --model model --data nolabels.json', ('no picture with labels among 2',)),
    ('tag nothing --model model', ('nothing', '.webp')), ('latents encode nothing --out o', ('nothing', '.webp')), ('data resolutions --json-path nothing', ('nothing', '.webp')), ('data stats nothing', ('nothing', '.webp'))])
def test_too_little_to_work_on(home, command, says): fails(command, 1, *says)

@pytest.mark.parametrize('name, says', [('noname', ("no column 'name'", "'tag', 'count'")), ('twice', ("'a' in lines 2, 4",)), ('blank', ('no name in line 3',)), ('none', ('no tag below',))])
def test_wrong_tag_lists(home, name, says):
    fails(f'data stats {IN} --tags {name}.csv', 1, f'{name}.csv', *says)
    fails(f'data testset --source-json {IN} --output-dir o --tags-csv {name}.csv', 1, f'{name}.csv', *says)
    assert not (home/'o').exists()

def test_the_limit_of_bad_records(home):
    fails('data stats half.json', 1, '2 of 4 records are bad, 50.0%', '5.0%', 'x.png: image not found; y.png')
    assert shell(*'data stats half.json --max-bad .5'.split())[0] == 0
    fails('eval tagger --model model --data broken.json', 1, '1 of 3 pictures are bad, 33.3%', 'bad.png: not an image')
    assert shell(*'eval tagger --model model --data broken.json --max-bad .4'.split())[0] == 0

@pytest.mark.parametrize('name, says', [('weight', 'red:7'), ('unknown', 'nosuch'), ('record', 'not int')])
def test_strict_names_key_and_entry(home, name, says):
    fails(f'data stats {name}.json --tags scenes/tags.csv --strict', 1, 'scenes/images/000000.png', says)
    assert shell(*f'data stats {name}.json --tags scenes/tags.csv --max-bad .5'.split())[0] == 0

def test_strict_and_a_bad_image(home):
    fails(['latents', 'encode', '--data', 'broken.json', '--vae', 'model/vae', '--out', 's1', *SMALL, '--strict'], 1, 'bad.png: not an image')
    fails('eval tagger --model model --data broken.json --max-bad 1 --strict', 1, 'bad.png: not an image')
    status, out, err = shell('latents', 'encode', '--data', 'broken.json', '--vae', 'model/vae', '--out', 's2', *SMALL, '--max-bad', '.4', '--json')
    assert status == 1 and json.loads(out)['failed'] == {'bad.png': 'not an image of a known kind'} and json.loads(out)['encoded'] == 2
    assert shell('latents', 'check', 's2')[0] == 0
    fails(['latents', 'encode', '--data', 'broken.json', '--vae', 'model/vae', '--out', 's3', *SMALL], 1, '1 of 3 pictures cannot be used, more than max_bad 0.05 allows: bad.png: not an image')

@pytest.mark.parametrize('command, says', [
    ('latents info strange.safetensors', ('strange.safetensors', 'some.key')), ('latents info shape', ('(3, 5)',)), ('latents info torn.safetensors', ('torn.safetensors', 'not a whole safetensors file')),
    ('latents info embedded --config key.json', ("'scaling_facto'", 'scaling_factor')), ('latents info embedded --config contra.json', ('latent_channels 5', '8')), ('latents info embedded --family sd15', ('sd15', '4', '8'))])
def test_wrong_vaes(home, command, says): fails(command, 1, *says)

@pytest.mark.parametrize('command, says', [
    ('tag pics --model novae', ('novae', 'vae/config.json', 'vae/diffusion_pytorch_model.safetensors')), ('tag pics --model nohead', ('nohead', 'model.json', 'model.safetensors', 'selected_tags.csv')),
    ('tag pics --model nothing', ('nothing', 'model.safetensors')), ('tag pics --model moved', ('selected_tags.csv', 'row 0')), ('tag pics --model fewer', ('outputs', 'tags')),
    ('tag --from-latents five.safetensors --space raw --model model', ('(1, 5, 8, 8)', '4'))])
def test_wrong_models(home, command, says): fails(command, 1, *says)

def test_latents_of_another_vae(home):
    assert shell('latents', 'encode', 'scenes/images', '--out', 'other', *SMALL)[0] == 0
    line = fails('tag --from-latents other --model model', 1, 'other')
    prints = [json.loads(shell('latents', 'info', v, '--json')[1])['fingerprint'] for v in ('embedded', 'model/vae')]
    assert all(p in line for p in prints)
    fails(['latents', 'encode', 'scenes/images', '--vae', 'model/vae', '--out', 'other', *SMALL], 1, *prints)

def test_some_images_failed(home):
    fails('tag pics --model model --out t', 1, '1 of 3 images failed', 't/errors.json')
    assert json.loads(Path('t/errors.json').read_text()) == {'bad.png': 'not an image of a known kind'}
    assert list(json.loads(Path('t/classification_results.json').read_text())) == ['pics/000000.png', 'pics/000001.png']
    assert shell(*'tag pics --model model --out t --skip-errors'.split())[0] == 0
    fails('tag pics --model model', 1, 'bad.png')
    assert shell(*'tag pics --model model --skip-errors'.split())[0] == 0

def test_latents_give_the_files_that_pictures_give(home):
    assert shell('latents', 'encode', 'scenes/images', '--vae', 'model/vae', '--out', 'mine', *SMALL)[0] == 0
    status, out, err = shell(*'tag --from-latents mine --model model --out tl'.split())
    assert (status, sorted(p.name for p in Path('tl').iterdir())) == (0, ['classification_results.json', 'predictions.json'])
    assert len(json.loads(Path('tl/classification_results.json').read_text())) == len(json.loads(Path('tl/predictions.json').read_text())['images']) == 12
    status, out, err = shell(*'tag --from-latents nan.safetensors --space raw --model model --out tn'.split())
    assert status == 1 and err.splitlines()[-1] == 'vaetag: 1 of 1 failed, see tn/errors.json; the first: latent: its latent is not finite' and json.loads(Path('tn/errors.json').read_text()) == dict(latent='its latent is not finite')
    assert shell(*'tag --from-latents nan.safetensors --space raw --model model --skip-errors'.split())[0] == 0

class Evil:
    "A pickle that leaves a trace when it is opened"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return Path.touch, (Path(self.mark),)

@pytest.mark.parametrize('command', ['latents info evil.ckpt', 'latents info evil.pt', 'latents encode scenes/images --vae evil.bin --out o', f'eval tagger --model model --data {IN} --thresholds evil.json',
                                     'tag scenes/images --model model --vae evil.ckpt', 'tag scenes/images --model evilmodel', 'tag --from-latents evil.pt --space raw --model model'])
def test_malicious_pickles_execute_nothing(home, command):
    for n in ('evil.ckpt', 'evil.bin'): torch.save(dict(state_dict=Evil('ran')), n)
    for n in ('evil.pt', 'evil.json'): Path(n).write_bytes(pickle.dumps(Evil('ran')))
    if not Path('evilmodel').exists(): shutil.copytree('model', 'evilmodel')
    shutil.copy('evil.pt', 'evilmodel/model.safetensors')
    fails(command, 1, 'evil')
    assert not Path('ran').exists()
    pickle.loads(Path('evil.pt').read_bytes()); assert Path('ran').exists(); os.remove('ran')  # the trap works

def test_json_reports_errors_too(home):
    status, out, err = shell('data', 'stats', 'lost.json', '--json')
    assert json.loads(out) == dict(error='lost.json: cannot read: No such file or directory', status=1) and status == 1

def test_heads_that_do_not_go_with_the_vae_are_said_before_encoding(home):
    fails(f'train decoder --data.metadata {IN} --codec.vae model/vae --model.head attention --model.attention-heads 3 --model.no-spatial --out early --image.no-bucketing --image.resolution 64', 2, 'model.attention_heads: 3', 'legal: 1, 2')
    assert not Path('early/latents').exists()

@pytest.mark.parametrize('command', ['data synth --num_images 2 --resolution 64 --output_dir {}', f'data testset --source_json {IN} --test_ratio .2 --output_dir {{}}',
                                     f'data validate --json_path {IN} --tags_csv_path scenes/tags.csv --output_dir {{}}', f'data resolutions --json_path {IN} --batch_size 2 --output_dir {{}}',
                                     'tag scenes/images --model model --batch_size 4 --top_k 1 --out {}', f'eval tagger --model model --data {IN} --batch_size 4 --min_positives 3 --out {{}}'])
def test_underscores_do_as_well_as_dashes(home, command, tmp_path):
    for n, line in (('a', command), ('b', command.replace('_', '-').replace('selected-tags', 'selected_tags'))): assert shell(*line.format(tmp_path/n).split())[0] == 0
    for f in (p for p in (tmp_path/'a').rglob('*') if p.is_file() and p.suffix in ('.json', '.csv')):
        assert f.read_text().replace(f'{tmp_path}/a', '') == (tmp_path/'b'/f.relative_to(tmp_path/'a')).read_text().replace(f'{tmp_path}/b', ''), f

@pytest.mark.skipif(os.name == 'nt', reason='/dev/null is a file that no folder can be made in')
@pytest.mark.parametrize('command', ['data synth --num-images 1 --output-dir {}', f'data testset --source-json {IN} --output-dir {{}}', f'data validate --json-path {IN} --output-dir {{}}', f'data stats {IN} --out {{}}',
                                     f'data split {IN} --out {{}}/s.parquet', f'data vocab {IN} --out {{}}/t.csv', f'data resolutions --json-path {IN} --output-dir {{}}', f'latents encode --data {IN} --vae model/vae --image.no-bucketing --image.resolution 64 --out {{}}',
                                     'tag scenes/images --model model --out {}', f'eval tagger --model model --data {IN} --out {{}}'])
def test_an_unwritable_place_is_named(home, command): fails(command.format('/dev/null/x'), 1, '/dev/null/x', 'cannot write')

@pytest.mark.parametrize('command', [f'data validate --json-path {IN} --output-dir a.txt', f'data resolutions --json-path {IN} --output-dir a.txt', f'eval tagger --model model --data {IN} --out a.txt', f'eval recon --data {IN} --vae model/vae --out a.txt',
                                     f'eval compare model model --truth {IN} --out a.txt', f'train decoder --data.metadata {IN} --codec.vae model/vae --out a.txt', f'train vae --data.metadata {IN} --codec.vae model/vae --out a.txt/run'])
def test_long_work_asks_first_whether_its_results_can_be_written(home, monkeypatch, command):
    def work(*a, **k): raise AssertionError('no picture needs to be read')
    (home/'a.txt').write_text('kept')
    monkeypatch.setattr(Image, 'open', work)
    fails(command, 1, command.split()[-1], 'cannot write')
    assert (home/'a.txt').read_text() == 'kept'

@pytest.mark.parametrize('command, exits, says', [(f'eval tagger --model model --data {IN} --save-predictions scenes', 1, 'holds no predictions.json'), ('tag scenes/images --model model --save-predictions scenes', 1, 'holds no predictions.json'),
                                                  (f'eval tagger --model model --data {IN} --suspects scenes', 2, 'scenes: is a folder; name a file')])
def test_long_work_asks_first_what_it_would_replace(home, monkeypatch, command, exits, says):
    def work(*a, **k): raise AssertionError('no picture needs to be read')
    monkeypatch.setattr(Image, 'open', work)
    fails(command, exits, says)

@pytest.mark.parametrize('number,status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=['Ctrl-C', 'SIGTERM'])
def test_a_stopped_command_says_so_and_leaves_nothing_to_search_through(monkeypatch, capsys, number, status):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(vaetag_nb.cli, 'run', lambda args: signal.raise_signal(number))
    try:
        with pytest.raises(SystemExit) as e: vaetag_nb.cli.main()
        assert e.value.code == status and capsys.readouterr().err == 'vaetag: stopped\n' and gc.get_freeze_count() > 0
    finally: signal.signal(signal.SIGTERM, before); gc.unfreeze()

CONFIGS = {'train decoder': DecoderConfig, 'train vae': VaeConfig, 'train full': FullConfig, 'train timm': TimmConfig}

@pytest.mark.parametrize('made', CONFIGS)
def test_a_run_folder_belongs_to_the_command_that_made_it(home, tmp_path, made):
    (run := tmp_path/'run').mkdir()
    (run/'config.yaml').write_text(to_yaml(CONFIGS[made]()))
    for other in CONFIGS:
        out = f'--out {tmp_path} --name run' if other == 'train timm' else f'--out {run}'
        if other == made: assert 'is a run of' not in fails(f'{other} {out}', 2)    # its own folder: what lacks is the VAE or the data
        else: fails(f'{other} {out}', 1, f'{run}: is a run of {made}; {other} needs another folder')
    if made != 'train timm': fails(f'train timm --resume {run}', 1, f'{run}: is a run of {made}, not of train timm')
    assert [f.name for f in run.iterdir()] == ['config.yaml']

@pytest.mark.parametrize('command,status,says', [
    ('latents check dump.npz', 1, ['dump.npz', 'neither a store', '--from-latents']), ('latents info dump.npz', 1, ['dump.npz', 'neither a store']),
    ('latents recon pics/000000.png --out r --resolution 63', 2, ['--resolution 63', '8']),
    ('latents recon --out r --device cuda:99', 2, ["'cuda:99' is not there", 'cpu']), ('latents check embedded --device cuda:99', 2, ["'cuda:99' is not there"]),
    ('latents encode pics --out s9 --codec.init random', 2, ['codec.init: random is for train vae']), ('latents encode pics --out s9 --space model', 2, ['--space model', 'store'])])
def test_what_a_verb_is_not_for(home, command, status, says):
    (home/'dump.npz').write_bytes(b'x')
    fails(command, status, *says)
