# Everything runs in .venv, made from requirements.lock at the first call. docs/install.md has the plain commands behind it.
PYTHON ?= python3
PROFILE ?= pocket
PY := .venv/bin/python
UV ?= $(PY) -m uv
COMPILE := pip compile pyproject.toml --extra full --extra dev --universal --python-version 3.11 --generate-hashes
export PYTHONHASHSEED := 0
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help env reproduce test lint explore lab docs lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 20
	@echo "  PYTHON=python3.12 chooses the interpreter, PROFILE=smoke the profile, ARGS='-m unit' goes to pytest"

env:  ## .venv from requirements.lock; reused as long as the lock is the same
	@./tools/env.sh "$(PYTHON)"

reproduce: env  ## notebooks 00-09 through papermill; writes results/$(PROFILE)/
	$(PY) -m ifcsr_lib reproduce --profile $(PROFILE)

# `-n 2` and notebooks do not mix: each notebook reads what the ones before it wrote. Pytest's 5 says that ARGS chose no test.
test: env  ## the tests in two processes, then the browser's and every notebook at smoke scale (nbval)
	@first=0; OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile tests --ignore=tests/browser $(ARGS) || first=$$?; \
	[ $$first = 0 ] || [ $$first = 5 ] || exit $$first; \
	second=0; $(PY) -m pytest --nbval tests/browser notebooks $(ARGS) || second=$$?; \
	[ $$second = 5 ] && exit $$first || exit $$second

lint: env  ## ruff and its formatter, notebooks without output but the compared one, tables and "You should see" as code and results say
	$(PY) -m ruff check .
	$(PY) -m ruff format --check -q .
	$(PY) tools/strip_notebooks.py --check
	$(PY) tools/readme_tables.py --check
	$(PY) tools/you_should_see.py --check

explore: env  ## the slider on a sample photo, in your browser (ARGS=--no-open writes the page only)
	$(PY) -m ifcsr_lib explore sample $(ARGS)

lab: env  ## JupyterLab on the first notebook
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

docs: env  ## README.md, docs/ and the notebooks of a pocket run as a web site in build/docs (installs mkdocs-material into .venv)
	$(UV) pip install -q --python $(PY) -r pyproject.toml --extra docs -c requirements.lock
	$(PY) tools/render_notebooks.py
	@# not with -q, which hides the warnings from --strict
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "written: build/docs/index.html"

lock: $(if $(findstring $(PY),$(UV)),env)  ## requirements.lock from pyproject.toml, and the two small locks from it (ARGS=--upgrade)
	$(UV) $(COMPILE) -q $(ARGS) -o requirements.lock
	echo "# requirements.lock without torch, torchvision and what only CUDA needs (made by make lock)" > requirements-cpu.lock
	awk '/^[^ #]/ {gpu = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/} !gpu' \
		requirements.lock >> requirements-cpu.lock
	echo "# put on top of requirements.lock, see tools/env.sh (made by make lock)" > requirements-headless.lock
	sed -n '/^opencv-python-headless==/,/^    # via/p' requirements.lock >> requirements-headless.lock

clean:  ## what smoke and pocket runs left behind; .venv, results/reference and paper-scale runs stay
	rm -rf results/smoke results/pocket
	rm -rf build dist .pytest_cache .ruff_cache notebooks/.ipynb_checkpoints
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
