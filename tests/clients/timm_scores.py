"timm: `create_model` with the name as given, on prepared numbers and on pictures that its own transform prepares"
import json, sys
import numpy as np, timm, torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

ask = json.load(open(sys.argv[1]))
model = timm.create_model(ask['name'], pretrained=True).eval()
prepare = create_transform(**resolve_model_data_config(model), is_training=False)
pictures = torch.stack([prepare(Image.open(p).convert('RGB')) for p in ask['pictures']])
with torch.inference_mode(): scores = [model(x).sigmoid().tolist() for x in (torch.from_numpy(np.load(ask['inputs'])), pictures)]
print(json.dumps(dict(inputs=scores[0], pictures=scores[1], labels=model.pretrained_cfg.get('label_names'))))
