# Everything from a bare Debian 12: `make demo`, `make test`. As root it installs what is missing, else it says so.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast conduct bench spank lint packages clean docker docker-up docker-down docker-demo docker-test docker-faults docker-table

# The cluster of containers: trixie has Slurm 24.11, forky 26.05; and how many nodes, 4 to 8.
export RELEASE ?= trixie
export NODES ?= 4
BACKEND ?= auto
RUNS := trixie-commands forky-commands forky-pyslurm
COMPOSE := docker compose -f docker/compose.yaml

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 21

demo: packages $(VENV)/.installed ## break a GPU under a job on a real Slurm with fake hardware, watch the job come back
	@$(BIN)/slurm-health sandbox demo

test: packages $(VENV)/.installed ## all tests, those on a real Slurm included (root)
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(VENV)/.installed ## the tests that need no Slurm and no root
	@$(BIN)/python -m pytest -m "not cluster" $(ARGS)

conduct: packages $(VENV)/.installed ## break each promise in a copy of the code, see its test fail (20 minutes)
	@$(BIN)/python tests/conduct.py

docker-demo: docker $(VENV)/.installed ## the same story on a cluster of containers (RELEASE=forky: on Slurm 26.05)
	@$(BIN)/python docker/demo.py

docker-up: docker ## start the cluster of containers
	@$(COMPOSE) up -d --wait --build
	@$(COMPOSE) exec -u ada login sinfo

docker-down: ## end it, and remove its volumes
	@COMPOSE_PROFILES=8 $(COMPOSE) down -v -t 3

# Mounts are for two tests: of a full disk, and of two hosts with names of their own.
docker-test: docker ## the tests that need a Slurm, on that release's (BACKEND=commands or pyslurm, ARGS=-x)
	@$(COMPOSE) build --quiet test
	@mkdir -p docker/.results
	@docker run --rm --cap-add SYS_ADMIN --security-opt apparmor=unconfined -e SLURM_HEALTH_TEST_BACKEND=$(BACKEND) -v $(CURDIR)/docker/.results:/results \
	    slurm-health-test:$(RELEASE) -m cluster -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

docker-faults: docker $(VENV)/.installed ## hosts of that cluster die and lose their network under jobs (10 minutes)
	@$(BIN)/python -m pytest docker/test_faults.py $(ARGS)

# What a run leaves in docker/.results says itself which Slurm it was, and which way to it.
docker-table: packages $(VENV)/.installed ## those tests on each Slurm by each way to it, and their table in docs/SLURM.md
	@rm -rf docker/.results
	@$(MAKE) test ARGS='-m cluster --junitxml=docker/.results/host.xml' || true
	@for run in $(RUNS); do \
	    $(MAKE) docker-test RELEASE=$${run%-*} BACKEND=$${run#*-} ARGS=--junitxml=/results/$$run.xml || true; done
	@$(BIN)/python docker/table.py docker/.results/*.xml

docker:
	@docker/engine
	@docker/base $(RELEASE)

bench: packages $(VENV)/.installed ## all measurements, more than an hour; prints markdown
	$(BIN)/python bench/prolog.py
	$(BIN)/python bench/node.py
	$(BIN)/python bench/gpu.py --fake 8
	$(BIN)/python bench/detect.py
	$(BIN)/python bench/requeue.py
	$(BIN)/python bench/place.py
	$(BIN)/python bench/relaunch.py
	$(BIN)/python bench/scale.py
	$(BIN)/python bench/recall.py

spank: build/spank_slurm_health.so ## the SPANK plugin, for the Slurm whose headers are here (CPPFLAGS=-I... for others)

build/spank_slurm_health.so: spank/slurm_health.c
	@mkdir -p $(@D)
	$(CC) -std=c11 -D_GNU_SOURCE $(CPPFLAGS) -O2 -fPIC -Wall -Wextra -Werror -shared -o $@ $<

lint: $(VENV)/.linters ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy slurm_health

clean: ## remove what make and pytest made here; installed packages stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python without its venv module makes half a folder: start from nothing.
$(VENV)/.installed: setup.py | python
	@echo "setting up $(VENV)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/.linters: $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: python
python:
	@PYTHON='$(PYTHON)' .ci/packages python

packages:
	@PYTHON='$(PYTHON)' .ci/packages slurm
