"The steps of programs that load cl taggers, done again: white square, blue first, -1 to 1, channels first; the sigmoid of output 0, tags by their number"
import json, sys
import numpy as np, onnxruntime
from PIL import Image

ask = json.load(open(sys.argv[1]))
model = onnxruntime.InferenceSession(ask['folder'] + '/model_optimized.onnx', providers=['CPUExecutionProvider'])
i = model.get_inputs()[0]
with open(ask['folder'] + '/tag_mapping.json', encoding='utf-8') as f: tags = {int(k): v for k, v in json.load(f).items()}

def scores(path):
    im = Image.open(path)
    if im.mode in ('RGBA', 'LA') or 'transparency' in im.info:
        im = im.convert('RGBA')
        ground = Image.new('RGB', im.size, (255, 255, 255))
        ground.paste(im, mask=im.split()[3])
        im = ground
    im = im.convert('RGB')
    side = max(im.size)
    out = Image.new('RGB', (side, side), (255, 255, 255))
    out.paste(im, ((side - im.width)//2, (side - im.height)//2))
    x = np.asarray(out.resize((448, 448), Image.BICUBIC), np.float32)[:, :, ::-1].transpose(2, 0, 1)/127.5 - 1
    p = 1/(1 + np.exp(-model.run(None, {i.name: x[None].astype(np.float32)})[0][0]))
    said = {}
    for k, t in tags.items(): said.setdefault(t['category'], {})[t['tag']] = float(p[k])
    return said

print(json.dumps([scores(p) for p in ask['pictures']]))
