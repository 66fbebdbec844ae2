"""Has the worker serve its metrics; to be imported before the plugin, which reads the settings."""

import os

from benchmarks.worker.app import app

app.conf.broadcast_metrics_port = int(os.environ["BENCHMARK_METRICS_PORT"])
