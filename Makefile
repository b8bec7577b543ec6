# Everything a clone needs: `make demo`, `make test`, `make lab`, `make docs`. Python 3.11 or newer.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo_out
CLIENTS ?= .venv-clients

.PHONY: help demo test test-slow test-clients lab docs site look check export bench clean

help:        ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(BIN)/vaetag: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q $(PIPFLAGS) -e .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q $(PIPFLAGS) -e '.[dev,docs]'
	mkdir -p $(VENV)/share/jupyter/voila/templates/vaetag && cp vaetag_nb/assets/voila/* $(VENV)/share/jupyter/voila/templates/vaetag
	touch $(BIN)/vaetag $@

demo: $(BIN)/vaetag  ## train a tagger on the embedded scenes, evaluate it, write a report with pictures (no download)
	$(BIN)/vaetag demo --out $(OUT)

test: $(VENV)/.dev   ## every notebook and every test
	BIN=$(BIN) bash tools/test.sh

test-slow: $(VENV)/.dev  ## the long extras: real data, real browser
	$(BIN)/python -m pytest -m slow tests

test-clients: $(VENV)/.dev  ## timm, imgutils, kohya's script ... in an environment of their own, on what we export
	BIN=$(BIN) CLIENTS=$(CLIENTS) PYTHON=$(PYTHON) bash tools/clients.sh

lab: $(VENV)/.dev    ## JupyterLab on the quickstart tutorial
	$(BIN)/jupyter lab nbs/tutorials/01_quickstart.ipynb

docs: $(VENV)/.dev   ## run all notebooks afresh, with live widgets, and build the site into _site/html
	BIN=$(BIN) bash tools/docs.sh run

site: $(VENV)/.dev   ## build the site from the committed outputs
	BIN=$(BIN) bash tools/docs.sh

look: $(VENV)/.dev   ## every page of the built site in a real browser, wide and narrow (needs chromium)
	$(BIN)/python tools/sitelook.py

check: $(VENV)/.dev  ## notebooks, modules and README agree; notebooks are clean
	BIN=$(BIN) bash tools/check.sh

export: $(VENV)/.dev ## notebooks -> modules and README
	$(BIN)/nbdev_export
	$(BIN)/python tools/nbreadme.py

bench: $(VENV)/.dev  ## the head-to-heads of benchmarks/, as ratios
	for b in benchmarks/[a-z]*.py; do case $$b in */common.py|*/real_images.py|*/ablation.py|*/end_to_end.py|*/timm_evidence.py|*/unpaired_emoji.py|*/aligner.py|*/diffusion_memory.py|*/dashboards_browser.py) ;; *) $(BIN)/python $$b || exit 1;; esac; done

clean:       ## remove what was built, not the virtual environment
	rm -rf _proc _docs _exec _site build *.egg-info .pytest_cache .hypothesis
