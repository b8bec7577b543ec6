"diffusers: a VAE, or the VAE, network and scheduler of a latent diffusion model, by `from_pretrained`"
import json, sys
import diffusers, numpy as np, torch

ask = json.load(open(sys.argv[1]))
part = lambda cls, sub: getattr(diffusers, cls).from_pretrained(ask['folder'], **(dict(subfolder=sub) if sub else {}))
x = torch.from_numpy(np.load(ask['inputs']))
with torch.inference_mode():
    vae = part(ask['vae'], ask.get('sub')).eval()
    z = vae.encode(x)
    z = z.latents if hasattr(z, 'latents') else z.latent_dist.mode()
    out = dict(latents=z.tolist(), pictures=vae.decode(z).sample.tolist())
    if 'unet' in ask:
        net, s = part(ask['unet'], 'unet').eval(), part(ask['scheduler'], 'scheduler')
        noise, t = torch.from_numpy(np.load(ask['noise'])), torch.tensor(ask['times'])
        out |= dict(network=net(noise, t, class_labels=torch.tensor(ask['users'])).sample.tolist(), alphas=s.alphas_cumprod.tolist())
print(json.dumps(out))
