"""What the shop has to do: four jobs, of which some go wrong."""

from __future__ import annotations

import time

from celery import Task

from example_project.celery import app


class CardDeclined(Exception):  # noqa: N818  # what a shop calls it
    """The bank said no."""


@app.task(name="shop.payments.charge")
def charge(order: int) -> str:
    """Succeed."""
    time.sleep(0.02)  # stands for the bank
    return f"order {order} is paid"


@app.task(name="shop.payments.refund")
def refund(order: int) -> str:
    """Fail."""
    msg = f"order {order}: the card has expired"
    raise CardDeclined(msg)


@app.task(name="shop.parcels.ship", bind=True)
def ship(self: Task[[int], str], order: int) -> str:
    """Fail at first, and succeed when it is tried again."""
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("the carrier is busy"), countdown=0)
    return f"order {order} is on its way"


@app.task(name="shop.reports.sales")
def sales_report() -> str:
    """Take a while."""
    time.sleep(0.5)
    return "we sold more than last year"
