"""Brokers and workers as processes of this machine, in place of pytest-celery's containers."""
