"""The page of the measurements says what `benchmarks/results.json` says, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import charts, page, report, scaling
from benchmarks.__main__ import FIGURES
from benchmarks.measure import Comparison, Spread
from benchmarks.report import Result

RESULTS = report.load()

ONE = Result(
    machine="2 cores",
    comparisons=[
        Comparison(
            subject="ours, 1 consumer",
            peer="theirs, 1 consumer",
            unit="1,000/s",
            value=Spread(300.0, 290.0, 310.0),
            peer_value=Spread(200.0, 190.0, 250.0),
            ratio=Spread(1.5, 1.2, 1.6),
            at_least=0.95,
        ),
        Comparison(
            subject="ours, 4 consumers",
            peer="theirs, 4 consumers",
            unit="1,000/s",
            value=Spread(1.0, 1.0, 1.0),
            peer_value=Spread(2.0, 2.0, 2.0),
            ratio=Spread(0.5, 0.5, 0.5),
            at_least=0.95,
            value_at_most=3.0,
        ),
    ],
)

RATES_OF_1 = Result(
    machine="2 cores",
    comparisons=[
        Comparison(
            subject=source.name,
            peer="theirs",
            unit="",
            value=Spread(1.0, 1.0, 1.0),
            peer_value=Spread(1.0, 1.0, 1.0),
            ratio=Spread(1.0, 1.0, 1.0),
        )
        for source in scaling.SOURCES
    ],
)


def test_each_figure_has_its_results() -> None:
    assert sorted(RESULTS) == sorted(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_the_table_of_a_figure_is_what_was_measured(name: str) -> None:
    text = page.PAGE.read_text()
    place = re.search(f"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, flags=re.DOTALL)

    assert place, f"{name} has no place"
    assert place[1] == page.block_of(RESULTS[name]), "python -m benchmarks charts writes it anew"


def test_the_table_of_the_scaling_page_is_made_of_what_was_measured() -> None:
    text = scaling.PAGE.read_text()
    place = re.search("<!-- scaling -->\n(.*?)<!-- end of scaling -->", text, flags=re.DOTALL)

    assert place
    assert place[1] == scaling.block_of(RESULTS), "python -m benchmarks charts writes it anew"


def test_a_line_of_the_scaling_page_is_one_event_times_how_many_there_are() -> None:
    block = scaling.block_of({source.figure: RATES_OF_1 for source in scaling.SOURCES})

    assert "| The worker's relay | 1,000 µs | 200 cores | 100 cores | 1 cores |" in block
    assert "| To Redis | 1 bytes | 0.2 MB/s | 0.1 MB/s | 0.001 MB/s |" in block


def test_the_scaling_page_is_left_alone_until_all_of_it_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("as it was\n")

    scaling.write({"relay_events": RATES_OF_1}, path)

    assert path.read_text() == "as it was\n"


def test_the_page_shows_each_chart() -> None:
    shown = re.findall(r"\]\((\w+)\.svg\)", page.PAGE.read_text())

    assert sorted(shown) == sorted(charts.CHARTS)
    assert all((charts.DOCS / f"{name}.svg").exists() for name in shown)


def test_a_table_shows_the_ratio_and_whether_it_is_reached() -> None:
    assert page.block_of(ONE) == (
        "\n"
        "| What | 1,000/s | Against | 1,000/s | Ratio | To reach |\n"
        "|---|---|---|---|---|---|\n"
        "| ours, 1 consumer | 300 (290 - 310) | theirs, 1 consumer | 200 (190 - 250) "
        "| 1.50 (1.20 - 1.60), *noisy* | at least 0.95 |\n"
        "| ours, 4 consumers | 1.00 (1.00 - 1.00) | theirs, 4 consumers | 2.00 (2.00 - 2.00) "
        "| 0.500 (0.500 - 0.500) | at least 0.95 and at most 3.0 1,000/s, **missed** |\n"
        "\n"
        "*Noisy: that ratio differs by more than 20 % from round to round.*\n"
        "\n"
        "*2 cores.*\n"
        "\n"
    )


def test_a_table_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- one -->\nold\n<!-- end of one -->\nafter\n")

    page.write({"one": ONE}, path)
    page.write({"one": ONE}, path)

    assert path.read_text() == (
        f"before\n<!-- one -->\n{page.block_of(ONE)}<!-- end of one -->\nafter\n"
    )


def test_a_figure_without_a_place_on_the_page_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("nothing\n")

    with pytest.raises(RuntimeError, match="has no place for one"):
        page.write({"one": ONE}, path)


@pytest.mark.parametrize("name", charts.CHARTS)
def test_a_chart_names_all_that_was_measured_and_is_drawn_the_same_twice(
    name: str, tmp_path: Path
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir()
    twice.mkdir()

    (chart,) = charts.draw_all({name: ONE}, once)
    (again,) = charts.draw_all({name: ONE}, twice)

    assert {"ours", "theirs"} <= set(re.findall(r"ours|theirs", chart.read_text()))
    assert chart.read_bytes() == again.read_bytes()
