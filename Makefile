# The README's commands. Every target sets the environment up first; a second run starts at once.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= auto
DEMO ?=
export MPLBACKEND ?= Agg

RUN := $(VENV)/bin/python

.PHONY: setup demo demo-seg demo-cls demo-cells demo-mae test lint doctor

setup:
	@$(PYTHON) tools/setup_env.py --venv $(VENV) --torch $(TORCH)

demo: setup
	@$(RUN) tools/demo.py $(if $(CONFIG),--config $(CONFIG)) $(DEMO)

demo-seg: setup
	@$(RUN) tools/demo.py --config configs/demo/upernet_vmamba_shapes.py $(DEMO)

demo-cls: setup
	@$(RUN) tools/demo.py --config configs/demo/vmamba_shapes_cls.py $(DEMO)

demo-cells: setup
	@$(RUN) tools/demo.py --config configs/jumpcp/demo.py $(DEMO)

demo-mae: setup
	@$(RUN) tools/demo.py --config configs/mae/demo.py $(DEMO)

# Threads that wait leave the cores to the processes that the tests start.
test: export OMP_WAIT_POLICY ?= PASSIVE
test: setup
	$(RUN) -m pytest

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

doctor:
	@if [ -x $(RUN) ]; then $(RUN) tools/doctor.py; else $(PYTHON) tools/doctor.py; fi
