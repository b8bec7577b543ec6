"""A file of corrections gives the same table as a source that is right itself, in every layout and from every verb."""
import json
import numpy as np, pandas as pd, pytest
from PIL import Image
from vaetag_nb.core.config import load
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.rng import np_rng, seeded
from vaetag_nb.data.corrections import Corrections
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import Vocab
from vaetag_nb.eval.scores import Scores, save_scores
from vaetag_nb.models.timm_folder import save_timm
from vaetag_nb.models.timm_tagger import create, square_of
from vaetag_nb.trainers.settings import DataConfig
from vaetag_nb.trainers.timm_settings import TimmData
from vaetag_nb.verbs.base import shell
import vaetag_nb.cli  # noqa: F401 (registers all verbs)

WRONG = {'a.png': ['cat', 'red'], 'b.png': ['dog'], 'c.png': ['red'], 'd.png': ['cat', 'dog']}
RIGHT = {'a.png': ['red'], 'b.png': ['dog', 'cat'], 'c.png': ['red', 'fish'], 'd.png': ['cat', 'dog']}

def write(folder, tags):
    "The same pictures as JSON, CSV, Parquet and with `.txt` files."
    folder.mkdir()
    for i, (k, t) in enumerate(tags.items()):
        Image.new('RGB', (16, 16), (60*i, 0, 0)).save(folder/k)
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

@pytest.fixture(scope='module')
def models(sets):
    "A model folder with random weights, and the scores of two more: of one who knows, of one who guesses."
    vocab, d = Vocab(['cat', 'dog', 'red', 'fish']), sets/'models'
    with seeded(0, 'net'): net = create('test_resnet', len(vocab), 32)
    save_timm(d/'net', net, vocab, square_of(net, 32))
    truth = np.array([[t in tags for t in vocab.names] for tags in RIGHT.values()], np.float32)
    for name, x in (('knows', .1 + .8*truth), ('guesses', np_rng(0, 'x').random(truth.shape))): save_scores(d/name, Scores(list(RIGHT), x.astype(np.float32), vocab, np.full(4, .5, np.float32)))
    return d

VERBS = { # verb: (its words, where {src} is the data, {m} the folder of models and {o} one of results; what must be as if the data were right: of its figures, or a file of {o})
    'stats': ('data stats {src}', ('tags', 'parts', 'pairs', 'per_image')),
    'vocab': ('data vocab {src} --out {o}/v.csv', 'v.csv'),
    'split': ('data split {src} --out {o}/s.parquet --val .25 --test .25', ('sizes', 'quality', 'fingerprint')),
    'testset': ('data testset --source-json {src} --output-dir {o} --test-ratio .25', 'tags.csv'),
    'validate': ('data validate {src} --output-dir {o}', ('top_tags', 'empty_label_images')),
    'fix': ('data validate {src} --output-dir {o} --fix', ('top_tags',)),
    'tagger': ('eval tagger --data {src} --model {m}/net --device cpu --out {o}/e', 'e/evaluation_results.csv'),
    'compare': ('eval compare {m}/knows {m}/guesses --truth {src} --bootstrap 0 --min-positives 1', ('models',)),
}

@pytest.mark.parametrize('verb', VERBS)
def test_verbs_take_them(sets, models, tmp_path, verb):
    words, want = VERBS[verb]
    def run(side, *more):
        o = tmp_path/side; o.mkdir(exist_ok=True)
        status, out, err = shell(*words.format(src=sets/side/'m.json', m=models, o=o).split(), *more, '--json')
        assert status == 0, err
        return str(sorted(pd.read_csv(o/want).values.tolist()) if isinstance(want, str) else {k: json.loads(out)[k] for k in want})
    assert run('wrong', '--corrections', str(sets/'c.csv')) == run('right')
    if verb == 'fix':
        clean, right = (TagTable.read(sets/n) for n in ('wrong/m.cleaned.json', 'right/m.json'))
        assert [clean.tags(i) for i in range(4)] == [right.tags(i) | ({'cat': 0} if i == 0 else {'red': 0} if i == 3 else {}) for i in range(4)]

def test_a_result_says_which_corrections_it_heeds(sets, models, tmp_path):
    words = 'eval', 'tagger', '--data', str(sets/'wrong/m.json'), '--model', str(models/'net'), '--device', 'cpu', '--out', str(tmp_path)
    assert shell(*words)[0] == 0
    status, _, err = shell(*words, '--corrections', str(sets/'c.csv'))
    assert status == 1 and 'its inputs.corrections differs' in err
    assert shell(*words, '--corrections', str(sets/'c.csv'), '--overwrite')[0] == 0
    assert json.loads((tmp_path/'evaluation_results_overall.json').read_text())['inputs']['corrections'] == str(sets/'c.csv')

def test_validate_says_what_became_of_each(sets, tmp_path):
    status, out, err = shell('data', 'validate', str(sets/'wrong/m.json'), '--corrections', str(sets/'c.csv'), '--output-dir', str(tmp_path), '--json')
    assert status == 0 and json.loads(out)['corrections'] == dict(all=5, changed=3, as_before=1, unused={'no such record': 1}), err
    assert json.loads((tmp_path/'unused_corrections.json').read_text()) == [dict(id='zz.png', tag='cat', why='no such record')]

def test_a_file_that_is_wrong_is_named(sets, tmp_path):
    (tmp_path/'bad.csv').write_text('id,tag,action\na.png,cat,drop\n')
    for bad, why in ((tmp_path/'bad.csv', "line 2: the action 'drop' is neither add nor remove"), (tmp_path/'none.csv', 'none.csv')):
        status, out, err = shell('data', 'stats', str(sets/'wrong/m.json'), '--corrections', str(bad))
        assert status == 1 and why in err and len(err.strip().splitlines()) == 1
    status, out, err = shell('data', 'split', str(sets/'wrong'), '--method', 'recording', '--corrections', str(sets/'c.csv'))    # a folder is the label there
    assert status == 2 and '--corrections: does not go with --method recording' in err

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
