"The samples in data/: every format reads to the same labels, the README's lines run, and make.py makes what is committed"
import json, os, re, runpy, shutil
from pathlib import Path
import numpy as np, pytest
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.data.audit import faults, validate
from vaetag_nb.data.decode import load_image
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import parse_tags

DATA = Path(__file__).resolve().parents[1]/'data'
SCENES = DATA/'scenes/data.json'

def labels(t):
    "Tags of every picture by its file's name"
    return {Path(p).name: t.tags(i) for i, p in enumerate(t.paths)}

@pytest.fixture(scope='module')
def scenes(): return TagTable.read(SCENES, DATA/'scenes/tags.csv', strict=True)

def test_scenes_are_whole(scenes):
    assert len(scenes) == 24 and scenes.labelled.all() and np.array_equal(scenes.counts(), scenes.vocab.counts) and scenes.counts().min() > 0
    assert all(load_image(p).size == (w, h) for p, w, h in zip(scenes.paths, *(lambda t: (t.width, t.height))(scenes.with_sizes(strict=True))))
    assert len({load_image(p).size for p in scenes.paths}) > 2

@pytest.mark.parametrize('name', ['scenes.jsonl', 'scenes.csv', 'scenes.parquet', 'table.parquet', 'sidecars'])
def test_every_format_reads_to_the_same_labels(scenes, name):
    t = TagTable.read(DATA/name, DATA/'scenes/tags.csv', strict=True)
    assert labels(t) == labels(scenes) and t.vocab == scenes.vocab
    assert [load_image(p).tobytes() for p in t.paths] == [load_image(p).tobytes() for p in scenes.paths]
    if name != 'sidecars': assert np.unique(t.split, return_counts=True)[1].tolist() == [4, 16, 4]
    built = TagTable.read(DATA/name)
    assert labels(built).keys() == labels(scenes).keys() and sorted(built.vocab.names) == sorted(scenes.vocab.names)

def test_class_folders(scenes):
    t = TagTable.read(DATA/'classes', columns=dict(group='folder'), strict=True)
    assert len(t) > 5 and len(t.vocab) >= 3 and sorted(t.vocab.names) == t.group_names
    for name, tags in labels(t).items(): assert set(tags) < set(labels(scenes)[name]) and 'one_object' in labels(scenes)[name]

def test_own_parquet_knows_its_vocabulary(scenes):
    t = TagTable.read(DATA/'table.parquet', strict=True)
    assert t.vocab == scenes.vocab and (t.width > 0).all()

def test_messy_sample_has_one_of_each(tmp_path):
    shutil.copytree(DATA/'scenes', tmp_path/'scenes'); shutil.copytree(DATA/'messy', tmp_path/'messy')
    s = validate(tmp_path/'messy/data.json', tmp_path/'scenes/tags.csv', tmp_path/'out', fix=True)
    assert faults(s) == dict(missing_images=1, unreadable_images=1, images_with_unknown_tags=2, bad_weights=2, duplicate_keys=1, bad_records=1, empty_label_images=1)
    assert s['duplicate_tags'] == 1 and s['total_images'] == 9
    assert faults(validate(tmp_path/'messy/data.cleaned.json', tmp_path/'scenes/tags.csv')) == {}
    fixed = json.loads((tmp_path/'messy/data.cleaned.json').read_text())
    assert fixed['../scenes/images/000000.png'] == 'red:0.7, circle:1.0, filled:1.0' and fixed['../scenes/images/000002.png'] == dict(red=1, green=0)
    with pytest.raises(VaetagError, match=re.escape('2 of 9 records are bad, 22.2% where max_bad allows 5.0%')):
        TagTable.read(tmp_path/'messy/data.json', tmp_path/'scenes/tags.csv')

def test_the_lines_of_the_readme_run(tmp_path, monkeypatch):
    shutil.copytree(DATA, tmp_path/'data', ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.chdir(tmp_path/'data')
    blocks = re.findall(r'```python\n(.*?)```', (DATA/'README.md').read_text(encoding='utf-8'), re.S)
    assert len(blocks) == 2
    for b in blocks: exec(b, {})
    assert (tmp_path/'data/messy/data.cleaned.json').exists() and (tmp_path/'data/data_validation/summary.json').exists()

def test_small_and_without_machine_paths():
    files = [p for p in DATA.rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    assert sum(p.stat().st_size for p in files) < 3_000_000
    for p in files: assert os.fsencode(DATA) not in p.read_bytes(), p

def test_make_gives_what_is_committed(tmp_path):
    runpy.run_path(str(DATA/'make.py'))['main'](tmp_path)
    made = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()}
    kept = {p.relative_to(DATA).as_posix() for p in DATA.rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert made == kept - {'README.md', 'make.py'}, 'run data/make.py'
    for n in made:
        if n.endswith(('.json', '.jsonl', '.csv', '.txt')): assert (tmp_path/n).read_bytes() == (DATA/n).read_bytes(), f'{n}: run data/make.py'
        elif n.endswith('.png') and 'torn' not in n: # another processor may round a pixel otherwise
            a, b = (np.asarray(load_image(d/n), int) for d in (tmp_path, DATA))
            assert a.shape == b.shape and np.abs(a-b).max() <= 2, f'{n}: run data/make.py'
    assert parse_tags((DATA/'sidecars/000000.txt').read_text()).tags == labels(TagTable.read(SCENES))['000000.png']
