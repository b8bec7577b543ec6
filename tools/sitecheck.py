#!/usr/bin/env python3
"""What a built site must hold:  sitecheck [_site/html]

 - every link within it leads to a file that is there, and to an anchor that this file has
 - every script, style sheet, font and picture comes from it: a reader's browser asks nobody else
 - every picture says in words what it shows (`alt`; empty where the text beside it does), and the search knows every page
"""
import json, os, re, sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

TAG = re.compile(r'<([a-z][a-z0-9]*)\b((?:\s+[\w:-]+(?:\s*=\s*(?:"[^"]*"|\'[^\']*\'|[^\s>"\']+))?)*)\s*/?>')
ATTRIBUTE = re.compile(r'([\w:-]+)\s*=\s*(?:"([^"]*)"|\'([^\']*)\'|([^\s>"\']+))')
LOADS = dict.fromkeys(('img', 'script', 'iframe', 'source', 'video', 'audio', 'embed'), 'src') | dict(object='data')
LOADED = {'stylesheet', 'icon', 'preload', 'modulepreload', 'prefetch', 'preconnect', 'dns-prefetch', 'manifest'}  # of <link rel=...>
CODE, RAW_LINK = re.compile(r'<(pre|code|script|style)\b.*?</\1>', re.S), re.compile(r'\[?[^\[\]<>]{0,40}\]\([#./\w-]+\)')
OTHERS = re.compile(r'(?:url\(|@import)\s*[\'"]?\s*((?:https?:)?//[^\'")\s]+)', re.I)

class Page:
    "The anchors, links and loads of one page, and the faults that it shows by itself"
    def __init__(self, text):
        self.ids, self.links, self.loads = set(), [], OTHERS.findall(text)
        self.faults = [f'a link that did not become one: {m[0]}' for m in RAW_LINK.finditer(CODE.sub('', text))]
        for tag, attributes in TAG.findall(text):
            a = {k: unescape(x or y or z) for k, x, y, z in ATTRIBUTE.findall(attributes)}
            self.ids |= {a[k] for k in ('id', 'name') if k in a}
            if tag == 'a' and 'href' in a: self.links.append(a['href'])
            if tag in LOADS and LOADS[tag] in a: self.loads.append(a[LOADS[tag]])
            if tag == 'link' and 'href' in a and LOADED & set(a.get('rel', '').split()): self.loads.append(a['href'])
            if tag == 'img' and a.get('alt') in (None, a.get('src')): self.faults.append(f'a picture without words (`#| fig-alt:` gives them): {a.get("src", "")[:60]}')

def elsewhere(url): return url.startswith('//') or bool(urlsplit(url).scheme)

def target(url, page):
    "The file of the site that `url` means on `page`, and the anchor in it"
    path, _, anchor = url.partition('#')
    return os.path.normpath(os.path.join(os.path.dirname(page), unquote(path.split('?')[0]))) if path else page, unquote(anchor)

def faults_of(name, pages, files):
    page = pages[name]
    yield from page.faults
    yield from (f'asks {u}' for u in page.loads if u.startswith('//') or urlsplit(u).scheme in ('http', 'https'))
    for url in (u for u in page.links + page.loads if not elsewhere(u)):
        file, anchor = target(url, name)
        if file not in files: yield f'leads nowhere: {url}'
        elif anchor and file in pages and anchor not in pages[file].ids: yield f'no such place: {url}'

def unsearched(root, pages):
    "Pages that Sphinx's search does not know"
    text = (root/'searchindex.js').read_text(encoding='utf-8')
    known = set(json.loads(text[text.index('{'):text.rindex('}')+1])['docnames']) | {'search', 'genindex'}
    return [f'{p}: the search does not find it' for p in pages if p.removesuffix('.html') not in known]

def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else '_site/html')
    files = {p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file()}
    pages = {f: Page((root/f).read_text(encoding='utf-8')) for f in sorted(files) if f.endswith('.html') and not f.startswith('_static/')}
    if not pages: sys.exit(f'{root}: no pages; build the site first (make site)')
    found = [f'{p}: {f}' for p in pages for f in dict.fromkeys(faults_of(p, pages, files))] + unsearched(root, pages)
    for css in sorted(f for f in files if f.endswith('.css')): found += [f'{css}: asks {u}' for u in OTHERS.findall((root/css).read_text(encoding='utf-8'))]
    links = sum(len(p.links) for p in pages.values())
    print('\n'.join(found) if found else f'{len(pages)} pages, {links} links: all lead somewhere, and nothing is asked of others')
    sys.exit(bool(found))

if __name__ == '__main__': main()
