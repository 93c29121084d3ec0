# Every target works from a fresh clone with nothing but Python 3.11 or newer: the first one that needs
# it builds .venv and installs the pinned requirements; later ones reuse it until the pins change.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
OUT ?= runs/demo
ARGS ?=
PROMPT = a red circle and a blue square
export PROMPT

# The whole suite runs in two processes, each file in one of them; each takes up to 5 GB of memory.
WORKERS ?= --numprocesses 2 --dist loadfile

# The first interpreter that really runs and is new enough; `make PYTHON=/path/to/python` overrides it.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# A stamp carries the checksum of what it stands for: changed pins, or a moved folder, install again.
RUNTIME := $(VENV)/.runtime-$(shell { pwd; cat requirements.txt; } | cksum | cut -d' ' -f1)
TESTING := $(VENV)/.testing-$(shell { pwd; cat requirements.txt requirements-test.txt; } | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help demo demo-t2i generate roadmap teacher t2i-models teacher-t2i test test-all lint docs format bench install clean

help:  ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(RUNTIME)  ## teacher -> three students -> samples -> scores, in $(OUT)
	$(PY) -m demo.digits --out "$(OUT)"

demo-t2i: $(RUNTIME)  ## text to image: data -> three students -> images -> scores, in runs/demo-t2i
	$(PY) demo/t2i_demo.py $(ARGS)

generate: t2i-models  ## the shipped tiny LiT draws: make generate PROMPT="two red circles"
	$(PY) -m lit_jax generate --model runs/t2i-models/lit --text_encoder runs/t2i-models/text_encoder \
		--vae runs/t2i-models/vae --prompt "$$PROMPT" $(ARGS) \
		--out "runs/generate/$$(printf '%s' "$$PROMPT" | tr -cs '[:alnum:]' '_').png"

t2i-models: $(RUNTIME)  ## only convert the shipped text-to-image models, into runs/t2i-models
	$(PY) -m demo.t2i.models

roadmap: $(RUNTIME)  ## the paper's Tables 1-4 and LiT's siblings in miniature, three seeds (hours), in runs/roadmap
	$(PY) -m demo.roadmap $(ARGS)

teacher: $(RUNTIME)  ## train the demo's teacher again (half an hour) and export it
	$(PY) -m demo.digits.train_teacher

teacher-t2i: $(RUNTIME)  ## train the teacher of demo-t2i again (most of an hour) and export it
	$(PY) -m demo.t2i.train_teacher

test: $(TESTING)  ## run the tests but the slow ones (others: make test ARGS="tests/test_x.py -x")
	$(PY) -m pytest -q $(if $(ARGS),$(ARGS),-m "not slow" $(WORKERS))

test-all: $(TESTING)  ## run all tests, with those that kill real jobs and start them again
	$(PY) -m pytest -q $(WORKERS)

lint: $(TESTING)  ## ruff check, ruff format --check, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(TESTING)  ## write docs/flags.md again from the settings of the commands
	$(PY) -c "from lit_jax.commands import entry, help; print(help.reference(entry.COMMANDS), end='')" > docs/flags.md

format: $(TESTING)  ## let ruff repair what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(TESTING)  ## run every script in benchmarks/, results stay there
	@set -e; for script in benchmarks/[a-z]*.py; do \
		test -f "$$script" || { echo "make bench: no script in benchmarks/" >&2; exit 1; }; \
		echo "== $$script"; $(PY) "$$script"; done

install: $(RUNTIME)  ## only build .venv with the pinned runtime

clean:  ## delete caches and build leftovers; .venv and runs/ stay
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -path ./$(VENV) -prune -o -path ./runs -prune -o -type d -name __pycache__ -print | xargs rm -rf

$(PY):
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found (looked for python3.11, python3," \
		"python3.12, python3.13); install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "make: PYTHON=$(PYTHON) is Python \
	%d.%d; lit_jax needs 3.11 or newer" % v[:2])'
	@echo "make: building $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo "make: '$(PYTHON) -m venv' failed; on Debian" \
		"and Ubuntu install the package python3-venv (or python3.11-venv) and try again" >&2; exit 1; }

# The package itself is installed editable so that every script finds it from any folder. Without build
# isolation pip uses the pinned setuptools installed one line above instead of asking the index for another.
$(RUNTIME): | $(PY)
	@echo "make: installing the pinned runtime (about 2.6 GB on disk; a few minutes the first time)"
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.runtime-* && touch $@

$(TESTING): $(RUNTIME)
	@echo "make: installing the pinned test tools"
	$(PIP) install -r requirements-test.txt
	@rm -f $(VENV)/.testing-* && touch $@
