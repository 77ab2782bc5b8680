# make demo: SmolLM2 learns French on this machine.  make test: the tests.  Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check fix smoke docs install clean

demo: install
	$(BIN)/langext quickstart

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The quickstart on the real model with a few training steps: every stage of the main job, in minutes.
smoke: install
	$(BIN)/langext fetch quickstart
	$(BIN)/langext run pipelines/quickstart.yaml --out runs/smoke \
		--set train.steps=3 --set train.warmup_steps=1 --set train.sequence_length=64 --set train.log_every=1 \
		--set extend.method.calibrate.original_tokens=3000 --set extend.method.calibrate.new_tokens=3000 \
		--set certify.bytes=2000 --set certify.continuations=1 --set certify.new_tokens=8 \
		--set train.eval_every=3 --set train.eval_bytes=2000 --set evaluate.kl_bytes=2000 \
		--set evaluate_base.bpb_bytes=3000 --set evaluate_base.continuation_items=4 --set evaluate_base.sample_tokens=8 \
		--set evaluate.bpb_bytes=3000 --set evaluate.continuation_items=4 --set evaluate.sample_tokens=8

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages as a site in site/; links and anchors that lead nowhere are errors.
docs: install
	$(BIN)/mkdocs build

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs
