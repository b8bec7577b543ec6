"""A JupyterLab, or another server, for as long as a browser looks at it, with settings of its own; and the browser."""
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager

CHROME = '--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
QUIET_LAB = {'disabledExtensions': {'@jupyterlab/apputils-extension:announcements': True}}

ERRORS = "() => [...jupyterapp.shell.currentWidget.content.model.cells].flatMap(c => c.type == 'code' ? c.outputs.toJSON() : []).filter(o => o.output_type == 'error').map(o => `${o.ename}: ${o.evalue}`)"

def chromium(): return next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)
def launch(p): return p.chromium.launch(executable_path=chromium(), headless=True, chromium_sandbox=False, args=CHROME)     # `p`: playwright

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def surroundings(home)->dict: # environment
    "Settings below `home` for what is started."
    (home/'cfg/labconfig').mkdir(parents=True)
    (home/'cfg/labconfig/page_config.json').write_text(json.dumps(QUIET_LAB), encoding='utf-8')
    return dict(os.environ, VAETAG_QUIET='1', VAETAG_CACHE=str(home/'cache'), OMP_NUM_THREADS='1',
                **{k: str(home/v) for k, v in dict(JUPYTER_CONFIG_DIR='cfg', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='run', IPYTHONDIR='ipy').items()})

@contextmanager
def served(args, env, root, log, probe):
    "Start a server, wait for its page, and end it afterwards."
    with open(log, 'w', encoding='utf-8') as f: srv = subprocess.Popen([sys.executable, '-m', *args], env=env, cwd=root, stdout=f, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            assert srv.poll() is None, log.read_text(encoding='utf-8')[-2000:]
            try: urllib.request.urlopen(probe, timeout=1).close(); break
            except OSError: time.sleep(.3)
        yield
    finally: srv.terminate(); srv.wait(30)

class Lab:
    "A JupyterLab that is running."
    def __init__(self, url, home): self.url, self.home = url, home

    def theme(self, name):
        "What a page that is opened from now on looks like."
        (d := self.home/'us/@jupyterlab/apputils-extension').mkdir(parents=True, exist_ok=True)
        (d/'themes.jupyterlab-settings').write_text(json.dumps(dict(theme=name)), encoding='utf-8')

    def open(self, page, name, width=1100):
        "Open notebook `name`, the notebook itself `width` pixels wide."
        page.goto(f'{self.url}/lab/tree/{name}?reset')
        page.wait_for_selector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell', timeout=120_000)
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=120_000)
        book = page.locator('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer')
        page.set_viewport_size(dict(width=page.viewport_size['width'] + width - round(book.bounding_box()['width']), height=page.viewport_size['height']))

    def run(self, page, name, patience_ms=600_000):
        "Open notebook `name`, run all its cells, and fail if one of them fails."
        self.open(page, name)
        page.set_default_timeout(patience_ms)   # of the run
        ran = page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        assert ran, f'a cell failed: {page.evaluate(ERRORS)}'
        page.set_default_timeout(30_000)
        # a long notebook shows only the cells in view
        page.evaluate("() => { const n = window.jupyterapp.shell.currentWidget.content; n.activeCellIndex = n.widgets.length - 1; n.scrollToItem(n.widgets.length - 1); }")

    def close(self, page):
        "End the kernel of the notebook that is shown."
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")

@contextmanager
def jupyterlab(root, home, env):
    "A `Lab` on the files of `root`."
    url = f'http://127.0.0.1:{(port := free_port())}'
    args = ['jupyter', 'lab', '--no-browser', '--allow-root', '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=',
            '--ServerApp.password=', f'--ServerApp.root_dir={root}', '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=None',
            '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', f'--LabApp.workspaces_dir={home/"ws"}', f'--LabApp.user_settings_dir={home/"us"}']
    with served(args, env, root, home/'lab.log', f'{url}/api/status'): yield Lab(url, home)

def write_notebook(path, *cells):
    "A notebook of Python cells."
    import nbformat
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s, id=f'cell{i}') for i, s in enumerate(cells)])
    nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nb, path)
