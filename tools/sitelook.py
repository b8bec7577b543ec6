#!/usr/bin/env python3
"""Looks at a built site in a real browser, wide and narrow, by day and by night:  sitelook [_site/html] [--pages GLOB] [--shots DIR]

For each page and width it says: what sticks out of the window at the side, errors of the console, pictures that do not show, and every request
that leaves the machine. The search is tried, and the switch to the dark look. --shots keeps a picture of each page. Needs chromium and playwright.
"""
import argparse, fnmatch, functools, http.server, shutil, sys, threading
from pathlib import Path
from playwright.sync_api import sync_playwright

WIDTHS = dict(wide=1400, narrow=390)
FLAGS = '--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
OUT_OF_WINDOW = '''() => {
  const w = document.documentElement.clientWidth, found = []
  if (document.documentElement.scrollWidth > w + 1) for (const e of document.querySelectorAll('main *')) {
    const b = e.getBoundingClientRect()
    let p = e.parentElement, scrolls = false
    for (; p && p !== document.body; p = p.parentElement) if (/auto|scroll|hidden/.test(getComputedStyle(p).overflowX)) { scrolls = true; break }
    if (b.right > w + 1 && !scrolls) found.push(`${e.tagName.toLowerCase()}.${e.className || ''} to ${Math.round(b.right)}: ${(e.textContent || '').trim().slice(0, 50)}`)
  }
  return found.slice(0, 3).concat(document.documentElement.scrollWidth > w + 1 ? [`page is ${document.documentElement.scrollWidth} wide`] : [])
}'''
BROKEN = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).filter(i => i.loading !== 'lazy' && i.getBoundingClientRect().width).map(i => i.src.slice(0, 80))"

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

def served(root):
    "A server of `root` on a port of its own"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_port}'

def look(page, url, name, shot=None):
    "The faults of one page at the window's present width"
    said = []
    def console(m):
        if m.type == 'error': said.append(f'console: {m.text[:120]}')
    def request(r):
        if not r.url.startswith((url, 'data:', 'blob:')): said.append(f'asks {r.url[:120]}')
    error = lambda e: said.append(f'error: {str(e)[:120]}')
    for event, f in (('console', console), ('pageerror', error), ('request', request)): page.on(event, f)
    page.goto(f'{url}/{name}', wait_until='load')
    page.wait_for_timeout(60)   # what scripts do after the load
    said += [f'sticks out: {x}' for x in page.evaluate(OUT_OF_WINDOW)] + [f'does not show: {x}' for x in page.evaluate(BROKEN)]
    if shot: page.screenshot(path=shot, full_page=True)
    for event, f in (('console', console), ('pageerror', error), ('request', request)): page.remove_listener(event, f)
    return said

def search(page, url, words='exact resume'):
    "Does the search find pages, the wanted one first or near it?"
    page.goto(f'{url}/search.html?q={words.replace(" ", "+")}')
    page.wait_for_selector('#search-results ul.search li a', timeout=30_000)
    return [a.inner_text() for a in page.locator('#search-results ul.search li > a').all()[:5]]

def dark(page, url):
    "The background before and after the switch is pressed until the dark look is there"
    page.goto(f'{url}/index.html')
    ground = lambda: page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    seen = [ground()]
    for _ in range(3):
        page.locator('.theme-toggle-header:visible, .theme-toggle-content:visible, button.theme-toggle:visible').first.click()
        seen.append(ground())
    return list(dict.fromkeys(seen))

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('root', nargs='?', default='_site/html'); a.add_argument('--pages', default='*'); a.add_argument('--shots')
    o = a.parse_args()
    root = Path(o.root).resolve()
    names = [f for p in sorted(root.rglob('*.html')) if (f := p.relative_to(root).as_posix()) and not f.startswith('_static/') and fnmatch.fnmatch(f, o.pages)]
    if not names: sys.exit(f'{root}: no pages like {o.pages}')
    if o.shots: Path(o.shots).mkdir(parents=True, exist_ok=True)
    url, bad = served(root), 0
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which('chromium') or shutil.which('google-chrome'), chromium_sandbox=False, args=FLAGS)
        for kind, width in WIDTHS.items():
            page = browser.new_page(viewport=dict(width=width, height=900))
            for name in names:
                shot = str(Path(o.shots)/f'{name.removesuffix(".html").replace("/", ".")}-{kind}.png') if o.shots else None
                for fault in dict.fromkeys(look(page, url, name, shot)): bad += 1; print(f'{name} ({kind}): {fault}', flush=True)
            page.close()
        page = browser.new_page(viewport=dict(width=1400, height=900))
        found, grounds = search(page, url), dark(page, url)
        print(f'{len(names)} pages, {len(WIDTHS)} widths, {bad} faults; the search finds {", ".join(found)}; backgrounds {", ".join(grounds)}')
        browser.close()
    sys.exit(bool(bad) or not found or len(grounds) < 2)

if __name__ == '__main__': main()
