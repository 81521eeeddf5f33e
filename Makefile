# Every target sets up what it needs by itself, once, into .venv. `make` alone lists the targets.
# ARGS go to the script: make train ARGS="encoder=focus_vit adapter=mlp"

# The first Python that is new enough; only the making of .venv uses it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
ARGS ?=
RUN ?= outputs/demo
EXPERIMENT ?= st_image_caption
DATA ?= stamps_single
OUT ?= outputs/exported
PY := .venv/bin/python
# Workers take tests from each other, so that none is idle; each has a core of its own.
TEST_ARGS ?= -n auto --maxprocesses 4 --dist worksteal
SEED ?=
# Groups that `make test` leaves out; tests/groups.py says what each does.
GROUPS := processes browser docs fuzz
MORE_GROUPS := plugins slurm# long, and not for every submission
NO_GROUP := not (processes or docs or browser or fuzz or plugins or slurm)

# These act only when they are set before torch and the hub library are imported; a value of yours wins.
export IMA_REQUIRE_ALL
export TOKENIZERS_PARALLELISM ?= false
# Without compiled bytecode every start would compile torch and its kin again (tens of seconds).
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.PHONY: help setup demo demo-control twin test test-fast test-all $(addprefix test-,$(GROUPS) $(MORE_GROUPS)) test-docs test-fuzz mutants check lint type train evaluate sweep models claims sweep-demo docs bench bench-train bench-align bench-skip bench-prune bench-report bench-mt bench-gpu export-data report collect dashboard sync doctor clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup:  ## make .venv with the pinned packages and fetch the embedded models and pictures
	@command -v $(PYTHON) >/dev/null || { echo "setup: '$(PYTHON)' not found: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: $$($(PYTHON) -V) found, Python 3.11 or newer needed: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m ima.cli.install

demo: setup  ## train the demo (minutes) and print the path of its page
	@$(PY) -m ima demo demo $(ARGS)

demo-control: setup  ## train the demo and its twin on noise, print the difference with its interval
	@$(PY) -m ima demo control $(ARGS)

twin: setup  ## an experiment and its twin on noise, and their difference: make twin EXPERIMENT=st_video_qa
	@$(PY) -m ima demo twin experiment=$(EXPERIMENT) $(ARGS)

test: setup  ## run the tests, some minutes; the last lines name the groups that are left out
	@IMA_REQUIRE_REAL=1 $(PY) -m pytest -m "$(NO_GROUP)" $(TEST_ARGS)

test-fast: setup  ## run those of them that need no embedded models
	@$(PY) -m pytest -m "$(NO_GROUP) and not real" $(TEST_ARGS)

test-processes: setup  ## the group that starts whole scripts and kills them
	@IMA_REQUIRE_REAL=1 $(PY) -m pytest -m processes $(TEST_ARGS)

test-docs: setup  ## run every command of README and docs as written, on small parts; names those that are not run
	@IMA_REQUIRE_REAL=1 $(PY) -m pytest -m docs $(TEST_ARGS)

test-browser: setup  ## the page in Chromium, which is installed where it is missing
	@$(PY) tests/chromium.py
	@$(PY) -m pytest -m browser

test-plugins: setup  ## multiruns under launchers and sweepers of others, which go into .venv-plugins
	@python=$$($(PY) tests/plugin_packages.py) && $$python -m pytest -m plugins

test-slurm: setup  ## a real Slurm of one node on this machine, which it installs as root
	@$(PY) tests/slurm_node.py
	@python=$$($(PY) tests/plugin_packages.py) && $$python -m pytest -m slurm

test-fuzz: setup  ## five minutes of random configs and damaged files; prints its seed, SEED=... repeats
	@IMA_FUZZ_SEED=$(SEED) $(PY) -m pytest -m fuzz $(TEST_ARGS)

# One after the other: each has all cores.
test-all:  ## run every group; what cannot be installed is a failure
	@$(MAKE) --no-print-directory test IMA_REQUIRE_ALL=1
	@for group in $(GROUPS) $(MORE_GROUPS); do $(MAKE) --no-print-directory test-$$group IMA_REQUIRE_ALL=1 || exit; done

mutants: setup  ## change single lines of ima/ and see that the tests notice: some minutes, ARGS="--jobs 2"
	@$(PY) tests/mutants/run.py $(ARGS)

lint: setup  ## ruff: rules and formatting; which room may import which; links of README and docs
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) tests/rooms.py && $(PY) tests/links.py

type: setup  ## mypy
	@$(PY) -m mypy

check: lint type test  ## lint, type and test

train: setup  ## python train.py $(ARGS)
	@$(PY) train.py $(ARGS)

evaluate: setup  ## python evaluate.py $(ARGS)
	@$(PY) evaluate.py $(ARGS)

sweep: setup  ## python sweep.py $(ARGS)
	@$(PY) sweep.py $(ARGS)

models: setup  ## fetch a larger LLM, once: make models ARGS=qwen_coder_0_5b (or qwen_coder_1_5b)
	@$(PY) -m ima assets fetch $(ARGS)

claims: setup  ## the papers' claims on one LLM: trainings, evaluations and the table of what they show (hours)
	@$(PY) sweep.py sweep=claims $(ARGS); $(PY) -m ima claims outputs/claims

sweep-demo: setup  ## five small trainings, two of them controls, and one page about them: some minutes
	@$(PY) sweep.py sweep=small $(ARGS)

bench: bench-train bench-align bench-skip bench-prune bench-report bench-mt  ## all benchmarks, into outputs/bench/

bench-train: setup  ## step time against the bare LLM and a plain loop on stock parts
	@$(PY) -m ima bench train $(ARGS)

bench-align: setup  ## what looking inside costs: IMA and the full suite over a bare pass, streaming over dumps
	@$(PY) -m ima bench align $(ARGS)

bench-skip: setup  ## what skipping saves: measured, in FLOPs, and against hand-written passes without the skipped parts
	@$(PY) -m ima bench skip $(ARGS)

bench-prune: setup  ## what making a mask costs: sequential Wanda over a plain forward pass, bits per weight of its file
	@$(PY) -m ima bench prune $(ARGS)

bench-gpu: setup  ## speed and memory on a GPU against stock passes, some minutes: ARGS="--size 7b|1b|tiny"
	@$(PY) -m ima bench gpu $(ARGS)

bench-mt: setup  ## multi-task steps against stock LLaVA in a transformers Trainer: time and memory
	@$(PY) -m ima bench mt $(ARGS)

bench-report: setup  ## a thousand finished runs: seconds to collect and to draw them, size of the page
	@$(PY) -m ima bench report $(ARGS)

export-data: setup  ## write a source in official formats: make export-data DATA=stamps_single OUT=folder
	@$(PY) -m ima export-data $(DATA) --out $(OUT) $(ARGS)

docs: setup  ## README and docs as one searchable site, build/site; lists sentences of more than 30 words
	@$(PY) tests/docs_site.py

report: setup  ## write the page of a run again: make report RUN=outputs/demo
	@$(PY) -m ima report $(RUN)

collect: setup  ## one table of all runs below a folder, CSV and Parquet: make collect RUN=outputs
	@$(PY) -m ima collect $(RUN) $(ARGS)

dashboard: setup  ## the W&B dashboard, pushed where there is a key (WANDB_ENTITY), else as JSON
	@$(PY) -m ima wandb push $(ARGS)

sync: setup  ## send runs to W&B from their files: make sync RUN=outputs/demo
	@$(PY) -m ima wandb sync $(RUN)

doctor: setup  ## will a config run here: make doctor ARGS="llm=vicuna trainer=gpu"
	@$(PY) -m ima doctor $(ARGS)

clean:  ## remove tool caches and build leftovers; .venv and outputs stay
	@rm -rf .pytest_cache .ruff_cache .mypy_cache build dist ./*.egg-info
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Any other word fails, also where a file or folder of that name exists, which make would call up to date.
%: .unknown
	@echo "make: no target '$@'; make alone lists them" >&2; exit 2
.PHONY: .unknown
.unknown:
Makefile: ;
