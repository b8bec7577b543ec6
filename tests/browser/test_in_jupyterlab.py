"""Every dashboard in a real JupyterLab, light and dark: each control is used once. And the tutorials, run in it."""
import shutil
from pathlib import Path
import pytest
from board import Board, Watch
from serve import write_notebook
from uses import USES, going_on

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[2]
OUTPUT = '.jp-OutputArea-output:has(.jupyter-widgets)'
# the others train for minutes on data outside the project; their dashboards are opened above
TUTORIALS = ['01_quickstart', '02_latent_tagger', '03_timm_tagger']

@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('name', USES)
def test_each_control_once(browser, lab, files, shots, name, theme):
    lab.theme(f'JupyterLab {theme.title()}')
    page = browser.new_page(viewport=dict(width=1400, height=1700))
    watch = Watch(page, lab.url)
    with going_on(name, files):
        lab.run(page, f'{name}.ipynb')
        Board(page, OUTPUT, shots and f'{shots}/{theme}_').go_through(USES[name])
    lab.close(page); page.close()
    assert not watch.wrong, '\n'.join(watch.wrong)

def test_what_goes_wrong_is_heard(browser, lab, files):
    "An error in the handler of a control, which a page does not show; a picture that is not there; words that nobody can read."
    write_notebook(files/'wrong.ipynb', "import ipywidgets as W; b = W.Button(description='press'); b.on_click(lambda _: 1/0); W.VBox([b, W.HTML('<img src=/lost.png><b class=vt-note style=color:#999>faint</b>')])")
    lab.theme('JupyterLab Light')
    page = browser.new_page(viewport=dict(width=1400, height=1000))
    watch = Watch(page, lab.url)
    lab.run(page, 'wrong.ipynb')
    board = Board(page, OUTPUT)
    with pytest.raises(AssertionError, match='faint'): board.go_through([('press', None)])
    board.wait(lambda: not any('ZeroDivisionError' in w for w in watch.wrong), 'no error is heard:')
    assert any('lost.png' in w for w in watch.wrong)
    lab.close(page); page.close()

@pytest.mark.parametrize('name', TUTORIALS)
def test_tutorial_runs(browser, lab, files, name):
    (files/name).mkdir()     # with nothing beside it
    shutil.copy(REPO/f'nbs/tutorials/{name}.ipynb', files/name)
    lab.theme('JupyterLab Light')
    page = browser.new_page(viewport=dict(width=1400, height=1000))
    watch = Watch(page, lab.url, quiet=False)
    lab.run(page, f'{name}/{name}.ipynb')
    if name == TUTORIALS[0]: # a dashboard among other cells
        board = Board(page, OUTPUT)
        board.use('next', None, 'note bars +pictures', ' 2 of ')
    lab.close(page); page.close()
    assert not watch.wrong, '\n'.join(watch.wrong)
