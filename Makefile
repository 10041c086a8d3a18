# make book | test | render | pdf | links | lint | clean. Needs Python 3.11 to 3.13, make and git; everything else goes into .venv.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && \
	{ echo $$p; break; }; done)
PROFILE ?= quick
PYTEST ?= -m "not slow"
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: book test render pdf links lint clean
.DELETE_ON_ERROR:

book: $(STAMP)
	$(BIN)/ddpmlab book --profile $(PROFILE)

render: $(STAMP)
	$(BIN)/ddpmlab render

pdf: render
	$(BIN)/python -m ddpmlab.book.pdf _build/_build/html _build/ddpmlab.pdf

links: $(STAMP)
	$(BIN)/jupyter-book build book --config _config.yml --toc book/_toc.yml --path-output _build/links --builder linkcheck

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

# pinned by constraints.txt; written last, so that an interrupted installation starts again
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 with venv found; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[book,cluster,dev]'
	touch $@

clean:
	rm -rf _build $(VENV) .pytest_cache .hypothesis .ruff_cache *.egg-info
	find ddpmlab tests -name __pycache__ -type d -prune -exec rm -rf {} +
