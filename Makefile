PYTHON ?= python3
RUN = .venv/bin/python -m cool_rlhf.run

.PHONY: demo seeds test install lint format lock

demo: install
	$(RUN) +experiment=demo

# The demo from three seeds, each evaluated on rows that no stage has seen; see experiments/demo_seeds.
seeds: install
	.venv/bin/python experiments/demo_seeds/run.py --seeds 81 82 83

# The tests' tensors are tiny: more threads would wait for each other.
test: install lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

install:
	@PYTHON=$(PYTHON) bash requirements/install.sh

lint: install
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

format: install
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# Resolves pyproject.toml anew, to the newest that it allows, for fresh machines to get the same.
lock: install
	bash requirements/lock.sh
