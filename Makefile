# Three verbs: make check, make test, make demo. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat constraints.txt pyproject.toml | cksum | cut -d' ' -f1)

# Tests start hundreds of processes; without this, in a shell that forbids it, each would compile all our modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test ready format base clean

demo: $(READY)
	$(BIN)/factory run configs/quickstart.yaml
	@echo
	@echo "Talk to it:        $(BIN)/factory chat workspace/quickstart"
	@echo "Its report:        workspace/quickstart/report.html"
	@echo "Both dashboards:   $(BIN)/factory up     (Prefect http://127.0.0.1:4200, MLflow http://127.0.0.1:5000)"

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

ready: $(READY)

check: $(READY)
	$(BIN)/ruff check core gates tasks flows data tests
	$(BIN)/ruff format --check core gates tasks flows data tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff check --fix core gates tasks flows data tests
	$(BIN)/ruff format core gates tasks flows data tests

# Pretrain the quickstart's base model again; minutes on a large GPU, about a day on two cores.
base: $(READY)
	$(BIN)/python -m data.tutor_base.build

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@{ command -v cc && command -v c++; } >/dev/null || \
	  { echo "A C and C++ compiler is needed to build llama.cpp (Debian: apt-get install build-essential)"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@echo "1/3  PyTorch"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@echo "2/3  llama.cpp, built from source: about three minutes on two cores; pip says 'still running...' meanwhile"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt llama-cpp-python 2>&1 | grep --line-buffered -vi '^\(requirement\|collecting\|looking\|using cached\|warning: location\)' || true
	@$(BIN)/python -c 'import llama_cpp' || { echo "llama-cpp-python was not built; see the lines above"; exit 2; }
	@echo "3/3  everything else"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.ready-*; touch $@

clean:
	rm -rf $(VENV) .factory workspace build *.egg-info .mypy_cache .ruff_cache .import_linter_cache
