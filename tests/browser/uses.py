"""What each control of each dashboard does: `(label, value, what changes, what is then said)`, see `Board.go_through`."""

from contextlib import nullcontext
from pathlib import Path

def going_on(name, files):
    "What another process does meanwhile; what an earlier page wrote is gone."
    from toys import Writing
    for f in Path(files).glob('*.csv'):
        if f.name != 'selected_tags.csv': f.unlink()     # of the aligner's head
    return Writing(files) if name == 'monitor' else nullcontext()

PREDICTIONS = ['predictions',
    ('next', None, 'note bars +pictures', ' 2 of 24'),
    ('previous', None, 'note bars +pictures', ' 1 of 24'),
    ('picture', '7', 'note bars +pictures', ' 7 of 24'),
    ('with tag', 'red', 'counts', 'red: '),
    ('where it is', 'true', 'note'),
    ('where it is', 'all', 'note'),
    ('with tag', '', 'counts'),
    ('factor', 12, 'note counts bars', 'factor 1.60'),
    ('evidence for', 'red', 'pictures found', 'evidence for red'),
    ('evidence for', 'blue', 'pictures[2] found =pictures[0]', 'evidence for blue'),
    ('evidence for', '', 'pictures'),
    ('thresholds', 'one for all tags', 'note counts bars', 'threshold 0.50'),
    ('threshold', -20, 'note counts bars', 'threshold 0.30')]

def only_one_moved(board):
    "A slider that shows the threshold of another tag moves nothing by itself."
    board.page.wait_for_timeout(1000)
    assert '1 threshold moved' in board.words(), board.words()

QUALITY = ['quality',
    ('category', 'general', 'note', 'general tags'),
    ('or one tag', 'red', 'note tables charts', 'red · 1 tag'),
    ('factor', 6, 'note tables limits', '1 moved, 1 not yet written'),
    ('write thresholds', None, 'limits', '--threshold own_thresholds.csv'),
    ('thresholds file', 'others.csv', '=limits'),
    ('threshold', 'the same for each', '=note =tables'),
    ('threshold', 9, 'tables'),
    ('or one tag', 'circle', 'note', 'circle · 1 tag'), only_one_moved,
    ('all as fitted', None, 'note tables', '0 thresholds moved'),
    ('or one tag', '', 'note tables charts')]

LIST = [
    ('of', 'general', '=note'),
    ('sorted by', 'name', 'list'),
    ('least first', None, 'list'),
    ('search', 'red', 'list note', '4 of 50 tags')]

def same_again(board):
    "`as fitted` brings back what the threshold had changed."
    fitted = board.words()
    board.use('threshold', 30, 'note list')
    board.use('as fitted', None, 'note list')
    assert board.words() == fitted

def wall_keys(board):
    "By keys alone: one stop of Tab, arrows, Space, Ctrl+A, Enter and Escape; no key of it reaches the notebook, and the focus stays."
    page, options, cells = board.page, board.box.locator('.vt-wall').last.get_by_role('option'), board.page.locator('.jp-Cell').count()
    chosen, here = lambda: options.evaluate_all("all => all.map(o => o.getAttribute('aria-selected')).join()"), lambda: options.evaluate_all('all => all.indexOf(document.activeElement)')
    options.first.focus(); page.keyboard.press('Escape')
    for key, at in dict(End=3, ArrowLeft=2, Home=0, ArrowUp=0, ArrowRight=1).items(): page.keyboard.press(key); assert here() == at
    page.keyboard.press(' ')
    assert chosen() == 'false,true,false,false' and options.nth(1).get_attribute('tabindex') == '0' and options.nth(0).get_attribute('tabindex') == '-1'
    page.keyboard.press('Shift+ArrowRight'); assert chosen() == 'false,true,true,false'
    page.keyboard.press('Control+a'); assert chosen() == 'true,true,true,true'
    page.keyboard.press('Enter'); board.wait(lambda: not board.look('large'), 'Enter opens none')
    for key in 'abdd': page.keyboard.press(key)
    page.keyboard.press('Escape'); board.wait(lambda: board.look('large'), 'Escape closes none')
    assert 'true' not in chosen() and here() == 2 and page.locator('.jp-Cell').count() == cells

LABELS = ['labels', *LIST,
    ('search', '', 'list'),
    ('list', dict(index=2), 'note cards'),
    same_again,
    ('page', '2', 'note cards', 'page 2 of'),
    ('show', 'predicted', 'note cards'),
    ('show', 'all', 'note'),
    ('pictures', dict(click=1, shift=2)), ('pictures', dict(click=1)),
    ('selected are wrong', None, 'said cards', '1 correction, 1 not yet written'),
    ('unmark selected', None, 'said cards'),
    ('all of this page are wrong', None, 'said cards', '4 corrections, 4 not yet written'),
    ('file', 'mine.csv', '=said'),
    ('write corrections', None, 'said', 'all in mine.csv'),
    ('threshold', 1, 'limits', '1 moved, 1 not yet written'),
    ('thresholds file', 'more.csv', '=limits'),
    ('write thresholds', None, 'limits', 'all in more.csv'),
    ('pictures', dict(twice=3), 'large'),
    ('pictures', dict(keys='Escape'), 'large'),
    wall_keys]

def drag_region(board):
    "A rectangle that is dragged over the decoded picture moves the sliders, a slider moves the rectangle."
    page, region = board.page, board.box.locator('.vt-region')
    at, inset, readouts = region.bounding_box(), lambda: region.locator('div').evaluate('e => e.style.inset'), board.box.locator('.widget-readout:visible')
    def go(y, x): page.mouse.move(at['x'] + x*at['width'], at['y'] + y*at['height'], steps=4)
    go(.02, .03); page.mouse.down(); go(.4, .3); drawn = inset(); page.mouse.up()
    board.wait(lambda: 'in 0 to ' not in board.words() or readouts.filter(has_text='0% –').count() != 2, 'dragging moves no slider')
    snapped = inset(); assert drawn != snapped and snapped.startswith('0%')
    board.use('from left to right to', 20, 'note[1]')
    board.wait(lambda: inset() == snapped, 'a slider moves no rectangle')

LATENTS = ['latents',
    ('next', None, 'note[0] +pictures', ' 2 of 24'),
    ('previous', None, 'note[0] +pictures', ' 1 of 24'),
    ('numbers in', 'raw space', 'note[0] tables[0]', 'raw space'),
    ('pictures', dict(click=1), 'note[0] pictures cards'),
    ('pictures', dict(keys='ArrowRight Enter'), 'note[0] pictures cards'),
    ('latent', '10', 'note[0]', ' 10 of 24'),
    ('other latent', '12', '=pictures'),
    ('share of the other', 10, 'note[1] pictures[4] tables[1]', '50% of latent 12'),
    ('other latent', '13', 'note[1] pictures[4]', '50% of latent 13'),
    ('make the region', 'noise', 'note[1] pictures[4]', 'noise, in'),
    ('strength', -5, 'pictures[4]'),
    drag_region,
    ('region from top to bottom', 3, 'note[1] pictures[4]'), ('region from top to bottom to', 3, 'note[1] pictures[4]'),
    ('from left to right', 3, 'note[1] pictures[4]'), ('from left to right to', -3, 'note[1] pictures[4]'),
    ('evidence for', 'red', 'note[1] pictures[4]', 'evidence for red')]

RECONSTRUCTIONS = ['reconstructions',
    ('next', None, 'note pictures tables', ' 2 of 8'),
    ('previous', None, 'note pictures tables', ' 1 of 8'),
    ('difference x', 4, 'note pictures =tables', 'difference x8'),
    ('measure all', None, 'note tables', '24 of 24'),
    ('picture', '13', 'note pictures tables', ' 13 of 24'),
    ('worst first by', 'ssim', 'note tables', ' 1 of 24'),
    ('pictures', dict(click=3), 'note pictures tables', ' 4 of 24'),
    ('pictures', dict(keys='ArrowLeft Enter'), 'note pictures tables', ' 3 of 24'),
    ('of', 'untrained', 'pairs')]

def from_sheet(tab):
    "What is pressed in the sheet of a tab, by a click and then by keys, opens in the first tab."
    def go(board):
        pressed, page = board.box.locator('.vt-sheet-of button:visible'), board.page
        for keys in ((), ('ArrowDown', 'ArrowRight')):
            pressed.nth(1).focus()
            for k in keys: page.keyboard.press(k)
            name = page.locator('button:focus img').get_attribute('alt').split(':')[0].split(',')[0]
            if keys: page.keyboard.press('Enter')
            else: pressed.nth(1).click()
            board.wait(lambda: name not in board.words() and f'{name!r} in {board.words()!r}', 'what is pressed does not open:')
            page.get_by_role('tab', name=tab).last.click(); pressed.first.wait_for()
        board.used.add('wall:pictures')
    return go

TRANSLATION = ['translation',
    ('next', None, 'note +pictures tables', ' 2 of 24'),
    ('previous', None, 'note +pictures tables', ' 1 of 24'),
    ('picture', '5', 'note +pictures tables', ' 5 of 24'),
    ('edge', -20, 'pictures[0] =pictures[1]'),
    ('before', 'VAE only', 'note pictures[0] =pictures[1]'),
    ('after', 'and back', 'note pictures[0] =pictures[1]'),
    ('way', 'B to A', 'note +pictures', 'B to A'),
    ('many pictures', None, 'sheet'), 'translations',
    ('order', 'worst first', 'said sheet', 'worst first by PSNR'),
    ('by', 'SSIM', 'said', 'by SSIM'),
    ('measure all', None, 'said sheet', '24 of 24 pictures measured'),
    ('page', '2', 'said sheet', 'page 2 of 3'),
    ('way', 'A to B', 'said sheet'),
    from_sheet('many pictures')]

def stopped(board):
    "The button stops what it started; what is drawn by then stays."
    board.use('draw the sheet')
    board.use('stop', None, 'said')
    board.wait(lambda: 'button:draw the sheet' not in board.controls(), 'it goes on after stop')
    assert any(f'{n} of 4 cells drawn' in board.words() for n in (1, 2, 3)), board.words()

GENERATION = ['generation',
    ('user', '2', 'note pictures', 'user 2'),
    ('guidance', 4, 'pictures'),
    ('steps', 1, 'note pictures'),
    ('seed', '3', 'pictures'),
    ('acts from', '0.5', 'note pictures'),
    ('to', '0.8', 'note pictures'),
    ('users by guidance', None, 'said'),
    ('guidance', '1, 4', 'said', '0 of 6 cells drawn, 18 pictures'),
    ('pictures in a cell', '2', 'said', '12 pictures to draw'),
    ('draw the sheet', None, 'said sheet', '6 of 6 cells drawn'), 'sheet',
    from_sheet('users by guidance'),
    ('users', ['1', '9'], 'said', '4 of 4 cells drawn'),
    ('seed', '1', 'said', '0 of 4 cells drawn'),
    ('pictures in a cell', '16', 'said'), ('steps', 60),
    stopped]

def more_lines(board): board.page.wait_for_timeout(1000)     # the other process writes one in .3 seconds

USES = dict(
    tags=['tags', *LIST,
        ('search', '', 'list'),
        ('list', dict(index=2), 'note thumbs'),
        ('page', '2', 'note thumbs', 'page 2 of'),
        ('pictures', dict(click=1), 'large'), ('pictures', dict(keys='ArrowRight Enter'), 'large'), ('pictures', dict(keys='Enter'), 'large')],
    predictions=[*PREDICTIONS, ('tag by tag', None, 'list', ' hits'), ..., ('all together', None, 'note', 'calibration error'), *QUALITY],
    labels=LABELS, latents=LATENTS, reconstructions=RECONSTRUCTIONS, translation=TRANSLATION, generation=GENERATION,
    monitor=['training',
        ('mean over', 20, 'charts'),
        ('figures', ['loss', 'lr'], 'charts tables'),
        ('runs', ['second'], 'charts tables note'),
        ('by', 'epoch', 'charts'),
        ('logarithmic', None, 'charts'),
        ('seconds', '0.2'),
        ('live', None), more_lines, ('refresh', None, 'charts tables'), ('live', None, 'charts tables'),
        ('pictures of', 'second: grid', 'pictures'),
        ('at', -1, 'pictures'),
        ('over time', None, 'pictures')],
    aligner=['aligner',
        ('row', '7', 'note bars', 'emb.npz:7'),
        ('length, times', 8, 'note bars =pictures')],
)
