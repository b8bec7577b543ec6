"Floor 0 on random and on hostile input: configuration, atomic files, trees"
import dataclasses as dc, math, os, resource, signal
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from forked import ended, forked, killed
from vaetag_nb.core import config, io
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.rng import fold

# --- rng -------------------------------------------------------------------------------------------------------------
counters = st.lists(st.one_of(st.integers(-2**40, 2**40), st.text(max_size=8), st.booleans(), st.none()), max_size=4)

@given(st.integers(0, 2**32), counters, counters)
def test_fold_depends_on_every_counter(seed, a, b):
    same = [type(x) for x in a] == [type(x) for x in b] and a == b
    assert (fold(seed, *a) == fold(seed, *b)) == same
    assert 0 <= fold(seed, *a) < 2**63

def test_fold_is_spread_evenly():
    u = np.array([fold(0, 'u', i) for i in range(20_000)])/2**63
    assert abs(u.mean()-.5) < .01 and np.abs(np.histogram(u, 20, (0, 1))[0]/1000 - 1).max() < .15
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < .03

# --- config ----------------------------------------------------------------------------------------------------------
@dc.dataclass
class Inner:
    lr: float = 1e-3
    name: str|None = None
    sizes: tuple[int, ...] = (1, 2)

@dc.dataclass
class Outer:
    epochs: int = 1
    flag: bool = False
    out: Path = Path('x')
    inner: Inner = dc.field(default_factory=Inner)
    weights: dict[str, float] = dc.field(default_factory=dict)

words = st.text(st.characters(blacklist_categories=('Cs', 'Cc')), max_size=12)
floats = st.floats(allow_nan=False, allow_infinity=False)
outers = st.builds(Outer, epochs=st.integers(-2**60, 2**60), flag=st.booleans(), out=st.sampled_from([Path('a'), Path('a/b c')]),
    inner=st.builds(Inner, lr=floats, name=st.none() | words, sizes=st.lists(st.integers(-9, 9)).map(tuple)),
    weights=st.dictionaries(words, floats, max_size=3))

@given(outers)
def test_config_survives_yaml(tmp_path_factory, cfg):
    p = tmp_path_factory.mktemp('cfg')/'c.yaml'
    p.write_text(config.to_yaml(cfg), encoding='utf-8')
    assert config.load(Outer, p) == cfg

@given(outers, outers)
def test_later_source_wins(a, b):
    assert config.load(Outer, a, config.to_dict(dc.replace(b, weights={}))) == dc.replace(b, weights=a.weights)
    assert config.differences(a, a) == {}

@pytest.mark.parametrize('text, says', [
    ('epochs: true', 'epochs: expected int'), ('flag: "false"', 'flag: expected bool'), ('flag: 1', 'flag: expected bool'),
    ('inner: 3', 'inner: expected a mapping'), ('inner: {lr: fast}', 'inner.lr: expected float'), ('epoch: 3', "Did you mean 'epochs'"),
    ('inner: {sizes: 3}', 'inner.sizes: expected'), ('- a', 'expected a mapping, got list'), ('a: [1', 'not YAML'), ('epochs: 1\nepochs: 2', 'stands twice'),
    ('base: nowhere.yaml', 'nowhere.yaml: cannot read'), ('weights: {a: b}', 'weights.a: expected float'), ('!!python/object/apply:os.system ["true"]', 'not YAML')])
def test_wrong_yaml_is_one_line(tmp_path, text, says):
    (tmp_path/'c.yaml').write_text(text)
    with pytest.raises(config.ConfigError) as e: config.load(Outer, tmp_path/'c.yaml')
    assert says in str(e.value) and '\n' not in str(e.value) and '.yaml' in str(e.value)

@pytest.mark.parametrize('text, lr', [('1e-3', 1e-3), ('1E+2', 100.), ('.5', .5), ('3', 3.)])
def test_yaml_numbers(tmp_path, text, lr):
    (tmp_path/'c.yaml').write_text(f'inner: {{lr: {text}}}')
    assert config.load(Outer, tmp_path/'c.yaml').inner.lr == lr

# --- trees -----------------------------------------------------------------------------------------------------------
tensors = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]).flatmap(
    lambda t: st.lists(st.integers(0, 3), max_size=3).map(lambda s: torch.zeros(s).add_(1).to(t)))
leaves = st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=6), tensors)
keys = st.one_of(st.text(max_size=5), st.integers(-5, 5), st.booleans())
trees = st.recursive(leaves, lambda c: st.one_of(st.lists(c, max_size=3), st.lists(c, max_size=3).map(tuple), st.dictionaries(keys, c, max_size=3)), max_leaves=8)

def same(a, b):
    if type(a) is not type(b): return False
    if torch.is_tensor(a): return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict): return [*a] == [*b] and [*map(type, a)] == [*map(type, b)] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))

@given(trees)
def test_tree_round_trip(tmp_path_factory, tree):
    p = tmp_path_factory.mktemp('tree')/'t.safetensors'
    io.save_tree(p, tree)
    assert same(io.load_tree(p), tree)

def test_tree_keeps_slices_small(tmp_path):
    io.save_tree(tmp_path/'t', dict(a=torch.zeros(1000, 1000)[0]))
    assert (tmp_path/'t').stat().st_size < 10_000

@pytest.mark.parametrize('cut', [0, 5, 20, -1])
def test_torn_tensors_are_named(tmp_path, cut):
    io.save_tree(tmp_path/'t', dict(a=torch.ones(5)))
    (tmp_path/'t').write_bytes((tmp_path/'t').read_bytes()[:cut])
    with pytest.raises(VaetagError, match='not a whole safetensors file'): io.load_tree(tmp_path/'t')

# --- atomic writes ---------------------------------------------------------------------------------------------------
def test_full_disk_leaves_the_old_file(tmp_path):
    io.save_tensors(tmp_path/'t.safetensors', dict(a=torch.ones(3))); io.write_json(tmp_path/'j.json', [1])
    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)                  # a write past the limit fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for f in (lambda: io.save_tensors(tmp_path/'t.safetensors', dict(a=torch.zeros(1_000_000))), lambda: io.write_json(tmp_path/'j.json', 'x'*1_000_000)):
            with pytest.raises(VaetagError, match='cannot write: File too large'): f()
    assert ended(forked(full)) == 0
    assert torch.equal(io.load_tensors(tmp_path/'t.safetensors')[0]['a'], torch.ones(3)) and io.read_json(tmp_path/'j.json') == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['j.json', 't.safetensors']

def test_kill_never_shows_half_a_folder(tmp_path):
    here, there = os.pipe()
    def write():
        for i in range(1, 10_000):
            with io.atomic_dir(tmp_path/'d') as d:
                for n in 'ab': (d/n).write_text(f'{i:08d}'*2000)
            os.write(there, b'.')
    p = forked(write); os.close(there)
    for _ in range(20): assert os.read(here, 1) == b'.'
    killed(p); os.close(here)
    d = tmp_path/'d'
    if d.exists(): assert len({(d/n).read_text() for n in 'ab'}) == 1
    else: assert next(tmp_path.glob('.d.*.old')).is_dir()   # killed between the two renames: the old folder is whole

@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may write anywhere')
def test_unwritable_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(VaetagError, match='x.json: cannot write: Permission denied'): io.write_json(tmp_path/'x.json', 1)

def test_unwritable_places_are_named(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(VaetagError, match='cannot write'): io.write_json(tmp_path/'file'/'x.json', 1)
    with pytest.raises(VaetagError, match='cannot write'): io.write_json(tmp_path, 1)
    with pytest.raises(VaetagError, match='cannot write'): io.write_json('/proc/x.json', 1)
    assert [p.name for p in tmp_path.iterdir()] == ['file']

def test_a_folder_never_takes_the_place_of_a_file(tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(VaetagError, match='notes.txt: is a file, which would be lost; name a folder'):
        with io.atomic_dir(tmp_path/'notes.txt') as d: (d/'x').write_text('ours')
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('notes.txt', 'mine')]
