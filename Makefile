PYTHON ?= python3
RUN = .venv/bin/python -m cool_rlhf.run

.PHONY: demo test install lint format lock

demo: install
	$(RUN) +experiment=demo

test: install lint
	.venv/bin/python -m pytest

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

# Writes down the versions that are installed now, for fresh machines to get the same.
lock: install
	bash requirements/lock.sh
