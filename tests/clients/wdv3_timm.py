"neggles/wdv3-timm's steps, done again: labels by pandas, a white square, timm's transform in RGB order, then blue first"
import json, sys
import numpy as np, pandas as pd, timm, torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

ask = json.load(open(sys.argv[1]))
model = timm.create_model(ask['name'], pretrained=True).eval()
labels = pd.read_csv(ask['csv'], usecols=['name', 'category'])
rows = {k: np.flatnonzero(labels.category == c) for k, c in dict(rating=9, general=0, character=4).items()}
prepare = create_transform(**resolve_data_config(model.pretrained_cfg, model=model))

def square(path):
    im = Image.open(path)
    if im.mode not in ('RGB', 'RGBA'): im = im.convert('RGBA' if 'transparency' in im.info else 'RGB')
    if im.mode == 'RGBA':
        ground = Image.new('RGBA', im.size, (255, 255, 255))
        ground.alpha_composite(im)
        im = ground.convert('RGB')
    side = max(im.size)
    out = Image.new('RGB', (side, side), (255, 255, 255))
    out.paste(im, ((side - im.width)//2, (side - im.height)//2))
    return out

with torch.inference_mode(): scores = model(torch.stack([prepare(square(p)) for p in ask['pictures']])[:, [2, 1, 0]]).sigmoid().numpy()
print(json.dumps([{k: {labels.name[i]: float(s[i]) for i in at} for k, at in rows.items()} for s in scores]))
