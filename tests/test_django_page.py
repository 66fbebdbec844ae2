"""What docs/django.md says is true: its code runs, in a project of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "django.md").read_text()

# What the page takes for granted.
PROJECT = {
    "shop/settings.py": """
INSTALLED_APPS = ["orders"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CELERY_TASK_ALWAYS_EAGER = True
""",
    "shop/__init__.py": "from shop.celery import app\n",
    "orders/__init__.py": "",
    "orders/models.py": """
from django.db import models

class Failure(models.Model):
    task_id = models.CharField(max_length=255)
    message = models.TextField()
""",
    "orders/tasks.py": """
from celery import shared_task

@shared_task
def charge(order_id):
    raise ValueError(f"no money for {order_id}")
""",
}

AS_A_WORKER = """
import shop
shop.app.loader.import_default_modules()
from django.core.management import call_command
call_command("migrate", run_syncdb=True, verbosity=0)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for path, text in PROJECT.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    blocks = re.findall(
        r"^```python\n# (\S+?)(?:: add)?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == PAGE.count("```python")
    for path, text in blocks:
        with (tmp_path / path).open("a") as file:
            file.write(text)
    return tmp_path


def run(project: Path, program: str) -> str:
    """Return what a process of the project prints."""
    environment = {key: value for key, value in os.environ.items() if "DJANGO" not in key}
    ran = subprocess.run(
        [sys.executable, "-c", AS_A_WORKER + program],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_eight_lines_write_a_row_for_a_job_that_fails(project: Path) -> None:
    program = """
from orders.models import Failure
from orders.tasks import charge
import celery_broadcast

charge.delay(7)
celery_broadcast.drain()
print(*Failure.objects.values_list("message", flat=True))
"""

    assert run(project, program) == "no money for 7\n"


def test_a_job_that_is_sent_on_commit_is_heard_of_after_it(project: Path) -> None:
    program = """
from django.db import transaction
from orders.models import Failure
from orders.views import pay
import celery_broadcast

with transaction.atomic():
    pay(8)
    celery_broadcast.drain()
    assert celery_broadcast.stats()["note"].offered == 0
celery_broadcast.drain()
print(*Failure.objects.values_list("message", flat=True))
"""

    assert run(project, program) == "no money for 8\n"
