"""A file of corrections gives the same table as a source that is right itself, in every layout and from every verb."""
import json
import numpy as np, pandas as pd, pytest
from PIL import Image
from vaetag_nb.core.config import load
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.data.corrections import Corrections
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import Vocab
from vaetag_nb.trainers.settings import DataConfig
from vaetag_nb.trainers.timm_settings import TimmData
from vaetag_nb.verbs.base import shell
import vaetag_nb.cli  # noqa: F401 (registers all verbs)

WRONG = {'a.png': ['cat', 'red'], 'b.png': ['dog'], 'c.png': ['red'], 'd.png': ['cat', 'dog']}
RIGHT = {'a.png': ['red'], 'b.png': ['dog', 'cat'], 'c.png': ['red', 'fish'], 'd.png': ['cat', 'dog']}

def write(folder, tags):
    "The same pictures as JSON, CSV, Parquet and with `.txt` files."
    folder.mkdir()
    for k, t in tags.items():
        Image.new('RGB', (16, 16)).save(folder/k)
        (folder/k).with_suffix('.txt').write_text(', '.join(t))
    (folder/'m.json').write_text(json.dumps({k: ', '.join(t) for k, t in tags.items()}))
    df = pd.DataFrame(dict(path=list(tags), tags=[', '.join(t) for t in tags.values()]))
    df.to_csv(folder/'m.csv', index=False); df.to_parquet(folder/'m.parquet')

@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    d = tmp_path_factory.mktemp('corrections')
    write(d/'wrong', WRONG); write(d/'right', RIGHT)
    c = Corrections(d/'c.csv')
    for k, t, a in (('a.png', 'cat', 'remove'), ('b.png', 'cat', 'add'), ('c.png', 'fish', 'add'), ('d.png', 'red', 'remove'), ('zz.png', 'cat', 'add')): c.mark(k, t, a)
    c.save()
    return d

@pytest.mark.parametrize('tags', [None, ['red', 'dog', 'cat']])
@pytest.mark.parametrize('src', ['m.json', 'm.csv', 'm.parquet', '.'])
def test_corrected_is_as_if_it_were_right(sets, src, tags):
    layout = 'sidecars' if src == '.' else 'auto'
    got, want = (TagTable.read(sets/side/src, tags and Vocab(tags), layout, corrections=c) for side, c in (('wrong', sets/'c.csv'), ('right', None)))
    assert got.vocab.names == want.vocab.names and got.vocab.counts.tolist() == want.vocab.counts.tolist()
    assert (got.labels.toarray() == want.labels.toarray()).all() and got.ids == want.ids
    unused = 1 + (tags is not None)       # the record that is not here, and a tag outside of the vocabulary
    assert (got.report.counts['corrected_tags'], got.report.counts['unused_corrections']) == (3 - (tags is not None), unused)
    explicit = got.labels[got.ids.index('d.png')]
    assert explicit.nnz == 3 and explicit[0, got.vocab.index['red']] == 0      # known to be absent

def test_settings_of_trainings_read_them(sets):
    for cfg, src in ((load(DataConfig, dict(corrections=str(sets/'c.csv'))), True), (load(TimmData, dict(images=str(sets/'wrong'), corrections=str(sets/'c.csv'))), False),
                     (load(TimmData, dict(table=str(sets/'wrong/m.json'), corrections=str(sets/'c.csv'))), False)):
        t = cfg.read(sets/'wrong/m.json') if src else cfg.read()
        assert dict(zip(t.vocab.names, t.counts().tolist())) == dict(cat=2, dog=2, red=2, fish=1)

def test_verbs_take_them(sets, tmp_path):
    status, out, err = shell('data', 'stats', str(sets/'wrong/m.json'), '--corrections', str(sets/'c.csv'), '--json')
    assert status == 0, err
    right = json.loads(shell('data', 'stats', str(sets/'right/m.json'), '--json')[1])
    assert {k: v for k, v in json.loads(out).items() if k not in ('source', 'name')} == {k: v for k, v in right.items() if k not in ('source', 'name')}
    assert shell('data', 'vocab', str(sets/'wrong/m.json'), '--corrections', str(sets/'c.csv'), '--out', str(tmp_path/'v.csv'))[0] == 0
    assert dict(zip(*(pd.read_csv(tmp_path/'v.csv')[k] for k in ('name', 'count')))) == dict(cat=2, dog=2, red=2, fish=1)
    (tmp_path/'bad.csv').write_text('id,tag,action\na.png,cat,drop\n')
    for bad, why in ((tmp_path/'bad.csv', "line 2: the action 'drop' is neither add nor remove"), (tmp_path/'none.csv', 'none.csv')):
        status, out, err = shell('data', 'stats', str(sets/'wrong/m.json'), '--corrections', str(bad))
        assert status == 1 and why in err and len(err.strip().splitlines()) == 1

def test_a_torn_file_of_corrections_loses_nothing(sets, tmp_path):
    (tmp_path/'c.csv').write_text('id,tag\n')
    with pytest.raises(VaetagError, match="no column 'action'"): Corrections(tmp_path/'c.csv')
    assert (tmp_path/'c.csv').read_text() == 'id,tag\n'

def test_corrections_at_scale():
    "A hundred thousand records: the sparse labels are changed in place of a loop over them."
    from scipy import sparse
    from vaetag_nb.data.corrections import corrected
    from vaetag_nb.data.labels import LoadReport
    n, k = 20_000, 300
    x = sparse.random(n, k, .01, 'csr', np.float32, random_state=0); x.data[:] = 1
    marks = {(str(i), f't{i%k}'): 'add' if i%2 else 'remove' for i in range(0, n, 7)}
    y, *_ = corrected(x, Vocab([f't{j}' for j in range(k)]), np.ones(n, bool), list(map(str, range(n))), ['']*n, marks, LoadReport())
    want = x.tolil()
    for (i, t), a in marks.items(): want[int(i), int(t[1:])] = a == 'add'
    assert (y != want.tocsr()).nnz == 0
