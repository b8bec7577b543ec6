"What timm-cv left: its configuration classes are read and never run, its checkpoints give the same scores, its commands parse with our parser."
import dataclasses, importlib, json, os, re, shlex, sys
import numpy as np, pytest, timm, torch
from PIL import Image
from hypothesis import given, settings as examples, strategies as st
from torchvision import transforms
from vaetag_nb.config_class import read_class
from vaetag_nb.config_values import AUTO
from vaetag_nb.core.config import differences, load, read_yaml
from vaetag_nb.data.tags import Vocab
from vaetag_nb.migrate_config import KEYS, config_table, migrate_config
from vaetag_nb.migrate_command import SCRIPTS
from vaetag_nb.models.timm_folder import load_timm
from vaetag_nb.timm_command import TIMM_SCRIPTS, is_timm, timm_table
from vaetag_nb.trainers.checkpoint import RunFolder
from vaetag_nb.trainers.timm_settings import TimmConfig, check
from vaetag_nb.verbs import base

importlib.import_module('vaetag_nb.cli')

# the base class, stated once more from the table of settings alone
BASE = '''
import torch
import os

class BaseConfig:
    PROJECT_ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))
    DATA_DIR = os.path.join(PROJECT_ROOT, "data/")
    IMAGE_DIR = os.path.join(DATA_DIR, "images/")
    SELECTED_TAGS_CSV = os.path.join(DATA_DIR, "selected_tags.csv")
    OUTPUT_DIR = os.path.join(PROJECT_ROOT, "trained_models/")
    LOG_DIR = os.path.join(OUTPUT_DIR, "logs/")
    IMAGE_EXTENSIONS = [".jpg", ".png"]
    TAG_SEPARATOR_IN_TXT = ','
    IMAGE_SIZE = 224
    NORM_MEAN = [0.485, 0.456, 0.406]
    NORM_STD = [0.229, 0.224, 0.225]
    FILTER_TAG_COUNT_THRESHOLD = 50
    MODEL_NAME = "resnet50"
    PRETRAINED = True
    NUM_CLASSES = -1
    DROP_RATE = 0.1
    DROP_PATH_RATE = 0.1
    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    EPOCHS = 50
    BATCH_SIZE = 32
    ACCUMULATION_STEPS = 1
    LEARNING_RATE = 1e-4
    WEIGHT_DECAY = 1e-5
    LR_SCHEDULER = "CosineAnnealingLR"
    LR_SCHEDULER_PARAMS = {"T_max": EPOCHS, "eta_min": 1e-6} if LR_SCHEDULER == "CosineAnnealingLR" else \\
                          {"step_size": 10, "gamma": 0.1} if LR_SCHEDULER == "StepLR" else {}
    OPTIMIZER = "AdamW"
    LOSS_FN = "BCEWithLogitsLoss"
    LOSS_FN_PARAMS = {}
    ENABLE_SDP_ATTENTION = True
    SAVE_BEST_ONLY = True
    SAVE_INTERVAL = 1
    INFERENCE_THRESHOLD = 0.35

    def __init__(self):
        os.makedirs(self.OUTPUT_DIR, exist_ok=True)
'''
CLASSES = dict(original_base=('BaseConfig', ''),
    original_swin=('Swin', 'IMAGE_SIZE = 384; FILTER_TAG_COUNT_THRESHOLD = 10; MODEL_NAME = "swin_large_patch4_window12_384"; DROP_RATE = 0.0; DROP_PATH_RATE = 0.2; BATCH_SIZE = 16; '
                   'ACCUMULATION_STEPS = 2; LEARNING_RATE = 5e-5; WEIGHT_DECAY = 0.05; LOSS_FN = "AsymmetricLoss"; LOSS_FN_PARAMS = {"gamma_pos": 1, "gamma_neg": 4, "clip": 0.05}'),
    original_eva02_l_336=('Eva', 'IMAGE_SIZE = 336; NORM_MEAN = [0.48145466, 0.4578275, 0.40821073]; NORM_STD = [0.26862954, 0.26130258, 0.27577711]; FILTER_TAG_COUNT_THRESHOLD = 20; '
                          'MODEL_NAME = "eva02_large_patch14_clip_336.merged2b"; DROP_RATE = 0.0; BATCH_SIZE = 4; ACCUMULATION_STEPS = 8; LEARNING_RATE = 1e-5; WEIGHT_DECAY = 0.05; EPOCHS = 20; '
                          'LR_SCHEDULER_PARAMS = {"T_max": EPOCHS, "eta_min": 1e-7}; LOSS_FN = "AsymmetricLoss"; LOSS_FN_PARAMS = {"gamma_pos": 1, "gamma_neg": 4, "clip": 0.05}'))

@pytest.fixture
def write(tmp_path):
    (tmp_path/'configs').mkdir()
    (tmp_path/'configs/base_config.py').write_text(BASE, encoding='utf-8')
    def f(body, name='C'):
        p = tmp_path/'configs/mine.py'
        p.write_text(f'from .base_config import BaseConfig\nclass {name}(BaseConfig):\n' + ''.join(f'    {l.strip()}\n' for l in (body or 'pass').split(';')), encoding='utf-8')
        return p
    return f

def settings(p, name='C', **kw):
    m = migrate_config(p, name, **kw)
    return m, check(load(TimmConfig, m.config))

# --- configuration classes -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('preset', CLASSES)
def test_the_classes_of_timm_cv_are_its_presets(preset, write):
    name, body = CLASSES[preset]
    p = write(body, name)
    m, cfg = settings(p if body else p.with_name('base_config.py'), name)
    odd = differences(load(TimmConfig, read_yaml(preset)), cfg)
    root = p.parent.parent
    assert {k: v[1] for k, v in odd.items() if k != 'name'} == {'out': f'{root}/trained_models/', 'data.images': f'{root}/data/images/', 'vocab.csv': f'{root}/data/selected_tags.csv'}
    assert m.status == 0 and m.notes == []
    assert not list(root.glob('trained_models'))     # nothing of the file has run

# setting -> (value in the class, what it becomes); each row of the table once
ROWS = dict(IMAGE_DIR=('"pics"', {'data.images': 'pics'}), SELECTED_TAGS_CSV=('"t.csv"', {'vocab.csv': 't.csv'}), OUTPUT_DIR=('"o"', {'out': 'o'}), LOG_DIR=('"l"', {}),
    IMAGE_EXTENSIONS=('[".bmp"]', {}), TAG_SEPARATOR_IN_TXT=("'|'", {'data.sep': '|'}), IMAGE_SIZE=('64', {'preprocess.size': 64}), NORM_MEAN=('(.1, .2, .3)', {'preprocess.mean': [.1, .2, .3]}),
    NORM_STD=('[.1, .2, .3]', {'preprocess.std': [.1, .2, .3]}), FILTER_TAG_COUNT_THRESHOLD=('None', {'vocab.min_count': 0}), ENABLE_STRATIFIED_SPLIT=('False', {'split.method': 'random'}),
    VALIDATION_SPLIT_RATIO=('0.1', {'split.val': .1}), MODEL_NAME=('"resnet18"', {'model.name': 'resnet18'}), PRETRAINED=('False', {'model.pretrained': False}), DROP_RATE=('0', {'model.drop_rate': 0}),
    DROP_PATH_RATE=('.3', {'model.drop_path_rate': .3}), DEVICE=('"cpu"', {'device': 'cpu'}), EPOCHS=('7', {'epochs': 7}), BATCH_SIZE=('2*4', {'batch_size': 8}), ACCUMULATION_STEPS=('3', {'accumulate': 3}),
    LEARNING_RATE=('1e-3/2', {'optim.lr': 5e-4}), WEIGHT_DECAY=('0', {'optim.weight_decay': 0}), LR_SCHEDULER=('None', {'optim.scheduler': 'constant', 'optim.min_lr': None}),
    LR_SCHEDULER_PARAMS=('{"eta_min": 1e-7}', {'optim.min_lr': 1e-7}), OPTIMIZER=('"SGD"', {'optim.name': 'momentum'}), LOSS_FN=('"AsymmetricLoss"', {'loss.name': 'asl', 'loss.gamma_pos': 1}),
    LOSS_FN_PARAMS=('{"gamma_neg": 9}', {}), ENABLE_SDP_ATTENTION=('False', {}), SAVE_BEST_ONLY=('False', {'keep_every': 1}), SAVE_INTERVAL=('4', {}), INFERENCE_THRESHOLD=('.5', {'infer.threshold': .5}),
    NUM_CLASSES=('9', {}), PROJECT_ROOT=('"x"', {}), DATA_DIR=('"x"', {}))

@pytest.mark.parametrize('key', KEYS)
def test_every_row_of_the_table(key, write):
    _, plain = settings(write('pass'))
    m, cfg = settings(write(f'{key} = {ROWS[key][0]}'))
    got = {k: v[1] for k, v in differences(plain, cfg).items()}
    want = ROWS[key][1]
    more = {'LR_SCHEDULER', 'LOSS_FN'} & {key}          # these come with parameters
    assert (want.items() <= got.items() if more else want == got) and m.status == 0
    if KEYS[key].to is None: assert key in dict(m.dropped)

def test_the_table_is_whole():
    t = config_table()
    assert set(ROWS) == set(KEYS) == set(t.setting) and (t['what changed'][t.ours == ''] != '').all()

@pytest.mark.parametrize('body, want', [
    ('LR_SCHEDULER = "StepLR"; LR_SCHEDULER_PARAMS = {"step_size": 4, "gamma": .5}', {'optim.scheduler': 'step', 'optim.step_epochs': 4, 'optim.gamma': .5, 'optim.min_lr': None}),
    ('LR_SCHEDULER = "ReduceLROnPlateau"; LR_SCHEDULER_PARAMS = {"factor": .2, "patience": 3}', {'optim.scheduler': 'plateau', 'optim.factor': .2, 'optim.patience': 3, 'optim.min_lr': None}),
    ('LOSS_FN = "AsymmetricLoss"; LOSS_FN_PARAMS = {"gamma_pos": 0, "clip": 0, "disable_torch_grad_focal_loss": False}', {'loss.name': 'asl', 'loss.clip': 0, 'loss.detach_focus': False}),
    ('LOSS_FN = "WeightedBCEWithLogitsLoss"; LOSS_FN_PARAMS = {"pos_weight": [1.5, 2]}', {'loss.pos_weight': [1.5, 2]}),
    ('SAVE_BEST_ONLY = False; SAVE_INTERVAL = 5', {'keep_every': 5}), ('DEVICE = "cuda:1"', {'device': 'cuda:1'})])
def test_losses_schedules_and_what_goes_together(body, want, write):
    (_, plain), (m, cfg) = settings(write('pass')), settings(write(body))
    assert {k: v[1] for k, v in differences(plain, cfg).items()} == want and m.status == 0

def test_an_inherited_t_max_is_said(write):
    assert settings(write('EPOCHS = 20'))[0].notes == ['T_max 50 is not EPOCHS 20: the cosine ends with the run, after 20 epochs (there it had not come to its end)']
    assert 'rose again' in settings(write('EPOCHS = 80'))[0].notes[0] and settings(write('EPOCHS = 80; LR_SCHEDULER = None'))[0].notes[0].startswith('LR_SCHEDULER_PARAMS: ')

def test_recommended_prints_each_change(write):
    p = write('LOSS_FN = "AsymmetricLoss"; EPOCHS = 9; LEARNING_RATE = 3e-4')
    (_, kept), (m, cfg) = settings(p), settings(p, recommend=True)
    changed = differences(kept, cfg)
    assert len(changed) == sum(n.startswith('recommended: ') for n in m.notes) and all(any(f': {k}: ' in n for n in m.notes) for k in changed)
    assert (cfg.preprocess.mode, cfg.loss.name, cfg.optim.warmup, cfg.eval.select, cfg.split.test) == ('pad', 'bce', .05, 'map_macro', .1) and (cfg.epochs, cfg.optim.lr, cfg.preprocess.size) == (9, 3e-4, 224)

UNKNOWN = ['os.environ["X"]', 'open("x").read()', '[i for i in range(3)]', 'f"{EPOCHS}"', 'EPOCHS if torch.cuda.is_available() else 1', 'len([1])', '2**99999999', '(lambda: 3)()', 'BaseConfig().EPOCHS', '__import__("os").getcwd()']

@pytest.mark.parametrize('text', UNKNOWN)
def test_what_is_not_evaluated_is_named_with_its_source(text, write):
    m, cfg = settings(write(f'EPOCHS = 3; BATCH_SIZE = {text}'))
    assert m.status == 1 and m.unknown == dict(BATCH_SIZE=(text, 'mine.py', 4)) and cfg.epochs == 3
    assert str(m).splitlines()[-1] == f'# NOT MIGRATED BATCH_SIZE: {text} (mine.py, line 4)'

@examples(max_examples=15)
@given(st.recursive(st.one_of(st.integers(-9, 9), st.floats(-9, 9), st.text('ab', max_size=3), st.booleans(), st.none()), lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.text('ab', max_size=2), x, max_size=3)), max_leaves=8))
def test_constants_are_kept(tmp_path_factory, x):
    p = tmp_path_factory.mktemp('c')/'c.py'
    p.write_text(f'class C:\n    X = {x!r}\n', encoding='utf-8')
    assert read_class(p, 'C').values['X'] == x

def test_names_inherit_as_in_python(write):
    p = write('A = BaseConfig.EPOCHS + 1; B = A*2; EPOCHS = 5; WHERE = os.path.dirname(__file__); D = "gpu" if B > 100 and not False else "none"')
    p.write_text('import os\n' + p.read_text())
    got = read_class(p, 'C').values
    assert (got['A'], got['B'], got['LR_SCHEDULER_PARAMS']['T_max'], got['D'], got['DEVICE']) == (51, 102, 50, 'gpu', AUTO) and got['WHERE'] == str(p.parent)
    assert 'X' in read_class(write('X = EPOCHS'), 'C').unknown         # a bare name of the base class is none in Python either

# (a file, attributes of its class C that are known, those that are named as unknown)
SAME = [
    ('class C:\n    A, B = 1, 2\n    A, B = B, A', {'A': 2, 'B': 1}, ''),
    ('N = 1\nN += 4\nclass C:\n    EPOCHS = N', {}, 'EPOCHS'),
    ('if True: N = 5\nclass C: EPOCHS = N', {}, 'EPOCHS'),
    ('N = 1\nfor N in (4, 5): pass\nclass C: EPOCHS = N', {}, 'EPOCHS'),
    ('N = 1\nclass C:\n    N = int("7")\n    EPOCHS = N', {}, 'N EPOCHS'),
    ('class C:\n    EPOCHS = 1\n    B = 2\n    def __init__(self): self.EPOCHS, self.B = 5, 6', {}, 'EPOCHS B'),
    ('class B: EPOCHS = 50\nclass C(B):\n    @property\n    def EPOCHS(self): return 7', {}, 'EPOCHS'),
    ('class B:\n    EPOCHS = 1\n    def __init__(self): self.EPOCHS = 5\nclass C(B): EPOCHS = 3', {}, 'EPOCHS'),
    ('class C:\n    EPOCHS = 1\n    X = 2\n    del EPOCHS', {'X': 2}, 'EPOCHS'),
    ('class A: X = 1\nclass B(A): pass\nclass D(A): X = 2\nclass C(B, D): pass', {'X': 2}, ''),
    ('N = 1\nclass C: EPOCHS = N\nN = 2', {'EPOCHS': 1}, ''),
    ('P = {"a": 1}\nclass C: LOSS = P\nP["a"] = 2', {}, 'LOSS'),
    ('class C: EPOCHS = 1\nC.EPOCHS = 9', {}, 'EPOCHS'),
    ('class C:\n    EPOCHS = 3\n    EPOCHS = EPOCHS*2', {'EPOCHS': 6}, ''),
    ('class C:\n    P = {"a": 1}\n    Q = P\n    R = [P]\n    Q["a"] = 2', {}, 'P Q R'),
    ('class C:\n    P = {"a": 1}\n    P.update(a=2)', {}, 'P'),
    ('L = [1]\nM = L\nL += [2]\nclass C: X = M', {}, 'X'),
    ('class C: P = [1]\nC.P.append(2)\nclass D(C): pass', {}, 'P'),
    ('class B:\n    P = {"a": 1}\n    def setup(self): pass\n    def __init__(self): self.setup()\nclass C(B):\n    N = 1\n    def setup(self): self.N = 2; self.P["a"] = 3', {}, 'N P'),
    ('class C:\n    N = 1\n    def __init__(self, **kw):\n        for k, v in dict(N=2).items(): setattr(self, k, v)', {'N': 1}, '*'),
    ('class C: N = 1\nsetattr(C, "N", 4)', {}, 'N'),
    ('class C:\n    N = 1\n    locals()["N"] = 2', {'N': 1}, '*'),
    ('class C: N = 1\nclass C(C): M = 2\n', {'N': 1, 'M': 2}, ''),
    ('class A: X = 1\nclass C(A): pass\nclass A: X = 2', {'X': 1}, ''),
    ('def f():\n    global N\n    N = 4\nN = 1\nf()\nclass C: X = N', {}, 'X'),
    ('class C:\n    N = 1\n    def N(self): return 3', {}, 'N'),
    ('class B: N = 1\nclass C(B):\n    class N: pass', {}, 'N'),
    ('def deco(c): c.N = 5; return c\n@deco\nclass C: N = 1', {'N': 1}, '@deco'),
    ('class M(type):\n    def __new__(m, n, b, d): d["N"] = 4; return type.__new__(m, n, b, d)\nclass C(metaclass=M): N = 1', {'N': 1}, '@M'),
    ('N = 1\nfrom os import sep as N\nclass C: X = N', {}, 'X'),
    ('N = 1\nimport os as N\nclass C:\n    from os import sep as X\n    Y = 2', {'Y': 2}, 'X'),
    ('def change(p): p["a"] = 9\nP = {"a": 1}\nclass C: X = P\nchange(P)', {}, 'X'),
    ('def change(p): p["a"] = 9\nclass C: X = {"a": 1}\nY = change(C.X)', {}, 'X'),
    ('class C:\n    X = 1\n    for X in (2, 3): Y = X', {}, 'Y X'),
    ('class C:\n    X = 1\n    try: X = 1/0\n    except ZeroDivisionError: X = 2', {}, 'X'),
    ('class C:\n    X = 1\n    def __init__(self): type(self).X = 4', {}, 'X'),
    ('class C:\n    X = 1\n    def __init__(self): self.__dict__.update(X=4)', {'X': 1}, '*'),
    ('class C:\n    X = 1\n    def __init__(self): object.__setattr__(self, "X", 4)', {}, 'X'),
    ('from dataclasses import dataclass\n@dataclass\nclass C:\n    X: int = 1\n    def __post_init__(self): self.X += 1', {}, 'X'),
    ('class C:\n    X = Y = [1]\n    X += [2]', {}, 'X Y'),
    ('class C:\n    X, X = 1, len([1, 2])', {}, 'X'),
    ('class B: P = {"a": 1}\nclass C(B): B.P["a"] = 2', {}, 'P'),
    ('class B: E = 1\nclass C(B):\n    X = B.E + 1\n    B.E = 4', {}, 'E X'),
    ('X = 1\nclass C:\n    X = X + 1\n    with open(__import__("os").devnull) as F: pass\n    Y = X', {'X': 2, 'Y': 2}, 'F'),
    ('class C:\n    X: int\n    Y = 1', {'Y': 1}, ''),
    ('class C:\n    X = 1\n    (X := 2)', {}, 'X'),
    ('class C:\n    X = 1\n    Y = (X := 2)', {}, 'X Y'),
    ('class C:\n    X = 1\n    if __name__ == "__main__": X = 2\nX = 3\nif __name__ == "__main__": C.X = 9', {}, 'X'),
    ('class C:\n    A = [1]\n    B = A + [2]\n    A.append(3)\n    D = A + [4]', {'B': [1, 2]}, 'D A'),
    ('class A: X = 1\nclass B:\n    X = 3\n    def __init__(self): super().__init__(); self.Y = 1\nclass C(A, B): Y = 5', {'X': 1}, 'Y'),
    ('class C:\n    N = 1\n    match 3:\n        case N: pass', {}, 'N'),
    ('class C:\n    X = {"b": 2} | {"a": 1}\n    Y = 10 % 3\n    Z = -8 ** .5\n    W = (-8) ** .5', {'Z': -2.8284271247461903}, 'X Y W')]

@pytest.mark.parametrize('body, says', [('LR_SCHEDULER_PARAMS = [1, 2]', 'LR_SCHEDULER_PARAMS: [1, 2] is not dict or nothing'), ('LR_SCHEDULER_PARAMS = 3', 'LR_SCHEDULER_PARAMS: 3 is not dict'), ('LR_SCHEDULER_PARAMS = {"T_max": "50"}', "T_max: '50' is not int or float"),
    ('LOSS_FN_PARAMS = ("a",)', 'LOSS_FN_PARAMS: ('), ('LOSS_FN = "AsymmetricLoss"; LOSS_FN_PARAMS = {"clip": [1]}', 'loss.clip: expected float, got [1]'), ('ENABLE_STRATIFIED_SPLIT = "no"', "ENABLE_STRATIFIED_SPLIT: 'no' is not bool"), ('SAVE_BEST_ONLY = None', 'SAVE_BEST_ONLY: None is not bool'),
    ('INFERENCE_THRESHOLD = 2', 'INFERENCE_THRESHOLD: 2 is not between 0 and 1')])
def test_a_value_of_another_kind_is_one_line(body, says, write):
    status, _, err = base.shell('migrate', 'config', str(write(body)), '--class', 'C')
    assert status == 1 and says in err and err.count('\n') == 1, err

def test_what_has_no_effect_is_said(write):
    said = lambda body: settings(write(body))[0].notes
    assert said('LOSS_FN_PARAMS = {"pos_weight": [2]}') == ['LOSS_FN_PARAMS: pos_weight = [2] has no effect with BCEWithLogitsLoss']
    assert said('DEVICE = "mps"') == ['DEVICE: mps is neither cuda nor cpu: `device: auto` takes whatever is there'] and said('DEVICE = "cuda:1"') == said('DEVICE = 0') == []

@pytest.mark.parametrize('text, known, unknown', SAME)
def test_a_value_is_that_of_python_or_named_as_unknown(text, known, unknown, tmp_path):
    (tmp_path/'c.py').write_text(text)
    got, python = read_class(tmp_path/'c.py', 'C'), {'__name__': 'c'}
    assert got.values == known and list(got.unknown) == unknown.split() and all(line and file == 'c.py' for line, file, _ in got.unknown.values())
    exec(text, python)
    made = python['C']()
    truth = {k: getattr(made, k) for k in dir(made) if k.isupper() and not callable(getattr(made, k))}
    if any(k[0] in '*@' for k in got.unknown): return          # anything may have been set, which is what that says
    assert truth.items() >= got.values.items() and truth.keys() <= got.values.keys() | got.unknown.keys()

def test_the_verb(write, tmp_path):
    p = write('EPOCHS = 3; BATCH_SIZE = int("4")')
    status, out, _ = base.shell('migrate', 'config', str(p), '--class', 'C', '--out', str(tmp_path/'run.yaml'), '--json')
    assert status == 1 and json.loads(out)['not_migrated'] == dict(BATCH_SIZE=['int("4")', 'mine.py', 4])
    assert load(TimmConfig, str(tmp_path/'run.yaml')).epochs == 3 and load(TimmConfig, str(tmp_path/'run.yaml')).name == 'run'
    for args, says in (((str(p), '--class', 'D'), "no class D; classes in it: C"), ((str(p.with_name('x.py')), '--class', 'C'), 'x.py: cannot read')):
        assert base.shell('migrate', 'config', *args)[0] == 1 and says in base.shell('migrate', 'config', *args)[2]
    p.write_text('from .gone import B\nclass C(B): pass\n')
    status, _, err = base.shell('migrate', 'config', str(p), '--class', 'C')
    assert status == 1 and re.search(r'no class B \(looked for .*gone\.py\); classes in it: C', err)

# --- checkpoints -----------------------------------------------------------------------------------------------------
NAMES = ['zebra', 'general', 'miku', 'apple', 'explicit', 'touhou']     # in the order of the head's rows, not of categories
CATEGORY = dict(general=9, explicit=9, miku=4, touhou=3)

@pytest.fixture(scope='module')
def old(tmp_path_factory):
    "What two steps of timm-cv leave, stated once more with plain torch and timm, and its pictures"
    d = tmp_path_factory.mktemp('old')
    (d/'images').mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        w, h = [(64, 64), (90, 50), (50, 90), (200, 130)][i % 4]
        im = Image.fromarray(rng.integers(0, 256, (h//5, w//5, 3), np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
        im.save(d/f'images/{i:02}.{"jpg" if i % 3 else "png"}')
        (d/f'images/{i:02}.txt').write_text(','.join(NAMES[j] for j in range(6) if (i + j) % 3 == 0))
    Vocab(NAMES, [CATEGORY.get(n, 0) for n in NAMES], [9]*6).write(d/'tags.csv')
    made = {}
    for kind in ('AdamW', 'SGD'):
        torch.manual_seed(0)
        net = timm.create_model('test_convnext3.r160_in1k', num_classes=6, drop_rate=.1, drop_path_rate=.1)
        opt = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-5) if kind == 'AdamW' else torch.optim.SGD(net.parameters(), lr=1e-3, momentum=.9, weight_decay=1e-5)
        for _ in range(2):
            opt.zero_grad(); net(torch.randn(2, 3, 64, 64)).square().sum().backward(); opt.step()
        config = dict(MODEL_NAME='test_convnext3.r160_in1k', IMAGE_SIZE=64, NORM_MEAN=[.48, .45, .40], NORM_STD=[.22, .23, .24], DROP_RATE=.1, DROP_PATH_RATE=.1, PRETRAINED=False, EPOCHS=3, BATCH_SIZE=4,
                      ACCUMULATION_STEPS=2, LEARNING_RATE=1e-3, WEIGHT_DECAY=1e-5, OPTIMIZER=kind, LR_SCHEDULER='CosineAnnealingLR', LR_SCHEDULER_PARAMS=dict(T_max=3, eta_min=1e-6), LOSS_FN='AsymmetricLoss',
                      LOSS_FN_PARAMS=dict(gamma_pos=1, gamma_neg=4, clip=.05), INFERENCE_THRESHOLD=.4, DEVICE=0, NUM_CLASSES=6, IMAGE_DIR=str(d/'images'), SELECTED_TAGS_CSV=str(d/'tags.csv'),
                      OUTPUT_DIR='/data/out/', TAG_SEPARATOR_IN_TXT=',', FILTER_TAG_COUNT_THRESHOLD=50, SAVE_BEST_ONLY=True, SAVE_INTERVAL=1, ENABLE_SDP_ATTENTION=True)
        torch.save(dict(epoch=1, model_state_dict={f'module.{k}': v for k, v in net.state_dict().items()}, optimizer_state_dict=opt.state_dict(), scheduler_state_dict={}, tags_list=NAMES,
                        tag_to_idx={n: i for i, n in enumerate(NAMES)}, config_dict=config), d/f'{kind}_last.pth.tar')
        made[kind] = net.eval(), opt
    return d, made, config

def test_a_migrated_checkpoint_gives_the_scores_of_timm_cv(old, tmp_path):
    d, made, c = old
    assert base.shell('migrate', 'timm', str(d/'AdamW_last.pth.tar'), '--tags', str(d/'tags.csv'), '--out', str(tmp_path/'m'))[0] == 0
    m, pictures = load_timm(tmp_path/'m'), sorted(p for p in (d/'images').iterdir() if p.suffix != '.txt')
    assert m.vocab.names == ['general', 'explicit', 'zebra', 'apple', 'miku', 'touhou'] and m.vocab.categories.tolist() == [9, 9, 0, 0, 4, 3]
    theirs = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor(), transforms.Normalize(c['NORM_MEAN'], c['NORM_STD'])])
    with torch.no_grad():
        want = made['AdamW'][0](torch.stack([theirs(Image.open(p).convert('RGB')) for p in pictures])).sigmoid()[:, [NAMES.index(n) for n in m.vocab.names]]
        got = m.net(m.square.normalize(m.square.load(pictures).images)).sigmoid()
    assert (want - got).abs().max() < 1e-5 and want.std(0).min() > 1e-3       # the pictures differ for it
    assert set(m.cut()) == {np.float32(.4)} and m.meta['preprocess']['mode'] == 'squash' and m.meta['architecture']['name'] == c['MODEL_NAME']
    by_timm = timm.create_model(f'local-dir:{tmp_path/"m"}', pretrained=True).eval()
    with torch.no_grad(): assert (by_timm(torch.ones(1, 3, 64, 64)) - m.net(torch.ones(1, 3, 64, 64))).abs().max() < 1e-6

@pytest.mark.parametrize('kind', ['AdamW', 'SGD'])
def test_a_migrated_run_goes_on(old, tmp_path, kind):
    d, made, c = old
    status, out, err = base.shell('migrate', 'timm', str(d/f'{kind}_last.pth.tar'), '--tags', str(d/'tags.csv'), '--to-run', str(tmp_path/'r'), '--json')
    assert status == 0, err
    got, ck, (net, opt) = json.loads(out), RunFolder(tmp_path/'r').latest(), made[kind]
    assert got['moments'] and (ck.state['epoch'], ck.state['batch'], got['epochs']) == (1, 0, 3)
    names, state, rows = [n for n, _ in net.named_parameters()], opt.state_dict()['state'], [NAMES.index(n) for n in ('general', 'explicit', 'zebra', 'apple', 'miku', 'touhou')]
    kept = ck.tree('optim_net')
    assert kept['sizes'] == [len(names)]
    for i, n in enumerate(names):
        for k, v in state[i].items():
            if torch.is_tensor(v) and v.ndim: assert torch.equal(kept['state'][i][k], v[rows] if n.startswith('head.fc') else v), (n, k)
            elif torch.is_tensor(v): assert kept['state'][i][k] == v
    assert load_timm(tmp_path/'r/best').vocab.names[0] == 'general'
    if kind == 'SGD': assert read_yaml(tmp_path/'r/config.yaml')['optim']['name'] == 'momentum'; return
    status, out, err = base.shell('train', 'timm', '--resume', str(tmp_path/'r'), '--device', 'cpu', '--json')
    assert status == 0, err
    log = [json.loads(l) for l in (tmp_path/'r/log.jsonl').read_text().splitlines()]
    assert {r['epoch'] for r in log if 'epoch' in r} == {2, 3} and json.loads((tmp_path/'r/done.json').read_text())['epochs'] == 3
    assert load_timm(tmp_path/'r/best').meta['metrics']

def test_what_does_not_fit_is_said(old, tmp_path):
    d, made, c = old
    ck = torch.load(d/'AdamW_last.pth.tar', weights_only=True)
    def save(name, **changed): torch.save({k: v for k, v in (ck | changed).items() if v is not None}, tmp_path/name); return str(tmp_path/name)
    ck['config_dict']['EPOCH'] = 3
    short = dict(ck['optimizer_state_dict'], param_groups=[dict(ck['optimizer_state_dict']['param_groups'][0], params=[0, 1])])
    status, out, err = base.shell('migrate', 'timm', save('a.pth.tar', optimizer_state_dict=short), '--to-run', str(tmp_path/'r'), '--json')
    assert status == 0 and 'the optimiser starts afresh: it is of 2 parameters' in err and not json.loads(out)['moments']
    assert "EPOCH: no setting of timm-cv (3). Did you mean 'EPOCHS'?" in err and 'may have been trained on' in err
    ck['optimizer_state_dict'] = None                                          # is not needed below
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'executed'),)
    for path, says in ((save('b.pth.tar', tags_list=None), 'lacks tags_list; found: epoch, model_state_dict'), (save('c.pth.tar', tags_list=NAMES[:5]), 'has 6 rows, its tags_list 5 tags'),
                       (save('d.pth.tar', config_dict=dict(c, MODEL_NAME='resnet1')), "'resnet1' is no model that timm"), (save('e.pth.tar', x=Evil()), '--trust'),
                       (save('f.pth.tar', config_dict=dict(c, MODEL_NAME='test_vit.r160_in1k', IMAGE_SIZE=None)), 'of another architecture'), (str(tmp_path/'none'), 'none: cannot read: No such file or directory'),
                       (save('h.pth.tar', model_state_dict=[1]), 'model_state_dict is a list'), (save('i.pth.tar', model_state_dict=dict(a=1)), 'model_state_dict: a is a int'), (save('j.pth.tar', tags_list='abc'), 'tags_list is a str'), (save('k.pth.tar', epoch='1'), 'epoch is a str'),
                       *((save(f'l{n}.pth.tar', config_dict=c | {k: v}), f'its config_dict: {k}: {v!r} is not') for n, (k, v) in enumerate([('IMAGE_SIZE', [64, 64]), ('NORM_MEAN', .5), ('NORM_STD', [.5]), ('INFERENCE_THRESHOLD', None), ('INFERENCE_THRESHOLD', 2), ('DROP_RATE', '.1')]))):
        status, _, err = base.shell('migrate', 'timm', path, '--out', str(tmp_path/'m'))
        assert status == 1 and says in err and err.count('\n') == 1, err
    assert not (tmp_path/'m').exists() and not (tmp_path/'executed').exists()
    status, _, err = base.shell('migrate', 'timm', save('g.pth.tar', config_dict=dict(c, IMAGE_DIR='/gone')), '--to-run', str(tmp_path/'q'))
    assert status == 1 and '--images DIR' in err and not (tmp_path/'q').exists()
    (tmp_path/'file').write_text('mine')
    status, _, err = base.shell('migrate', 'timm', save('m.pth.tar'), '--to-run', str(tmp_path/'file'))
    assert status == 1 and 'file: is a file, which would be lost' in err and err.count('vaetag:') == 1 and (tmp_path/'file').read_text() == 'mine', err

def test_thresholds_of_the_sibling_project(old, tmp_path):
    d, _, _ = old
    (tmp_path/'threshold.json').write_text('{"general_threshold": 0.4, "character_threshold": 0.8, "artist_threshold": 0.7, "caption_threshold": 0.4, "tags_threshold": 0.45}')
    assert base.shell('migrate', 'timm', str(d/'AdamW_last.pth.tar'), '--tags', str(d/'tags.csv'), '--thresholds', str(tmp_path/'threshold.json'), '--out', str(tmp_path/'m'))[0] == 0
    m = load_timm(tmp_path/'m')
    assert dict(zip(m.vocab.names, m.cut().tolist())) == pytest.approx(dict(general=.45, explicit=.45, zebra=.4, apple=.4, miku=.8, touhou=.45))

# --- commands --------------------------------------------------------------------------------------------------------
COMMANDS = [c for c in ('python train.py --config_name F.py --config_class_name C --run_name N', 'python train.py --resume_checkpoint trained_models/X_last.pth.tar', 'python train.py --finetune_checkpoint X.pth.tar --run_name N',
    'python train.py --device cpu --gpu_ids 0,1 --dist_url tcp://127.0.0.1:1', 'python inference.py --checkpoint_path X.pth.tar --input_path P --threshold 0.3 --device cpu', 'echo 1-500 | python data_prepare.py', 'python data_prepare.py',
    'python generate_csv.py 1-500', 'python filter_csv.py --n 3000 --min_count_value 200 --selected_categories "[0, 4]"', 'python analyze_dataset.py', 'python get_modelnames.py')]

class Parsed(Exception): pass
WithResume = dataclasses.make_dataclass('WithResume', [('resume', str | None, None)], bases=(TimmConfig,))

@pytest.mark.parametrize('text', COMMANDS)
def test_every_command_is_ours(text, monkeypatch):
    "Each command is parsed by our parser up to the point where work would begin"
    status, out, err = base.shell('migrate', 'command', text, '--json')
    assert status == 0, err
    got = json.loads(out)
    assert got['notes'][0].endswith('.py: a script of timm-cv')
    def stop(*a, **k): raise Parsed(base.parse(*a, **k))
    for n, m in sys.modules.items():
        if n.startswith('vaetag_nb.verbs.') and m is not base and hasattr(m, 'parse'): monkeypatch.setattr(m, 'parse', stop)
    for c in map(shlex.split, got['commands']):
        words, rest = base.find_verb(c[c.index('vaetag_nb.cli') + 1:] if c[0] == 'torchrun' else c[1:])
        if words == 'train timm': base.parse(WithResume, [a for a in rest if not a.endswith('.yaml')], words); continue
        f = base.VERBS[words]
        if isinstance(f, type): base.parse(f, rest, words); continue
        with pytest.raises(Parsed): f(rest)

def test_every_flag_of_timm_cv_is_in_a_command_that_runs():
    said = {(n, k) for n, s in TIMM_SCRIPTS.items() for k in s.flags if any(n in c and (f'--{k}' in c or k in s.positional and '1-500' in c) for c in COMMANDS)}
    assert said == {(n, k) for n, s in TIMM_SCRIPTS.items() for k in s.flags} and all(any(n in c for c in COMMANDS) for n in TIMM_SCRIPTS)
    assert not TIMM_SCRIPTS.keys() & SCRIPTS.keys() and len(timm_table()) == sum(len(s.flags) + 1 for s in TIMM_SCRIPTS.values())
    assert is_timm('python train.py') and not is_timm('python train_full.py --json_path train.py.json')
