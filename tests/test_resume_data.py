"A run of a tagger that is gone on with notices that its pictures, labels, corrections or classes are not those that it was started with."
import json, shutil
import pytest
from PIL import Image
from vaetag_nb.core.config import load
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import read_json, read_jsonl, write_json
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.data.tags import Vocab
from vaetag_nb.latents.codec import Codec
from vaetag_nb.trainers.content import content
from vaetag_nb.trainers.full import FullConfig, train_full
from vaetag_nb.trainers.tagger import DecoderConfig, train_decoder
from vaetag_nb.trainers.timm import train_timm
from vaetag_nb.trainers.timm_data import read_sides
from vaetag_nb.trainers.timm_settings import TimmConfig
from vaetag_nb.trainers.vae import VaeConfig, train_vae

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    d = tmp_path_factory.mktemp('resume')
    make_scenes(d/'scenes', 20, seed=1, resolution=64)
    Codec.random(dict(latent_channels=4, block_out_channels=[8]*4, layers_per_block=1, norm_num_groups=4)).save(d/'vae')
    return d

@pytest.fixture
def place(home, tmp_path):
    "Metadata, classes and corrections of one's own, beside pictures and latents of all"
    for f in ('data.json', 'tags.csv'): shutil.copy(home/'scenes'/f, tmp_path/f)
    (tmp_path/'images').symlink_to(home/'scenes/images')
    mark(tmp_path, 0, 'add')
    return tmp_path

def mark(place, *actions):
    "Write corrections: what to do with the commonest tag of the first pictures."
    keys, tag = [*json.loads((place/'data.json').read_text())], (place/'tags.csv').read_text().splitlines()[1].split(',')[1]
    (place/'c.csv').write_text('id,tag,action\n' + ''.join(f'{k},{tag},{a}\n' for k, a in zip(keys, actions) if a))

def arguments(home, place, epochs):
    data = dict(metadata=str(place/'data.json'), tags=str(place/'tags.csv'), corrections=str(place/'c.csv'), val=.2, test='.2')
    own = dict(out=str(place/'run'), data=data, image=dict(base_resolution=64, max_resolution=64, bucket_step=64), codec=dict(vae=str(home/'vae')), epochs=epochs, batch_size=4, device='cpu', log_every=1)
    return own | dict(model=dict(d=16, depth=1, heads=2), eval=dict(baselines=False))

def decoder(home, place, epochs=1): return train_decoder(load(DecoderConfig, arguments(home, place, epochs), latents=dict(store=str(home/'store'))))
def full(home, place, epochs=1): return train_full(load(FullConfig, arguments(home, place, epochs)))
def vae(home, place, epochs=1):
    own = arguments(home, place, epochs); own.pop('model'); own.pop('eval'); own['data'].pop('test')
    return train_vae(load(VaeConfig, own, loss=dict(semantic=dict(weight=0.))))
def timm(home, place, epochs=1, resume=None, override=False):
    data = dict(table=str(place/'data.json'), corrections=str(place/'c.csv'))
    cfg = load(TimmConfig, dict(out=str(place), name='run', data=data, vocab=dict(csv=str(place/'tags.csv')), split=dict(val=.2, test=.2), epochs=epochs, batch_size=4, device='cpu', workers=0, log_every=1,
               preprocess=dict(size=32), model=dict(name='test_convnext', pretrained=False), eval=dict(min_positives=2)))
    return train_timm(cfg, resume, override)

WAY = {decoder: 'model.init: {}/best starts a run there from these weights', full: 'codec.vae: {}/best/vae start a run there from these weights', timm: '--finetune {} to start from its weights', vae: 'use another folder'}

def wrong(train, home, place, *words):
    with pytest.raises(VaetagError) as e: train(home, place, epochs=2)
    said = str(e.value)
    for w in (f'{place}/run: the training data are not those that this run was started with: ', WAY[train].format(place/'run'), *words): assert w in said, (w, said)
    assert '\n' not in said
    return said

@pytest.mark.parametrize('train', [decoder, full, timm])
def test_changed_data_are_noticed(home, place, train, capsys):
    mark(place, 'remove', None)
    train(home, place)
    data, steps = (place/'data.json').read_text(), len(read_jsonl(place/'run/log.jsonl'))
    mark(place, *['remove', 'add']*10)
    said = wrong(train, home, place, 'train labels (', ' then, ', 'corrections (1 then, 20 now)')
    assert 'pictures' not in said and 'vocabulary' not in said
    mark(place, 'remove', None)
    (place/'data.json').write_text(json.dumps(dict(list(json.loads(data).items())[::-1])))            # the same, in another order
    wrong(train, home, place, 'not in the same order')
    (place/'data.json').write_text(json.dumps(dict(list(json.loads(data).items())[1:])))
    assert 'labels (' not in wrong(train, home, place, ' pictures (', ' now)')
    (place/'data.json').write_text(data)
    if train is not timm:               # whose classes are its own
        tags = (place/'tags.csv').read_text()
        (place/'tags.csv').write_text(tags + '999,one_more,0,0\n'); n = len(tags.splitlines()) - 1
        assert 'labels' not in wrong(train, home, place, f'vocabulary ({n} then, {n+1} now)')
        (place/'tags.csv').write_text(tags)
    assert len(read_jsonl(place/'run/log.jsonl')) == steps     # nothing was learned meanwhile
    capsys.readouterr()
    (place/'c.csv').write_text((place/'c.csv').read_text() + 'nobody.png,red,add\n')                  # a correction that changes nothing
    train(home, place, epochs=2)
    assert 'taken on trust' not in capsys.readouterr().err and len(read_jsonl(place/'run/log.jsonl')) > steps

def test_a_run_from_before_goes_on(home, place, capsys):
    decoder(home, place)
    for f in (place/'run/checkpoints').glob('*/state.json'): write_json(f, read_json(f) | dict(data=None))
    mark(place, 'add', 'add', 'add', 'remove')
    capsys.readouterr()
    decoder(home, place, epochs=2)
    assert 'does not say what data it was started with; that they are the same is taken on trust' in capsys.readouterr().err

def test_other_labels_may_be_gone_on_with(home, place, capsys):
    timm(home, place)
    mark(place, *['remove', 'add']*10)
    with pytest.raises(VaetagError, match='--override goes on with other labels'): timm(home, place, 2, place/'run')
    capsys.readouterr()
    timm(home, place, 2, place/'run', override=True)
    assert 'overridden: train labels (' in capsys.readouterr().err
    data = json.loads((place/'data.json').read_text()); data.popitem(); (place/'data.json').write_text(json.dumps(data))
    with pytest.raises(VaetagError, match='pictures'): timm(home, place, 3, place/'run', override=True)     # those are another run

def test_a_vae_minds_its_pictures_and_the_labels_that_it_uses(home, place):
    vae(home, place)
    mark(place, *['remove', 'add']*10)
    vae(home, place, epochs=1)          # there is no term of tags in this mode
    data = json.loads((place/'data.json').read_text()); data.popitem(); (place/'data.json').write_text(json.dumps(data))
    wrong(vae, home, place, 'pictures (')

def test_counted_classes_are_read_alike_when_a_run_goes_on(tmp_path):
    "Another spelling of a class that is too rare to be one counts for it, at the start as later"
    for i, tags in enumerate(('red_hair, cat', 'red_hair', 'red hair, dog', 'cat, hat \\(red\\)', 'cat', 'dog', 'hat (red)', 'hat (red)')):
        Image.new('RGB', (8, 8), (30*i, 0, 0)).save(tmp_path/f'{i}.png'); (tmp_path/f'{i}.txt').write_text(tags)
    cfg = load(TimmConfig, dict(data=dict(images=str(tmp_path)), vocab=dict(min_count=2), split=dict(val=.25, test=0.)))
    first = read_sides(cfg)
    again = read_sides(cfg, vocab=Vocab(first.vocab.names, first.vocab.categories))
    assert sum(t.labels.nnz for t in first.tables.values()) == 11 and 'red hair' not in first.vocab
    assert [content({k: (t.ids, t.labels) for k, t in s.tables.items()}, s.vocab) for s in (first, again)] == [content({k: (t.ids, t.labels) for k, t in first.tables.items()}, first.vocab)]*2
