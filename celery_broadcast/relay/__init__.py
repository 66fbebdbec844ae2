"""Consumers beyond this process: their events go through the broker that Celery already uses."""
