"The lines of a card, run in the folder as they stand"
import contextlib, io, json, os, sys

ask = json.load(open(sys.argv[1]))
os.chdir(ask['folder'])
code = open('README.md', encoding='utf-8').read().split(ask.get('after', '## Use'))[1].split('```python\n')[1].split('```')[0]
said, names = io.StringIO(), {}
with contextlib.redirect_stdout(said): exec(code.replace("'FOLDER", "'."), names)
print(json.dumps(dict(said=said.getvalue().splitlines(), shape=list(getattr(names.get('picture'), 'shape', [])))))
