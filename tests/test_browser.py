"""A notebook that ends with the predictions dashboard, opened, run and moved in a real JupyterLab by a real browser."""
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[1]
CHROME = '--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
QUIET_LAB = {'disabledExtensions': {'@jupyterlab/apputils-extension:announcements': True}}
ON_TOY = '''import sys; sys.path.insert(0, {tests!r})
from toy_tagger import toy_tagger
from vaetag_nb.infer import Tagger
from vaetag_nb.dashboards import Predictions
table, _ = toy_tagger('toy')
dash = Predictions(Tagger.load('toy/model'), table)
dash'''

def chromium(): return next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@pytest.fixture
def lab(tmp_path):
    "The address and the root folder of a JupyterLab of this environment, with settings of its own."
    pytest.importorskip('playwright', reason='playwright is not installed')
    if chromium() is None: pytest.skip('no chromium on this machine')
    home, root, port = tmp_path/'home', tmp_path/'root', free_port()
    (home/'cfg/labconfig').mkdir(parents=True); root.mkdir()
    (home/'cfg/labconfig/page_config.json').write_text(json.dumps(QUIET_LAB), encoding='utf-8')
    env = dict(os.environ, VAETAG_QUIET='1', VAETAG_CACHE=str(home/'cache'), OMP_NUM_THREADS='1',
               **{k: str(home/v) for k, v in dict(JUPYTER_CONFIG_DIR='cfg', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='run', IPYTHONDIR='ipy').items()})
    args = ['--no-browser', '--allow-root', '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=',
            '--ServerApp.password=', f'--ServerApp.root_dir={root}', '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=None',
            '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', f'--LabApp.workspaces_dir={home/"ws"}', f'--LabApp.user_settings_dir={home/"us"}']
    with open(home/'lab.log', 'w', encoding='utf-8') as log:
        srv = subprocess.Popen([sys.executable, '-m', 'jupyter', 'lab', *args], env=env, cwd=root, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            assert srv.poll() is None, (home/'lab.log').read_text(encoding='utf-8')[-2000:]
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status', timeout=1).close(); break
            except OSError: time.sleep(.3)
        yield f'http://127.0.0.1:{port}', root
    finally: srv.terminate(); srv.wait(30)

def run_notebook(page, url, name, patience_ms):
    "Open `name`, run all its cells, and fail if one of them fails."
    page.goto(f'{url}/lab/tree/{name}?reset')
    page.wait_for_selector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell', timeout=120_000)
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=120_000)
    page.set_default_timeout(patience_ms)
    assert page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')"), 'a cell failed'
    # a long notebook shows only the cells in view
    page.evaluate("() => { const n = window.jupyterapp.shell.currentWidget.content; n.activeCellIndex = n.widgets.length - 1; n.scrollToItem(n.widgets.length - 1); }")

def move_dashboard(page, expect):
    "Next shows another picture, the slider other bars and counts."
    note, counts, pics = page.locator('.vt-note').last, page.locator('.vt-counts').last, page.locator('img.widget-image')
    expect(note).to_contain_text('1 of ', timeout=120_000)
    pics.first.scroll_into_view_if_needed()
    expect(pics).to_have_count(3)
    shots = [p.screenshot() for p in pics.all()]
    page.get_by_role('button', name='next').last.click()
    expect(note).to_contain_text('2 of ', timeout=30_000)
    page.wait_for_timeout(500)
    assert all(p.screenshot() != s for p, s in zip(pics.all(), shots)), 'image, reconstruction and latent must all change'
    before, handle = counts.inner_text(), page.locator('.widget-slider .noUi-handle:visible').first
    handle.focus()
    for _ in range(12): page.keyboard.press('ArrowRight')
    expect(note).to_contain_text('factor 1.60', timeout=30_000)
    expect(counts).not_to_have_text(before)

@pytest.mark.parametrize('notebook', ['toy', 'nbs/tutorials/01_quickstart.ipynb'])
def test_dashboard_in_jupyterlab(lab, notebook):
    from playwright.sync_api import expect, sync_playwright
    import nbformat
    url, root = lab
    if notebook == 'toy':
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ON_TOY.format(tests=str(REPO/'tests')), id='dash')])
        nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
        nbformat.write(nb, root/'dash.ipynb')
    elif (REPO/notebook).exists(): shutil.copy(REPO/notebook, root/'dash.ipynb')
    else: pytest.skip(f'{notebook} is not written yet')
    asked = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), headless=True, chromium_sandbox=False, args=CHROME)
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.on('request', lambda r: asked.append(r.url))
        run_notebook(page, url, 'dash.ipynb', 600_000)
        move_dashboard(page, expect)
        if shots := os.environ.get('VAETAG_SCREENSHOTS'): page.screenshot(path=str(Path(shots)/f'lab_{Path(notebook).stem}.png'))
        browser.close()
    outside = [u for u in asked if not u.startswith((url, 'data:', 'blob:', url.replace('http', 'ws')))]
    assert not outside, f'the page asked for {outside[:3]}'
