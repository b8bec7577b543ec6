"The steps of corkborg's and picobyte's taggers, done again: the input's height, the first four rows for ratings, output 0, OpenCV for sizes"
import json, sys
import cv2, numpy as np, onnxruntime, pandas as pd
from PIL import Image

ask = json.load(open(sys.argv[1]))
model = onnxruntime.InferenceSession(ask['model'], providers=['CPUExecutionProvider'])
_, height, _, _ = model.get_inputs()[0].shape
tags = pd.read_csv(ask['csv'])

def scores(path):
    im = Image.open(path).convert('RGBA')
    ground = Image.new('RGBA', im.size, 'WHITE')
    ground.paste(im, mask=im)
    x = np.asarray(ground.convert('RGB'))[:, :, ::-1]
    h, w = x.shape[:2]
    side = max(h, w, height)                                # a picture smaller than the input is put on a larger square
    at, left = (side - h)//2, (side - w)//2
    x = cv2.copyMakeBorder(np.ascontiguousarray(x), at, side - h - at, left, side - w - left, cv2.BORDER_CONSTANT, value=[255, 255, 255])
    if side > height: x = cv2.resize(x, (height, height), interpolation=cv2.INTER_AREA)
    p = model.run([model.get_outputs()[0].name], {model.get_inputs()[0].name: x.astype(np.float32)[None]})[0][0]
    named = tags.assign(confidents=p)[['name', 'confidents']]
    return dict(ratings=dict(named[:4].values), tags=dict(named[4:].values))

print(json.dumps([scores(p) for p in ask['pictures']]))
