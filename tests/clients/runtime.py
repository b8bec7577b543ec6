"ONNX Runtime, any version: one file, numbers in, all outputs"
import json, sys
import numpy as np, onnxruntime

ask = json.load(open(sys.argv[1]))
model = onnxruntime.InferenceSession(ask['model'], providers=['CPUExecutionProvider'])
i, names = model.get_inputs()[0], [o.name for o in model.get_outputs()]
print(json.dumps(dict(version=onnxruntime.__version__, input=[i.name, i.shape], outputs={n: y.tolist() for n, y in zip(names, model.run(names, {i.name: np.load(ask['inputs'])}))})))
