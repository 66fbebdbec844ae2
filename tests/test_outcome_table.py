from __future__ import annotations

import pytest
from outcome_table import DOCUMENT, table
from outcomes import OUTCOMES, POOLS, told_here


def test_the_page_of_outcomes_is_made_from_the_rows() -> None:
    assert DOCUMENT.read_text() == table(), "run: python tests/outcome_table.py"


def test_no_two_rows_have_the_same_name() -> None:
    names = [outcome.name for outcome in OUTCOMES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("pool", POOLS)
def test_every_start_has_its_end_wherever_somebody_is_left_to_tell(pool: str) -> None:
    for outcome in OUTCOMES:
        if pool not in outcome.pools:
            continue
        for telling in outcome.tellings_in(pool).values():
            events = told_here(telling).events.split()
            starts, ends = events.count("JobStarted"), len(events) - events.count("JobStarted")
            is_left = pool not in outcome.ends_worker or ends
            assert starts == ends or not is_left or events == ["JobRevoked"], outcome.name
