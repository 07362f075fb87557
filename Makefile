# make demo: set everything up, then do the main job on real input
# make test: set everything up, then run every test
# Both need Python 3.10 or later with venv, and nothing else; all they install goes to .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Where a ROS 2 distribution is sourced, its rclpy and its NumPy 1 are used; else PyPI's wheels.
ifdef AMENT_PREFIX_PATH
VENV_FLAGS := --system-site-packages
EXTRAS := cpu,test
# The plugins of its launch_testing take an argument that pytest 9 no longer has.
CONSTRAINTS := -c constraints/ros.txt 'pytest<9'
else
VENV_FLAGS :=
EXTRAS := ros,cpu,test
CONSTRAINTS :=
endif
# What it is made for: for another Python, ROS or place it is made anew.
MADE_FOR := $(shell { $(PYTHON) -V; pwd -P; echo $(EXTRAS) $(AMENT_PREFIX_PATH); } 2>&1 | cksum)
STAMP := $(VENV)/.installed-$(firstword $(MADE_FOR))

.PHONY: audit constraints demo docs help lint sbom setup test test-colcon test-cpu test-debian \
  test-fleet test-install test-modelopt test-openvino test-pages test-pytorch test-tensorflow test-vehicle \
  test-versions vehicle-report clean

# What stands behind ## on the targets' lines; also what `make` alone does.
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)  ## the main job on this machine: calibrate, build, run the node, compare
	$(BIN)/trt-segmentation demo

test: $(STAMP)  ## every test that needs nothing more
	$(BIN)/python -m pytest

# Needs Debian's or Ubuntu's packages python3-cv-bridge, python3-ament-pep257 and -xmllint.
test-debian: $(STAMP)  ## the tests beside Debian's cv_bridge, and ament's linters
	$(BIN)/python -m pytest -m debian
	ament_pep257 trt_segmentation launch setup.py
	ament_xmllint package.xml

# Needs qemu-user: what depends on the CPU's integer kernels, on an emulated one without VNNI.
test-cpu: $(STAMP)  ## INT8 on an emulated CPU without VNNI (qemu-user)
	test/cpu/run $(BIN)/python

# Downloads OpenVINO (80 MB) into an environment of its own, which goes away.
test-openvino: $(STAMP)  ## the export in OpenVINO (downloads 80 MB)
	test/export/run $(BIN)/python

# Downloads NVIDIA's ModelOpt (1 GB with what it needs) into an environment of its own.
test-modelopt: $(STAMP)  ## NVIDIA ModelOpt's networks (downloads 1 GB)
	test/networks/modelopt/run $(BIN)/python

# Downloads TensorFlow and tf2onnx (300 MB) into an environment of its own, which goes away.
test-tensorflow: $(STAMP)  ## networks of TensorFlow (downloads 300 MB)
	test/networks/tensorflow/run $(BIN)/python

# Downloads PyTorch (200 MB, with CUDA 3 GB: PIP_EXTRA_INDEX_URL may name an index of CPU builds) and
# onnxscript into an environment of its own, which goes away.
test-pytorch: $(STAMP)  ## networks of PyTorch (downloads 200 MB, with CUDA 3 GB)
	test/networks/pytorch/run $(BIN)/python

# Downloads Dask and aiohttp (60 MB) into a directory that goes away: work over a real scheduler and workers.
test-fleet: $(STAMP)  ## work on a Dask cluster (downloads 60 MB)
	test/fleet/run $(BIN)/python

# Needs Chromium: reports and README as a browser shows them.
test-pages: $(STAMP)  ## reports and README in a browser (Chromium)
	$(BIN)/pip install --quiet --disable-pip-version-check playwright markdown-it-py
	$(BIN)/python -m pytest test/reports/test_rendering.py test/docs/test_readme.py

# Needs Python 3.10, 3.12 and 3.13 (on PATH or of pyenv); one environment each, made once.
VERSIONS ?= oldest lts newest opencv5
test-versions:  ## the oldest and newest libraries and Pythons
	test/versions/run $(VERSIONS)

# Needs g++; downloads TensorRT-RTX and the bindings of five TensorRT versions (150 MB, once).
test-vehicle: $(STAMP)  ## TensorRT-RTX's builder, the bindings of five TensorRT versions (g++, 150 MB)
	PYTHON=$(BIN)/python test/vehicle/run

# Damages recordings, pictures and bundles, kills and interrupts commands, at random; about ten minutes.
audit: $(STAMP)  ## damage files and kill commands at random, for ten minutes
	test/audit/run $(BIN)/python

# On a machine with an NVIDIA GPU, with the Python that has TensorRT: build, prove, measure, report.
vehicle-report:  ## on a machine with an NVIDIA GPU: build, prove, measure, report
	PYTHONPATH=. $(PYTHON) benchmarks/vehicle_report.py

# Needs git and bash; installs colcon in a directory that goes away.
test-colcon: $(STAMP)  ## colcon build, plain and with --symlink-install
	test/colcon/run $(VENV)

# Needs Debian's or Ubuntu's python3-opencv: what docs/install.md says beside a distribution.
test-install:  ## docs/install.md beside a distribution's OpenCV
	test/install/run

# Finds the newest dependencies that fit together; writes down their versions and hashes.
constraints:  ## the newest dependencies that fit together, with their hashes
	constraints/refresh

# Writes a CycloneDX bill of materials of what .venv has.
sbom: $(STAMP)  ## a bill of materials of .venv
	constraints/sbom $(VENV) dist/trt_segmentation.cdx.json

# Style, the rooms that may import each other, and types; pinned: newer ones find new things.
lint: $(STAMP)  ## style, the order of the rooms, types
	$(BIN)/pip install --quiet --disable-pip-version-check 'ruff==0.17.6' 'import-linter==2.17' \
	  'mypy==2.4.1' 'types-PyYAML==6.0.12.20261122' 'types-tqdm==4.70.0.20261106'
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# Writes the documentation's pages to site/; a dead link fails.
docs: $(STAMP)  ## the documentation's pages, in site/
	$(BIN)/pip install --quiet --disable-pip-version-check 'mkdocs<2' 'mkdocs-material<10' \
	  'mkdocstrings[python]<2'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

setup: $(STAMP)  ## .venv, which the others make by themselves (700 MB)

$(STAMP): setup.py setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'Python 3.10 or later is needed; name one with: make PYTHON=python3.12'; exit 1; }
	@case $(EXTRAS) in *ros*) $(PYTHON) -c 'import platform, sys; sys.exit((platform.system(), \
	  platform.machine()) != ("Linux", "x86_64") or sys.version_info >= (3, 15))' || { echo \
	  'PyPI has rclpy for Linux on x86-64 and Python 3.10 to 3.14; elsewhere source a ROS 2 first,' \
	  'as with: . /opt/ros/jazzy/setup.sh'; exit 1; }; esac
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo 'Python lacks venv; on Debian and Ubuntu: apt install python3-venv'; exit 1; }
	@echo '== Setting up $(VENV) (about 700 MB, a minute or two; done once)'
	@$(PYTHON) -m venv $(VENV_FLAGS) $(if $(filter-out $(STAMP),$(wildcard $(VENV)/.installed*)),--clear) $(VENV)
	PIP_USER=0 $(BIN)/python -m pip install --disable-pip-version-check --editable '.[$(EXTRAS)]' \
	  $(CONSTRAINTS)
	@touch $(STAMP)
	@echo '== $(VENV) is ready'

clean:  ## remove .venv and what was built
	rm -rf $(VENV) build install log trt_segmentation.egg-info
