"""A plain receiver of each of the two signals around a job, which does nothing."""

from celery.signals import task_postrun, task_prerun

from benchmarks.worker.handlers import ignore

for signal in (task_prerun, task_postrun):
    signal.connect(ignore, weak=False)
