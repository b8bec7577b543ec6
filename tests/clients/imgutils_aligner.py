"dghs-imgutils: lengths given back to directions of one, two and three dimensions, and the tags of those"
import json, sys
import numpy as np
from imgutils.tagging import convert_wd14_emb_to_prediction, denormalize_wd14_emb, wd14

ask = json.load(open(sys.argv[1]))
u, how = np.load(ask['directions']), dict(model_name=ask['tagger'], denormalizer_name=ask['name'])
wd14.MODEL_NAMES[ask['tagger']] = ask['repo']
got = [denormalize_wd14_emb(x, **how) for x in (u[0], u, u.reshape(2, -1, u.shape[1]))]
tags = convert_wd14_emb_to_prediction(u, denormalize=True, character_threshold=ask['character'], **how)
print(json.dumps(dict(one=got[0].tolist(), two=got[1].tolist(), three=got[2].tolist(), tags=[dict(zip(('rating', 'general', 'character'), t)) for t in tags])))
