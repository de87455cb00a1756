# Every command first sets up .venv where that is missing or out of date; `make` alone lists the commands.
# make reproduce ARGS="--from 03_evaluate" passes options on; PYTHON=python3.11 chooses the interpreter of a new .venv.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Waiting threads sleep: spinning ones slow a small shared machine several times over.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
export UNSLOTH_DISABLE_STATISTICS := 1
test smoke figures refresh: export HF_HUB_OFFLINE := 1
# Two workers of one thread each test nearly twice as fast as one of two: the small models gain little from a second.
test: export OMP_NUM_THREADS := 1
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help reproduce test smoke figures paper site screenshots publish refresh lab setup clean distclean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

reproduce: $(READY) ## the whole experiment in small (profile nano): rewrite, fine-tune, evaluate, draw
	$(BIN)/medcomfort reproduce --profile nano $(ARGS)

test: $(READY) ## every test and every notebook, two at a time
	$(BIN)/ruff check
	$(BIN)/pytest --nbval --nbval-current-env $(WORKERS) $(ARGS)

smoke: $(READY) ## the four notebooks with their defaults, about a minute each at most
	$(BIN)/medcomfort reproduce --profile smoke $(ARGS)

figures: $(READY) ## figures and tables from the committed results, without a model
	@mkdir -p runs/figures
	$(BIN)/papermill notebooks/04_figures.ipynb runs/figures/04_figures.ipynb \
	  -p results_dir data/results/nano -p figures_dir figures -p tables_dir paper $(ARGS)

paper: figures ## the paper as PDF, its figures, tables and numbers from data/results (needs latexmk or tectonic)
	@$(BIN)/python -m medcomfort_utils.draw.paper

site: $(READY) ## README, notebooks, cards and paper as a site to read offline: build/site/index.html
	rm -rf build/site
	$(BIN)/python -m sphinx -q -b html -c docs -d build/doctrees . build/site

screenshots: site ## the README's pictures of the site, anew (needs Chromium)
	$(BIN)/python tests/screenshots.py

publish: $(READY) ## commit the last full run: its small results, the README's tables, the figures
	$(BIN)/medcomfort publish $(ARGS)
	$(MAKE) figures ARGS=

# Timing stays out of the notebooks, so that equal outputs are equal files.
EXECUTE := $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False
refresh: $(READY) ## run the notebooks with their defaults, keep their outputs, and renew data/smoke
	rm -rf runs/smoke data/smoke && mkdir -p data/smoke
	$(EXECUTE) notebooks/01_rewrite.ipynb
	$(BIN)/medcomfort reproduce --profile smoke --only 01_rewrite
	cp runs/smoke/dialogues.parquet runs/smoke/rewrites.parquet data/smoke
	$(EXECUTE) notebooks/02_finetune.ipynb
	cp -r runs/smoke/models data/smoke/models && rm -rf data/smoke/models/*/adapter
	$(EXECUTE) notebooks/03_evaluate.ipynb
	$(EXECUTE) notebooks/04_figures.ipynb

lab: $(READY) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab $(ARGS) notebooks

setup: $(READY) ## only set up .venv

clean: ## remove runs and caches
	rm -rf runs build dist *.egg-info .pytest_cache .ruff_cache unsloth_compiled_cache */unsloth_compiled_cache
	find . -path ./.venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf .venv

# The stamp names the folder: an environment holds absolute paths, so one that was moved or copied is made anew.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

# .making stands while the set-up runs: where it is still there, an earlier one was broken off, and all is made anew.
$(READY): requirements/cpu.txt requirements/unsloth.txt pyproject.toml
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo >&2 \
	  "MedComfort needs Python 3.11 or newer with its venv module, and '$(PYTHON)' is not: make PYTHON=/path/to/python3.11"; \
	  exit 1; }
	@if [ -e .venv/.making ] || ! $(BIN)/pip --version 2>/dev/null | grep -qF "from $(CURDIR)/.venv/"; then \
	  echo "Making .venv: a few minutes and about 2 GB."; \
	  rm -rf .venv && mkdir .venv && touch .venv/.making && $(PYTHON) -m venv .venv; fi
	@touch .venv/.making
	$(BIN)/python -m pip install -r requirements/cpu.txt
	@$(BIN)/python -m pip install --no-deps -r requirements/unsloth.txt || \
	  echo "Unsloth could not be installed; all goes on without it, on plain TRL."
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@echo "$(CURDIR)" > .venv/.making && mv .venv/.making $(READY)
