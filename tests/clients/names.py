"How clients read the names of tags: csv, pandas as wdv3-timm and get_wd14_tags take it, pandas as multilabel_timm_predict takes it, json"
import csv, json, sys
import pandas as pd

ask = json.load(open(sys.argv[1]))
with open(ask['csv'], encoding='utf-8') as f: rows = [r[1] for r in csv.reader(f)][1:]
plain = lambda names: [n if isinstance(n, str) else repr(n) for n in names]
print(json.dumps(dict(csv=rows, pandas=plain(pd.read_csv(ask['csv'])['name'].tolist()), keep=plain(pd.read_csv(ask['csv'], keep_default_na=False)['name'].tolist()))))
