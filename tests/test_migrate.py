"""What VAE-Tagger left: its heads give the same logits, its folders are models, its commands parse with our parser, its pickles run nothing."""
import importlib, json, os, re, shlex, sys
import pytest, torch, torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from vaetag_nb.core import config
from vaetag_nb.core.errors import UsageError
from vaetag_nb.core.io import write_json
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.data.tags import Vocab
from vaetag_nb.infer import Tagger
from vaetag_nb.latents.codec import Codec
from vaetag_nb.migrate_command import SCRIPTS, mapping, migrate_command
from vaetag_nb.models.classic import hash_tensor, hash_weights
from vaetag_nb.models.original import read_head
from vaetag_nb.verbs import base

importlib.import_module('vaetag_nb.cli')   # registers the verbs

# the heads, stated once more from the contract alone

class Gate(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.channel_att = nn.Sequential(nn.Conv2d(c, c//8, 1, bias=False), nn.ReLU(), nn.Conv2d(c//8, c, 1, bias=False))
        self.spatial_att = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.Sigmoid())
    def forward(self, x):
        x = x*torch.sigmoid(self.channel_att(F.adaptive_avg_pool2d(x, 1)) + self.channel_att(F.adaptive_max_pool2d(x, 1)))
        return x*self.spatial_att(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1))

class Attend(nn.Module):
    "Queries over keys by matrix products, without torch's fused kernel"
    def __init__(self, q, k, d, heads, norm=False):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.heads = nn.Linear(q, d), nn.Linear(k, d), nn.Linear(k, d), nn.Linear(d, q), heads
        if norm: self.norm = nn.LayerNorm(q)
    def forward(self, q, kv):
        split = lambda x: x.reshape(len(x), x.shape[1], self.heads, -1).permute(0, 2, 1, 3)
        Q, K, V = split(self.q_proj(q)), split(self.k_proj(kv)), split(self.v_proj(kv))
        w = torch.softmax(Q @ K.transpose(-1, -2)/Q.shape[-1]**.5, -1)
        return self.out_proj((w @ V).permute(0, 2, 1, 3).reshape(len(q), q.shape[1], -1))

class OldAttention(nn.Module):
    def __init__(self, C, K, spatial=True, self_attention=True, cross=False, heads=8):
        super().__init__()
        c = C//2
        if spatial: self.spatial_attention = Gate(C)
        self.feature_compress = nn.Sequential(nn.Conv2d(C, c, 3, 1, 1), nn.BatchNorm2d(c), nn.ReLU(), nn.AdaptiveAvgPool2d(8))
        if self_attention: self.self_attention_post = Attend(c, c, c, heads, norm=True)
        if cross: self.cross_attention, self.query_generator = Attend(512, c, 256, heads), nn.Linear(64*c, 512)
        layers = []
        for a, b, p in ((64*c, 1024, .3), (1024, 512, .2), (512, 256, .1)): layers += [nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU(), nn.Dropout(p)]
        self.classifier = nn.Sequential(*layers, nn.Linear(256, K))
    def forward(self, x):
        if hasattr(self, 'spatial_attention'): x = self.spatial_attention(x)
        x = self.feature_compress(x)
        if hasattr(self, 'self_attention_post'):
            t, m = x.flatten(2).transpose(1, 2), self.self_attention_post
            x = (t + m(m.norm(t), m.norm(t))).transpose(1, 2).reshape(x.shape)
        flat = x.reshape(len(x), -1)
        if hasattr(self, 'cross_attention'):
            q = self.query_generator(flat)
            flat = flat + (self.cross_attention(q[:, None], x.flatten(2).transpose(1, 2))[:, 0] + q).mean(1, keepdim=True)
        return self.classifier(flat)

class OldPlain(nn.Module):
    def __init__(self, width, K, pool=True):
        super().__init__()
        self.pool = pool
        self.classifier = nn.Sequential(nn.Linear(width, 512), nn.LayerNorm(512), nn.LeakyReLU(.2), nn.Dropout(.3),
                                        nn.Linear(512, 256), nn.LayerNorm(256), nn.LeakyReLU(.2), nn.Dropout(.2), nn.Linear(256, K))
    def forward(self, z): return self.classifier((F.adaptive_avg_pool2d(z, 4) if self.pool else z).reshape(len(z), -1))

OLD = dict(plain=OldPlain(256, 3), flat=OldPlain(16*64, 3, pool=False), attention=OldAttention(16, 3), heads=OldAttention(16, 3, heads=2), cross=OldAttention(16, 3, cross=True),
           bare=OldAttention(16, 3, False, False), gate=OldAttention(16, 3, True, False), all=OldAttention(16, 3, cross=True, heads=4))
WAYS = dict(bin=lambda sd, p: torch.save(sd, p/'h.bin'), box=lambda sd, p: torch.save(dict(model=dict(state_dict={f'module.{k}': v for k, v in sd.items()})), p/'h.bin'),
            safetensors=lambda sd, p: save_file(sd, p/'h.safetensors'))

@torch.no_grad()
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', OLD)
def test_logits_of_old_heads(name, way, tmp_path):
    old = hash_weights(OLD[name]).eval()
    WAYS[way](old.state_dict(), tmp_path)
    z = 4*hash_tensor(999, 2, 16, 8, 8 if name == 'flat' else 10)
    new = read_head(next(tmp_path.iterdir()), 16, attention_heads=dict(heads=2, all=4).get(name, 8))
    assert (new(z) - old(z)).abs().max() < 1e-5
    assert new.spec()['kind'] == ('plain' if name in ('plain', 'flat') else 'attention')

@torch.no_grad()
def test_plain_parity_after_migration(tmp_path):
    torch.save(hash_weights(OldPlain(256, 3)).state_dict(), tmp_path/'pytorch_model.bin')
    got = read_head(tmp_path/'pytorch_model.bin')(4*hash_tensor(999, 1, 16, 8, 10))
    assert (got - torch.tensor([[1.904135, 2.069748, -.857046]])).abs().max() < 1e-4

# whole folders and the command line

@pytest.fixture(scope='module')
def old(tmp_path_factory):
    "What `train_full.py` left, with the tags beside it"
    d = tmp_path_factory.mktemp('old')
    made, codec = make_scenes(d/'scenes', 6, resolution=64), Codec.embedded()
    (d/'full/best_decoder').mkdir(parents=True)
    codec.save(d/'full/best_vae')
    torch.save(hash_weights(OldAttention(8, made['tags'], heads=4)).state_dict(), d/'full/best_decoder/pytorch_model.bin')
    (d/'full/tags.csv').write_bytes((d/'scenes/tags.csv').read_bytes())
    return d

HOW = ('--attention-heads', '4', '--resolution', '64', '--threshold', '0.5')

def results(folder): return {os.path.basename(k): v for k, v in json.loads((folder/'classification_results.json').read_text(encoding='utf-8')).items()}

def test_three_ways_to_one_result(old, tmp_path):
    images, head = str(old/'scenes/images'), old/'full/best_decoder/pytorch_model.bin'
    ways = dict(folder=['--model', str(old/'full'), *HOW],
                parts=['--vae', str(old/'full/best_vae'), '--decoder', str(head), '--tags', str(old/'scenes/tags.csv'), *HOW])
    for n, w in ways.items(): assert base.shell('tag', images, *w, '--out', str(tmp_path/n))[0] == 0
    status, out, _ = base.shell('migrate', 'head', str(head), '--attention-heads', '4', '--resolution', '64', '--copy-vae', '--out', str(tmp_path/'m'), '--json')
    assert status == 0 and json.loads(out)['convention'] == 'z * 0.370058 + 0.201607' and json.loads(out)['fit'] == 'squash'
    assert base.shell('tag', images, '--model', str(tmp_path/'m'), '--threshold', '0.5', '--out', str(tmp_path/'migrated'))[0] == 0
    assert results(tmp_path/'folder') == results(tmp_path/'parts') == results(tmp_path/'migrated')
    assert len(results(tmp_path/'folder')) == 6

def test_latent_vectors_json(old, tmp_path):
    tagger = Tagger.load(old/'full', attention_heads=4, resolution=64, device='cpu')
    file = sorted((old/'scenes/images').iterdir())[0]
    z = tagger.latents(file)
    write_json(tmp_path/'latent_vectors.json', {'a.png': z.flatten().tolist()})
    args = ['tag', '--from-latents', str(tmp_path/'latent_vectors.json'), '--model', str(old/'full'), *HOW[:4]]
    status, out, _ = base.shell(*args, '--space', 'scale_shift', '--latent-shape', ','.join(map(str, z.shape[1:])), '--json')
    got = {t['tag']: t['score'] for t in json.loads(out)['images'][0]['tags']}
    want = {t: float(s) for t, s in zip(tagger.vocab, tagger.tag(file).scores)}
    assert status == 0 and got and all(abs(want[t] - s) < 1e-4 for t, s in got.items())
    assert base.shell(*args, '--space', 'scale_shift')[0] == 2
    assert base.shell(*args, '--space', 'scale_shift', '--latent-shape', '8,9,9')[0] == 1
    assert base.shell(*args, '--latent-shape', '8,8,8')[0] == 2

def test_faults_name_what_is_wrong(old, tmp_path):
    head, vae = str(old/'full/best_decoder/pytorch_model.bin'), str(old/'full/best_vae')
    Vocab(['a', 'b']).write(tmp_path/'two.csv')
    tries = {('migrate', 'head', head, '--tags', str(tmp_path/'two.csv'), '--attention-heads', '4'): (1, 'outputs, .*two.csv 2 tags'),
             ('migrate', 'head', head, '--kind', 'plain', '--attention-heads', '4'): (1, 'found is a head of kind attention, asked for is plain'),
             ('migrate', 'head', head, '--attention-heads', '3'): (2, 'attention_heads: 3 .* legal: 1, 2, 4'),
             ('migrate', 'head', vae + '/diffusion_pytorch_model.safetensors', '--tags', str(tmp_path/'two.csv'), '--vae', vae): (1, 'found is a VAE'),
             ('migrate', 'head', str(tmp_path)): (1, 'no decoder .*best_pytorch_model.bin.*no VAE .*best_vae')}
    for args, (status, text) in tries.items():
        got = base.shell(*args, '--out', str(tmp_path/'m'))
        assert got[0] == status and re.search(text, got[2]) and got[2].count('\n') == 1, got
    assert not (tmp_path/'m').exists()

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

def test_malicious_pickles_execute_nothing(old, tmp_path):
    mark, bad, good = tmp_path/'executed', tmp_path/'evil.bin', old/'full'
    state = hash_weights(OldAttention(8, len(Vocab.read(good/'tags.csv')), heads=4)).state_dict()
    torch.save(dict(state_dict=state, x=Evil(mark)), bad)
    tags, vae = str(good/'tags.csv'), str(good/'best_vae')
    os.link(bad, tmp_path/'evil.json')
    head = str(good/'best_decoder/pytorch_model.bin')
    for args in (['migrate', 'head', str(bad), '--tags', tags, '--vae', vae, '--attention-heads', '4'], ['migrate', 'vae', str(bad)],
                 ['migrate', 'head', head, '--vae', str(bad), '--attention-heads', '4'],
                 ['migrate', 'head', head, '--thresholds', str(tmp_path/'evil.json'), '--attention-heads', '4'],
                 ['tag', str(old/'scenes/images'), '--decoder', str(bad), '--vae', vae, '--tags', tags]):
        status, _, err = base.shell(*args, '--out', str(tmp_path/'m'))
        assert status == 1 and err.count('\n') == 1 and not mark.exists() and not (tmp_path/'m').exists(), err
    status, _, err = base.shell('migrate', 'head', str(bad), '--tags', tags, '--vae', vae, '--attention-heads', '4', '--trust', '--out', str(tmp_path/'m'))
    assert status == 0 and mark.exists() and 'opened on trust' in err, err  # that is what --trust means, and why it is never implied

# the table of commands

VALUES = dict(text='x', int='8', float='0.5')
SPECIAL = dict(lr_scheduler_type='linear', mixed_precision='bf16', similarity_type='euclidean', output_dir='out', num_images='3', vae_checkpoint='v.safetensors')
CONFIGS = {'train decoder': ('vaetag_nb.trainers.tagger', 'DecoderConfig'), 'train vae': ('vaetag_nb.trainers.vae', 'VaeConfig'), 'train full': ('vaetag_nb.trainers.full', 'FullConfig')}
NEEDED = {'train_decoder.py': ['--vae_checkpoint', 'v.safetensors'], 'infer_full.py': ['--image_path', 'a.png', '--decoder_checkpoint', 'h.bin', '--vae_checkpoint', 'v'],
          'infer_vae.py': ['--image_path', 'a'], 'batch_inference_test.py': ['--data_json_path', 'd.json'], 'validate_data.py': ['--json_path', 'd.json'],
          'analyze_resolutions.py': ['--json_path', 'd.json'], 'vae_reconstruction_test.py': ['--vae_checkpoint', 'v']}
ROWS = [(s, k) for s, x in SCRIPTS.items() for k in [None, *x.flags]]

class Parsed(Exception): pass

def parsed(args, monkeypatch):
    "Parse one of our commands, up to the point where work would begin"
    words, rest = base.find_verb(args)
    if words.startswith('train '): return words
    f = base.VERBS[words]
    if isinstance(f, type): return base.parse(f, rest, words)
    def stop(*a, **k): raise Parsed(base.parse(*a, **k))
    verbs = [m for n, m in sys.modules.items() if n.startswith('vaetag_nb.verbs.') and m is not base and hasattr(m, 'parse')]
    for m in verbs: monkeypatch.setattr(m, 'parse', stop)
    with pytest.raises(Parsed) as e: f(rest)
    return e.value.args[0]

def config_of(verb):
    module, name = CONFIGS[verb]
    return getattr(importlib.import_module(module), name)

def old_command(script, flag, dashes=False):
    args = list(NEEDED.get(script, []))
    if flag in ('source_json', 'test_ratio'): args = ['--source_json', 's.json']
    if script == 'infer_batch.sh': args = ['pictures', 'models', 'out']
    elif flag and f'--{flag}' not in args:
        kind = SCRIPTS[script].flags[flag].takes
        args += [f'--{flag}'] + ([] if kind == 'switch' else [SPECIAL.get(flag, VALUES[kind])])
    if dashes: args = [a.replace('_', '-') if a.startswith('--') else a for a in args]
    return f'python {script} ' + shlex.join(args)

@pytest.mark.parametrize('script,flag', ROWS, ids=lambda x: x or 'bare')
def test_every_mapping_is_ours(script, flag, monkeypatch):
    m = migrate_command(old_command(script, flag))
    assert m.to_dict() == migrate_command(old_command(script, flag, dashes=True)).to_dict()
    for c in m.commands:
        assert c[0] == 'vaetag'
        words = ' '.join(c[1:3])
        if not words.startswith('train '): parsed(c[1:], monkeypatch)
    if m.config is not None: config.load(config_of(SCRIPTS[script].verb), m.config)

def test_settings_arrive():
    line = ('train_decoder.py --vae_checkpoint v --vae_config_path c.json --json_path d.json --tags_csv_path t.csv --output_dir o --train_batch_size 2 --num_epochs 3 '
            '--learning_rate 1e-3 --weight_decay 1e-5 --gradient_accumulation_steps 4 --seed 7 --lr_scheduler_type linear --lr_warmup_steps 20 --max_grad_norm 2 --mixed_precision no '
            '--save_steps 5 --logging_steps 9 --num_workers 3 --use_bucketing --base_resolution 256 --max_resolution 512 --bucket_step 32 --no_attention --focal_alpha .5 --focal_gamma 1')
    cfg = config.load(config_of('train decoder'), migrate_command(line).config)
    assert (cfg.codec.vae, cfg.codec.config, cfg.data.metadata, cfg.data.tags, cfg.out) == ('v', 'c.json', 'd.json', 't.csv', 'o')
    assert (cfg.batch_size, cfg.epochs, cfg.accumulate, cfg.seed, cfg.save_every, cfg.log_every, cfg.workers, cfg.precision) == (2, 3, 4, 7, 5, 9, 3, 'no')
    o, i, c = cfg.optim, cfg.image, cfg.loss.classification
    assert (o.lr, o.weight_decay, o.scheduler, o.warmup, o.max_grad_norm) == (1e-3, 1e-5, 'linear', 20, 2)
    assert (i.bucketing, i.base_resolution, i.max_resolution, i.bucket_step, cfg.model.head) == (True, 256, 512, 32, 'plain')
    assert (c.alpha, c.gamma, c.focal, c.class_balanced) == (.5, 1, False, False)

@pytest.mark.parametrize('flags,mode', [('', 'simplified'), ('--use_simplified_loss --use_focal_loss --use_class_balanced', 'simplified'),
                                        ('--use_focal_loss --use_class_balanced', 'standard'), ('--use_adaptive_weights --use_focal_loss', 'research')])
def test_documented_modes_and_defaults(flags, mode):
    c = migrate_command(f'python train_full.py --vae_checkpoint v {flags}').config
    assert c['loss']['mode'] == mode and c['loss']['semantic']['weight'] == 1.
    assert c['loss'].get('kl') == (None if 'simplified_loss' in flags else dict(weight=.01, form='log'))
    assert c['image'] == dict(bucketing=False, resolution=1024, fit='squash') and c['model']['head'] == 'attention' and c['codec']['family'] == 'flux'

def test_the_table_is_whole():
    t = mapping()
    assert len(t) == sum(len(s.flags) + 1 for s in SCRIPTS.values()) and not t.duplicated(['script', 'flag']).any()
    gone = t[(t.ours == '') & (t.flag != '')]
    assert (gone.why != '').all()     # what is no longer needed says why

def test_old_shell_files(tmp_path):
    (tmp_path/'train_vae.sh').write_text('#!/bin/bash\n\npython train_vae.py \\\n    --json_path d.json \\\n    --num_epochs 20\n')
    assert migrate_command(f'bash {tmp_path/"train_vae.sh"}').config['epochs'] == 20
    for bad in ('', 'python other.py', 'train_vae.py --num_epochs', 'train_vae.py "unclosed', 'train_vae.py stray'):
        with pytest.raises(UsageError): migrate_command(bad)

def test_an_old_training_command_goes_on_from_an_old_head(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = old/'scenes'
    line = (f'python train_decoder.py --vae_checkpoint {old}/full/best_vae/diffusion_pytorch_model.safetensors --vae_config_path {old}/full/best_vae/config.json '
            f'--decoder_checkpoint {old}/full/best_decoder/pytorch_model.bin --json_path {s}/data.json --tags_csv_path {s}/tags.csv --output_dir run '
            '--resolution 64 --train_batch_size 2 --num_epochs 1 --attention_heads 4 --learning_rate 1e-4')
    m = migrate_command(line)
    (tmp_path/'run.yaml').write_text(m.yaml, encoding='utf-8')
    for c in m.commands:
        status, _, err = base.shell(*c[1:], *(['--device', 'cpu', '--eval.no-baselines'] if c[1] == 'train' else []))
        assert status == 0, err
    assert 'tags copied, 0 new, 0 dropped' in err
    start, end = (Tagger.load(tmp_path/d, device='cpu') for d in ('run_start', 'run/best'))
    assert start.head.spec()['kind'] == end.head.spec()['kind'] == 'attention' and end.model.codec['convention'] == start.model.codec['convention']
    assert end.preprocess == start.preprocess     # tagging prepares pictures as training did
