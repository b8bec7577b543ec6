"What is in the environment of the clients"
import json
from importlib.metadata import distributions

want = ('timm', 'dghs-imgutils', 'onnxruntime', 'diffusers', 'pandas', 'numpy', 'torch', 'pillow', 'opencv-contrib-python')
print(json.dumps({d.name: d.version for d in distributions() if d.name in want}))
