"""Every dashboard in a real JupyterLab, light and dark, by a real browser: each control is used once."""
import os
from contextlib import nullcontext
from pathlib import Path
import pytest
from board import Board, Watch
from uses import USES

pytestmark = pytest.mark.slow
OUTPUT = '.jp-OutputArea-output:has(.jupyter-widgets)'

def shots(place):
    "Prefix of the files of screenshots, where they are asked for."
    return f'{Path(os.environ["VAETAG_SCREENSHOTS"])}/{place}_' if os.environ.get('VAETAG_SCREENSHOTS') else None

@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('name', USES)
def test_each_control_once(browser, lab, files, name, theme):
    from toys import Writing
    lab.theme(f'JupyterLab {theme.title()}')
    page = browser.new_page(viewport=dict(width=1400, height=1700))
    watch = Watch(page, lab.url)
    with Writing(files) if name == 'monitor' else nullcontext():
        lab.run(page, f'{name}.ipynb')
        board = Board(page, OUTPUT, shots(theme))
        board.wait(lambda: not board.look('note'), f'{name} does not open')
        board.go_through(USES[name])
    lab.close(page); page.close()
    assert not watch.wrong, '\n'.join(watch.wrong)
