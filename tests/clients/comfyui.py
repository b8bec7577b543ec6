"ComfyUI-WD14-Tagger's reading steps, done again: general tags end at the first row `4`, Lanczos resize, then a white square"
import csv, json, sys
import numpy as np, onnxruntime
from PIL import Image

ask = json.load(open(sys.argv[1]))
model = onnxruntime.InferenceSession(ask['model'] + '.onnx', providers=['CPUExecutionProvider'])
i = model.get_inputs()[0]
side = i.shape[1]
tags, general, character = [], None, None
with open(ask['model'] + '.csv') as f:      # in the machine's encoding
    rows = csv.reader(f)
    next(rows)
    for r in rows:
        if general is None and r[2] == '0': general = rows.line_num - 2
        elif character is None and r[2] == '4': character = rows.line_num - 2
        tags.append(r[1])

def scores(path):
    im = Image.open(path)
    k = side/max(im.size)
    im = im.resize(tuple(int(n*k) for n in im.size), Image.LANCZOS)
    out = Image.new('RGB', (side, side), (255, 255, 255))
    out.paste(im, ((side - im.width)//2, (side - im.height)//2))
    return list(zip(tags, model.run([model.get_outputs()[0].name], {i.name: np.array(out).astype(np.float32)[None, :, :, ::-1]})[0][0].tolist()))

print(json.dumps([dict(general=dict(s[general:character]), character=dict(s[character:])) for s in map(scores, ask['pictures'])]))
