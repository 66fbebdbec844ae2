"""What a user's own tests do with the fixtures: each is a run of pytest, in its own process."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

APP = """
    from celery import Celery
    from celery_broadcast import JobFinished, on_job_event

    app = Celery("shop", broker="memory://", backend="cache+memory://")
    app.conf.task_always_eager = True
    handled = []

    @app.task(name="shop.charge")
    def charge(amount):
        if amount < 0:
            raise ValueError("no money")
        return amount

    @on_job_event(JobFinished)
    def audit(event):
        handled.append(event.result)
"""


@pytest.fixture
def users(pytester: pytest.Pytester) -> pytest.Pytester:
    """A user's project, with an app, a consumer and no test yet."""
    pytester.makepyfile(shop=APP)
    return pytester


def passed(users: pytest.Pytester, *options: str, count: int) -> pytest.RunResult:
    result = users.runpytest_subprocess(*options, "-W", "error")
    result.assert_outcomes(passed=count)
    return result


def test_pytest_finds_the_plugin_by_itself() -> None:
    """If this fails, the project has to be installed anew: make test does it."""
    (plugin,) = importlib.metadata.entry_points(group="pytest11", name="celery_broadcast")

    assert plugin.value == "celery_broadcast.pytest_plugin"


def test_the_plugin_loads_nothing_until_a_fixture_is_used() -> None:
    program = """
import sys, pytest
before = set(sys.modules)
import celery_broadcast.pytest_plugin
print(sorted(set(sys.modules) - before))
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    loaded = eval(said.stdout)  # noqa: S307  # what the line above has printed
    ours = [name for name in loaded if name.startswith("celery_broadcast")]
    assert ours == ["celery_broadcast", "celery_broadcast.pytest_plugin"]
    assert not {"celery", "kombu", "msgspec", "blinker"} & set(loaded)


def test_a_run_that_uses_no_fixture_loads_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_asleep(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("celery_broadcast")
            assert "celery_broadcast.pytest_plugin" in sys.modules
            assert not {"celery", "msgspec", "celery_broadcast.testing"} & set(sys.modules)
        """
    )

    passed(pytester, "-p", "no:celery", count=1)  # pytest-celery, which loads it


def test_eager_jobs_are_in_job_events(users: pytest.Pytester) -> None:
    users.makepyfile(
        """
        import threading
        from shop import charge, handled
        from celery_broadcast import JobFailed, JobFinished, JobStarted

        def test_finishes(job_events):
            charge.delay(5)
            assert job_events.only(JobFinished).result == 5
            assert [type(event) for event in job_events] == [JobStarted, JobFinished]
            assert handled == []
            assert threading.active_count() == 1

        def test_fails(job_events):
            charge.delay(-5)
            assert job_events.only(JobFailed).exception_message == "no money"
            assert job_events.of(JobFinished) == []
        """
    )

    passed(users, count=2)


def test_a_failing_only_shows_what_was_published_at_the_tests_line(
    users: pytest.Pytester,
) -> None:
    users.makepyfile(
        """
        from shop import charge
        from celery_broadcast import JobFinished

        def test_finishes(job_events):
            charge.delay(-5)
            assert job_events.only(JobFinished)
        """
    )

    result = users.runpytest_subprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*assert job_events.only(JobFinished)",
            "E*one JobFinished was expected, none was published. There was:",
            "E*JobStarted shop.charge[[]*[]]",
            "E*JobFailed shop.charge[[]*[]]: ValueError: no money",
            "test_a_failing_only*.py:6: AssertionError",
        ]
    )


def test_the_whole_broadcast_runs_in_broadcast(users: pytest.Pytester) -> None:
    users.makepyfile(
        """
        import threading
        import shop
        from celery_broadcast import JobStarted, on_job_event

        seen = []

        def test_audits(broadcast):
            on_job_event(JobStarted, name="seen")(seen.append)
            shop.charge.delay(5)
            assert broadcast.drain(timeout=10).left == 0
            assert shop.handled == [5]
            assert broadcast.stats()["audit"].handled == 1
            assert len(seen) == 1

        def test_audits_again(broadcast):
            shop.charge.delay(6)
            broadcast.drain()
            assert shop.handled == [5, 6]
            assert broadcast.stats()["audit"].handled == 1
            assert len(seen) == 1

        def test_is_off_without():
            shop.charge.delay(7)
            assert shop.handled == [5, 6]
            assert threading.active_count() == 1
        """
    )

    passed(users, "-p", "no:randomly", count=3)


def test_job_events_takes_over_from_an_app_that_is_on(users: pytest.Pytester) -> None:
    users.makepyfile(
        """
        import celery_broadcast, shop

        shop.app.conf.broadcast_enabled = True
        celery_broadcast.install(shop.app)

        def test_is_on():
            shop.charge.delay(1)
            celery_broadcast.drain()
            assert shop.handled == [1]

        def test_takes_over(job_events):
            shop.charge.delay(2)
            celery_broadcast.drain()
            assert shop.handled == [1]
            assert len(job_events) == 2

        def test_is_on_again():
            shop.charge.delay(3)
            celery_broadcast.drain()
            assert shop.handled == [1, 3]
        """
    )

    passed(users, "-p", "no:randomly", count=3)


@pytest.mark.worker
def test_a_worker_in_a_thread_is_waited_for(users: pytest.Pytester) -> None:
    users.makepyfile(
        """
        import pytest
        from celery.contrib.testing.worker import start_worker
        from shop import app, charge, handled
        from celery_broadcast import JobFailed, JobFinished

        @pytest.fixture(scope="module")
        def worker():
            app.conf.task_always_eager = False
            with start_worker(app, perform_ping_check=False) as worker:
                yield worker

        def test_finishes(worker, job_events):
            charge.delay(5)
            assert job_events.wait_for(JobFinished, timeout=10).result == 5

        def test_fails(job_events, worker):
            charge.delay(-5)
            assert job_events.wait_for(JobFailed, timeout=10).exception_class is ValueError

        def test_audits(broadcast):
            app.conf.task_always_eager = False
            with start_worker(app, perform_ping_check=False):
                charge.delay(7).get(timeout=10)
            assert handled == [7]
        """
    )

    passed(users, count=3)


def test_without_the_plugin_its_fixtures_are_not_there(users: pytest.Pytester) -> None:
    users.makepyfile("def test_needs_it(job_events): ...")

    result = users.runpytest_subprocess("-p", "no:celery_broadcast")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'job_events' not found"])


def test_the_fixtures_work_in_any_order_and_in_many_processes(users: pytest.Pytester) -> None:
    users.makepyfile(
        """
        import pytest, shop
        from celery_broadcast import JobFinished

        @pytest.mark.parametrize("amount", range(20))
        def test_finishes(job_events, amount):
            shop.charge.delay(amount)
            assert job_events.only(JobFinished).result == amount

        @pytest.mark.parametrize("amount", range(20))
        def test_audits(broadcast, amount):
            shop.charge.delay(amount)
            broadcast.drain()
            assert shop.handled[-1] == amount
        """
    )

    passed(users, "-n", "2", count=40)  # pytest-randomly and pytest-celery are there too
