"""A dashboard on a page: its controls by their labels, what of the page changed, whether all of it can be read; and a watch on what the page says or asks for."""
import re, time

# what stands on a page, by CSS; `NAME[0]` is the first of several
PARTS = dict(note='.vt-note', said='.vt-said', limits='.vt-limits', counts='.vt-counts', found='.vt-found', pictures='img.widget-image', thumbs='.vt-wall img', cards='.vt-wall figure', large='.vt-large', list='.vt-list select', head='.vt-head',
             tables='table', charts='.vt-charts', bars='.vt-bars', sheet='.vt-sheet', pairs='figure img')

WORDS = '.vt-note:visible, .vt-said:visible, .vt-limits:visible, .vt-counts:visible, .vt-found:visible, small:visible'

SEEN = "const seen = e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length > 0;"
# each control that can be used now gets a mark, kind:label, and is returned by it
CONTROLS = "box => { %s" % SEEN + """
  document.querySelectorAll('[data-vt]').forEach(e => e.removeAttribute('data-vt'));
  const kind = e => e.closest('.vt-wall, .vt-sheet-of') ? 'wall' : e.matches('select') ? 'choice' : e.matches('input[type=checkbox]') ? 'tick' : e.matches('.noUi-handle') ? 'slider' : e.matches('input, textarea') ? 'field' : e.matches('[role=tab]') ? 'tab' : e.matches('button') ? 'button' : 'own';
  const label = e => (e.closest('.vt-wall, .vt-sheet-of') && 'pictures' || e.getAttribute('aria-label') || e.closest('.vt-list') && 'list' || e.closest('.widget-checkbox')?.innerText || e.closest('.widget-inline-hbox, .widget-inline-vbox')?.querySelector('.widget-label')?.innerText
    || (e.matches('button, [role=tab]') ? e.innerText : '') || e.title || e.placeholder || '').trim() + (e.matches('.noUi-handle') && [...e.closest('.noUi-base').querySelectorAll('.noUi-handle')].indexOf(e) > 0 ? ' to' : '');
  return [...box.querySelectorAll('select, input, textarea, button, [role=tab], [tabindex="0"]')].filter(e => seen(e) && !e.disabled && !(e.closest('.vt-sheet-of') && e.tabIndex < 0) && !e.closest('[disabled]')).map(e => { const at = kind(e) + ':' + label(e); e.setAttribute('data-vt', at); return at; }); }"""
# what elements show: a picture by its pixels, anything else by its HTML
LOOK = "(all) => { %s" % SEEN + """
  const pixels = e => { if (!e.complete || !e.naturalWidth) return 'not drawn'; const c = document.createElement('canvas'); c.width = e.naturalWidth; c.height = e.naturalHeight; c.getContext('2d').drawImage(e, 0, 0); return c.toDataURL(); };
  return all.filter(seen).map(e => e.matches('img') ? pixels(e) : e.matches('select') ? e.innerHTML + e.selectedIndex : e.innerHTML); }"""
# words whose contrast with what lies under them is below a limit (of signs 3, as of drawings); of tabs the page itself chooses the colours
UNREADABLE = "([box, least]) => { %s" % SEEN + """
  const ctx = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const rgba = c => { ctx.clearRect(0, 0, 1, 1); ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1); const d = ctx.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3]/255]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1);
  const under = e => { const layers = []; for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); layers.push(c); if (c[3] > .99) break; } return layers.reverse().reduce((b, a) => over(a, b), [255, 255, 255, 1]); };
  const lum = c => { const v = c.slice(0, 3).map(x => (x /= 255) <= .03928 ? x/12.92 : ((x + .055)/1.055)**2.4); return .2126*v[0] + .7152*v[1] + .0722*v[2]; };
  const faint = e => { let o = 1; for (; e; e = e.parentElement) o *= getComputedStyle(e).opacity; return o; };
  const bad = [], words = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), all = [...box.querySelectorAll('select, input:not([type=checkbox])')].map(e => [e, e.value || e.placeholder || 'x']);
  while (words.nextNode()) { const e = words.currentNode.parentElement, t = words.currentNode.data.trim(); if (t && !e.closest('style, script, option, [role=tab]')) all.push([e, t]); }
  for (const [e, t] of all) { if (!seen(e) || e.closest(':disabled')) continue;
    const s = getComputedStyle(e), c = rgba(e instanceof SVGElement ? s.fill : s.color), b = under(e), a = lum(over([c[0], c[1], c[2], c[3]*faint(e)], b)), l = lum(b), ratio = (Math.max(a, l) + .05)/(Math.min(a, l) + .05);
    if (ratio < (/[\\p{L}\\p{N}]/u.test(t) ? least : 3)) bad.push(`${t.slice(0, 40)}: ${ratio.toFixed(2)}, ${c} on ${b.map(Math.round)}`); }
  return [...new Set(bad)]; }"""

class Watch:
    "What a page must not do: say an error, ask for something outside, receive an error of the kernel or a line on its standard error."
    def __init__(self, page, url, quiet=True): # `quiet`: the kernel is to be silent, too
        self.wrong, own = [], (url, url.replace('http', 'ws'), 'data:', 'blob:')
        page.on('console', lambda m: self.wrong.append(f'console: {m.text} {m.location.get("url", "")}') if m.type == 'error' else None)
        page.on('pageerror', lambda e: self.wrong.append(f'page: {e}'))
        page.on('request', lambda r: None if r.url.startswith(own) else self.wrong.append(f'asks for {r.url}'))
        if quiet: page.on('websocket', lambda ws: ws.on('framereceived', self.heard))

    def heard(self, frame): # JupyterLab asks for widgets before ipywidgets is imported: `No such comm` says that there are none
        text = frame.decode(errors='replace') if isinstance(frame, bytes) else frame
        if re.search(r'"msg_type":\s*"error"', text) or re.search(r'"name":\s*"stderr", "text": (?!"No such comm)', text): self.wrong.append(f'kernel: {text[-1500:]}')

class Board:
    "A dashboard on a page: use its controls and see what changes."
    def __init__(self, page, box:str, shots=None): # `box`: CSS of what holds it; `shots`: prefix of files of screenshots
        self.page, self.box, self.shots, self.used, self.known = page, page.locator(box).last, shots, set(), set()

    def controls(self)->list: # 'kind:label' of those that can be used now
        now = self.box.evaluate(CONTROLS)
        assert not [c for c in now if c.endswith(':')], f'a control without a name: {now}'
        self.known |= {*now}
        return now

    def find(self, label, value)->str: # the mark of the one control that is meant
        kinds = ('button', 'tick', 'tab') if value is None else ('slider',) if isinstance(value, int) else ('choice', 'field', 'wall')
        those = lambda: [c for c in self.controls() if c in [f'{k}:{label}' for k in kinds]]
        self.wait(lambda: len(those()) != 1 and self.known, f'{label!r} should be one of these, and once:', 5)    # a button may change its name
        return those()[0]

    def look(self, part)->list:
        name, _, n = part.lstrip('=+').partition('[')
        seen = self.box.locator(PARTS[name]).evaluate_all(LOOK)
        return seen if not n else seen[int(n[:-1]):][:1]

    def words(self)->str: return ' | '.join(self.box.locator(WORDS).all_inner_texts())    # what a dashboard says of what it shows

    def use(self, label, value=None, changes='', says=None):
        "Use a control: press, choose, fill in, or move by arrow keys; the parts named must change, with `+` before them each element of them, with `=` none; a text must appear."
        at = self.find(label, value)
        self.used.add(at)
        parts, before = changes.split(), {p: self.look(p) for p in changes.split()}
        assert not says or says not in self.words(), f'{label}: {says!r} stands there already'
        it, kind = self.page.locator(f'[data-vt="{at}"]'), at.partition(':')[0]
        if kind == 'slider':
            it.focus()
            for _ in range(abs(value)): self.page.keyboard.press('ArrowRight' if value > 0 else 'ArrowLeft')
        elif kind == 'choice': it.select_option(**value if isinstance(value, dict) else dict(value=value))
        elif kind == 'wall': self.on_wall(it, **value)
        elif kind == 'field': it.fill(value); it.press('Enter')
        else: it.click()
        self.wait(lambda: [p for p in parts if not p.startswith('=') and not self.changed(before[p], self.look(p), each=p.startswith('+'))], f'{at} = {value!r} leaves as they were')
        if says: self.wait(lambda: says not in self.words() and f'{says!r} in {self.words()!r}', f'{at} = {value!r}: missing')
        assert not (moved := [p for p in parts if p.startswith('=') and self.look(p) != before[p]]), f'{at} = {value!r} must not change {moved}'
        self.controls()

    def on_wall(self, focused, click=None, shift=None, twice=None, keys=''):
        "Click on pictures of a wall or a sheet by their numbers, one with shift, one twice; then press keys."
        one = focused.locator('xpath=ancestor::*[contains(@class, "vt-wall") or contains(@class, "vt-sheet-of")]').locator('[role=option], button').nth
        if click is not None: one(click).click()
        if shift is not None: one(shift).click(modifiers=['Shift'])
        if twice is not None: one(twice).dblclick()
        for k in keys.split(): self.page.keyboard.press(k)

    def changed(self, a, b, each)->bool:
        "Some element, or each, is another one and is drawn; or there are more or fewer."
        return 'not drawn' not in b and (len(a) != len(b) or (all if each else any)(x != y for x, y in zip(a, b)))

    def wait(self, missing, what, seconds=20):
        end = time.monotonic() + seconds
        while (m := missing()):
            assert time.monotonic() < end, f'{what} {m}'
            self.page.wait_for_timeout(100)

    def shot(self, name):
        if self.shots: self.page.wait_for_timeout(800); self.box.screenshot(path=f'{self.shots}{name}.png')

    def readable(self, least=4.5):
        "Every word stands out from what lies under it."
        bad = self.box.evaluate('(box, least) => (' + UNREADABLE + ')([box, least])', least)
        assert not bad, '\n'.join(bad)

    def fits(self):
        "Nothing is to be scrolled sideways."
        wide = self.box.evaluate("""box => { const all = [], right = box.getBoundingClientRect().right + 1;
          for (let e = box; e; e = e.parentElement) if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != 'inline') all.push(`${e.tagName}.${e.className}: ${e.scrollWidth} > ${e.clientWidth}`);
          for (const e of box.querySelectorAll('*')) if (e.getClientRects().length && e.getBoundingClientRect().right > right && !e.closest('select')) all.push(e.outerHTML.slice(0, 200));
          return all; }""")
        assert not wide, wide

    def go_through(self, rows):
        "A row is `(label, value, what changes, what is then said)`, each but the label may be left out; a word by itself names a screenshot, a tab opens what is looked at next, `...` leaves the rest to another dashboard's rows."
        self.wait(lambda: not self.look('note'), 'it does not open:', 60); self.controls()
        for row in rows:
            if isinstance(row, str): self.shot(row); continue
            if callable(row): row(self); continue
            if row is ...: self.known = self.used; continue
            tab = self.find(*(*row, None)[:2]).startswith('tab:')
            if tab: self.check()
            self.use(*row)
            if tab: self.known = self.used = set()
            self.controls()
        self.check()

    def check(self):
        "What is looked at can be read, and every control of it was used."
        self.readable(); self.fits()
        assert 'Error displaying widget' not in self.box.inner_text()
        left = {c for c in self.known - self.used if not c.startswith('tab:') and c not in ('button:stop', 'button:stopping')}    # so a button is called while it works
        assert not left, f'not used: {sorted(left)}'
