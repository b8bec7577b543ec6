#!/usr/bin/env bash
# The docs site in _site/html. `docs.sh run` runs all notebooks afresh and keeps the widgets of tutorials and explanations alive (those of the API
# would stand as a test left them); without `run` the committed outputs are shown. Sphinx's warnings are errors, and so is a link that leads nowhere (tools/sitecheck.py).
set -euo pipefail
cd "$(dirname "$0")/.."
: "${BIN:=.venv/bin}"
src=nbs
if [ "${1:-}" = run ]; then
  export OMP_NUM_THREADS=1; cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)
  src=_exec; rm -rf _exec; cp -r nbs _exec   # pictures that a page shows lie beside the notebooks
  find nbs/tutorials nbs/explanations -name '*.ipynb' -not -path '*/.*' -print0 | sort -z | xargs -0 -n 6 -P "$cores" "$BIN/python" tools/nbrun.py --widgets --dest _exec
  find nbs -path nbs/tutorials -prune -o -path nbs/explanations -prune -o -name '*.ipynb' -not -path '*/.*' -print0 | sort -z | xargs -0 -n 6 -P "$cores" "$BIN/python" tools/nbrun.py --dest _exec
fi
rm -rf _proc _site/src _site/html
"$BIN/python" tools/nbproc.py "$src"
"$BIN/python" tools/nbdocs.py _proc _site/src
cp -r docs/. _site/src/; cp -r nbs/images _site/src/
if ! ls _site/js/*.woff2 >/dev/null 2>&1; then   # what makes maths and widgets work without a network at reading time
  mkdir -p _site/js/pack; ( cd _site/js/pack
    npm pack --silent mathjax@3 requirejs @jupyter-widgets/html-manager@1.0.15 >/dev/null
    for t in *.tgz; do mkdir -p "${t%.tgz}"; tar xzf "$t" -C "${t%.tgz}"; done )
  cp _site/js/pack/mathjax-*/package/es5/tex-svg.js _site/js/pack/requirejs-*/package/require.js \
     _site/js/pack/jupyter-widgets-html-manager-*/package/dist/{embed-amd.js,*.woff2} _site/js/
  rm -rf _site/js/pack
fi
cp _site/js/* _site/src/_static/
"$BIN/python" -m sphinx -q -W --keep-going -b html _site/src _site/html
"$BIN/python" tools/sitecheck.py _site/html
echo "site: _site/html/index.html"
