# Two environments, since the service must run where torch is not installed. Each has a stamp, so that a second call
# installs nothing while its lock and pyproject.toml are unchanged.
#
#   make serve ARGS='--port 9000'       make test ARGS='-k sample -x'
#   make test-openvino                  the tests of bf16, in an environment of their own
#   make soak                           what make test does for seconds, for minutes: random bodies, schemathesis,
#                                       signals under load, 200,000 requests, hostile clients, overload
#   make audit                          what the image installs, and whether any of it is known to be vulnerable

PYTHON := $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
DEV := .venv
SERVE := .venv-serve
LOCK := .venv-lock
SOAK := .venv-soak
OPENVINO := .venv-openvino
AUDIT := .venv-audit
IMAGE := .venv-image
PIP := -m pip --disable-pip-version-check install -qq
TORCH := torch==2.13.0
UV := uv==0.13.8
SCHEMATHESIS := schemathesis==4.32.5
CYCLONEDX := cyclonedx-bom==7.5.0
PIP_AUDIT := pip-audit==2.10.1
SETS := dev cpu gpu openvino traces train hub import

# onnxruntime since 1.29 reports sessions to its maker, on Linux too, unless told not to.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: serve test test-openvino soak dev lint bench lock sbom audit clean

serve: $(SERVE)/stamp
	@$(SERVE)/bin/vae-serve $(ARGS)

# Two files at a time, as most tests have one core at work or wait; with ARGS='-n 0' one, as --pdb needs it.
test: $(DEV)/stamp
	$(DEV)/bin/pytest --numprocesses 2 --dist loadfile $(ARGS)

# bf16, which `make test` leaves out: its onnxruntime has no OpenVINO.
test-openvino: $(OPENVINO)/stamp
	$(OPENVINO)/bin/pytest -rs tests/service/test_bf16.py $(ARGS)

soak: $(DEV)/stamp $(SOAK)/stamp
	FUZZ_EXAMPLES=40000 SCHEMATHESIS=$(CURDIR)/$(SOAK)/bin/schemathesis $(DEV)/bin/pytest tests/service/test_fuzz.py $(ARGS)
	$(DEV)/bin/python -m benchmarks.signals
	$(DEV)/bin/python -m benchmarks.leaks
	$(DEV)/bin/python -m benchmarks.neighbours
	$(DEV)/bin/python -m benchmarks.overload

dev: $(DEV)/stamp

lint: $(DEV)/stamp
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

bench: $(DEV)/stamp
	$(DEV)/bin/python -m benchmarks.serving $(ARGS)
	$(DEV)/bin/python -m benchmarks.stages
	$(DEV)/bin/python -m benchmarks.start --environment

$(SERVE)/stamp: locks/cpu.txt pyproject.toml
	@echo "Installing locks/cpu.txt into $(SERVE) (once, about a minute)"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("vaeserve needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(SERVE)
	@$(SERVE)/bin/python $(PIP) -r locks/cpu.txt
	@$(SERVE)/bin/python $(PIP) --no-deps --editable .
	@touch $@

# torch comes first and by its exact version: whichever build of it pip finds here, the lock then counts as satisfied.
$(DEV)/stamp: locks/dev.txt pyproject.toml
	@echo "Installing $(TORCH) and locks/dev.txt into $(DEV) (once, some minutes)"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("vaeserve needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(DEV)
	@$(DEV)/bin/python $(PIP) $(TORCH)
	@$(DEV)/bin/python $(PIP) -r locks/dev.txt
	@$(DEV)/bin/python $(PIP) --no-deps --editable .
	@touch $@

# The newest versions that pyproject.toml allows. dev is made first and binds the others: what is served was tested.
lock: $(LOCK)/stamp
	@for set in $(SETS); do \
	    echo "locks/$$set.txt"; \
	    bound=; [ $$set = dev ] || bound='-c locks/dev.txt'; \
	    $(LOCK)/bin/uv --quiet --config-file locks/uv.toml pip compile pyproject.toml \
	        --extra $$set $$bound -o locks/$$set.txt || exit; \
	done

$(LOCK)/stamp: Makefile
	@$(PYTHON) -m venv $(LOCK)
	@$(LOCK)/bin/python $(PIP) $(UV)
	@touch $@

$(OPENVINO)/stamp: locks/openvino.txt locks/dev.txt pyproject.toml
	@$(PYTHON) -m venv $(OPENVINO)
	@$(OPENVINO)/bin/python $(PIP) -r locks/openvino.txt
	@$(OPENVINO)/bin/python $(PIP) -c locks/dev.txt pytest hypothesis httpx onnx scikit-learn
	@$(OPENVINO)/bin/python $(PIP) --no-deps --editable .
	@touch $@

# schemathesis brings dozens of packages that nothing else here needs.
$(SOAK)/stamp: Makefile
	@$(PYTHON) -m venv $(SOAK)
	@$(SOAK)/bin/python $(PIP) $(SCHEMATHESIS)
	@touch $@

# What the image of the service installs, with versions, licences and what needs what, as CycloneDX.
sbom: $(AUDIT)/stamp $(IMAGE)/stamp
	@mkdir -p build
	@$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
	    --output-file build/sbom.cdx.json $(IMAGE)/bin/python
	@echo build/sbom.cdx.json

# Whether anything that a lock names is known to be vulnerable. PyPI is asked over the network; ARGS='-s osv' asks OSV.
audit: sbom
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps $(foreach set,$(SETS),-r locks/$(set).txt) $(ARGS)

$(AUDIT)/stamp: Makefile
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python $(PIP) $(CYCLONEDX) $(PIP_AUDIT)
	@touch $@

# As the Dockerfile makes it: without a pip, from the same locks.
$(IMAGE)/stamp: locks/cpu.txt locks/traces.txt pyproject.toml $(AUDIT)/stamp
	@rm -rf $(IMAGE)
	@$(PYTHON) -m venv --without-pip $(IMAGE)
	@$(AUDIT)/bin/python -m pip --python $(IMAGE)/bin/python install -qq -r locks/cpu.txt -r locks/traces.txt
	@touch $@

clean:
	rm -rf $(DEV) $(SERVE) $(LOCK) $(SOAK) $(OPENVINO) $(AUDIT) $(IMAGE)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
