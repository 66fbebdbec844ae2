"""The same handlers as in `sleeping_consumers`, as plain receivers of Celery's signals."""

from celery.signals import task_postrun, task_prerun

from benchmarks.worker.handlers import sleep

for number in range(4):
    for signal in (task_prerun, task_postrun):
        signal.connect(sleep, weak=False, dispatch_uid=f"sleep-{number}")
