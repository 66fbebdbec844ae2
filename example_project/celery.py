"""The Celery app of the shop, where `celery -A example_project` looks for it."""

from __future__ import annotations

from celery import Celery

app = Celery("shop")
app.config_from_object("example_project.celeryconfig")
