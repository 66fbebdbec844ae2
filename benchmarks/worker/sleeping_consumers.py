"""Four consumers that sleep 10 ms an event."""

from benchmarks.worker.handlers import sleep
from celery_broadcast import on_job_event

for number in range(4):
    on_job_event(name=f"sleep-{number}")(sleep)
