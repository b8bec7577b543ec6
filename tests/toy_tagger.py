"""A tagger that is trained in seconds, on a few tagged scenes and a small VAE with random weights, for tests that need one."""
from pathlib import Path
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.core.rng import seeded
from vaetag_nb.data.images import load_image, to_float
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.data.table import TagTable
from vaetag_nb.latents.codec import Codec, Convention
from vaetag_nb.models.latent_tagger import build_head, save_model

TINY = dict(_class_name='AutoencoderTiny', latent_channels=4, encoder_block_out_channels=[16]*3, decoder_block_out_channels=[16]*3,
            num_encoder_blocks=[1]*3, num_decoder_blocks=[1]*3)

def toy_tagger(folder, n=24, steps=20, head='pool', codec=None):
    "Write `folder/scenes` and the model folder `folder/model` (its VAE inside, if none is given); returns the table and the codec."
    folder, pre = Path(folder), Preprocess(base=48, max=96, step=8)
    make_scenes(folder/'scenes', n, seed=3, resolution=64)
    table = TagTable.read(folder/'scenes/data.json', folder/'scenes/tags.csv')
    own, codec = codec is None, codec or Codec.random(TINY, Convention(8., .01), seed=1)
    x = [to_float(torch.as_tensor(pre.apply(load_image(p))[0]).permute(2, 0, 1)[None]) for p in table.paths]
    groups = [[k for k, i in enumerate(x) if i.shape == s] for s in sorted({i.shape for i in x})]
    z = [codec.encode(torch.cat([x[k] for k in g])).detach() for g in groups]
    truth = torch.from_numpy(table.labels.toarray())
    size = dict(d=32, depth=1, heads=2) if head == 'pool' else {}
    with seeded(0, 'toy'): net = build_head(dict(kind=head, channels=codec.channels, num_tags=len(table.vocab), **size))
    opt = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(steps):
        for g, i in zip(groups, z):
            loss = binary_cross_entropy_with_logits(net(i), truth[g])
            opt.zero_grad(); loss.backward(); opt.step()
    save_model(folder/'model', net.eval(), table.vocab, codec.spec() | (dict(source='vae') if own else {}), pre.to_dict(),
               thresholds=dict(global_threshold=.35, per_class_thresholds={}), more=lambda d: own and codec.save(d/'vae'))
    return table, codec
