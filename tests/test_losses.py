"Losses on random input against timm and against themselves: finite, masked, weighted, whatever the numbers"
import math
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from timm.loss import AsymmetricLossMultiLabel, BinaryCrossEntropy, PolyBinaryCrossEntropy, compute_class_weights
from vaetag_nb.core.errors import UsageError
from vaetag_nb.losses import KINDS, ClassificationLoss, asl, bce, class_weights, focal

def pair(seed, b=4, c=6, scale=3., soft=True):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(b, c, generator=g)*scale, torch.rand(b, c, generator=g)
    return x, y if soft else y.round()

@given(st.integers(0, 10**6), st.floats(0, 5), st.floats(0, 1))
def test_elementwise_losses_equal_timm(seed, gamma, balance):
    x, y = pair(seed)
    assert torch.allclose(bce(x, y), BinaryCrossEntropy(smoothing=0.)(x, y))
    assert torch.allclose(focal(x, y, gamma=gamma, balance=balance), PolyBinaryCrossEntropy(epsilon=0, gamma=gamma, alpha=balance)(x, y), atol=1e-6)
    ours, theirs = asl(x, y, gamma_neg=gamma, detach_focus=False), AsymmetricLossMultiLabel(gamma_neg=gamma, reduction='mean')(x, y)
    assert torch.allclose(ours, theirs)

@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=20), st.floats(0, .999999), st.floats(1, 1e4))
def test_class_weights_are_finite_and_bounded_for_any_counts(counts, beta, ratio):
    w, n = class_weights(counts, beta, ratio), np.array(counts)
    assert w.isfinite().all() and (w > 0).all() and (w[n == 0] == 1).all()
    if (n > 0).any():
        seen = w[n > 0]
        assert abs(seen.mean().item() - 1) < 1e-4 and seen.max()/seen.min() <= ratio*(1 + 1e-4)
        assert (np.diff(w.numpy()[np.argsort(np.where(n > 0, n, np.iinfo(int).max))][:len(seen)]) <= 1e-5).all()   # rarer weighs more

@given(st.lists(st.integers(1, 5000), min_size=2, max_size=9), st.sampled_from([.9, .99, .9999]))
def test_class_weights_equal_timm_where_every_class_was_seen(counts, beta):
    _, w = compute_class_weights(counts, 5000, 'effective_num', beta=beta)
    assert torch.allclose(class_weights(counts, beta, max_ratio=1e9), w, rtol=1e-4)

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_every_loss_is_finite_in_float32_for_extreme_logits(kind, dtype):
    x = torch.tensor([[-100., 100, 0, 60], [100, -100, 0, -60]], dtype=dtype, requires_grad=True)
    f = ClassificationLoss(kind, counts=[0, 1, 5, 9], num_samples=10)
    for y in (torch.tensor([[1., 0, .5, 0], [0, 1, .5, 1]]), torch.zeros(2, 4), torch.ones(2, 4)):
        with torch.autocast('cpu', torch.bfloat16): l = f(x, y)
        grad, = torch.autograd.grad(l, x)
        assert l.dtype == torch.float32 and l.isfinite() and l >= 0 and grad.isfinite().all()

@pytest.mark.parametrize('kind', KINDS)
@given(st.integers(0, 10**6))
def test_unknown_elements_do_not_matter(kind, seed):
    x, y = pair(seed)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed+1)) < .6
    f = ClassificationLoss(kind, counts=[1, 2, 3, 4, 5, 6], num_samples=9)
    a, b = x.clone().requires_grad_(), torch.where(mask, x, math.nan).requires_grad_()
    la, lb = f(a, y, mask), f(b, torch.where(mask, y, 1-y), mask)
    assert torch.equal(la, lb)
    for l, z in ((la, a), (lb, b)):
        g, = torch.autograd.grad(l, z, allow_unused=True)
        assert g.isfinite().all() and (g[~mask] == 0).all()

def test_a_batch_of_which_nothing_is_known_costs_nothing():
    x, y = pair(0)
    for kind in ('bce', 'asl'):
        assert ClassificationLoss(kind)(x.requires_grad_(), y, torch.zeros_like(x)).item() == 0

def test_each_flag_changes_the_number_it_claims_to_change():
    x, y = pair(3)
    counts = dict(counts=[1, 10, 100, 1000, 10_000, 0], num_samples=20_000)
    made = {name: ClassificationLoss(**kw, **counts)(x, y).item() for name, kw in dict(
        bce={}, focal=dict(focal=True), gamma=dict(focal=True, gamma=1.), exp=dict(focal=True, soft='exp'), alpha=dict(focal=True, alpha=.5),
        balance=dict(focal=True, balance=.25), cb=dict(class_balanced=True), beta=dict(class_balanced=True, beta=.99), ratio=dict(class_balanced=True, max_ratio=2.),
        positives=dict(class_balanced=True, apply='positives'), both=dict(class_balanced=True, focal=True), asl=dict(kind='asl'),
        gamma_neg=dict(kind='asl', gamma_neg=1.), gamma_pos=dict(kind='asl', gamma_pos=0.), clip=dict(kind='asl', clip=0.), zlpr=dict(kind='zlpr'),
        two_way=dict(kind='two_way'), db=dict(kind='distribution_balanced')).items()}
    assert len({round(v, 7) for v in made.values()}) == len(made), made

def test_weights_move_with_the_module_and_stay_out_of_the_checkpoint():
    f = ClassificationLoss(class_balanced=True, counts=[1, 2])
    assert f.to(torch.float64).weight.dtype == torch.float64 and not f.state_dict()

@pytest.mark.parametrize('bad', [dict(beta=1.), dict(beta=-.1), dict(max_ratio=.5)])
def test_impossible_class_weights_name_the_key(bad):
    with pytest.raises(UsageError, match=f'loss.classification.{next(iter(bad))}'): class_weights([1, 2], **bad)
