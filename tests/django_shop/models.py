"""What the consumers write."""

from __future__ import annotations

from django.db import models


class Ended(models.Model):  # type: ignore[misc]  # Django has no types
    """The end of a job, as one of the shop's consumers was told of it."""

    consumer = models.CharField(max_length=255)
    task_id = models.CharField(max_length=255)
    state = models.CharField(max_length=50)
    pid = models.IntegerField(help_text="of the process that wrote it")

    def __str__(self) -> str:
        return f"{self.task_id} {self.state}"
