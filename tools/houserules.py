#!/usr/bin/env python3
"""The house rules that a program can check: names the notebook, the cell and the rule, and exits 1 if any is broken."""
import ast, json, re, sys
from pathlib import Path

LONGEST_CELL, LARGEST_NB = 60, 400_000
BARE, SHOWN = re.compile(r'\w+\((?:children|value)=|<(?:PIL|Figure|Axes)'), {'text/html', 'text/markdown', 'image/png', 'image/svg+xml'}
MACHINE = re.compile(r'/(?:tmp|work|farm|root|home/\w+)/|files\.pythonhosted|pypi\.org|registry\.npmjs|deb\.debian', re.I)

def code(source):
    "The cell's Python without magics"
    return '\n'.join('pass' if l.lstrip().startswith(('%', '!')) else l for l in source.splitlines())

def mixed(source):
    "Does a cell both import and do something else? nbdev runs such a cell when it makes the docs, whatever its flags."
    try: body = ast.parse(code(source)).body
    except SyntaxError: return False
    imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in body]
    return any(imports) and not all(imports)

def faults(path):
    if path.stat().st_size > LARGEST_NB: yield f'{path.stat().st_size//1000} kB, more than {LARGEST_NB//1000}'
    nb = json.loads(path.read_text(encoding='utf-8'))
    ids = [c.get('id') for c in nb['cells']]
    if None in ids or len(set(ids)) < len(ids): yield 'cells without an id of their own'
    first = ''.join(nb['cells'][0]['source'])
    if not re.match(r'(---\n|# \S)', first): yield 'the first cell is not a title'
    for i, c in enumerate(nb['cells']):
        s = ''.join(c['source'])
        if MACHINE.search(s): yield f'cell {i}: a path of one machine or an address: {MACHINE.search(s)[0]}'
        for o in c.get('outputs', []):
            text = json.dumps({k: v for k, v in o.get('data', {}).items() if not k.startswith('image/')}) + ''.join(o.get('text', []))
            if MACHINE.search(text): yield f'cell {i}: its output shows a path of one machine: {MACHINE.search(text)[0]}'
            if BARE.match(''.join(o.get('data', {}).get('text/plain', ''))) and not SHOWN & o['data'].keys(): yield f'cell {i}: its output is a widget or an object in words: run tools/nbrun.py'
            if o.get('output_type') == 'error': yield f'cell {i}: its saved output is an error'
        if c['cell_type'] != 'code' or 'nbdev_export(' in s: continue
        if re.search(r'^#\|\s*export', s, re.M) and s.count('\n') >= LONGEST_CELL: yield f'cell {i}: {s.count(chr(10))+1} exported lines'
        if mixed(s): yield f'cell {i}: imports and does something else'

def main():
    found = [f'{p}: {f}' for p in sorted(Path('nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts for f in faults(p)]
    print('\n'.join(found) if found else 'house rules hold')
    sys.exit(bool(found))

if __name__ == '__main__': main()
