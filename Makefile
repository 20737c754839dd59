# Each target first makes the environment, .venv/, if it is missing or older than the lock.

PYTHON = $(shell for python in python3.11 python3 /usr/bin/python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
ENVIRONMENT = .venv/.complete
IMAGE ?= imagepipe
WORKERS ?= 2
GPU ?=
EXTRAS = --extra grpc --extra mlflow --extra onnx --extra openvino

EXPORT = .uv/bin/uv export --frozen --no-dev --no-emit-project --no-header --quiet

.PHONY: demo test test-slow test-long lint docs audit dist image clean

demo: $(ENVIRONMENT)  ## from handwritten digits to a served classifier
	.venv/bin/imagepipe demo

# By default two processes, of 4 GB each with what they start; tests of a file share what is dear to make. Files keep
# their order, so that those that take longest begin early: of the quick tests that is e2e, of the slow ones these
# folders. Those of image and packaging, which download and install, don't begin together, so that the others compute
# meanwhile. Without a limit of 0, pytest-xdist replaces a process that has died, and then waits for ever. The set-up
# of the first test of the image (Go's toolchain, Beam's programs, Debian, the environment) took 400 s here, and
# counts for a test's time.
IN_PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 40 \
	-o faulthandler_timeout=1500 -o faulthandler_exit_on_timeout=true
LONGEST = tests/image/ tests/pipeline/ tests/packaging/ tests/e2e/ tests/faults/

test: $(ENVIRONMENT)  ## the tests that each change should pass
	.venv/bin/pytest -m "not slow and not long" $(IN_PARALLEL)

test-slow: $(ENVIRONMENT)  ## further whole pipelines, distribution, kills
	.venv/bin/pytest -m "slow and not long" $(IN_PARALLEL) $(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/*/))

test-long: $(ENVIRONMENT)  ## kills at random moments, a soak, larger networks, more whole runs: hours, not part of the gate
	.venv/bin/pytest -m long -s

lint: $(ENVIRONMENT) docs  ## linter, formatter, types, layers, words, documentation
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python tools/check_style.py
	.venv/bin/hadolint kubeflow/Dockerfile
	@$(EXPORT) | cmp - requirements.txt || { echo "requirements.txt is not what uv.lock says: make requirements.txt"; exit 1; }

docs: $(ENVIRONMENT)  ## the documentation, in site/
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

requirements.txt: uv.lock  ## the lock for those who use pip
	$(EXPORT) --output-file $@

audit: $(ENVIRONMENT)  ## known vulnerabilities of the locked versions; needs the index's advisories
	.venv/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt

dist: $(ENVIRONMENT)  ## wheel, sdist and their bill of materials (CycloneDX), in dist/
	.venv/bin/python -m build --outdir dist
	.uv/bin/uv export --frozen --no-dev --all-extras --quiet --preview-features sbom-export --format cyclonedx1.5 \
		--output-file dist/imagepipe-tfx.cdx.json

image:  ## the container images; GPU=1 with CUDA, IMAGE=registry/name for another name
	@docker info > /dev/null 2>&1 || { echo "No image: there is no Docker engine here (docker info says why)."; exit 1; }
	docker build -f kubeflow/Dockerfile --build-arg GPU=$(GPU) -t $(IMAGE) .
	docker build -f kubeflow/Dockerfile --build-arg GPU=$(GPU) -t $(IMAGE)-serve --target serve .

$(ENVIRONMENT): uv.lock pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one (Debian, Ubuntu: apt install python3)."; exit 1; }
	$(PYTHON) tools/install_uv.py .uv
	UV_PROJECT_ENVIRONMENT=.venv .uv/bin/uv sync --frozen --compile-bytecode $(EXTRAS)
	@touch $@

clean:  ## what the targets made
	rm -rf .venv .uv demo site dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info
