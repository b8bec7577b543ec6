"tools/sitecheck.py: what it finds on a small site, and that it is silent on a good one"
import subprocess, sys
from pathlib import Path

CHECK = Path(__file__).parents[1]/'tools/sitecheck.py'
GOOD = {'index.html': '<title>Home</title><h1 id="top">Home</h1><a href="sub/page.html#there">a</a> <a href="#top">b</a> <a href="https://example.org/x">out</a><img src="a.png" alt="what it shows">',
        'sub/page.html': '<title>Page</title><h1 id="there">Page</h1><a href="../index.html">back</a><img alt="" src="../a.png"><script src="../_static/s.js?v=1"></script>',
        'a.png': '', '_static/s.js': '', '_static/s.css': 'body { background: url(../a.png) }', 'searchindex.js': 'Search.setIndex({"docnames": ["index", "sub/page"]})'}

def check(folder, **changed):
    "Write the good site with some files changed; the exit status and what is said"
    for name, text in (GOOD | {k.replace('__', '/').replace('_html', '.html'): v for k, v in changed.items()}).items():
        p = folder/name; p.parent.mkdir(parents=True, exist_ok=True); p.write_text(text, encoding='utf-8')
    r = subprocess.run([sys.executable, CHECK, folder], capture_output=True, text=True)
    return r.returncode, r.stdout

def test_a_good_site(tmp_path):
    assert check(tmp_path) == (0, '2 pages, 4 links: all lead somewhere, and nothing is asked of others\n')

def test_faults(tmp_path):
    page = '''<a href="gone.html">x</a> <a href="index.html#gone">x</a> <a href="index.html#top">x</a> <img src="a.png"> <img src="b.png" alt="x">
              <img alt="a.png" src="a.png"> <script src="https://cdn.example.org/x.js"></script> <link rel="stylesheet" href="//cdn.example.org/x.css"> <style>@import "https://fonts.example.org/f.css"</style>'''
    status, said = check(tmp_path, new_html=page)
    assert status == 1 and sorted(said.splitlines()) == sorted([
        'new.html: a picture without words (`#| fig-alt:` gives them): a.png', 'new.html: asks https://fonts.example.org/f.css', 'new.html: asks https://cdn.example.org/x.js',
        'new.html: asks //cdn.example.org/x.css', 'new.html: leads nowhere: gone.html', 'new.html: leads nowhere: b.png', 'new.html: no such place: index.html#gone', 'new.html: the search does not find it'])
