# All that a machine with Python 3.10 or newer and make needs:
#   make demo   shows what it does
#   make test   runs all the tests; make test-fast those that need seconds only
#   make celery-tests  runs Celery's own tests with it off and on, in some minutes
#   make bench  measures what it costs, beside what else one would take, in up to ten minutes
#   make chaos  kills the processes of a busy worker, and checks what is told of its jobs
#   make chaos-relay  kills remote consumers and restarts their broker, and checks that each
#                     has every event
#   make dashboard  draws the picture of the Grafana dashboard in docs/metrics.md

PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test test-fast celery-tests bench chaos chaos-relay dashboard lint types clean

demo: $(VENV)/with-demo
	$(VENV)/bin/python -m example_project.demo

# Workers and servers are started for groups of tests, which keep their order.
test: test-fast
	tools/with_servers.sh $(VENV)/bin/python -m pytest -m worker \
		--numprocesses auto --dist loadgroup --randomly-dont-reorganize

# In an order of its own each time; the seed it prints repeats it.
test-fast: $(VENV)/with-test
	$(VENV)/bin/python -m pytest -m "not worker" --numprocesses auto

# Each of Celery's unit tests must end the same way with the broadcast on as without it, but for
# three that count what is there: our control commands, and our timer.
celery-tests: $(VENV)/with-dev
	$(VENV)/bin/tox run -e celery-tests

# On a machine that does nothing else.
bench: $(VENV)/with-bench
	$(VENV)/bin/python -m benchmarks

# Some minutes; the seed it prints repeats it: make chaos OPTIONS="--seed 7 --jobs 1000 --kills 50"
chaos: $(VENV)/with-test
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests" $(VENV)/bin/python -m chaos $(OPTIONS)

# The same of remote consumers, on Redis and then on RabbitMQ: OPTIONS="--broker redis --seed 7"
chaos-relay: $(VENV)/with-test
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests" tools/with_servers.sh \
		$(VENV)/bin/python -m chaos_relay $(OPTIONS)

# Two minutes; writes docs/dashboard.svg, the picture of contrib/grafana-dashboard.json.
dashboard: $(VENV)/with-test
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests" tools/with_servers.sh \
		$(VENV)/bin/python tools/draw_dashboard.py

lint: $(VENV)/with-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

# pyright looks for the packages of the python on the PATH, and doesn't see an editable one.
types: $(VENV)/with-dev
	$(VENV)/bin/mypy
	PATH="$(abspath $(VENV))/bin:$$PATH" PYTHONPATH=. \
		$(VENV)/bin/pyright --verifytypes celery_broadcast --ignoreexternal
	PATH="$(abspath $(VENV))/bin:$$PATH" PYTHONPATH=. $(VENV)/bin/pyright tests/typing_api.py

clean:
	rm -rf $(VENV) .tox build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -prune -exec rm -rf {} +

# The package with one of its extras; again when setup.cfg has changed.
$(VENV)/with-%: setup.cfg | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

# Debian's Python comes without what makes a venv.
$(VENV)/bin/python:
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/debian.sh python3-venv
	$(PYTHON) -m venv $(VENV)
