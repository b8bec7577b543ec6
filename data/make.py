"""Make the samples of this folder anew: `python data/make.py [FOLDER]`. The same on every machine, up to the PNG and Parquet writers."""
import json, shutil, sys
from pathlib import Path
import numpy as np, pandas as pd
from vaetag_nb.core.io import atomic_file, write_csv, write_parquet
from vaetag_nb.data.synth import SHAPES, make_scenes
from vaetag_nb.data.table import TagTable
from vaetag_nb.data.tags import format_tags

SCENES, SEED, RESOLUTION = 24, 0, 128

def text(path, s):
    with atomic_file(path) as f: f.write(s)

def copy(src, to): to.parent.mkdir(parents=True, exist_ok=True); shutil.copyfile(src, to)

def tables(out, t):
    "The same records as JSON lines, CSV, Parquet as others write it, and our own Parquet"
    tags = [list(t.tags(i)) for i in range(len(t))]
    path = [f'scenes/{i}' for i in t.ids]
    text(out/'scenes.jsonl', ''.join(json.dumps(dict(file=p, tags=x, split=s)) + '\n' for p, x, s in zip(path, tags, t.split)))
    df = pd.DataFrame(dict(path=path, tags=tags, width=t.width, height=t.height, split=t.split))
    write_csv(out/'scenes.csv', df.assign(tags=[format_tags(t.tags(i)) for i in range(len(t))]))
    write_parquet(out/'scenes.parquet', df)
    t.to_parquet(out/'table.parquet')

def folders(out, t):
    "Pictures with a `.txt` beside each; class folders, named after the shape of pictures with one object"
    for i, p in enumerate(t.paths):
        tags, stem = list(t.tags(i)), Path(p).stem
        copy(p, out/f'sidecars/{stem}.png'); text(out/f'sidecars/{stem}.txt', ', '.join(tags))
        shape = [s for s in SHAPES[0] if s in tags]
        if 'one_object' in tags and len(shape) == 1: copy(p, out/f'classes/{shape[0]}/{stem}.png')

def messy(out, t):
    "One of every mistake that `vaetag data validate` finds"
    first, *_ = t.paths
    (out/'messy').mkdir(exist_ok=True)
    (out/'messy/torn.png').write_bytes(Path(first).read_bytes()[:200])
    image = lambda i: f'../scenes/{t.ids[i]}'
    text(out/'messy/data.json', '{\n' + ',\n'.join(f' {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}' for k, v in (
        (image(0), 'red:.50, circle, red:0.7, filled:'), (image(1), ['square', 'Square', 'outlined:1.5']), (image(2), {'red': 1, 'green': 0, 'circle': 'much'}),
        (image(3), 'green，square, filled'), (image(4), None), (image(5), 5), (image(6), 'red'), (image(6), 'filled'),
        ('torn.png', 'red'), ('gone.png', 'red'))) + '\n}\n')

def main(out):
    for name in ('scenes', 'sidecars', 'classes', 'messy'): shutil.rmtree(out/name, ignore_errors=True)
    make_scenes(out/'scenes', SCENES, SEED, RESOLUTION)
    t = TagTable.read(out/'scenes/data.json', out/'scenes/tags.csv', strict=True).with_sizes()
    t = t.with_columns(split=np.repeat(['train', 'val', 'test'], [SCENES-8, 4, 4]))
    tables(out, t); folders(out, t); messy(out, t)

if __name__ == '__main__': main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
