# Every target sets up what it needs in .venv by itself; `make` alone lists them.

# The Python of an existing .venv stays in use until another one is named: make PYTHON=python3.11 ...
PYTHON ?= $(shell .venv/bin/python -c '' 2>/dev/null && echo .venv/bin/python || echo python3)
# Build of MXNet: cpu, cu112 or cu117 (docs/installation.md).
MXNET ?=
INSTALL = @$(PYTHON) scripts/install_environment.py $(if $(MXNET),--mxnet $(MXNET))
RUN = .venv/bin/python

.NOTPARALLEL:

.PHONY: help demo test test-fast lint install clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:
	@echo 'make demo      train a small ResNeSt with two Horovod workers to find defective solar cells,'
	@echo '               evaluate it, export it, predict with the exported files (about 10 minutes)'
	@echo 'make test      check style, then run all tests'
	@echo 'make test-fast check style, then run the quick tests (a few minutes)'
	@echo 'make lint      check style and the directions of imports only'
	@echo 'make install   set up .venv for your own work: .venv/bin/python, .venv/bin/horovodrun'
	@echo 'make clean     remove .venv and what the demo made (the compiled Horovod stays cached)'
	@echo
	@echo 'Each sets up .venv first if that is needed. Options, after the target:'
	@echo '  PYTHON=python3.11   the Python to use, 3.8 to 3.12      (now: $(PYTHON))'
	@echo '  MXNET=cu112         the MXNet build: cpu, cu112, cu117  (now: $(or $(MXNET),as in .venv, else cpu))'

# ---- environment: the same .venv for all, with more or less in it ----

.PHONY: environment environment-demo environment-test environment-lint
environment:
	$(INSTALL)
environment-demo:
	$(INSTALL) --extras horovod,demo
environment-test:
	$(INSTALL) --extras horovod,onnx,dev
environment-lint:
	$(INSTALL) --extras lint

install: environment
	@echo 'ready: try .venv/bin/python train_imagenet.py --help'

# ---- checks ----

lint: environment-lint
	.venv/bin/ruff check .
	.venv/bin/lint-imports --no-cache

test: environment-test
	.venv/bin/ruff check .
	$(RUN) -m pytest --durations=25

test-fast: environment-test
	.venv/bin/ruff check .
	$(RUN) -m pytest -m 'not slow' --durations=10

# ---- the demo: lines that can be typed one by one ----

demo/data/photos/split.json: demo/solar_cells.py | environment-demo
	$(RUN) demo/solar_cells.py prepare demo/data/photos

demo/data/%.rec: demo/data/photos/split.json | environment-demo
	$(RUN) scripts/pack_records.py demo/data/photos/$* demo/data/$* --quality 95 --overwrite

# A small network, so that there is time for 96 px: cracks are thin. Few epochs want less
# regularization than the paper's 270 on ImageNet, and of two classes each weighs so much in the
# gradient that the recipe's learning rate makes the loss swing. The test view is the whole cell
# (--crop-ratio 1), larger than in training as the paper has it for its larger networks.
# last.params, because best.params is the epoch that did best on the held-out cells.
demo: demo/data/train.rec demo/data/val.rec | environment-demo
	.venv/bin/horovodrun -np 2 $(RUN) train_imagenet.py --model resnest14_fast_2s1x32d \
	    --rec-train demo/data/train.rec --rec-val demo/data/val.rec \
	    --input-size 96 --test-size 112 --crop-ratio 1 --batch-size 16 \
	    --num-epochs 6 --warmup-epochs 1 --base-lr 0.025 --eval-frequency 2 \
	    --no-mixup --no-auto-aug --color-jitter 0.2 --lighting 0 \
	    --save-dir demo/run --overwrite
	$(RUN) scripts/evaluate.py --model resnest14_fast_2s1x32d --params demo/run/last.params \
	    --rec-val demo/data/val.rec --test-size 112 --crop-ratio 1
	$(RUN) scripts/export_model.py --model resnest14_fast_2s1x32d --params demo/run/last.params \
	    --format symbol --images demo/data/val.rec --output demo/run/exported \
	    --test-size 112 --crop-ratio 1
	$(RUN) scripts/predict.py --model demo/run/exported demo/data/photos/val/*/cell0[37]1?.png
	$(RUN) demo/picture.py demo/run demo/data/photos demo/run/demo.png

clean:
	rm -rf .venv demo/data demo/run build *.egg-info .pytest_cache .ruff_cache
