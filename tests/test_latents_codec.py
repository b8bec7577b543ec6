"VAE files as people have them: every layout gives the same codec, everything else one line that says what is wrong"
import json, os, re, shutil
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import save_file
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.latents.codec import Codec, FLUX
from vaetag_nb.latents.convention import Convention
from vaetag_nb.latents.loading import FAMILIES, build_vae, infer, load_vae

SMALL = dict(block_out_channels=[16, 32, 32], layers_per_block=1, norm_num_groups=16, latent_channels=4, scaling_factor=.18215, use_quant_conv=True, use_post_quant_conv=True)
GROUPS = dict(norm_num_groups=16)

def to_ldm(sd, n=3):
    "The tensors under the names, and the attention in the form, of the original LDM code"
    rules = [(f'encoder.down_blocks.{i}.resnets', f'encoder.down.{i}.block') for i in range(n)] + \
        [(f'encoder.down_blocks.{i}.downsamplers.0', f'encoder.down.{i}.downsample') for i in range(n)] + \
        [(f'decoder.up_blocks.{i}.resnets', f'decoder.up.{n-1-i}.block') for i in range(n)] + \
        [(f'decoder.up_blocks.{i}.upsamplers.0', f'decoder.up.{n-1-i}.upsample') for i in range(n)] + \
        [('mid_block.resnets.0', 'mid.block_1'), ('mid_block.resnets.1', 'mid.block_2'), ('mid_block.attentions.0', 'mid.attn_1'), ('group_norm', 'norm'),
         ('to_out.0', 'proj_out'), ('to_', ''), ('conv_norm_out', 'norm_out'), ('conv_shortcut', 'nin_shortcut')]
    out = {}
    for k, v in sd.items():
        if '.attentions.' in k and v.ndim == 2: v = v[:, :, None, None].contiguous()
        for a, b in rules: k = k.replace(a, b)
        out[k] = v
    return out

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    d = tmp_path_factory.mktemp('vaes')
    codec = Codec.random(SMALL)
    codec.save(d/'folder')
    sd = {k: v.contiguous() for k, v in codec.vae.state_dict().items()}
    ldm = to_ldm(sd)
    assert ldm.keys() != sd.keys() and len(ldm) == len(sd)
    shutil.copytree(d/'folder', d/'pipeline'/'vae'); (d/'pipeline'/'model_index.json').write_text('{}')
    save_file(sd, d/'named.safetensors'); save_file(ldm, d/'ldm.safetensors')
    save_file({f'vae.{k}': v for k, v in sd.items()} | {'unet.x': torch.ones(2)}, d/'prefixed.safetensors')
    save_file({f'first_stage_model.{k}': v for k, v in ldm.items()} | {'model.diffusion_model.x': torch.ones(2)}, d/'whole.safetensors')
    torch.save({'state_dict': {f'first_stage_model.{k}': v for k, v in ldm.items()}, 'global_step': 3}, d/'whole.ckpt')
    torch.save(sd, d/'named.bin'); torch.save(ldm | {'loss.logvar': torch.ones(())}, d/'ldm.pt')
    old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    save_file({re.sub(r'(to_q|to_k|to_v|to_out\.0)(?=\.)', lambda m: old[m[1]], k): v for k, v in sd.items()}, d/'old.safetensors')
    (d/'sharded').mkdir(); keys = sorted(sd)
    for i in range(2): save_file({k: sd[k] for k in keys[i::2]}, d/'sharded'/f'part{i}.safetensors')
    (d/'sharded'/'diffusion_pytorch_model.safetensors.index.json').write_text(json.dumps(dict(weight_map={k: f'part{i % 2}.safetensors' for i, k in enumerate(keys)})))
    shutil.copy(d/'folder'/'config.json', d/'sharded'/'config.json')
    return d, codec, sd

LAYOUTS = ['folder', 'pipeline', 'sharded', 'named.safetensors', 'ldm.safetensors', 'prefixed.safetensors', 'whole.safetensors', 'whole.ckpt', 'named.bin', 'ldm.pt', 'old.safetensors']

@pytest.mark.parametrize('name', LAYOUTS)
def test_every_layout_is_the_same_codec(files, name):
    d, codec, _ = files
    got = Codec.load(d/name, **({} if (d/name).is_dir() else dict(config=GROUPS, family='sd15')))
    x = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1))*2 - 1
    with torch.no_grad():
        assert (got.encode(x) - codec.encode(x)).abs().max() == 0
        assert (got.decode(got.encode(x)) - codec.decode(codec.encode(x))).abs().max() == 0
    assert got.fingerprint == codec.fingerprint and got.family == 'sd15' and got.convention == Convention(.18215)
    assert not any(p.requires_grad for p in got.vae.parameters()) and not got.vae.training
    again = Codec.from_spec(json.loads(json.dumps(got.spec())))
    assert again.spec() == got.spec()

def test_diffusers_reads_what_we_save(files):
    from diffusers import AutoencoderKL
    d, codec, _ = files
    theirs = AutoencoderKL.from_pretrained(d/'folder', local_files_only=True)
    x = torch.rand(1, 3, 32, 32)*2 - 1
    with torch.no_grad(): torch.testing.assert_close((theirs.encode(x).latent_dist.mean - (theirs.config.shift_factor or 0))*theirs.config.scaling_factor, codec.encode(x), atol=1e-5, rtol=0)

def test_diffusers_reads_a_folder_with_our_own_convention(tmp_path):
    from diffusers import AutoencoderKL
    codec = Codec.random(SMALL, Convention(.5, bias=.1)); codec.save(tmp_path/'v')
    theirs = AutoencoderKL.from_pretrained(tmp_path/'v', local_files_only=True)
    x = torch.rand(1, 3, 32, 32)*2 - 1
    with torch.no_grad(): torch.testing.assert_close(theirs.encode(x).latent_dist.mean*.5 + .1, codec.encode(x), atol=1e-5, rtol=0)
    assert str(Codec.load(tmp_path/'v').convention) == 'z * 0.5 + 0.1' and 'scaling_factor' not in json.loads((tmp_path/'v'/'config.json').read_text())

def test_dtype_is_part_of_the_fingerprint(files, tmp_path):
    d, codec, sd = files
    save_file({k: v.half() for k, v in sd.items()}, tmp_path/'half.safetensors')
    half = Codec.load(tmp_path/'half.safetensors', GROUPS, 'sd15')
    assert half.fingerprint != codec.fingerprint and half.dtype == torch.float32
    bf = Codec.load(d/'folder', dtype='bf16')
    x = torch.rand(1, 3, 32, 32)*2 - 1
    with torch.no_grad(): z = bf.encode(x)
    assert bf.fingerprint == codec.fingerprint and bf.dtype == torch.bfloat16 and z.dtype == torch.float32
    with torch.no_grad(): assert (z - codec.encode(x)).abs().max() < .05

def test_flux_layout_has_the_published_size():
    with torch.device('meta'): vae = build_vae('AutoencoderKL', FLUX | dict(down_block_types=['DownEncoderBlock2D']*4, up_block_types=['UpDecoderBlock2D']*4))
    sd = vae.state_dict()
    assert sum(p.numel() for p in vae.parameters()) == 83_819_683 and len(sd) == 244
    codec = Codec(vae, FAMILIES['flux'].convention, 'flux', fingerprint='0'*64)
    assert codec.info()['compression'] == 12 and codec.factor == 8 and codec.channels == 16
    z = codec.normalize(torch.tensor([-1., 0, 1, 2]).view(1, 1, 2, 2)).flatten()
    np.testing.assert_allclose(z, [-.40295149, -.04185149, .31924851, .68034851], atol=1e-6)

@pytest.mark.parametrize('name, raw, model', [('sd15', 1, .18215), ('sdxl', -2, -.2605), ('sd3', .0609, 0), ('flux', 1.1159, .3611), ('tiny', .3, .3)])
def test_family_numbers(name, raw, model):
    assert abs(float(FAMILIES[name].convention.apply(torch.full((1, 1, 1, 1), float(raw)))) - model) < 1e-6

numbers = st.floats(-4, 4, allow_nan=False).filter(lambda x: abs(x) > .05)
@given(scale=numbers, shift=st.floats(-3, 3), bias=st.floats(-3, 3), divisor=numbers, patch=st.sampled_from([1, 2]), many=st.booleans(), seed=st.integers(0, 99))
def test_conventions_invert(scale, shift, bias, divisor, patch, many, seed):
    g = np.random.default_rng(seed); n = 3*patch**2
    c = Convention(scale, tuple(g.normal(size=n)) if many else shift, tuple(g.uniform(.3, 3, n)) if many else 1., bias, divisor, patch)
    raw = torch.from_numpy(g.normal(size=(2, 3, 4, 6)))
    z = c.apply(raw)
    assert z.dtype == torch.float64 and z.shape == (2, n, 4//patch, 6//patch)
    torch.testing.assert_close(c.invert(z), raw)
    assert Convention.from_dict(json.loads(json.dumps(c.to_dict()))) == c

# --- the tiny autoencoders -------------------------------------------------------------------------------------------
def test_tiny_file_is_diffusers_class(tmp_path):
    from diffusers import AutoencoderTiny
    torch.manual_seed(0)
    vae = AutoencoderTiny(encoder_block_out_channels=(16, 16, 16), decoder_block_out_channels=(16, 16, 16), num_encoder_blocks=(1, 2, 1), num_decoder_blocks=(2, 1, 1), latent_channels=16)
    vae.save_pretrained(tmp_path/'t'); save_file(vae.state_dict(), tmp_path/'one.safetensors')
    x = torch.rand(1, 3, 16, 24)*2 - 1
    for c in (Codec.load(tmp_path/'t'), Codec.load(tmp_path/'one.safetensors')):
        assert (c.family, c.cls_name, c.factor, c.channels, str(c.convention)) == ('tiny', 'AutoencoderTiny', 4, 16, 'z')
        with torch.no_grad():
            torch.testing.assert_close(c.encode(x), vae.encode(x).latents, atol=1e-5, rtol=0)
            torch.testing.assert_close(c.decode(c.encode(x), clamp=False), vae.decode(vae.encode(x).latents).sample, atol=1e-4, rtol=0)
        assert c.encode_raw(x)[1] is None

def test_taef2_reconstructs_photos(shared):
    codec = Codec.load(shared/'weights'/'taef2')
    assert (codec.family, codec.cls_name, codec.channels, codec.factor, codec.licence) == ('taef2', 'TAEF2', 32, 8, 'MIT License')
    assert sum(p.numel() for p in codec.vae.encoder.parameters()) == 1_338_528
    psnr = []
    for p in sorted((shared/'clothing_cc0'/'images').iterdir())[:8]:
        a = np.asarray(Image.open(p).convert('RGB')); h, w = (s//8*8 for s in a.shape[:2])
        x = torch.from_numpy(a[:h, :w].copy()).permute(2, 0, 1)[None].float()/127.5 - 1
        with torch.inference_mode(): psnr.append(float(10*torch.log10(4/(codec.decode(codec.encode(x)) - x).square().mean())))
    assert 27 < np.mean(psnr) < 32, psnr

def test_taef2_survives_saving(shared, tmp_path):
    codec = Codec.load(shared/'weights'/'taef2'); codec.save(tmp_path/'t')
    again = Codec.load(tmp_path/'t')
    x = torch.rand(1, 3, 16, 16)*2 - 1
    with torch.inference_mode(): assert (again.encode(x) - codec.encode(x)).abs().max() == 0
    assert again.cls_name == 'TAEF2' and again.licence == 'MIT License'

def test_a_config_without_weights_says_so(shared):
    with pytest.raises(VaetagError, match='no VAE weights; looked for diffusion_pytorch_model.safetensors'): load_vae(shared/'sd15_configs')
    with pytest.raises(VaetagError, match='no VAE weights'): load_vae(shared/'sd15_configs'/'vae')

# --- the VAE inside the package --------------------------------------------------------------------------------------
def test_embedded_vae_draws_scenes():
    import vaetag_nb
    from vaetag_nb.data.synth import scene
    if not (Path(vaetag_nb.__file__).parent/'assets'/'scene_vae').is_dir(): pytest.skip('the embedded VAE is not trained yet: assets/scene_vae is missing')
    codec = Codec.embedded()
    assert codec.spec()['source'] == 'embedded' and codec.factor == 8 and Codec.from_spec(codec.spec()).fingerprint == codec.fingerprint
    psnr = []
    for i in range(8):
        x = torch.from_numpy(np.asarray(scene(12345, i, (128, 128)).image).copy()).permute(2, 0, 1)[None].float()/127.5 - 1
        with torch.inference_mode(): psnr.append(float(10*torch.log10(4/(codec.decode(codec.encode(x)) - x).square().mean())))
    assert np.mean(psnr) > 20, psnr

# --- what must be refused --------------------------------------------------------------------------------------------
def refused(src, says, kind=VaetagError, **kw):
    with pytest.raises(kind) as e: Codec.load(src, **kw)
    assert re.search(says, str(e.value)), str(e.value)
    assert '\n' not in str(e.value) and e.value.exit_code == (2 if kind is UsageError else 1)

def put(d, name, sd, cfg=None):
    (d/name).mkdir(exist_ok=True)
    if cfg is not None: (d/name/'config.json').write_text(cfg if isinstance(cfg, str) else json.dumps(cfg))
    save_file(sd, d/name/'diffusion_pytorch_model.safetensors')
    return d/name

@pytest.mark.parametrize('change, says', [
    ({'scaling_facto': .5}, "unknown VAE setting 'scaling_facto'. Did you mean 'scaling_factor'"),
    ({'latent_channels': 8}, 'the config says latent_channels 8, the weights say 4'),
    ({'block_out_channels': [16, 32, 64]}, r'the config says block_out_channels \[16, 32, 64\], the weights say \[16, 32, 32\]'),
    ({'scaling_factor': None}, '4 channels fit family sd15 or sdxl'), ({'scaling_factor': 'x'}, "scaling_factor 'x', which is no number"),
    ({'scaling_factor': 0}, 'scale 0.0 cannot be'), ({'scaling_factor': True}, 'no number'), ({'norm_num_groups': 5}, 'settings make no VAE'),
    ({'act_fn': 'nonsense'}, 'settings make no VAE'), ({'_class_name': 'AutoencoderDC'}, 'config says AutoencoderDC'),
    ({'_class_name': 'AutoencoderTiny'}, 'config says AutoencoderTiny, the weights are of AutoencoderKL'), ({'latents_mean': [1, 2], 'latents_std': [1, 1, 1]}, '2 numbers in latents_mean, the latent 4 channels')])
def test_wrong_config(files, tmp_path, change, says):
    d, codec, sd = files
    cfg = json.loads((d/'folder'/'config.json').read_text()) | change
    refused(put(tmp_path, 'v', sd, cfg), says)

@pytest.mark.parametrize('text', ['[1]', '3', '{', '"x"'])
def test_config_that_is_no_mapping(files, tmp_path, text): refused(put(tmp_path, 'v', files[2], text), 'config.json: not')

def change(sd, **kw): return {k: v for k, v in (sd | {k.replace('__', '.'): v for k, v in kw.items()}).items() if v is not None}
@pytest.mark.parametrize('kw, says', [
    (dict(encoder__conv_in__bias=torch.ones(7)), r'encoder.conv_in.bias has shape \(7,\), its place \(16,\)'),
    (dict(encoder__surprise=torch.ones(1)), '1 of its .* tensors are not of this VAE, as encoder.surprise'),
    (dict(something=torch.ones(1)), '1 of its .* tensors are not of a VAE that we know, as something'),
    (dict(decoder__conv_out__weight=None), 'lacks the tensor decoder.conv_out.weight'), (dict(decoder__conv_out__bias=None), 'lacks 1 of .* tensors'),
    (dict(encoder__conv_in__weight=torch.ones(())), 'outer tensors are no convolutions'),
    (dict(encoder__conv_in__bias=torch.ones(16, dtype=torch.int64)), 'holds torch.int64 instead of weights')])
def test_wrong_weights(files, tmp_path, kw, says):
    save_file(change(files[2], **kw), tmp_path/'v.safetensors')
    refused(tmp_path/'v.safetensors', says, config=GROUPS, family='sd15')

def test_an_absurd_block_number_costs_nothing(tmp_path):
    save_file({'encoder.down.0.block.0.norm1.weight': torch.ones(1), f'encoder.down.{10**12}.block.0.norm1.weight': torch.ones(1)}, tmp_path/'v.safetensors')
    refused(tmp_path/'v.safetensors', 'not of a VAE that we know')
    save_file({f'encoder.down_blocks.{10**12}.x': torch.ones(1)}, tmp_path/'w.safetensors')
    refused(tmp_path/'w.safetensors', 'not a whole VAE')

def test_scale_is_never_guessed(files, tmp_path):
    d, codec, sd = files
    refused(d/'named.safetensors', '4 channels fit family sd15 or sdxl: say --family', config=GROUPS)
    refused(d/'folder', 'scaling_factor 0.18215, family sdxl has 0.13025', family='sdxl')
    refused(d/'folder', 'family flux is AutoencoderKL of 16 channels, the weights are AutoencoderKL of 4', family='flux')
    refused(d/'folder', "VAE family 'fluxx'", UsageError, family='fluxx')
    refused(d/'named.safetensors', 'norm_num_groups', family='sd15')
    sixteen = Codec.random(SMALL | dict(latent_channels=16, scaling_factor=.3611))
    sd = {k: v.contiguous() for k, v in sixteen.vae.state_dict().items()}
    refused(put(tmp_path, 'f', sd, GROUPS), '16 channels fit family sd3 or flux')
    refused(put(tmp_path, 'f', sd, GROUPS | dict(scaling_factor=.3611)), 'scaling_factor of flux, but no shift_factor')
    ok = Codec.load(put(tmp_path, 'f', sd, GROUPS), config=dict(scaling_factor=.3611, shift_factor=.1159))
    assert ok.family == 'flux' and ok.convention == FAMILIES['flux'].convention
    assert Codec.load(tmp_path/'f', family='sd3').convention == FAMILIES['sd3'].convention

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f'touch {self.path}',)

@pytest.mark.parametrize('name', ['v.bin', 'v.pt', 'v.pth', 'v.ckpt', 'folder'])
def test_malicious_pickle_runs_nothing(files, tmp_path, name):
    torch.save({**files[2], 'x': Evil(tmp_path/'pwned')}, tmp_path/(name if name != 'folder' else 'diffusion_pytorch_model.bin'))
    refused(tmp_path if name == 'folder' else tmp_path/name, 'needs more than tensors', config=GROUPS, family='sd15')
    assert not (tmp_path/'pwned').exists()

@pytest.mark.parametrize('name, content', [('v.safetensors', b''), ('v.safetensors', b'\xff'*100), ('v.pt', b''), ('v.ckpt', b'not a pickle'), ('v.bin', b'PK\3\4' + b'0'*50)])
def test_torn_files(tmp_path, name, content):
    (tmp_path/name).write_bytes(content)
    refused(tmp_path/name, re.escape(name) + ': (not a|this pickle needs more)')

def test_odd_pickles(tmp_path):
    for i, x in enumerate([[1], {'a': 1}, {1: torch.ones(1)}, torch.ones(2), {'state_dict': {}}]):
        torch.save(x, tmp_path/f'{i}.pt'); refused(tmp_path/f'{i}.pt', 'holds no named tensors')
    loop = {'a': torch.ones(1)}; loop['state_dict'] = loop
    torch.save(loop, tmp_path/'loop.pt'); refused(tmp_path/'loop.pt', 'not of a VAE that we know')

def test_nothing_there(tmp_path):
    refused(tmp_path/'no', 'no such VAE file or folder'); refused(tmp_path, 'no VAE weights; looked for')
    (tmp_path/'diffusion_pytorch_model.safetensors.index.json').write_text('[]'); refused(tmp_path, 'no weight_map')

def test_random_vae_matches_its_own_shapes():
    c = Codec.random(SMALL)
    cls, cfg = infer(c.vae.state_dict())
    assert cls == 'AutoencoderKL' and all(cfg[k] == list(v) if isinstance(v, (list, tuple)) else cfg[k] == v for k, v in SMALL.items() if k in cfg)
