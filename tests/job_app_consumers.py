"""The consumers of `job_app`: they report to the test."""

from __future__ import annotations

from reports import CallReport, EventReport, send

from celery_broadcast import Consumer, JobEnded, JobEvent, on_job_event


@on_job_event
def trail(event: JobEvent) -> None:
    """Report every event."""
    report_event("trail", event)


@on_job_event(JobEnded)
class Ends(Consumer):
    """Report every end, and what happens to the consumer itself."""

    def setup(self) -> None:
        self._report_call("setup")

    def handle(self, event: JobEnded) -> None:
        report_event("Ends", event)

    def teardown(self) -> None:
        self._report_call("teardown")

    def _report_call(self, call: str) -> None:
        send(CallReport(consumer="Ends", call=call))


def report_event(consumer: str, event: JobEvent) -> None:
    reported = set(EventReport.__struct_fields__) & set(event.__struct_fields__) - {"pid"}
    send(
        EventReport(
            consumer=consumer,
            event=type(event).__name__,
            job_pid=event.pid,
            **{name: getattr(event, name) for name in reported},
        )
    )
