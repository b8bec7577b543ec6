"""Notebooks with dashboards, opened, run and moved in a real JupyterLab and in voila by a real browser."""
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[1]
CHROME = '--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
QUIET_LAB = {'disabledExtensions': {'@jupyterlab/apputils-extension:announcements': True}}
ON_TOY = '''import sys; sys.path.insert(0, {tests!r})
from toy_tagger import toy_tagger
from vaetag_nb import dashboards
from vaetag_nb.infer import Tagger
table, _ = toy_tagger('toy')
tagger = Tagger.load('toy/model')
{call}'''
TAGGERS = dict(toy='dashboards.Predictions(tagger, table)', scored='dashboards.tag_browser(tagger, table, most=4)')

BROWSERS = {'tags': 'dashboards.tags(table, most=4)', 'latents': "dashboards.latents('store', codec, side=96)",
            'reconstructions': "dashboards.reconstructions({'a': codec, 'b': codec}, table.paths[:4], side=96)",
            'translation': "dashboards.translation(Translator(CycleGan(*nets, space='model', codec=codec.spec()), codec, 'cpu'), table.paths[:4])",
            'generation': '''from vaetag_nb.data.users import UserMap
from vaetag_nb.models.diffusion_folder import LatentDiffusion
from vaetag_nb.models.latent_diffusion import UNetSettings
from vaetag_nb.models.noise import NoiseSchedule
from vaetag_nb.models.sampling import Sampling
net = UNetSettings(block_out_channels=(32, 32), layers_per_block=1, attention=(2,), head_dim=8).make(codec.channels, 64//codec.factor, 3).eval()
dashboards.generation(LatentDiffusion(net, codec, UserMap((1, 2, 9)), NoiseSchedule(), Sampling(steps=2), 64, data=dict(source='simulated')), n=2)'''}
ON_BROWSER = '''import sys; sys.path.insert(0, {tests!r})
from toy_tagger import toy_tagger
from vaetag_nb import dashboards
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.latents.encode import encode_table
table, codec = toy_tagger('toy', steps=1)
encode_table(table.ids, table.paths, codec, 'store', Preprocess(base=48, max=96, step=8))
import torch
from vaetag_nb.models.cyclegan import generator
from vaetag_nb.models.cyclegan_folder import CycleGan
from vaetag_nb.translate import Translator
nets = [generator('residual', codec.channels, 0, n, ngf=8, n_res_blocks=1) for n in 'GF']
for net, by in zip(nets, (1., -1.)): torch.nn.init.constant_(net.head.bias, by)
{call}'''

# a run that another process goes on writing, as a trainer does
ON_RUN = '''import subprocess, sys, time
from pathlib import Path
from PIL import Image
from vaetag_nb import dashboards
from vaetag_nb.core.io import append_jsonl
for run, k in (('first', 1.), ('second', .7)):
    Path('runs', run, 'samples').mkdir(parents=True, exist_ok=True)
    for step in range(1, 201): append_jsonl(f'runs/{{run}}/log.jsonl', dict(kind='step', step=step, epoch=1, loss=k*(2/(1 + step/30) + .2*(step*7919%13)/13), lr=1e-3, img_s=99.))
    for step in (100, 200): Image.new('RGB', (320, 96), (step, 90, 200)).save(f'runs/{{run}}/samples/step_{{step:08d}}_grid.png')
WRITER = "import sys, time\\nfrom vaetag_nb.core.io import append_jsonl\\nfor step in range(201, 500): append_jsonl('runs/second/log.jsonl', dict(kind='step', step=step, epoch=2, loss=1/step)); time.sleep(.3)"
writer = subprocess.Popen([sys.executable, '-c', WRITER])
{call}'''
RUNS = dict(monitor="dashboards.monitor('runs', every=.5)")

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
    page.set_default_timeout(patience_ms)   # of the run
    assert page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')"), 'a cell failed'
    page.set_default_timeout(30_000)
    # a long notebook shows only the cells in view
    page.evaluate("() => { const n = window.jupyterapp.shell.currentWidget.content; n.activeCellIndex = n.widgets.length - 1; n.scrollToItem(n.widgets.length - 1); }")

def move_dashboard(page, expect):
    "Next shows another picture, the slider other bars and counts."
    note, counts, pics = page.locator('.vt-note').last, page.locator('.vt-counts').last, page.locator('img.widget-image:visible')
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

def move_evidence(page, expect):
    "A tag named under `evidence for` brings a fourth picture; another tag, another map; none takes it away."
    field, pics = page.get_by_placeholder('a tag', exact=True).last, page.locator('img.widget-image:visible')
    def name(tag): field.fill(tag); field.press('Enter')
    name('red')
    expect(page.locator('.vt-found')).to_contain_text('evidence for red', timeout=30_000)
    expect(pics).to_have_count(4)
    before = pics.nth(2).screenshot()
    name('blue')
    expect(page.locator('.vt-found')).to_contain_text('evidence for blue', timeout=30_000)
    page.wait_for_timeout(500)
    assert pics.nth(2).screenshot() != before
    name('')
    expect(pics).to_have_count(3)

def move_tags(page, expect):
    note = page.locator('.vt-note').last
    expect(note).to_contain_text('page 1 of', timeout=60_000)
    page.locator('.widget-text input').first.fill('red'); page.locator('.widget-text input').first.press('Tab')
    expect(note).to_contain_text('red', timeout=30_000)
    expect(page.locator('figure img')).to_have_count(4)
    before = note.inner_text()
    options = page.locator('.widget-select select').last
    options.select_option(index=1)
    expect(note).not_to_have_text(before, timeout=30_000)

def move_latents(page, expect):
    note, pics = page.locator('.vt-note').first, page.locator('img.widget-image:visible')
    expect(note).to_contain_text('1 of 24', timeout=60_000)
    expect(pics).to_have_count(5)     # channels, components, decoded, values, the editor's
    shots = [p.screenshot() for p in pics.all()]
    page.get_by_role('button', name='next').last.click()
    expect(note).to_contain_text('2 of 24', timeout=30_000)
    page.wait_for_timeout(500)
    assert all(p.screenshot() != s for p, s in zip(pics.all(), shots))
    table = page.locator('table').first.inner_text()
    page.get_by_label('numbers in').select_option('raw space')
    expect(note).to_contain_text('raw space', timeout=30_000)
    assert page.locator('table').first.inner_text() != table

def move_reconstructions(page, expect):
    note, pic = page.locator('.vt-note').last, page.locator('img.widget-image').last
    expect(note).to_contain_text('1 of 4', timeout=60_000)
    before = pic.screenshot()
    page.get_by_role('button', name='next').last.click()
    expect(note).to_contain_text('2 of 4', timeout=30_000)
    page.wait_for_timeout(500)
    second = pic.screenshot()
    assert second != before
    handle = page.locator('.widget-slider .noUi-handle:visible').first
    handle.focus()
    for _ in range(4): page.keyboard.press('ArrowRight')
    expect(note).to_contain_text('difference x8', timeout=30_000)
    page.wait_for_timeout(500)
    assert pic.screenshot() != second

def move_translation(page, expect):
    "The edge uncovers the translation, the other direction makes another one."
    note, pics = page.locator('.vt-note').last, page.locator('img.widget-image:visible')
    expect(note).to_contain_text('1 of 4', timeout=60_000)
    expect(pics).to_have_count(2)
    before = [p.screenshot() for p in pics.all()]
    handle = page.locator('.widget-slider .noUi-handle:visible').first
    handle.focus()
    for _ in range(20): page.keyboard.press('ArrowLeft')
    page.wait_for_timeout(1000)
    assert pics.first.screenshot() != before[0] and pics.last.screenshot() == before[1]
    page.locator('.widget-dropdown select').first.select_option('B to A')
    expect(note).to_contain_text('B to A', timeout=30_000)
    page.wait_for_timeout(500)
    assert pics.last.screenshot() != before[1]
    page.get_by_role('tab', name='many pictures').click()
    expect(page.locator('.vt-sheet')).to_have_count(1, timeout=60_000)
    page.get_by_label('order').last.select_option('worst first')
    said = page.locator('.vt-said:visible')
    expect(said).to_contain_text('worst first by PSNR', timeout=30_000)
    expect(said).to_contain_text('4 of 4 pictures measured')
    assert page.locator('.vt-sheet').bounding_box()['width'] < 1100 and page.locator('.vt-sheet img').count() == 12

def move_generation(page, expect):
    "The sheet is drawn when it is asked for, and fits the page."
    expect(page.locator('.vt-note').last).to_contain_text('user 1', timeout=60_000)
    page.get_by_role('tab', name='users by guidance').click()
    said = page.locator('.vt-said:visible')
    expect(said).to_contain_text('0 of 12 cells drawn', timeout=30_000)
    page.get_by_label('guidance').last.fill('1, 4'); page.get_by_label('guidance').last.press('Tab')
    expect(said).to_contain_text('0 of 6 cells drawn, 18 pictures', timeout=30_000)
    page.get_by_role('button', name='draw the sheet').press('Enter')
    expect(said).to_contain_text('6 of 6 cells drawn', timeout=120_000)
    expect(page.locator('.vt-sheet img')).to_have_count(6)
    assert page.locator('.vt-sheet').bounding_box()['width'] < 1100

def move_scored(page, expect):
    "The threshold of a tag makes other hits, `as fitted` brings them back; a filter leaves fewer pictures, another tag others."
    note, sheet, slider = page.locator('.vt-note').last, page.locator('figure img'), page.locator('.widget-slider .noUi-handle:visible').first
    expect(note).to_contain_text('page 1 of', timeout=60_000)
    expect(sheet).to_have_count(4)
    page.locator('.widget-text input').first.fill('red'); page.locator('.widget-text input').first.press('Tab')
    expect(note).to_contain_text('red', timeout=30_000)
    fitted = note.inner_text()
    slider.focus()
    for _ in range(30): page.keyboard.press('ArrowRight')
    expect(note).not_to_have_text(fitted, timeout=30_000)
    page.get_by_role('button', name='as fitted').click()
    expect(note).to_have_text(fitted, timeout=30_000, use_inner_text=True)
    page.locator('.widget-dropdown select').last.select_option('hit')
    expect(note).not_to_have_text(fitted, timeout=30_000)
    hits = note.inner_text()
    page.locator('.widget-text input').first.fill(''); page.locator('.widget-text input').first.press('Tab')
    page.locator('.widget-select select').last.select_option(index=1)
    expect(note).not_to_have_text(hits, timeout=30_000)

def move_corrections(page, expect):
    "Selected by a click, marked, written; the selection stays where the pictures do."
    options, said = page.locator('.vt-wall').last.get_by_role('option'), page.locator('.vt-said')
    page.locator('.widget-dropdown select').last.select_option('all')
    expect(options).to_have_count(4, timeout=30_000)
    page.get_by_role('button', name='selected are wrong').click()
    expect(page.get_by_text('no picture is selected')).to_be_visible(timeout=30_000)
    options.nth(1).click(); options.nth(2).click(modifiers=['Shift']); options.nth(1).click()
    page.get_by_role('button', name='selected are wrong').click()
    expect(said).to_contain_text('1 correction, 1 not yet written', timeout=30_000)
    expect(options.nth(2)).to_contain_text('to ')
    expect(options.nth(2)).to_have_attribute('aria-selected', 'true')
    page.get_by_role('button', name='write corrections').click()
    expect(said).to_contain_text('all in corrections.csv', timeout=30_000)

def move_wall_keys(page, expect):
    "By keys alone: one stop of Tab, arrows, Space, Ctrl+A, Enter and Escape; no key of it reaches the notebook; another page has nothing selected, and the focus stays."
    options, large = page.locator('.vt-wall').last.get_by_role('option'), page.locator('.vt-large')
    chosen, here = lambda: options.evaluate_all("all => all.map(o => o.getAttribute('aria-selected')).join()"), lambda: options.evaluate_all('all => all.indexOf(document.activeElement)')
    cells = page.locator('.jp-Notebook .jp-Cell').count()
    options.first.focus(); page.keyboard.press('Escape')
    for key, at in dict(End=3, ArrowLeft=2, Home=0, ArrowUp=0, ArrowRight=1).items(): page.keyboard.press(key); assert here() == at
    page.keyboard.press(' ')
    assert chosen() == 'false,true,false,false' and options.nth(1).get_attribute('tabindex') == '0' and options.nth(0).get_attribute('tabindex') == '-1'
    page.keyboard.press('Shift+ArrowRight'); assert chosen() == 'false,true,true,false'
    page.keyboard.press('Control+a'); assert chosen() == 'true,true,true,true'
    page.keyboard.press('Enter'); expect(large.locator('img')).to_have_count(1, timeout=30_000)
    for key in 'abdd': page.keyboard.press(key)
    page.keyboard.press('Escape'); expect(large).to_have_count(0, timeout=30_000); assert 'true' not in chosen()
    assert (here(), page.locator('.jp-Notebook .jp-Cell').count()) == (2, cells)
    options.nth(3).dblclick(); expect(large).to_contain_text(options.nth(3).get_attribute('title'), timeout=30_000); assert 'true' not in chosen()

def move_wall_open(page, expect):
    "A click shows a picture large with its tags, another click closes it, another tag too."
    options, large = page.locator('.vt-wall').last.get_by_role('option'), page.locator('.vt-large')
    for i in (2, 0):
        options.nth(i).click()
        name, tags = options.nth(i).get_attribute('title').split(': ')
        expect(large).to_contain_text(name, timeout=30_000); expect(large).to_contain_text(tags.replace(', ', ' · '))
    options.nth(0).click(); expect(large).to_have_count(0, timeout=30_000)
    options.nth(1).click(); expect(large).to_have_count(1, timeout=30_000)
    page.locator('.widget-select select').last.select_option(index=0); expect(large).to_have_count(0, timeout=30_000)

def move_wall_go(page, expect):
    "A click on a neighbour goes there, and so does Enter."
    note, near = page.locator('.vt-note').first, page.locator('.vt-wall').last.get_by_role('option')
    for how in ('click', 'Enter'):
        number = near.nth(1).inner_text().strip()
        if how == 'click': near.nth(1).click()
        else: near.nth(1).focus(); page.keyboard.press('Enter')
        expect(note).to_contain_text(f'{number} of 24', timeout=30_000)
        expect(near.nth(1)).not_to_have_text(number)

def move_wall_region(page, expect):
    "A rectangle that is dragged over the decoded picture moves the sliders, a slider moves the rectangle."
    region, note, readouts = page.locator('.vt-region'), page.locator('.vt-note').last, page.locator('.widget-readout:visible')
    page.get_by_label('make the region').select_option('the mean of the latent')
    expect(note).to_contain_text('the mean of the latent, in', timeout=30_000)
    region.scroll_into_view_if_needed()
    at, inset = region.bounding_box(), lambda: region.locator('div').evaluate('e => e.style.inset')
    def go(y, x): page.mouse.move(at['x'] + x*at['width'], at['y'] + y*at['height'], steps=4)
    go(.02, .03); page.mouse.down(); go(.4, .3); drawn = inset(); page.mouse.up()
    expect(note).to_contain_text('in 0 to ', timeout=30_000); expect(readouts.filter(has_text='0% –')).to_have_count(2)
    snapped = inset(); assert drawn != snapped and snapped.startswith('0%')
    handle = page.locator('.widget-slider .noUi-handle:visible').nth(3)
    handle.focus(); page.keyboard.press('End')
    expect(readouts.filter(has_text='0% – 100%')).to_have_count(1, timeout=30_000)
    page.wait_for_timeout(500); assert inset() != snapped

def move_limits(page, expect):
    "A threshold that was moved is written to a file, and the line says how it is used."
    said, slider = page.locator('.vt-limits'), page.locator('.widget-slider .noUi-handle:visible').first
    expect(said).to_have_text('0 moved', timeout=30_000)
    slider.focus(); page.keyboard.press('ArrowRight')
    expect(said).to_have_text('1 moved, 1 not yet written', timeout=30_000)
    page.get_by_role('button', name='write thresholds').click()
    expect(said).to_contain_text('--threshold own_thresholds.csv', timeout=30_000)

def move_monitor(page, expect):
    "The curves grow by themselves while another process writes; a figure, an average, a time of the pictures can be chosen."
    cell = page.locator('table').last
    expect(page.locator('.vt-note').last).to_contain_text('second: written just now', timeout=60_000)
    expect(page.locator('.vt-charts svg')).to_have_count(1)
    expect(cell).to_contain_text('99', timeout=60_000)
    first, drawn = cell.inner_text(), page.locator('.vt-charts').inner_html()
    expect(cell).not_to_have_text(first, timeout=30_000, use_inner_text=True)
    assert page.locator('.vt-charts').inner_html() != drawn
    handle = page.locator('.widget-slider .noUi-handle:visible').first
    handle.focus()
    for _ in range(20): page.keyboard.press('ArrowRight')
    expect(page.locator('.vt-charts')).to_contain_text('mean over', timeout=30_000)
    page.get_by_label('figures').select_option(['loss', 'lr'])
    expect(page.locator('.vt-charts svg')).to_have_count(2, timeout=30_000)
    picture = page.locator('img.widget-image:visible').last
    before = picture.screenshot()
    handle = page.locator('.widget-slider .noUi-handle:visible').last
    handle.focus(); page.keyboard.press('ArrowLeft')
    page.wait_for_timeout(1500)
    assert picture.screenshot() != before

MOVES = dict(monitor=(move_monitor,), toy=(move_dashboard, move_evidence), scored=(move_scored, move_corrections, move_wall_keys, move_limits), tags=(move_tags, move_wall_open), latents=(move_latents, move_wall_go, move_wall_region), reconstructions=(move_reconstructions,), translation=(move_translation,), generation=(move_generation,))
# the fourth tutorial trains for ten minutes on data outside the project; its dashboard is opened above
TUTORIALS = ['nbs/tutorials/01_quickstart.ipynb', 'nbs/tutorials/02_latent_tagger.ipynb', 'nbs/tutorials/03_timm_tagger.ipynb']

def source_of(name)->str:
    "The cell that makes a dashboard."
    for template, calls in ((ON_TOY, TAGGERS), (ON_BROWSER, BROWSERS), (ON_RUN, RUNS)):
        if name in calls: return template.format(tests=str(REPO/'tests'), call=calls[name])

def write_notebook(path, source):
    import nbformat
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id='dash')])
    nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nb, path)

@pytest.mark.parametrize('notebook', [*MOVES, *TUTORIALS])
def test_dashboard_in_jupyterlab(lab, notebook):
    from playwright.sync_api import expect, sync_playwright
    url, root = lab
    if notebook in MOVES: write_notebook(root/'dash.ipynb', source_of(notebook))
    else: shutil.copy(REPO/notebook, root/'dash.ipynb')
    asked, shots = [], os.environ.get('VAETAG_SCREENSHOTS')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), headless=True, chromium_sandbox=False, args=CHROME)
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.on('request', lambda r: asked.append(r.url))
        run_notebook(page, url, 'dash.ipynb', 600_000)
        moves = MOVES.get(notebook, (move_dashboard,) if notebook == TUTORIALS[0] else ())
        for move in moves: move(page, expect)
        if shots: page.screenshot(path=str(Path(shots)/f'lab_{Path(notebook).stem}.png'))
        browser.close()
    outside = [u for u in asked if not u.startswith((url, 'data:', 'blob:', url.replace('http', 'ws')))]
    assert not outside, f'the page asked for {outside[:3]}'

# each app is a notebook of one line, on files that lie beside it
APPS = dict(tags="dashboards.tags('toy/scenes/data.json', most=4)", labels="dashboards.tag_browser('toy/model', 'toy/scenes/data.json', most=4)", predictions="dashboards.predictions('toy/model', 'toy/scenes/data.json')",
            latents="dashboards.latents('store', tagger='toy/model', side=96)", reconstructions="dashboards.reconstructions('embedded', 'toy/scenes/images', side=96)", training="dashboards.monitor('runs')")
CONTRAST = """() => { const lum = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => (x /= 255) <= .03928 ? x/12.92 : ((x + .055)/1.055)**2.4); return .2126*v[0] + .7152*v[1] + .0722*v[2]; };
  const [a, b] = [getComputedStyle(document.querySelector('.vt-note')).color, getComputedStyle(document.body).backgroundColor].map(lum); return (Math.max(a, b) + .05)/(Math.min(a, b) + .05); }"""

@pytest.fixture(scope='module')
def apps(tmp_path_factory):
    "The address of a voila in its dark theme that serves all apps."
    for name in ('playwright', 'voila'): pytest.importorskip(name, reason=f'{name} is not installed')
    if chromium() is None: pytest.skip('no chromium on this machine')
    from PIL import Image
    from toy_tagger import toy_tagger
    from vaetag_nb.bucketing import Preprocess
    from vaetag_nb.core.io import append_jsonl
    from vaetag_nb.latents.encode import encode_table
    root, port = tmp_path_factory.mktemp('apps'), free_port()
    table, codec = toy_tagger(root/'toy', steps=3)
    encode_table(table.ids, table.paths, codec, root/'store', Preprocess(base=48, max=96, step=8))
    (root/'runs/first/samples').mkdir(parents=True)
    for step in range(1, 99): append_jsonl(root/'runs/first/log.jsonl', dict(kind='step', step=step, epoch=1, loss=1/step, lr=1e-3))
    Image.new('RGB', (320, 96), 'teal').save(root/'runs/first/samples/step_00000050_grid.png')
    for name, call in APPS.items(): write_notebook(root/f'{name}.ipynb', f'from vaetag_nb import dashboards; {call}')
    env = dict(os.environ, VAETAG_QUIET='1', VAETAG_CACHE=str(root/'cache'), OMP_NUM_THREADS='1')
    with open(root/'voila.log', 'w', encoding='utf-8') as log:
        srv = subprocess.Popen([sys.executable, '-m', 'voila', str(root), '--no-browser', f'--port={port}', '--Voila.ip=127.0.0.1', '--theme=dark'], env=env, cwd=root, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            assert srv.poll() is None, (root/'voila.log').read_text(encoding='utf-8')[-2000:]
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=1).close(); break
            except OSError: time.sleep(.3)
        yield f'http://127.0.0.1:{port}'
    finally: srv.terminate(); srv.wait(30)

@pytest.mark.parametrize('app', APPS)
def test_one_line_is_an_app(apps, app):
    "It is there, at 1100 pixels without a bar to scroll sideways, readable on dark, each control labelled, and a control does what it does in a notebook."
    from playwright.sync_api import expect, sync_playwright
    shots = os.environ.get('VAETAG_SCREENSHOTS')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), headless=True, chromium_sandbox=False, args=CHROME)
        page = browser.new_page(viewport=dict(width=1100, height=1300))
        page.route('**/*', lambda r: r.continue_() if r.request.url.startswith((apps, 'data:', 'blob:')) else r.abort())    # voila asks a CDN for its icons
        page.goto(f'{apps}/voila/render/{app}.ipynb', timeout=120_000, wait_until='commit')
        note = page.locator('.vt-note:visible').first
        expect(note).not_to_be_empty(timeout=180_000)
        page.wait_for_timeout(1500)
        if shots: page.screenshot(path=str(Path(shots)/f'voila_{app}.png'))
        assert page.evaluate('document.documentElement.scrollWidth') <= 1100
        assert page.evaluate(CONTRAST) > 4.5
        bare = page.locator('select:visible, input:visible').evaluate_all("all => all.filter(e => !(e.labels?.length || e.title || e.placeholder || e.getAttribute('aria-label') || e.closest('.vt-list') || e.closest('.widget-slider'))).map(e => e.outerHTML.slice(0, 200))")
        assert not bare, bare
        before = note.inner_text()
        if app in ('tags', 'labels'): page.locator('.vt-list select').first.focus(); page.keyboard.press('ArrowDown')      # by keys alone
        elif app == 'training': page.get_by_label('figures').select_option(['lr']); note = page.locator('.vt-charts'); before = 'loss'
        else: page.get_by_role('button', name='next').first.focus(); page.keyboard.press('Enter')
        expect(note).not_to_have_text(before, timeout=30_000, use_inner_text=True)
        if app in ('tags', 'labels'): page.locator('.vt-wall').get_by_role('option').first.press('Enter'); expect(page.locator('.vt-large img')).to_have_count(1, timeout=30_000)
        if app == 'predictions':
            page.get_by_role('tab', name='all together').click()
            expect(page.locator('.vt-note:visible').last).to_contain_text('calibration error', timeout=30_000)
            if shots: page.wait_for_timeout(1000); page.screenshot(path=str(Path(shots)/'voila_quality.png'))
        browser.close()
