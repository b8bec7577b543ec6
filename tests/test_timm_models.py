"Networks of timm as taggers: every kind of classifier, from one tag list to another, other input sizes, timm's own weights."
import pytest, torch
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

def changed(name, size):
    "7 tags become 9: logits of the kept ones are the same, and the network learns"
    old = noisy(create(name, len(OLD), size)).eval()
    net = create(name, len(NEW), size, drop_rate=.1, drop_path_rate=.1)
    report = transfer(net, old.state_dict(), OLD, NEW, prior=prior([3]*9, 98))
    assert str(report) == '6 copied, 3 new, 1 removed' and not report.skipped and report.new == list('xyz')
    side = size or net.pretrained_cfg['input_size'][-1]
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): a, b = old(x), net.eval()(x)
    assert a.shape == (2, 7) and b.shape == (2, 9)
    gap = (a[:, [OLD.index(t) for t in KEPT]] - b[:, [NEW.index(t) for t in KEPT]]).abs().max()
    assert gap <= 1e-6, gap
    with torch.no_grad(): one = torch.cat([net(x[:1]), net(x[1:])])
    assert (one.sigmoid() - b.sigmoid()).abs().max() <= 1e-5
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
