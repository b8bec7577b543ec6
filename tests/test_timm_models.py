"Networks of timm as taggers: every kind of classifier, from one tag list to another, other input sizes, timm's own weights."
import copy, os, subprocess, sys
import pytest, timm, torch
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.core.io import save_tensors
from vaetag_nb.models.timm_tagger import create, heads_of
from vaetag_nb.models.transfer import prior, transfer

OLD, NEW = list('abcdefg'), list('gaxyzbcde')
KEPT = [t for t in NEW if t in OLD]

# one network for each place where a classifier can be, with a size that the CPU can bear
FAST = {'test_convnext': 32, 'test_vit': 32, 'test_byobnet': 32, 'test_coatnet': 64, 'resnet10t': 32}
SLOW = {'densenet121': 64, 'inception_v4': 128, 'inception_resnet_v2': 128, 'legacy_seresnet18': 64, 'vgg11': 64,      # classifier, last_linear, classif, head.fc
        'inception_next_atto': 64, 'efficientvit_m0': None, 'shvit_s1': 64, 'efficientvit_b0': 64, 'caformer_s18': 64, # head.fc2, head.linear, head.l, head.classifier.4, head.fc.fc2
        'cpubone_nano': 64, 'iformer_s': None, 'test_mambaout': 64, 'edgenext_xx_small': 64, 'starnet_s050': 64,       # head.classifier.linear, head.head.l
        'dla46_c': 64, 'dpn48b': 64, 'resnetv2_50x1_bit': 64,                                                          # 1x1 convolutions
        'deit_tiny_distilled_patch16_224': 224, 'pit_ti_distilled_224': None, 'efficientformer_l1': None, 'efficientformerv2_s0': None,  # two classifiers
        'swiftformer_xs': 64, 'levit_128s': None, 'repvit_m0_9': 64, 'crossvit_tiny_240': None, 'efficientvim_m1': 64,
        'volo_d1_224': None,                                                                                           # a hidden one
        'eva02_tiny_patch14_224': 112, 'swin_tiny_patch4_window7_224': 224, 'swinv2_tiny_window8_256': 256, 'beit_base_patch16_224': None,
        'convnextv2_atto': 64, 'efficientnet_lite0': 64, 'mobilenetv3_small_050': 64, 'hiera_tiny_224': None, 'maxvit_rmlp_pico_rw_256': None,
        'tiny_vit_5m_224': 224, 'fastvit_t8': 64, 'hgnetv2_b0': 64, 'regnetx_002': 64, 'nextvit_small': 64, 'vit_tiny_r_s16_p8_224': 224}

def noisy(net):
    "Weights that are nowhere zero in the classifier: timm starts some of them at 0, where every row is the same"
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for k, v in net.state_dict().items():
            if k in heads_of(net): v.copy_(torch.randn(v.shape, generator=g)*.02)
    return net

def settled(net, x):
    "Batch norms that know their inputs: fresh ones let activations grow until float32 is coarse"
    for m in net.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.momentum = 1.
    with torch.no_grad(): net.train()(x)
    return net.eval()

def changed(name, size):
    "7 tags become 9: logits of the kept ones are the same, and the network learns"
    torch.manual_seed(0)
    old = noisy(create(name, len(OLD), size))
    side = size or old.pretrained_cfg['input_size'][-1]
    x = torch.randn(2, 3, side, side)
    settled(old, torch.cat([x, torch.randn(2, 3, side, side)]))
    net = create(name, len(NEW), size, drop_rate=.1, drop_path_rate=.1)
    report = transfer(net, old.state_dict(), OLD, NEW, prior=prior([3]*9, 98))
    assert str(report) == '6 copied, 3 new, 1 removed' and not report.skipped and report.new == list('xyz')
    # in float64: random weights can be ill-conditioned (inception_v4 makes 4e-4 of 6e-8 at its input), and then float32 says nothing about the rows
    exact, z = copy.deepcopy(net).double().eval(), x.double()
    with torch.no_grad(): a, b, one = copy.deepcopy(old).double()(z), exact(z), torch.cat([exact(z[:1]), exact(z[1:])])
    assert a.shape == (2, 7) and b.shape == (2, 9)
    gap = (a[:, [OLD.index(t) for t in KEPT]] - b[:, [NEW.index(t) for t in KEPT]]).abs().max()
    assert gap <= 1e-12 and (one.sigmoid() - b.sigmoid()).abs().max() <= 1e-12, gap
    net.train()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x), torch.tensor([[1., 0]*4 + [1], [0, 1.]*4 + [0]]), reduction='sum')/2
    loss.backward()
    params = dict(net.named_parameters())
    assert loss.isfinite() and all(params[k].grad.abs().sum() > 0 for k in heads_of(net))
    before = {k: v.detach().clone() for k, v in params.items()}
    torch.optim.AdamW(net.parameters(), 1e-3).step()
    assert any(not torch.equal(v, before[k]) for k, v in params.items() if k not in heads_of(net))

@pytest.mark.parametrize('name', FAST)
def test_tags_change(name): changed(name, FAST[name])

@pytest.mark.slow
@pytest.mark.parametrize('name', SLOW)
def test_tags_change_in_every_family(name): changed(name, SLOW[name])

def test_rows_go_by_name():
    "The worked numbers: a, b, c with rows of ones, twos, threes; the new tags are b, c, d"
    old, net = create('test_convnext', 3), create('test_convnext', 3)
    with torch.no_grad():
        for k, v in old.state_dict().items():
            if k in heads_of(old): v.copy_(torch.tensor([.1, .2, .3]) if v.ndim == 1 else torch.tensor([[1.], [2], [3]]).expand_as(v))
    assert str(transfer(net, old.state_dict(), 'abc', 'bcd')) == '2 copied, 1 new, 1 removed'
    assert net.head.fc.weight[:2, :2].tolist() == [[2, 2], [3, 3]]
    assert (net.head.fc.bias[:2] - torch.tensor([.2, .3])).abs().max() <= 1e-6

# a network, the size it was trained at, the size it shall take: position tables, windows, relative biases, a table of four dimensions
SIZES = [('test_vit', 64, 96), ('eva02_tiny_patch14_224', 112, 168), ('deit_tiny_distilled_patch16_224', 64, 96), ('beit_base_patch16_224', 64, 96),
         ('swin_tiny_patch4_window7_224', 112, 224), ('swinv2_tiny_window8_256', 128, 256), ('volo_d1_224', 96, 128), ('test_vit', (64, 96), (96, 64))]

@pytest.mark.slow
@pytest.mark.parametrize('name,a,b', SIZES, ids=[f'{n}-{a}-{b}'.replace(' ', '') for n, a, b in SIZES])
def test_another_size(name, a, b):
    "All tensors come along, resampled where they depend on the size"
    hw = lambda s: (s, s) if isinstance(s, int) else s
    old, net, g = create(name, 3, a), create(name, 3, b), torch.Generator().manual_seed(0)
    for k, p in old.named_parameters():
        if k.endswith(('pos_embed', 'relative_position_bias_table')): p.data.copy_(torch.randn(p.shape, generator=g))   # timm starts those of beit at 0, and 0 resampled is 0
    fresh = {k: v.clone() for k, v in net.state_dict().items()}
    report = transfer(net, old.state_dict(), 'abc', 'abc', size=hw(a))
    assert not report.skipped and report.coverage == dict(tensors=1., parameters=1.) and net.eval()(torch.zeros(1, 3, *hw(b))).isfinite().all()
    same = {k for k, v in old.state_dict().items() if v.shape == fresh[k].shape and k != 'pos_embed'}     # 4 x 6 positions are as many as 6 x 4, and not the same
    assert all(torch.equal(net.state_dict()[k], old.state_dict()[k]) for k in same if not k.endswith(('relative_position_index', 'relative_coords_table', 'attn_mask')))  # computed, not learned
    tables = {k for k in fresh if k not in same}
    assert tables or name.startswith('swinv2')                          # swinv2 computes its biases from coordinates
    assert not any(torch.equal(net.state_dict()[k], v[k]) for k in tables if k.endswith(('pos_embed', 'relative_position_bias_table')) for v in (fresh, old.state_dict()))

@pytest.mark.slow
@pytest.mark.parametrize('name,size,words', [('efficientformer_l1', 256, 'it takes 224 only'), ('levit_128s', 230, 'it takes multiples of 16'), ('crossvit_tiny_240', 224, 'it takes 240'),
                                             ('test_coatnet', 100, 'multiples of')])
def test_a_refused_size_names_those_accepted(name, size, words):
    with pytest.raises(VaetagError, match=f'preprocess.size: {name} does not take pictures of {size} x {size} pixels; .*{words}'): create(name, 3, size)

WEIGHTS = """
from vaetag_nb.models.timm_tagger import backbones, create
net = create('test_vit', 3, 96, pretrained=True)
print(net.vaetag['base']['source'], tuple(net.state_dict()['pos_embed'].shape), backbones('test_vit', True).weights.tolist())
"""

@pytest.mark.slow
def test_a_folder_laid_out_like_the_cache_of_the_hub(tmp_path):
    "HF_HOME names it, TORCH_HOME names torch's; without either the error says what to put where"
    repo = tmp_path/'home'/'hub'/'models--timm--test_vit.r160_in1k'
    save_tensors(repo/'snapshots'/'1234'/'model.safetensors', timm.create_model('test_vit').state_dict())
    (repo/'refs').mkdir(); (repo/'refs'/'main').write_text('1234')
    run = lambda home: subprocess.run([sys.executable, '-c', WEIGHTS], env=os.environ | dict(HF_HOME=str(home), HF_HUB_OFFLINE='1'), capture_output=True, text=True)
    assert run(tmp_path/'home').stdout == "timm/test_vit.r160_in1k (1, 37, 64) ['here']\n"
    said = run(tmp_path/'empty').stderr.splitlines()[-1]
    assert 'put model.safetensors of timm/test_vit.r160_in1k into the hub' in said and str(tmp_path/'empty'/'hub') in said and 'HF_HOME' in said

def test_a_file_of_weights_is_loaded_strictly(tmp_path):
    net = timm.create_model('test_convnext')
    save_tensors(tmp_path/'w.safetensors', {f'module.{k}': v for k, v in net.state_dict().items()})
    mine = create('test_convnext', 4, pretrained=tmp_path/'w.safetensors')
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in mine.state_dict().items() if k not in heads_of(mine))
    assert mine.vaetag['base']['source'] == 'w.safetensors' and len(mine.vaetag['base']['sha256']) == 64
    state = net.state_dict()
    save_tensors(tmp_path/'less.safetensors', {k: v for k, v in state.items() if k != 'stem.0.weight'})
    save_tensors(tmp_path/'more.safetensors', state | dict(extra=torch.zeros(2)))
    save_tensors(tmp_path/'inside.safetensors', {k.replace('stem.', 'stem.module.'): v for k, v in state.items()})   # a prefix is one only at the start
    for f in ('less', 'more', 'inside'):
        with pytest.raises(VaetagError, match=f'{f}.safetensors'): create('test_convnext', 4, pretrained=tmp_path/f'{f}.safetensors')
    with pytest.raises(VaetagError, match='model.pretrained: .*no such file or folder'): create('test_convnext', 4, pretrained=tmp_path/'none.safetensors')
