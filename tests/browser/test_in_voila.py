"""Every dashboard as an app: voila serves a notebook of one line, in its dark theme, on a page of 1100 pixels; each control is used once, as in JupyterLab."""
import pytest
from board import Board, Watch
from uses import USES, going_on

pytestmark = pytest.mark.slow

@pytest.mark.parametrize('name', USES)
def test_each_control_once(browser, voila, files, shots, name):
    page = browser.new_page(viewport=dict(width=1100, height=1700))
    watch = Watch(page, voila)
    with going_on(name, files):
        page.goto(f'{voila}/voila/render/{name}.ipynb', timeout=120_000, wait_until='commit')
        page.wait_for_selector('.vt-note:visible', timeout=180_000)
        Board(page, 'body', shots and f'{shots}/voila_').go_through(USES[name])
    page.close()
    assert not watch.wrong, '\n'.join(watch.wrong)
