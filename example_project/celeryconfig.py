"""Celery's configuration of the shop."""

import os
import tempfile
from pathlib import Path

import example_project.file_broker  # noqa: F401  # gives files:// its meaning

# The first name is all it takes to install the broadcast, the flag below turns it on.
imports = ("celery_broadcast.plugin", "example_project.tasks", "example_project.consumers")
broadcast_enabled = True

# Where the shop keeps its files; `rm -r` it for a fresh start.
folder = Path(os.environ.get("SHOP_FOLDER") or Path(tempfile.gettempdir(), "celery-broadcast-shop"))
for subfolder in ("messages", "read", "exchanges", "results"):
    (folder / subfolder).mkdir(parents=True, exist_ok=True)

# A broker that needs no server, unless there is one: BROKER_URL=redis://localhost
broker_url = os.environ.get("BROKER_URL") or "files://localhost"
if broker_url.startswith("files:"):
    broker_transport_options = {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "processed_folder": str(folder / "read"),
        "store_processed": True,
        "control_folder": str(folder / "exchanges"),
        "polling_interval": 0.02,  # seconds
    }
result_backend = f"file://{folder}/results"

# What a consumer prints goes to the terminal as it is, not into Celery's log.
worker_redirect_stdouts = False
