"A JupyterLab and a voila with every dashboard, and a browser that looks at them"
import os, shutil
import pytest
from serve import chromium, free_port, jupyterlab, launch, served, surroundings, write_notebook

@pytest.fixture(scope='session')
def browser():
    "Chromium without a window."
    pytest.importorskip('playwright', reason='playwright is not installed')
    if chromium() is None: pytest.skip('no chromium on this machine')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p: yield (browser := launch(p)); browser.close()

@pytest.fixture(scope='session')
def shots():
    "Where screenshots are kept, if they are."
    return os.environ.get('VAETAG_SCREENSHOTS')

@pytest.fixture(scope='session')
def files(browser, tmp_path_factory):
    "A folder with a notebook of one line for each dashboard, and what they look at: of `VAETAG_BROWSER_FILES`, or made now."
    from toys import CALLS, make_files, source_of
    root = tmp_path_factory.mktemp('apps')
    if given := os.environ.get('VAETAG_BROWSER_FILES'): shutil.copytree(given, root, dirs_exist_ok=True)
    else: make_files(root)
    for name in CALLS: write_notebook(root/f'{name}.ipynb', source_of(name))
    return root

@pytest.fixture(scope='session')
def home(tmp_path_factory): return tmp_path_factory.mktemp('home')

@pytest.fixture(scope='session')
def env(home): return surroundings(home)

@pytest.fixture(scope='session')
def lab(files, home, env):
    with jupyterlab(files, home, env) as lab: yield lab

@pytest.fixture(scope='session')
def voila(files, home, env):
    "The address of a voila in its dark theme, with our page, which asks no other server for an icon font."
    pytest.importorskip('voila', reason='voila is not installed')
    from vaetag_nb.browse.wall import ASSETS
    shutil.copytree(ASSETS/'voila', home/'data/voila/templates/vaetag')
    url = f'http://127.0.0.1:{(port := free_port())}'
    args = ['voila', str(files), '--no-browser', f'--port={port}', '--Voila.ip=127.0.0.1', '--theme=dark', '--template=vaetag']
    with served(args, env, files, home/'voila.log', url): yield url
