"dghs-imgutils: `get_wd14_tags` of a model that its list of names is given, and tags of the embedding"
import json, sys
import numpy as np
from imgutils.tagging import convert_wd14_emb_to_prediction, get_wd14_tags, wd14

ask = json.load(open(sys.argv[1]))
wd14.MODEL_NAMES['Mine'] = ask['repo']
fmt = 'rating', 'general', 'character', 'embedding', 'prediction'
tags = [get_wd14_tags(p, 'Mine', character_threshold=ask['character'], fmt=fmt) for p in ask['pictures']]
again = convert_wd14_emb_to_prediction(np.stack([t[3] for t in tags]), 'Mine', character_threshold=ask['character'], fmt=fmt)
plain = lambda r: {k: v if isinstance(v, dict) else v.tolist() for k, v in zip(fmt, r)}
print(json.dumps(dict(tags=[*map(plain, tags)], again=[*map(plain, again)])))
