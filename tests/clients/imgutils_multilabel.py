"dghs-imgutils: `multilabel_timm_predict` out of the hub's cache"
import json, sys
from imgutils.generic import multilabel_timm_predict

ask = json.load(open(sys.argv[1]))
fmt = 'general', 'character', 'rating', 'embedding', 'prediction'
plain = lambda r: {k: v if isinstance(v, dict) else v.tolist() for k, v in zip(fmt, r)}
tag = lambda p, **kw: plain(multilabel_timm_predict(p, repo_id=ask['repo'], fmt=fmt, **kw))
print(json.dumps([dict(tag(p), all=len(multilabel_timm_predict(p, repo_id=ask['repo'])), at=tag(p, thresholds=.3), category=tag(p, use_tag_thresholds=False)) for p in ask['pictures']]))
