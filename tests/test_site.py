"The tools of the docs site: links of names, words of pictures, and what tools/sitecheck.py finds on a small site"
import subprocess, sys
from pathlib import Path

TOOLS = Path(__file__).parents[1]/'tools'
CHECK = TOOLS/'sitecheck.py'
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
    page = '''<p>see [the](#label) and <code>x[0](1)</code></p> <a href="gone.html">x</a> <a href="index.html#gone">x</a> <a href="index.html#top">x</a> <img src="a.png"> <img src="b.png" alt="x">
              <img alt="a.png" src="a.png"> <script src="https://cdn.example.org/x.js"></script> <link rel="stylesheet" href="//cdn.example.org/x.css"> <style>@import "https://fonts.example.org/f.css"</style>'''
    status, said = check(tmp_path, new_html=page)
    assert status == 1 and sorted(said.splitlines()) == sorted([
        'new.html: a link that did not become one: [the](#label)',
        'new.html: a picture without words (`#| fig-alt:` gives them): a.png', 'new.html: asks https://fonts.example.org/f.css', 'new.html: asks https://cdn.example.org/x.js',
        'new.html: asks //cdn.example.org/x.css', 'new.html: leads nowhere: gone.html', 'new.html: leads nowhere: b.png', 'new.html: no such place: index.html#gone', 'new.html: the search does not find it'])

def test_names_of_pages_are_links(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    from nbdocs import by_name
    titles = {'Exact resume': 'explanations/exact_resume', 'Quickstart': 'tutorials/quickstart', 'benchmarks/README.md': 'benchmarks'}
    assert by_name('See *Exact\nresume*, *Quickstart* and `benchmarks/README.md`.', titles, 'tutorials/quickstart') == \
        'See [Exact\nresume](../explanations/exact_resume.ipynb), *Quickstart* and [benchmarks/README.md](../benchmarks.md).'   # no link of a page to itself
    assert by_name('`Exact resume`', titles, 'index') == '[Exact resume](explanations/exact_resume.ipynb)'
    for same in ('`Quickstart`', '[`Exact resume`](#label)', '**Exact resume**', '*Something else*', '```sh\n*Exact resume*\n```', 'a*Exact resume*b'): assert by_name(same, titles, 'index') == same

def test_pictures_have_words(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    from nbdocs import in_words
    assert in_words({'fig-alt': 'Two cats'}, 'Prose.') == 'Two cats'
    assert in_words({}, '## Head\n\nFirst.\n\nThe `strip` of [all](x.html): left *before*.\n\n    code\n') == 'Picture made by the code above it. The strip of all:'
    assert in_words({}, '## Head') == 'Picture made by the code above it.'
