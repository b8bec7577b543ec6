"Every family and every layout of its files: built by diffusers, loaded by us with a full, a partial and no config, bit for bit the same"
import inspect, json, re, shutil
import diffusers, huggingface_hub, pytest, torch
from safetensors.torch import save_file
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.latents.codec import Codec
from vaetag_nb.latents.convention import Convention
from vaetag_nb.latents.loading import WAN, NoConvention, load_vae

# What diffusers' own constructors get, and what our loader must be told besides the weights when there is no config file
KL = dict(block_out_channels=(32, 32, 64), down_block_types=('DownEncoderBlock2D',)*3, up_block_types=('UpDecoderBlock2D',)*3, layers_per_block=1)
SIDES = dict(encoder_block_out_channels=(16, 16, 16), decoder_block_out_channels=(16, 16, 16))
VIT = dict(encoder_block_types=('ResBlock', 'EfficientViTBlock'), decoder_block_types=('ResBlock', 'EfficientViTBlock'), attention_head_dim=8,
           encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 2), decoder_layers_per_block=(1, 2),
           encoder_block_out_channels=(16, 32), decoder_block_out_channels=(16, 32), latent_channels=8, scaling_factor=.41407)
VID = dict(base_dim=8, dim_mult=[1, 2, 2], temperal_downsample=[False, True], num_res_blocks=1)
NUMBERS = dict(latents_mean=[.1, -.2, .3, .4], latents_std=[1., 2., 3., .5])
CASES = dict(   # class, its settings, our family, what partial config is enough (None: the family alone is)
    sd15=('AutoencoderKL', KL | dict(latent_channels=4, scaling_factor=.18215), 'sd15', None, Convention(.18215)),
    sdxl=('AutoencoderKL', KL | dict(latent_channels=4, scaling_factor=.13025), 'sdxl', None, Convention(.13025)),
    sdxl_stats=('AutoencoderKL', KL | NUMBERS | dict(latent_channels=4, scaling_factor=.13025), 'sdxl', dict(scaling_factor=.13025, **NUMBERS), Convention(.13025, tuple(NUMBERS['latents_mean']), tuple(NUMBERS['latents_std']))),
    sd3=('AutoencoderKL', KL | dict(latent_channels=16, scaling_factor=1.5305, shift_factor=.0609, use_quant_conv=False, use_post_quant_conv=False), 'sd3', None, Convention(1.5305, .0609)),
    flux=('AutoencoderKL', KL | dict(latent_channels=16, scaling_factor=.3611, shift_factor=.1159, use_quant_conv=False, use_post_quant_conv=False), 'flux', None, Convention(.3611, .1159)),
    attn=('AutoencoderKL', KL | dict(latent_channels=16, scaling_factor=.5, down_block_types=('DownEncoderBlock2D',)*2 + ('AttnDownEncoderBlock2D',), up_block_types=('AttnUpDecoderBlock2D',) + ('UpDecoderBlock2D',)*2), None, dict(scaling_factor=.5), Convention(.5)),
    flux2=('AutoencoderKLFlux2', KL | dict(latent_channels=32), 'flux2', None, None),
    wan=('AutoencoderKLWan', VID | dict(z_dim=16), 'wan', None, WAN),
    wan_wide=('AutoencoderKLWan', VID | NUMBERS | dict(z_dim=4, decoder_base_dim=16), 'wan', NUMBERS, Convention(1, tuple(NUMBERS['latents_mean']), tuple(NUMBERS['latents_std']))),
    wan22=('AutoencoderKLWan', VID | NUMBERS | dict(z_dim=4, is_residual=True, in_channels=12, out_channels=12, patch_size=2, decoder_base_dim=16, scale_factor_spatial=8), 'wan', NUMBERS, Convention(1, tuple(NUMBERS['latents_mean']), tuple(NUMBERS['latents_std']))),
    qwen=('AutoencoderKLQwenImage', VID | dict(z_dim=16), 'qwen', None, WAN),
    tiny=('AutoencoderTiny', SIDES | dict(num_encoder_blocks=(1, 2, 1), num_decoder_blocks=(2, 1, 1), latent_channels=4), 'tiny', None, Convention()),
    tiny16=('AutoencoderTiny', SIDES | dict(num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), latent_channels=16), 'tiny', None, Convention()),
    dcae=('AutoencoderDC', VIT, 'dcae', dict(scaling_factor=.41407), Convention(.41407)),
    dcae_conv=('AutoencoderDC', VIT | dict(upsample_block_type='interpolate', downsample_block_type='Conv'), 'dcae', dict(scaling_factor=.41407), Convention(.41407)),
    dcae_batch=('AutoencoderDC', VIT | dict(decoder_norm_types=('batch_norm', 'rms_norm'), decoder_act_fns=('relu', 'silu')), 'dcae', dict(scaling_factor=.41407, decoder_act_fns=['relu', 'silu']), Convention(.41407)),
    dcae_deep=('AutoencoderDC', VIT | dict(encoder_block_types=('ResBlock', 'ResBlock', 'EfficientViTBlock'), decoder_block_types=('ResBlock', 'ResBlock', 'EfficientViTBlock'), encoder_layers_per_block=(0, 1, 1), decoder_layers_per_block=(0, 1, 1),
        encoder_block_out_channels=(8, 16, 32), decoder_block_out_channels=(8, 16, 32), encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,))), 'dcae', dict(scaling_factor=.41407), Convention(.41407)))
FACTORS = dict(flux2=8, wan22=8, dcae=2, dcae_conv=2, dcae_batch=2, dcae_deep=4)   # of model space; 4 elsewhere

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Each VAE once, by diffusers, with weights and statistics that are not those of a fresh network"
    out = {}
    def get(name):
        if name not in out:
            cls, cfg, *_ = CASES[name]
            torch.manual_seed(len(name))
            vae = getattr(diffusers, cls)(**cfg).eval()
            for k, t in vae.state_dict().items():
                if k.endswith('running_mean'): t.copy_(torch.randn_like(t)*.1)
                if k.endswith('running_var'): t.copy_(torch.rand_like(t) + .5)
            d = tmp_path_factory.mktemp(name); vae.save_pretrained(d/'folder')
            out[name] = d, vae, {k: v.contiguous() for k, v in vae.state_dict().items()}
        return out[name]
    return get

def latents(vae, cls, x):
    "What diffusers' class gives for pictures"
    with torch.no_grad(): e = vae.encode(x[:, :, None] if 'Wan' in cls or 'Qwen' in cls else x)
    z = e.latent_dist.mean if hasattr(e, 'latent_dist') else e.latents if hasattr(e, 'latents') else e.latent
    return z[:, :, 0] if z.ndim == 5 else z

PICTURES = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(1))*2 - 1

@pytest.mark.parametrize('name', CASES)
def test_every_family_from_folder_file_and_partial_config(made, tmp_path, name):
    cls, cfg, family, partial, convention = CASES[name]
    d, vae, sd = made(name)
    save_file(sd, tmp_path/'one.safetensors'); torch.save(sd, tmp_path/'one.bin'); save_file({f'vae.{k}': v for k, v in sd.items()} | {'unet.x': torch.ones(1)}, tmp_path/'whole.safetensors')
    told = dict(family=family) if family else {}
    sources = [Codec.load(d/'folder')] + [Codec.load(tmp_path/n, partial, **told) for n in ('one.safetensors', 'one.bin', 'whole.safetensors')]
    if partial: sources.append(Codec.load(tmp_path/'one.safetensors', partial | ({'_class_name': cls})))
    want = latents(vae, cls, PICTURES)
    for c in sources:
        with torch.no_grad(): z, raw = c.encode(PICTURES), c.encode_raw(PICTURES)[0]
        torch.testing.assert_close(raw, want, atol=2e-5, rtol=1e-5)   # channels last sums in another order
        assert (z - sources[0].encode(PICTURES)).abs().max() == 0 and c.fingerprint == sources[0].fingerprint
        assert (c.cls_name, c.family, c.factor) == (cls, family or 'custom', FACTORS.get(name, 4)), (c, name)
        if convention: assert c.convention == convention and torch.equal(z, convention.apply(raw))
        assert z.shape == (2, c.channels, 16//c.factor, 32//c.factor) and c.decode(z).shape == PICTURES.shape
        video = raw[:, :, None] if raw.ndim == 4 and cls in ('AutoencoderKLWan', 'AutoencoderKLQwenImage') else raw
        with torch.no_grad(): theirs, ours = vae.decode(video).sample, c.vae.decode(raw).sample
        torch.testing.assert_close(ours, theirs[:, :, 0] if theirs.ndim == 5 else theirs, atol=1e-4, rtol=1e-4)
    again = Codec.from_spec(json.loads(json.dumps(sources[1].spec())))
    assert again.spec() == sources[1].spec()

@pytest.mark.parametrize('name', CASES)
def test_what_we_save_diffusers_reads_back(made, tmp_path, name):
    cls = CASES[name][0]
    c = Codec.load(made(name)[0]/'folder'); c.save(tmp_path/'v')
    again, theirs = Codec.load(tmp_path/'v'), getattr(diffusers, cls).from_pretrained(tmp_path/'v', local_files_only=True).eval()
    assert again.fingerprint == c.fingerprint and again.convention == c.convention and again.family == c.family
    torch.testing.assert_close(latents(theirs, cls, PICTURES), c.encode_raw(PICTURES)[0], atol=2e-5, rtol=1e-5)
    for k in ('scaling_factor', 'shift_factor', 'latents_mean', 'latents_std'): assert theirs.config.get(k) == made(name)[1].config.get(k) or not theirs.config.get(k) and not made(name)[1].config.get(k)

@pytest.mark.parametrize('name, says', [('sd15', '4 channels fit family sd15 or sdxl'), ('sd3', '16 channels fit family sd3 or flux'), ('wan', '16 channels fit family qwen or wan: say --family .* with latents_mean'),
    ('wan22', r'4 channels fit family qwen or wan: say --config \(config=\) with latents_mean'), ('dcae', r'8 channels fit family dcae: say --config \(config=\) with scaling_factor')])
def test_scale_is_missing(made, tmp_path, name, says):
    save_file(made(name)[2], tmp_path/'v.safetensors')
    with pytest.raises(NoConvention, match=says): Codec.load(tmp_path/'v.safetensors')

def test_activation_of_batch_norms_is_not_guessed(made, tmp_path):
    save_file(made('dcae_batch')[2], tmp_path/'v.safetensors')
    with pytest.raises(VaetagError, match='may be SiLU or ReLU; give a config with decoder_act_fns'): Codec.load(tmp_path/'v.safetensors', dict(scaling_factor=.4))

@pytest.mark.parametrize('name, change, says', [
    ('wan', dict(dim_mult=[1, 2, 4]), r'the config says dim_mult \[1, 2, 4\], the weights say \[1, 2, 2\]'), ('wan', dict(latents_mean=[0.]*4), '4 numbers in latents_mean, the latent 16 channels'),
    ('wan', dict(latent_mean=[0.]), "unknown VAE setting 'latent_mean'. Did you mean 'latents_mean'"), ('wan', dict(patch_size=2), 'the config says patch_size 2, the weights say None'),
    ('qwen', dict(z_dim=4), 'the config says z_dim 4, the weights say 16'), ('qwen', dict(is_residual=False), "unknown VAE setting 'is_residual'"), ('qwen', dict(latents_std=None), 'has latents_mean, but not its latents_std'),
    ('qwen', dict(latents_std=[0.]*16), 'std 0.0 cannot be'), ('dcae', dict(decoder_layers_per_block=[1, 1]), r'decoder_layers_per_block \[1, 1\], the weights say \[1, 2\]'),
    ('dcae', dict(upsample_block_type='interpolate'), 'says upsample_block_type interpolate, the weights say pixel_shuffle'), ('dcae', dict(encoder_qkv_multiscales=[[], [3]]), r'encoder_qkv_multiscales \[\[\], \[3\]\], the weights say'),
    ('dcae', dict(scaling_fator=1), "unknown VAE setting 'scaling_fator'"), ('flux2', dict(latent_channels=16), 'latent_channels 16, the weights say 32'), ('tiny', dict(num_encoder_blocks=[1, 1, 1]), 'num_encoder_blocks'),
    ('sdxl_stats', dict(latents_mean=None), 'has latents_std, but not its latents_mean'), ('sdxl_stats', dict(shift_factor=.1), 'both latents_mean and shift_factor'), ('sdxl_stats', dict(latents_std='x'), "latents_std 'x', which are no numbers")])
def test_config_that_contradicts(made, tmp_path, name, change, says):
    shutil.copytree(made(name)[0]/'folder', tmp_path/'v')
    cfg = json.loads((tmp_path/'v'/'config.json').read_text()) | change
    (tmp_path/'v'/'config.json').write_text(json.dumps(cfg))
    with pytest.raises(VaetagError, match=says) as e: Codec.load(tmp_path/'v')
    assert '\n' not in str(e.value) and str(tmp_path/'v') in str(e.value)

def test_family_and_class_must_agree(made, tmp_path):
    folder = made('wan')[0]/'folder'
    with pytest.raises(VaetagError, match='family qwen is AutoencoderKLQwenImage of any channels, the weights are AutoencoderKLWan of 16'): Codec.load(folder, family='qwen')
    with pytest.raises(VaetagError, match='not those of family wan'): Codec.load(folder, dict(latents_mean=[0.]*16), family='wan')
    with pytest.raises(VaetagError, match='family flux is AutoencoderKL of 16 channels, the weights are AutoencoderKLWan of 16'): Codec.load(folder, family='flux')
    with pytest.raises(VaetagError, match='the config says AutoencoderKLCogVideoX, the weights are of AutoencoderKLWan; classes that are read: AutoencoderDC'): Codec.load(folder, {'_class_name': 'AutoencoderKLCogVideoX'})
    for cls in (diffusers.AutoencoderKLWan, diffusers.AutoencoderKLQwenImage):   # their published numbers
        said = inspect.signature(cls.__init__).parameters
        assert said['latents_mean'].default == list(WAN.shift) and said['latents_std'].default == list(WAN.std)

# --- names -----------------------------------------------------------------------------------------------------------
def to_ldm(sd, n=3):
    "LDM's names of diffusers' tensors, attention as 1x1 convolutions"
    rules = [('encoder.down_blocks.{i}.resnets', 'encoder.down.{i}.block'), ('encoder.down_blocks.{i}.attentions', 'encoder.down.{i}.attn'), ('encoder.down_blocks.{i}.downsamplers.0', 'encoder.down.{i}.downsample'),
             ('decoder.up_blocks.{i}.resnets', 'decoder.up.{j}.block'), ('decoder.up_blocks.{i}.attentions', 'decoder.up.{j}.attn'), ('decoder.up_blocks.{i}.upsamplers.0', 'decoder.up.{j}.upsample')]
    rules = [(a.format(i=i), b.format(i=i, j=n-1-i)) for a, b in rules for i in range(n)]
    rules += [('mid_block.resnets.0', 'mid.block_1'), ('mid_block.resnets.1', 'mid.block_2'), ('mid_block.attentions.0', 'mid.attn_1'), ('group_norm', 'norm'), ('to_out.0', 'proj_out'), ('to_', ''), ('conv_norm_out', 'norm_out'), ('conv_shortcut', 'nin_shortcut')]
    out = {}
    for k, v in sd.items():
        if re.search(r'attentions.*(to_\w+|to_out\.0)\.weight', k): v = v[:, :, None, None].contiguous()
        for a, b in rules: k = k.replace(a, b)
        out[k] = v
    return out

def old_names(sd):
    names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    return {re.sub(r'(to_q|to_k|to_v|to_out\.0)(?=\.)', lambda m: names[m[1]], k): v for k, v in sd.items()}

@pytest.mark.parametrize('name', ['sd15', 'sdxl_stats', 'sd3', 'flux', 'attn', 'flux2'])
def test_observable_e_ldm_prefixed_and_diffusers_names_are_one_vae(made, tmp_path, name):
    cls, cfg, family, partial, _ = CASES[name]
    d, vae, sd = made(name)
    ldm = to_ldm(sd); assert not ldm.keys() <= sd.keys()
    if name == 'flux2': ldm = {re.sub(r'^quant', 'encoder.quant', re.sub(r'^post', 'decoder.post', k)): v for k, v in ldm.items()}   # the original's place of them
    copies = dict(named=sd, ldm=ldm, old=old_names(sd), vae={f'vae.{k}': v for k, v in sd.items()}, stage={f'first_stage_model.{k}': v for k, v in ldm.items()} | {'model.diffusion_model.in.weight': torch.ones(3), 'cond_stage_model.x': torch.ones(1), 'first_stage_model.loss.logvar': torch.ones(())})
    for k, x in copies.items(): save_file(x, tmp_path/f'{k}.safetensors')
    torch.save({'state_dict': copies['stage'], 'epoch': 3}, tmp_path/'stage.ckpt')
    told = dict(config=partial, family=family)
    first = Codec.load(d/'folder')
    for path in sorted(tmp_path.iterdir()):
        c = Codec.load(path, **told)
        assert c.fingerprint == first.fingerprint and (c.encode(PICTURES) - first.encode(PICTURES)).abs().max() == 0, path.name
        assert (c.decode(c.encode(PICTURES)) - first.decode(first.encode(PICTURES))).abs().max() == 0

def to_wan(sd, per):
    "Wan's own names: the inverse of our table"
    flip = {}
    for k in sd:
        new = re.sub(r'^(post_)?quant_conv', lambda m: 'conv2' if m[1] else 'conv1', k)
        new = re.sub(r'\.norm1\.', '.residual.0.', new) if 'attentions' not in new else new
        for a, b in (('norm2', 'residual.3'), ('conv1', 'residual.2'), ('conv2', 'residual.6'), ('conv_shortcut', 'shortcut')): new = re.sub(rf'(?<!^)\.{a}\.', f'.{b}.', new)
        for a, b in (('conv_in', 'conv1'), ('norm_out', 'head.0'), ('conv_out', 'head.2'), ('mid_block.resnets.0', 'middle.0'), ('mid_block.attentions.0', 'middle.1'), ('mid_block.resnets.1', 'middle.2')): new = re.sub(rf'^(\w+coder)\.{re.escape(a)}', rf'\1.{b}', new)
        for s in ('down', 'up'):
            new = re.sub(rf'(\w+)\.{s}_blocks\.(\d+)\.(?:resnets\.(\d+)|{s}sampler)\.', lambda m: f'{m[1]}.{s}samples.{m[2]}.{s}samples.{m[3] or 9}.', new) if per is None else new
        if per is not None:
            new = re.sub(r'decoder\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.', lambda m: f'decoder.upsamples.{int(m[1])*per + (int(m[2]) if m[2] else per - 1)}.', new)
            new = new.replace('encoder.down_blocks', 'encoder.downsamples')
        flip[k] = new
    assert len(set(flip.values())) == len(flip)
    return {flip[k]: v for k, v in sd.items()}

@pytest.mark.parametrize('name', ['wan', 'qwen', 'wan22'])
def test_wan_names(made, tmp_path, name):
    cls, cfg, family, partial, _ = CASES[name]
    d, vae, sd = made(name)
    theirs = to_wan(sd, None if name == 'wan22' else 3)
    assert 'conv1.weight' in theirs and any(k.startswith('encoder.downsamples.0.') for k in theirs)
    save_file(theirs, tmp_path/'wan.safetensors'); torch.save(theirs, tmp_path/'Wan_VAE.pth'); save_file({f'vae.{k}': v for k, v in theirs.items()} | {'model.x': torch.ones(1)}, tmp_path/'whole.safetensors')
    for n in ('wan.safetensors', 'Wan_VAE.pth', 'whole.safetensors'):
        c, first = Codec.load(tmp_path/n, partial, family), Codec.load(d/'folder')
        assert c.fingerprint == first.fingerprint and (c.encode(PICTURES) - first.encode(PICTURES)).abs().max() == 0

# --- places ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def placed(made, tmp_path):
    d, vae, sd = made('flux')
    return tmp_path, vae, sd, Codec.load(d/'folder')

def same(c, first): return c.fingerprint == first.fingerprint and (c.encode(PICTURES) - first.encode(PICTURES)).abs().max() == 0

def test_diffusers_own_variants_and_shards(placed):
    tmp, vae, sd, first = placed
    vae.save_pretrained(tmp/'half', variant='fp16'); vae.save_pretrained(tmp/'pickle', safe_serialization=False); vae.save_pretrained(tmp/'cut', max_shard_size='200KB'); vae.save_pretrained(tmp/'cut16', max_shard_size='200KB', variant='fp16')
    vae.save_pretrained(tmp/'cutbin', max_shard_size='200KB', safe_serialization=False)
    assert (tmp/'half'/'diffusion_pytorch_model.fp16.safetensors').exists() and len([*(tmp/'cut').glob('*-of-*.safetensors')]) > 1 and len([*(tmp/'cut16').glob('*.index.fp16.json')]) == 1
    for n in ('half', 'pickle', 'cut', 'cut16', 'cutbin'): assert same(Codec.load(tmp/n), first), n
    shutil.copy(tmp/'half'/'diffusion_pytorch_model.fp16.safetensors', tmp/'half'/'diffusion_pytorch_model.bf16.safetensors')
    with pytest.raises(VaetagError, match='holds diffusion_pytorch_model.bf16.safetensors, diffusion_pytorch_model.fp16.safetensors; name the file'): Codec.load(tmp/'half')
    assert same(Codec.load(tmp/'half'/'diffusion_pytorch_model.bf16.safetensors'), first)   # with the config of its folder
    (tmp/'cut'/'diffusion_pytorch_model.safetensors.index.json').write_text(json.dumps(dict(weight_map={'a': '../half/x.safetensors'})))
    with pytest.raises(VaetagError, match='no weight_map of names of files beside it'): Codec.load(tmp/'cut')

def test_a_pipeline_with_its_licence(placed):
    tmp, vae, sd, first = placed
    vae.save_pretrained(tmp/'pipe'/'vae'); (tmp/'pipe'/'model_index.json').write_text('{}'); (tmp/'pipe'/'README.md').write_text('---\nlicense: apache-2.0\n---\n')
    c = Codec.load(tmp/'pipe'); assert same(c, first) and c.licence == 'apache-2.0'

def test_the_hubs_cache_and_names(placed, monkeypatch):
    tmp, vae, sd, first = placed
    repo = tmp/'models--black--flux'; snap = repo/'snapshots'/'0a1b2c'
    vae.save_pretrained(snap/'vae'); (repo/'refs').mkdir(); (repo/'refs'/'main').write_text('0a1b2c'); save_file(sd, snap/'ae.safetensors')
    assert same(Codec.load(repo), first)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp))
    def never(*a, **k): raise AssertionError('asked the hub')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', never)
    for name, told in (('hub:black/flux', {}), ('hub:black/flux/vae', {}), ('hub:black/flux@0a1b2c/vae', {}), ('hub:black/flux/ae.safetensors', dict(family='flux'))):
        c = Codec.load(name, **told)
        assert same(c, first) and c.spec()['source'] == name and Codec.from_spec(c.spec()).fingerprint == first.fingerprint
    with pytest.raises(VaetagError, match='black/flux: no such VAE file or folder; for a name on the Hugging Face hub write hub:black/flux'): Codec.load('black/flux')
    with pytest.raises(UsageError, match='not a name on the hub'): Codec.load('hub:black')

def test_the_hub_is_asked_only_for_the_vae(placed, monkeypatch):
    tmp, vae, sd, first = placed
    asked = []
    def download(repo, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns)); vae.save_pretrained(tmp/'got'/'vae'); return str(tmp/'got')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp/'empty')); monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert same(Codec.load('hub:black/flux@v2'), first)
    (repo, revision, patterns), = asked
    assert (repo, revision) == ('black/flux', 'v2') and 'vae/diffusion_pytorch_model.safetensors' in patterns and not any(p.startswith(('*', 'unet', 'transformer')) or p.endswith(('.bin', '.ckpt')) for p in patterns)
    def broken(*a, **k): raise OSError('no\nnetwork')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', broken)
    with pytest.raises(VaetagError, match="not in the hub's cache, and cannot be downloaded: no network"): Codec.load('hub:black/other')

# --- the original VAE-Tagger's ---------------------------------------------------------------------------------------
PARTIAL = dict(latent_channels=16, scaling_factor=.3611, shift_factor=.1159, sample_size=1024)   # of its `vae_config.json`

@pytest.mark.parametrize('config', ['config.json', 'vae_config.json', 'diffusers_vae_config.json'])
@pytest.mark.parametrize('weights', ['diffusion_pytorch_model.safetensors', 'diffusion_pytorch_model.bin', 'vae.safetensors', 'pytorch_model.bin', 'model.safetensors'])
def test_a_vae_of_the_original(placed, config, weights):
    tmp, vae, sd, first = placed
    best = tmp/'run'/'best_vae'; best.mkdir(parents=True)
    full = PARTIAL | dict(_class_name='AutoencoderKL', latents_mean=None, latents_std=None, act_fn='silu', use_quant_conv=False)
    (best/config).write_text(json.dumps(full if config == 'diffusers_vae_config.json' else PARTIAL))
    boxed = {f'vae.{k}': v for k, v in sd.items()} if weights in ('pytorch_model.bin', 'model.safetensors') else sd   # states of its wrapper
    save_file(boxed, best/weights) if weights.endswith('s') else torch.save(boxed, best/weights)
    (tmp/'run'/'training_history.json').write_text('{}'); (tmp/'run'/'optimizer.bin').write_bytes(b'')
    for src in (tmp/'run', best): assert same(Codec.load(src), first) and Codec.load(src).family == 'flux'
    old = Codec.load(best, convention='scale_shift'); raw = old.encode_raw(PICTURES)[0]
    assert torch.equal(old.encode(PICTURES), raw*old.convention.scale + old.convention.bias) and str(old.convention) == 'z * 0.3611 + 0.1159'
    (best/config).write_text(json.dumps(dict(latent_channels=16, sample_size=512)))   # nothing is filled in as the original did
    with pytest.raises(NoConvention, match='16 channels fit family sd3 or flux'): Codec.load(best)
    assert same(Codec.load(best, family='flux'), first)

def test_scale_shift_of_a_convention_without_one(made):
    with pytest.raises(VaetagError, match='scale_shift is z \\* scale \\+ shift, but the convention of this VAE is'): Codec.load(made('flux2')[0]/'folder', convention='scale_shift')

# --- the rest of 4.3 -------------------------------------------------------------------------------------------------
def test_sd15s_own_config_has_no_scale(made, shared, tmp_path):
    cfg = json.loads((shared/'sd15_configs'/'vae'/'config.json').read_text())
    assert 'scaling_factor' not in cfg
    with torch.device('meta'): vae = diffusers.AutoencoderKL.from_config(cfg)
    sd = {k: torch.zeros(v.shape, dtype=torch.float16) for k, v in vae.state_dict().items()}
    (tmp_path/'vae').mkdir(); shutil.copy(shared/'sd15_configs'/'vae'/'config.json', tmp_path/'vae'/'config.json'); save_file(sd, tmp_path/'vae'/'diffusion_pytorch_model.fp16.safetensors')
    with pytest.raises(NoConvention, match='4 channels fit family sd15 or sdxl'): load_vae(tmp_path)
    m = load_vae(tmp_path, family='sd15')
    assert (m.family, m.convention, sum(p.numel() for p in m.vae.parameters())) == ('sd15', Convention(.18215), 83_653_863)

def test_draws_from_the_posterior(made):
    c = Codec.load(made('flux')[0]/'folder')
    mean, logvar = c.encode_raw(PICTURES)
    a, b = c.encode(PICTURES, seed=1), c.encode(PICTURES, seed=2)
    assert torch.equal(a, c.encode(PICTURES, seed=1)) and not torch.equal(a, b)
    noise = (c.denormalize(a) - mean)/(logvar/2).exp()
    assert abs(float(noise.mean())) < .15 and abs(float(noise.std()) - 1) < .15
    with pytest.raises(VaetagError, match='AutoencoderTiny has no posterior to draw from'): Codec.load(made('tiny')[0]/'folder').encode(PICTURES, seed=1)

def test_weights_that_are_not_finite_are_named(made, tmp_path):
    sd = dict(made('wan')[2]); sd['decoder.conv_in.bias'] = sd['decoder.conv_in.bias']*float('inf')
    save_file(sd, tmp_path/'v.safetensors')
    with pytest.raises(VaetagError, match='v.safetensors: the tensor decoder.conv_in.bias holds numbers that are not finite'): Codec.load(tmp_path/'v.safetensors', family='wan')

@pytest.mark.parametrize('name', ['wan', 'qwen', 'wan22', 'dcae', 'flux2'])
def test_gradients_reach_the_encoder(made, name):
    c = Codec.load(made(name)[0]/'folder'); c.vae.requires_grad_(True)
    c.encode(PICTURES).square().mean().backward()
    assert sum(float(p.grad.abs().sum()) for p in c.vae.encoder.parameters() if p.grad is not None) > 0

def test_random_of_every_class():
    for name, (cls, cfg, *_) in CASES.items():
        c = Codec.random(cfg | {'_class_name': cls})
        with torch.no_grad(): assert c.decode(c.encode(PICTURES)).shape == PICTURES.shape
    with pytest.raises(VaetagError, match="class 'AutoencoderKLCogVideoX'"): Codec.random({'_class_name': 'AutoencoderKLCogVideoX'})
    with pytest.raises(VaetagError, match='codec.config: these settings make no VAE'): Codec.random(dict(norm_num_groups=7))

# --- latents check ---------------------------------------------------------------------------------------------------
@pytest.fixture
def shell(tmp_path, monkeypatch):
    import vaetag_nb.cli   # registers the verbs
    from vaetag_nb.verbs.base import shell
    monkeypatch.chdir(tmp_path)
    assert vaetag_nb.cli.main
    return shell

def test_check_says_what_a_file_is_and_what_it_lacks(made, shell, tmp_path):
    save_file(made('sd15')[2], tmp_path/'v.safetensors')
    status, out, err = shell('latents', 'check', 'v.safetensors', '--side', '64')
    assert status == 1 and 'AutoencoderKL, 4 channels, 4 pixels a cell' in out and 'may be sd15 or sdxl' in out and 'DOES NOT RECONSTRUCT' in out and 'the limit is 20' in out
    status, out, err = shell('latents', 'check', 'v.safetensors', '--family', 'sdxl', '--side', '64', '--min-psnr', '0', '--json')
    d = json.loads(out)
    assert (status, d['family'], d['convention'], d['missing'], d['reconstructs'], d['candidates']) == (0, 'sdxl', 'z * 0.13025', None, True, ['sd15', 'sdxl'])
    assert d['parameters'] == sum(p.numel() for p in made('sd15')[1].parameters()) and d['psnr_limit'] == 0 and list(d['psnr']) == ['synthetic']

def test_check_of_a_real_vae_and_of_one_without_its_branch(shared, shell, tmp_path):
    from vaetag_nb.latents.check import check_vae
    photos = sorted((shared/'clothing_cc0'/'images').iterdir())[:2]
    good = check_vae(shared/'weights'/'taef2', photos, side=128)
    assert good.ok and good.mean > 24 > good.yardstick, str(good)
    c = Codec.load(shared/'weights'/'taef2')
    for k, v in c.vae.state_dict().items():
        if '.pool.3.' in k: v.zero_()   # as if the branch were not there
    c.save(tmp_path/'plain')
    assert not check_vae(tmp_path/'plain', photos, side=128).ok

@pytest.mark.parametrize('args, status, says', [
    (('lost.safetensors',), 1, 'lost.safetensors: no such VAE file or folder'), (('black/flux',), 1, 'for a name on the Hugging Face hub write hub:black/flux'), (('empty',), 1, 'empty: no VAE weights; looked for'),
    (('embedded', '--family', 'sd51'), 2, "VAE family 'sd51'"), (('embedded', '--side', '1'), 2, '--side 1'), (('embedded', '--images', 'empty'), 1, 'empty: holds no pictures'), (('embedded', '--config', 'lost.json'), 1, 'lost.json'),
    (('hub:black',), 2, 'not a name on the hub')])
def test_check_of_what_is_not_there(shell, tmp_path, args, status, says):
    (tmp_path/'empty').mkdir()
    code, out, err = shell('latents', 'check', *args)
    assert code == status and says in err and err.count('\n') == 1, err
