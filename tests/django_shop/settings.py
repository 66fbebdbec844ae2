"""Django's settings, and Celery's among them; what differs comes as JSON from the environment."""

from __future__ import annotations

import json
import os
from typing import Any

SECRET_KEY = "not a secret"  # noqa: S105  # nothing of this shop is one
INSTALLED_APPS = ["django_shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "OPTIONS": {"application_name": "django_shop"},
        **json.loads(os.environ["DJANGO_SHOP_DATABASE"]),
    }
}

CELERY_IMPORTS = ("celery_broadcast.plugin", "job_app_numbers")
CELERY_BROADCAST_ENABLED = True
CELERY_BROADCAST_DRAIN_TIMEOUT = 10.0
CELERY_BROADCAST_EVENTS = ["JobFinished", "JobFailed"]

for _name, _value in json.loads(os.environ.get("JOB_APP_CONFIG", "{}")).items():
    globals()[f"CELERY_{_name.upper()}"] = _value
