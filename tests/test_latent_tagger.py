"Heads at any latent size, evidence that adds up, and model folders that are whole, refused, or harmless"
import json, os, pickle
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.data.tags import Vocab
from vaetag_nb.models.latent_tagger import (SIZES, AttentionHead, PlainHead, PoolHead, QueryHead, TimmHead, build_head, copy_rows, init_from, load_model,
                                            save_model, set_prior)

SMALL = dict(d=16, depth=1, heads=2)
CODEC = {'class': 'AutoencoderKL', 'family': 'sd15', 'fingerprint': 'f'*64, 'latent_channels': 4, 'factor': 8, 'convention': {}, 'source': 'embedded', 'licence': None}

def parameters(net): return sum(p.numel() for p in net.parameters())

# --- heads ------------------------------------------------------------------------------------------------------------
def test_parameter_counts_of_the_specification():
    assert parameters(PlainHead(16, 10)) == 267_018
    assert parameters(AttentionHead(16, 10)) == 1_189_236
    assert parameters(PoolHead(16, 10, **SIZES['tiny'])) == 1_905_610
    with torch.device('meta'): assert parameters(PoolHead(16, 10)) == 11_120_266

@settings(max_examples=25)
@given(st.integers(1, 17), st.integers(1, 17), st.integers(1, 4), st.integers(0, 5), st.integers(0, 9999))
def test_pool_evidence_plus_constant_is_the_logit_for_any_size(h, w, patch, skip, seed):
    torch.manual_seed(seed)
    head = PoolHead(4, 5, **SMALL, patch=patch, skip=skip).eval()
    torch.nn.init.normal_(head.out.weight)
    z, tags = torch.randn(2, 4, h, w), [4, 0, 2]
    maps = head.evidence(z, tags)
    assert maps.shape == (2, 3, -(-h//patch), -(-w//patch))
    with torch.no_grad(): assert torch.allclose(maps.sum((2, 3)) + head.constant(tags), head(z)[:, tags], atol=1e-4)

@pytest.mark.parametrize('head', [PoolHead(8, 5, **SMALL, skip=2), PlainHead(8, 5), AttentionHead(8, 5, attention_heads=2, cross_attention=True),
                                  QueryHead(8, 5, **SMALL), QueryHead(8, 5, **SMALL, queries=2), TimmHead(8, 5, 'resnet10t')], ids=lambda h: h.kind)
def test_every_head_keeps_the_common_calls(head):
    head.eval()
    z = torch.randn(3, 8, 7, 10)
    with torch.no_grad():
        x, e = head(z), head.embed(z)
        assert torch.equal(head.out(e), x) and x.shape == (3, 5)
        assert torch.allclose(torch.cat([head(z[i:i+1]) for i in range(3)]), x, atol=1e-5)          # batch 1 and batch 3 agree
    p, i = head.get_confidence(z)
    assert torch.equal(p, x.sigmoid().gather(1, i)) and (p.diff(dim=1) <= 0).all()
    assert head.evidence(z, [1]).shape[:2] == (3, 1) and head.evidence(z).isfinite().all()
    twin = build_head(head.spec())
    twin.load_state_dict(head.state_dict())
    with torch.no_grad(): assert torch.equal(twin.eval()(z), x)
    set_prior(head, [.3]*5)
    assert torch.allclose(head.out.bias.sigmoid(), torch.full((5,), .3))
    assert {k for k in head.of_tags() if k.split('.')[-1] == 'bias'} and head.of_tags() <= set(head.state_dict())

FAMILIES = ['resnet10t', 'convnext_atto', 'vit_tiny_patch16_224', 'mobilenetv3_small_050', 'regnetx_002', 'repvgg_a0', 'mambaout_femto', 'fastvit_t8']

@pytest.mark.parametrize('name', FAMILIES)
def test_timm_networks_of_every_kind_take_latents_of_any_size(name):
    head = TimmHead(4, 3, name).eval()
    with torch.no_grad():
        for h, w in ((16, 16), (9, 14), (32, 20)):
            z = torch.randn(2, 4, h, w)
            e = head.embed(z)
            assert e.ndim == 2 and torch.equal(head.out(e), head(z)) and head(z).isfinite().all()
    assert len(head.of_tags()) == 2 and head.out.out_features == 3

def test_queries_see_their_own_tags_only():
    torch.manual_seed(0)
    head, z = QueryHead(4, 7, **SMALL, queries=3).eval(), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        x = head(z)
        head.queries[1] = torch.randn(16)
        moved = ((head(z) - x).abs() > 1e-6).any(0)
    assert moved.tolist() == (head.out.query == 1).tolist()
    maps = head.evidence(z)
    assert maps.shape == (2, 7, 3, 3)
    with torch.no_grad(): total = head(z) - head.out.bias
    assert torch.allclose(maps.sum((2, 3)), total, atol=1e-5) and not head.exact_evidence       # adds up, and yet is attention: one sign a map, one form a query
    assert ((maps > 0) == (total > 0)[..., None, None]).all()
    form = maps/maps.sum((2, 3), keepdim=True)
    assert all(torch.allclose(form[:, i], form[:, j], atol=1e-5) == (head.out.query[i] == head.out.query[j]) for i in range(7) for j in range(7))

def test_fp16_latents_move_logits_by_less_than_two_hundredths():
    torch.manual_seed(0)
    head, z = PoolHead(4, 6, **SMALL).eval(), torch.randn(4, 4, 12, 8)
    with torch.no_grad(): assert (head(z) - head(z.half().float())).abs().max() < .02

def test_gradients_reach_the_latent():
    z = torch.randn(2, 4, 6, 6, requires_grad=True)
    PoolHead(4, 3, **SMALL).train()(z).sum().backward()
    assert z.grad.abs().sum() > 0

@pytest.mark.parametrize('bad,text', [(dict(heads=5), 'model.heads: 5'), (dict(d=18, heads=1), 'model.d: 18'), (dict(patch=0), 'model.patch'), (dict(skip=-1), 'model.skip')])
def test_impossible_pool_heads(bad, text):
    with pytest.raises(UsageError, match=text): PoolHead(4, 3, **{**SMALL, **bad})

# --- from one tag list to another --------------------------------------------------------------------------------------
@settings(max_examples=25)
@given(st.lists(st.sampled_from('abcdefgh'), unique=True, min_size=1), st.lists(st.sampled_from('abcdefgh'), unique=True, min_size=1))
def test_rows_go_by_name(a, b):
    old, new = PlainHead(4, len(a)), set_prior(PlainHead(4, len(b)), [.2]*len(b))
    done = copy_rows(new, b, old, a)
    assert done == dict(copied=len(set(a) & set(b)), new=len(set(b)-set(a)), dropped=len(set(a)-set(b)))
    for i, t in enumerate(b):
        if t in a: assert torch.equal(new.out.weight[i], old.out.weight[a.index(t)]) and new.out.bias[i] == old.out.bias[a.index(t)]
        else: assert (new.out.weight[i] == 0).all() and abs(new.out.bias[i].sigmoid().item() - .2) < 1e-6

@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from('abcdefgh'), unique=True, min_size=1), st.lists(st.sampled_from('abcdefgh'), unique=True, min_size=1), st.integers(1, 9))
def test_tags_bring_their_queries_along(a, b, queries):
    new = lambda tags: QueryHead(4, len(tags), **SMALL, queries=queries).eval()
    model = type('Model', (), dict(head=new(a), vocab=a, folder='there'))
    head = set_prior(new(b), [.2]*len(b))
    assert init_from(head, b, model)['copied'] == len(set(a) & set(b))
    z = torch.randn(2, 4, 5, 6)
    with torch.no_grad(): x, y = head(z), model.head(z)
    for i, t in enumerate(b):
        if t in a: assert torch.allclose(x[:, i], y[:, a.index(t)], atol=1e-5)      # the very same answer
        else: assert torch.allclose(x[:, i].sigmoid(), torch.tensor(.2), atol=1e-5)
    assert torch.bincount(head.out.query).max() <= max(-(-len(b)//len(head.queries)), int(torch.bincount(model.head.out.query).max()))

def test_a_timm_head_keeps_its_trunk_and_its_rows():
    a, b = 'abc', 'cxa'
    model = type('Model', (), dict(head=TimmHead(4, 3, 'resnet10t').eval(), vocab=list(a), folder='there'))
    head = set_prior(TimmHead(4, 3, 'resnet10t').eval(), [.2]*3)
    assert init_from(head, list(b), model) == dict(copied=2, new=1, dropped=1)
    z = torch.randn(2, 4, 16, 16)
    with torch.no_grad(): x, y = head(z), model.head(z)
    assert torch.allclose(x[:, [0, 2]], y[:, [2, 0]], atol=1e-5) and torch.allclose(x[:, 1].sigmoid(), torch.tensor(.2))

# --- model folders -----------------------------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path):
    head, vocab = PoolHead(4, 3, **SMALL), Vocab(['safe', 're:zero', 'nan'], categories=[9, 0, 0])
    save_model(tmp_path/'m', head, vocab, CODEC, dict(resolution=64))
    return tmp_path/'m', head.eval()

def test_a_folder_gives_back_the_model(saved):
    folder, head = saved
    m, z = load_model(folder), torch.randn(2, 4, 5, 6)
    with torch.no_grad(): assert torch.equal(m.head(z), head(z))
    assert not m.head.training and m.vocab.names == ['safe', 're:zero', 'nan'] and m.thresholds is None and m.cut(.4).tolist() == [np.float32(.4)]*3
    assert m.codec == CODEC and m.meta['format'] == 'vaetag-model/1'

@pytest.mark.parametrize('head', [QueryHead(4, 3, **SMALL, queries=2), TimmHead(4, 3, 'convnext_atto', extra=dict(depths=[1, 1, 1, 1]))], ids=lambda h: h.kind)
def test_a_folder_keeps_what_is_special_about_a_head(tmp_path, head):
    if head.kind == 'query': head.adopt(QueryHead(4, 3, **SMALL, queries=2), [2, 0], [0, 1])        # an unusual arrangement
    save_model(tmp_path/'m', head.eval(), Vocab(['a', 'b', 'c']), CODEC, {})
    m, z = load_model(tmp_path/'m'), torch.randn(2, 4, 16, 12)
    assert m.head.spec() == head.spec()
    with torch.no_grad(): assert torch.equal(m.head(z), head(z))

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)

@pytest.mark.parametrize('file', ['model.json', 'model.safetensors', 'selected_tags.csv', 'optimal_thresholds.json'])
def test_a_malicious_file_executes_nothing(saved, tmp_path, file):
    (saved[0]/file).write_bytes(pickle.dumps(Evil(str(tmp_path/'executed'))))
    with pytest.raises(VaetagError) as e: load_model(saved[0])
    assert not (tmp_path/'executed').exists() and len(str(e.value).splitlines()) == 1 and str(saved[0]) in str(e.value)

@pytest.mark.parametrize('file', ['model.json', 'model.safetensors', 'selected_tags.csv'])
@pytest.mark.parametrize('how', ['missing', 'empty', 'cut', 'noise'])
def test_a_damaged_folder_is_one_line(saved, file, how):
    p = saved[0]/file
    raw = p.read_bytes()
    if how == 'missing': p.unlink()
    else: p.write_bytes(dict(empty=b'', cut=raw[:len(raw)//2], noise=os.urandom(200))[how])
    with pytest.raises(VaetagError) as e: load_model(saved[0])
    assert len(str(e.value).splitlines()) == 1 and file in str(e.value)

@pytest.mark.parametrize('change', [dict(head=None), dict(codec='x'), dict(format='vaetag-model/2'), dict(kind='timm_tagger'), dict(vocab_sha256='0'*64), dict(head=dict(kind='pool', channels=4, num_tags=0))])
def test_a_changed_description_is_refused(saved, change):
    p = saved[0]/'model.json'
    p.write_text(json.dumps(json.loads(p.read_text()) | change))
    with pytest.raises(VaetagError) as e: load_model(saved[0])
    assert len(str(e.value).splitlines()) == 1

def test_weights_that_are_not_finite_are_refused(saved, tmp_path):
    head = PoolHead(4, 3, **SMALL)
    with torch.no_grad(): head.norm.weight[0] = float('nan')
    save_model(tmp_path/'bad', head, Vocab(['a', 'b', 'c']), CODEC, {})
    with pytest.raises(VaetagError, match='norm.weight holds numbers that are not finite'): load_model(tmp_path/'bad')

def test_a_failed_save_leaves_the_old_folder(saved):
    def fail(d): raise RuntimeError('disk')
    before = {p.name: p.read_bytes() for p in saved[0].iterdir()}
    with pytest.raises(RuntimeError): save_model(saved[0], PoolHead(4, 3, **SMALL), Vocab(['a', 'b', 'c']), CODEC, {}, more=fail)
    assert {p.name: p.read_bytes() for p in saved[0].iterdir()} == before and len(list(saved[0].parent.iterdir())) == 1

def test_further_files_are_part_of_the_folder(tmp_path):
    save_model(tmp_path/'m', PlainHead(4, 1), Vocab(['a']), CODEC, {}, more=lambda d: (d/'vae').mkdir())
    assert (tmp_path/'m'/'vae').is_dir()

def test_a_start_from_another_architecture_names_both(saved):
    m = load_model(saved[0])
    with pytest.raises(VaetagError, match='a pool head with depth 1, asked for is a pool head with depth 2'):
        init_from(PoolHead(4, 3, **{**SMALL, 'depth': 2}), ['a', 'b', 'c'], m)
