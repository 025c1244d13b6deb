# Every target bootstraps itself: a machine with python3 (3.11 or newer) and make is enough.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
# What demo and serve run, and nothing else: no linters, no test tools, no torch.
DEMO_STAMP := $(VENV)/.installed-demo
# CPU builds of torch are a tenth of the size; for CUDA: make install TORCH_INDEX=https://download.pytorch.org/whl/cu126
TORCH := torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

SOURCES := voiceserver workers clients benchmarks tests docs/generate
# Some of those that benchmarks/run.py lists; all by default.
BENCHMARKS ?=
# Broken links and anchors fail. The variable silences an advertisement for another tool.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

.DEFAULT_GOAL := help
.PHONY: help install clients-venv demo serve test lint docs format bench bench-venv screenshots clean

help:
	@echo "make demo     install what it needs, start a server, hold a spoken conversation, then overload it"
	@echo "make serve    a server on 127.0.0.1:8765 with the default engines"
	@echo "make test     ruff, mypy --strict, the documentation and all tests"
	@echo "make lint     ruff, mypy and the documentation only (make format repairs the layout)"
	@echo "make docs     the pages that are generated from the code, and the documentation as a site in build/site, without the network"
	@echo "make bench    all benchmarks, tables and charts; results land in benchmarks/results (BENCHMARKS='turn sessions' picks some,"
	@echo "              COMPARE=FILE flags what became worse since that summary.json)"
	@echo "make bench-venv  what benchmarks compare with and can be driven by: Mosec, LitServe, Locust"
	@echo "make screenshots  the pictures of the page and the dashboard, taken anew (needs Chromium; two minutes)"
	@echo "make clients-venv  the stock clients that 'make test' talks to, where they are installed (0.8 GB)"
	@echo "make install  everything in the virtual environment $(VENV), for development; targets that need it do it"

install: $(STAMP)

$(RUN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "voiceserver needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "no venv: install it first (Debian, Ubuntu: apt install python3-venv)"; rm -rf $(VENV); exit 1; }

# A stamp is older than pyproject.toml exactly when dependencies may have changed. What is installed already stays.
$(DEMO_STAMP): pyproject.toml | $(RUN)/python
	@echo "installing the server and its default engines into $(VENV): about 180 MB to download, 450 MB on disk"
	@$(PIP) install --editable '.[demo]'
	@touch $(DEMO_STAMP)

$(STAMP): pyproject.toml | $(RUN)/python
	@echo "installing everything that tests, linters and benchmarks need into $(VENV): some minutes, 2 GB on disk"
	@if [ "$$(uname -s)" = Linux ] && ! $(RUN)/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then \
		echo "installing $(TORCH) from $(TORCH_INDEX)"; \
		$(PIP) install --retries 1 --no-deps --index-url $(TORCH_INDEX) $(TORCH) || \
			echo "not there; the default index will do"; \
	fi
	@$(PIP) install --editable '.[dev]'
	@touch $(STAMP) $(DEMO_STAMP)

# Clients that people have, for the end-to-end tests: in an environment of their own, so that no version of theirs is ours.
STOCK := tests/e2e/stock
CLIENTS_VENV := .venv-clients
CLIENTS_STAMP := $(CLIENTS_VENV)/.installed

clients-venv: $(CLIENTS_STAMP)

$(CLIENTS_STAMP): $(STOCK)/requirements.txt $(STOCK)/js/package-lock.json
	@test -x $(CLIENTS_VENV)/bin/python || $(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --retries 1 --requirement $(STOCK)/requirements.txt
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --retries 1 --no-deps whisper-live==0.10.0
	@if command -v npm >/dev/null; then cd $(STOCK)/js && npm ci --silent --no-audit --no-fund; \
		else echo "no npm: the JavaScript clients are skipped"; fi
	@touch $(CLIENTS_STAMP)

demo: $(DEMO_STAMP)
	@$(RUN)/voiceserver demo

serve: $(DEMO_STAMP)
	@$(RUN)/voiceserver serve

lint: $(STAMP)
	$(RUN)/ruff check $(SOURCES)
	$(RUN)/ruff format --check $(SOURCES)
	$(RUN)/mypy --strict
	$(RUN)/python -m docs.generate --check
	$(MKDOCS)

# One process runs the tests with servers, another one meanwhile the rest.
test: lint
	$(RUN)/pytest --numprocesses 2 --dist loadgroup

docs: $(STAMP)
	$(RUN)/python -m docs.generate
	$(MKDOCS)

format: $(STAMP)
	$(RUN)/ruff check --fix $(SOURCES)
	$(RUN)/ruff format $(SOURCES)

bench: $(STAMP)
	@$(RUN)/python -m benchmarks.run $(BENCHMARKS) $(if $(COMPARE),--compare $(COMPARE))

# Other people's servers for the serving benchmark, and Locust; everything else it takes from $(VENV), with addsitedir because
# the editable install there is a path file, and Python follows none inside a folder that a plain path file adds.
bench-venv: $(STAMP)
	$(PYTHON) -m venv .venv-bench
	@$(RUN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > \
		"$$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/voiceserver-venv.pth"
	.venv-bench/bin/python -m pip install --quiet mosec litserve locust

screenshots: $(STAMP)
	@$(RUN)/python -m tests.e2e.screenshots

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info reply*.wav
