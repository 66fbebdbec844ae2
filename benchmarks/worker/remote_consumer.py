"""A consumer that isn't here: what it wants, which is all there is, is sent to it."""

from benchmarks.worker.handlers import ignore
from celery_broadcast import on_job_event

on_job_event(name="everything", remote=True)(ignore)
