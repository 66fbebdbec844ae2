"""One consumer of failures, the least that a user of the plugin has."""

from celery_broadcast import JobFailed, on_job_event


@on_job_event(JobFailed)
def page_oncall(_: JobFailed) -> None:
    """Do nothing."""
