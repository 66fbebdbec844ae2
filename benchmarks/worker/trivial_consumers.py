"""Four consumers that do nothing."""

from benchmarks.worker.handlers import ignore
from celery_broadcast import on_job_event

for number in range(4):
    on_job_event(name=f"ignore-{number}")(ignore)
