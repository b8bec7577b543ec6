"""Pictures of the dashboards for the docs: each opened in a real JupyterLab, moved a little, and kept as a small PNG.

  python tools/dashshots.py FOLDER [NAME ...]      # into nbs/images/dash_NAME.png

FOLDER holds what they open: `demo`, as `vaetag demo` writes it; `cg` with `run` and `test`, as *Two styles without pairs* makes them from emoji; `users`, `judge` and `walkers` as
*Drawing known walkers* does; `aligner`, `emb` and `head` as *Tags from directions alone* does. A dashboard whose files are not there is left out.
"""
import sys, tempfile
from pathlib import Path
from PIL import Image
REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO/'tests/browser'))
from board import Board
from serve import jupyterlab, launch, surroundings, write_notebook

# what opens it, and the uses of controls before the picture is taken
SHOTS = dict(
    predictions=("d = dashboards.predictions('demo/run/best', test)", [('evidence for', 'light_background', 'pictures')]),
    tags=("d = dashboards.tags('demo/scenes/data.json', most=20)", [('search', 'circle', 'list'), ('pictures', dict(click=1), 'large')]),
    labels=("d = dashboards.tag_browser('demo/run/best', test, most=20, min_positives=1)", [('search', 'circle', 'list'), ('pictures', dict(click=17)), ('pictures', dict(shift=18)), ('selected are wrong', None, 'said')]),
    quality=("d = dashboards.quality('demo/run/best', test)", [('factor', 4, 'note')]),
    latents=("d = dashboards.latents(store, tagger='demo/run/best', side=140)", [('make the region', 'noise', 'pictures[4]')]),
    reconstructions=("d = dashboards.reconstructions('embedded', test.paths[:24], side=150)", []),
    translation=("d = dashboards.translation('cg/run', dict(a='cg/test/noto', b='cg/test/twemoji'))", [('many pictures', None, 'sheet'), ('order', 'worst first', 'sheet')]),
    generation=("d = dashboards.generation('users', identity='judge', n=6)", [('users by guidance', None, 'said'), ('draw the sheet', None, 'sheet')]),
    aligner=("d = dashboards.aligner('aligner', 'emb/test_twemoji.npz', head='head/inv.npz')", [('row', '300', 'note')]),
    training=("d = dashboards.monitor('cg/run', live=False)", [('mean over', 4, 'charts'), ('over time', None, 'pictures')]))
NEEDS = dict(translation='cg', training='cg', generation='users', aligner='aligner')
CELL = '''from vaetag_nb import dashboards
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.data.split import Split
from vaetag_nb.data.table import TagTable
from vaetag_nb.infer import Tagger
from vaetag_nb.latents.encode import encode_table
if {test}:
    table = TagTable.read('demo/scenes/data.json', 'demo/scenes/tags.csv')
    test = table.with_columns(split=Split.read('demo/run/split.parquet').sides_of(table.ids)).where(split='test')
if {store}:
    encode_table(test.ids, test.paths, Tagger.load('demo/run/best').codec, {folder!r}, Preprocess(base=96, max=160, step=16)); store = {folder!r}
{call}
d'''

def small(path, out, limit=90_000):
    "In as many colours, and as large, as the limit leaves."
    full = Image.open(path).convert('RGB')
    for share, colours in ((1, 256), (1, 96), (1, 40), (.85, 64), (.7, 64)):
        full.resize((round(share*full.width), round(share*full.height)), Image.Resampling.LANCZOS).quantize(colours, dither=Image.Dither.NONE).save(out, optimize=True)
        if out.stat().st_size <= limit: return

def main(folder, names):
    from playwright.sync_api import sync_playwright
    names = names or [n for n in SHOTS if (Path(folder)/NEEDS.get(n, 'demo')).exists()]
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(tmp)/'home'
        with jupyterlab(Path(folder).resolve(), home, surroundings(home)) as lab, sync_playwright() as p:
            browser = launch(p)
            for n in names:
                call, rows = SHOTS[n]
                write_notebook(nb := Path(folder)/'shot.ipynb', CELL.format(call=call, test='test' in call or 'store' in call, store='store' in call, folder=str(Path(tmp)/'store')))
                page = browser.new_page(viewport=dict(width=1400, height=1700))
                lab.run(page, 'shot.ipynb')
                board = Board(page, '.jp-OutputArea-output:has(.jupyter-widgets)', f'{tmp}/')
                board.wait(lambda: not board.look('note'), 'it does not open:', 60); board.controls()
                for row in rows: board.use(*row)
                if n == 'generation': board.wait(lambda: board.box.get_by_role('button', name='stop').count(), 'the sheet is not drawn:', 300)
                page.mouse.move(0, 0); board.shot(n)
                small(f'{tmp}/{n}.png', REPO/f'nbs/images/dash_{n}.png')
                lab.close(page); page.close(); nb.unlink()
                print(n, (REPO/f'nbs/images/dash_{n}.png').stat().st_size, flush=True)

if __name__ == '__main__':
    if len(sys.argv) < 2: sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
