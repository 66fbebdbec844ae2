from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, signals
from celery.utils.dispatch import Signal
from conftest import broadcast_threads
from recorder import Recorder

import celery_broadcast
from celery_broadcast import broadcasting, installation
from celery_broadcast.errors import BroadcastError, ConfigurationError
from celery_broadcast.events import JobFinished
from celery_broadcast.producer import Drained

ALL_SIGNALS = [signal for signal in vars(signals).values() if isinstance(signal, Signal)]


def job() -> int:
    return 1


def run_one_job(app: Celery) -> None:
    app.task(name="job")(job).delay()


def receivers() -> list[list[Any]]:
    return [list(signal.receivers) for signal in ALL_SIGNALS]


def python(program: str, **environment: str) -> str:
    """Return what a fresh Python process prints."""
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


LOADED = "print(*sorted(n for n in sys.modules if n.startswith('celery_broadcast.')))"


def test_with_the_flag_off_no_receiver_is_connected_and_no_thread_started(app: Celery) -> None:
    before = receivers()

    celery_broadcast.install(app)
    run_one_job(app)

    assert receivers() == before
    assert broadcast_threads() == []


def test_with_the_flag_off_no_module_of_the_core_beyond_settings_is_loaded() -> None:
    loaded = python(
        f"""
        import sys
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.task_always_eager = True
        import celery_broadcast.plugin

        @app.task
        def job(): ...

        job.delay()
        {LOADED}
        """
    )

    assert loaded.split() == [
        f"celery_broadcast.{module}" for module in ("errors", "installation", "plugin", "settings")
    ]


def test_with_the_flag_off_a_declaration_loads_nothing_that_is_slow_but_msgspec() -> None:
    loaded = python(
        """
        import sys
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.task_always_eager = True

        @app.task
        def job(): ...

        job.delay()
        before = set(sys.modules)
        import celery_broadcast.plugin
        from celery_broadcast import JobFailed, on_job_event

        @on_job_event(JobFailed, task="shop.*", rate_limit=5)
        def page_oncall(event): ...

        job.delay()
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
        print("celery_broadcast.retry" in sys.modules)
        """
    )

    modules, is_retry_loaded = loaded.splitlines()
    assert set(modules.split()) <= {"celery_broadcast", "msgspec", "typing_extensions"}
    assert is_retry_loaded == "False"


def test_with_the_flag_on_and_no_job_neither_asyncio_nor_what_retries_is_loaded() -> None:
    loaded = python(
        """
        import sys
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.broadcast_enabled = True
        assert app.conf.broadcast_enabled
        before = set(sys.modules)
        import celery_broadcast.plugin
        from celery_broadcast import JobFailed, on_job_event

        @on_job_event(JobFailed)
        def page_oncall(event): ...

        assert "celery_broadcast.bridge" in sys.modules
        print(*set(sys.modules) - before)
        """
    )

    slow = {"asyncio", "billiard.pool", "difflib", "django", "statistics", "tenacity"}
    assert not slow & set(loaded.split())


def test_with_the_flag_on_and_no_job_no_thread_is_started(broadcasting_app: Celery) -> None:
    celery_broadcast.on_job_event(name="recorder")(Recorder().handle)

    assert broadcast_threads() == []


def test_the_flag_counts_from_the_moment_the_configuration_is_read(app: Celery) -> None:
    before = receivers()
    celery_broadcast.install(app)
    app.conf.update(broadcast_enabled=True)
    assert receivers() == before

    run_one_job(app)

    assert receivers() != before


def test_uninstalling_leaves_celerys_signals_as_they_were(app: Celery) -> None:
    before = receivers()
    app.conf.broadcast_enabled = True
    celery_broadcast.install(app)
    run_one_job(app)

    celery_broadcast.uninstall(app)

    assert receivers() == before
    assert broadcast_threads() == []


def test_uninstalling_what_is_not_installed_is_harmless(app: Celery) -> None:
    celery_broadcast.uninstall(app)


def test_two_apps_share_one_broadcast_until_both_are_gone(broadcasting_app: Celery) -> None:
    recorder = Recorder()
    celery_broadcast.on_job_event(name="recorder")(recorder.handle)
    other = Celery("other", broker="memory://", set_as_current=False)
    other.conf.update(task_always_eager=True, broadcast_enabled=True, broadcast_drain_timeout=10.0)
    celery_broadcast.install(other)

    run_one_job(other)
    celery_broadcast.uninstall(other)
    run_one_job(broadcasting_app)
    celery_broadcast.drain()

    assert len(recorder.events) == 4


def test_a_second_app_with_other_settings_is_refused(broadcasting_app: Celery) -> None:
    other = Celery("other", broker="memory://", set_as_current=False)
    other.conf.update(broadcast_enabled=True, broadcast_mailbox_size=5)
    assert other.conf.broadcast_mailbox_size == 5

    with pytest.raises(ConfigurationError, match="A process has one broadcast"):
        celery_broadcast.install(other)


def test_a_configuration_that_is_read_anew_counts(app: Celery) -> None:
    recorder = Recorder()
    celery_broadcast.on_job_event(name="recorder")(recorder.handle)
    app.config_from_object({"broadcast_enabled": True})
    celery_broadcast.install(app)
    run_one_job(app)

    app.config_from_object({"broadcast_enabled": False})
    run_one_job(app)
    celery_broadcast.drain()

    assert len(recorder.events) == 2


def test_a_wrong_setting_is_an_error_on_the_line_that_installs(app: Celery) -> None:
    app.conf.update(broadcast_enabled=True, broadcast_mailbox_sise=5)
    assert app.conf.broadcast_enabled

    with pytest.raises(ConfigurationError, match="Did you mean broadcast_mailbox_size"):
        celery_broadcast.install(app)


def test_a_wrong_setting_that_is_read_later_keeps_a_worker_from_starting(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    app.config_from_object({"broadcast_enabled": "maybe"})
    celery_broadcast.install(app)
    assert app.conf.broadcast_enabled

    with pytest.raises(ConfigurationError, match="broadcast_enabled must be True or False"):
        app.loader.import_default_modules()
    assert "broadcast stays off: broadcast_enabled must be True or False" in caplog.text

    caplog.clear()  # Celery logs what the worker is about to raise

    app.config_from_object({"broadcast_enabled": True})
    app.loader.import_default_modules()


def test_a_configuration_can_be_turned_off_and_on_again(app: Celery) -> None:
    celery_broadcast.install(app)
    before = receivers()

    for enabled in (True, False, True, False):
        app.config_from_object({"broadcast_enabled": enabled})
        assert app.conf.broadcast_enabled is enabled
        assert (receivers() != before) is enabled


def test_uninstalling_inside_a_consumer_is_refused(broadcasting_app: Celery) -> None:
    before = receivers()
    errors: list[BaseException] = []

    @celery_broadcast.on_job_event(JobFinished)
    def leaves(_: JobFinished) -> None:
        try:
            celery_broadcast.uninstall(broadcasting_app)
        except celery_broadcast.BroadcastError as error:
            errors.append(error)

    run_one_job(broadcasting_app)
    celery_broadcast.drain()

    assert len(errors) == 1
    assert receivers() == before


def test_the_plugin_leaves_alone_an_app_that_does_not_name_it() -> None:
    said = python(
        """
        from celery import Celery
        library = Celery("library", broker="memory://", set_as_current=False)
        library.conf.broadcast_mailbox_size = 5
        assert library.conf.broadcast_mailbox_size == 5
        app = Celery("shop", broker="memory://")
        app.conf.update(imports=["celery_broadcast.plugin"], task_always_eager=True)
        app.loader.import_default_modules()
        import celery_broadcast.installation
        print(*(app.main for app in celery_broadcast.installation._apps))
        """,
        CELERY_BROADCAST_ENABLED="1",
    )

    assert said == "shop"


def test_the_plugin_installs_on_the_current_app() -> None:
    said = python(
        """
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.update(task_always_eager=True, broadcast_enabled=True)
        import celery_broadcast.plugin
        from celery_broadcast import drain, on_job_event, stats

        @on_job_event
        def trail(event): print(type(event).__name__)

        @app.task
        def job(): ...

        job.delay()
        drain()
        print(stats()["trail"].handled)
        """
    )

    assert said.split() == ["JobStarted", "JobFinished", "2"]


def test_the_environment_variable_turns_it_off() -> None:
    said = python(
        f"""
        import sys
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.broadcast_enabled = True
        import celery_broadcast.plugin
        assert app.conf.broadcast_enabled
        {LOADED}
        """,
        CELERY_BROADCAST_ENABLED="off",
    )

    assert "celery_broadcast.bridge" not in said


def test_what_waits_when_the_process_ends_is_handled() -> None:
    said = python(
        """
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.update(task_always_eager=True, broadcast_enabled=True)
        import celery_broadcast.plugin, threading
        from celery_broadcast import on_job_event
        ended = threading.Event()

        @on_job_event
        def trail(event):
            ended.wait(0.05)
            print(type(event).__name__)

        @app.task
        def job(): ...

        job.delay()
        """
    )

    assert said.split() == ["JobStarted", "JobFinished"]


def test_the_log_says_that_it_is_off(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    celery_broadcast.install(app)
    run_one_job(app)

    assert "broadcast is installed but off" in caplog.text


def test_while_it_is_off_there_are_no_numbers_and_nothing_to_drain() -> None:
    assert celery_broadcast.stats() == {}
    assert celery_broadcast.drain() == Drained(handled=0, left=0)


def test_a_drain_without_a_valid_timeout_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="timeout must be a number of seconds"):
        celery_broadcast.drain(timeout=-1)


def test_a_public_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'JobFinnished'"):
        celery_broadcast.JobFinnished  # noqa: B018


def test_every_public_name_can_be_had() -> None:
    for name in celery_broadcast.__all__:
        assert getattr(celery_broadcast, name) is not None
    assert set(celery_broadcast.__all__) <= set(dir(celery_broadcast))


def test_the_plugin_without_an_app_to_install_on_says_what_to_do() -> None:
    said = python(
        """
        try:
            import celery_broadcast.plugin
        except ValueError as error:
            print(error)
        """
    )

    assert "imported before there was a Celery app" in said
    assert "celery_broadcast.install(app)" in said


# A block in which it is on or off, whatever the configuration says.


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder()
    celery_broadcast.on_job_event(name="recorder")(recorder.handle)
    return recorder


def task(app: Celery, name: str, function: Callable[..., Any] = job) -> Any:
    declare: Any = app.task(name=name)
    return declare(function)


def told(recorder: Recorder) -> list[str]:
    celery_broadcast.drain()
    return [f"{type(event).__name__} {event.task_name}" for event in recorder.events]


def test_a_block_turns_the_broadcast_on_and_drains_it(app: Celery, recorder: Recorder) -> None:
    before = receivers()

    with broadcasting():
        run_one_job(app)

    assert len(recorder.events) == 2
    assert receivers() == before
    run_one_job(app)
    assert told(recorder) == ["JobStarted job", "JobFinished job"]
    assert celery_broadcast.stats() == {}


def test_a_block_turns_the_broadcast_off(broadcasting_app: Celery, recorder: Recorder) -> None:
    before, bridge = receivers(), installation._bridge

    with broadcasting(enabled=False):
        run_one_job(broadcasting_app)
        assert celery_broadcast.stats() == {}
        assert celery_broadcast.drain() == Drained()

    assert receivers() == before
    assert installation._bridge is bridge
    assert told(recorder) == []
    run_one_job(broadcasting_app)
    assert len(told(recorder)) == 2


def test_a_block_that_is_off_loads_nothing_of_the_core() -> None:
    loaded = python(
        f"""
        import sys
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.task_always_eager = True
        import celery_broadcast

        @app.task
        def job(): ...

        with celery_broadcast.broadcasting(enabled=False), celery_broadcast.muted():
            job.delay()
        {LOADED}
        """
    )

    assert loaded.split() == [
        f"celery_broadcast.{module}" for module in ("errors", "installation", "muting", "settings")
    ]


def test_a_block_needs_no_app_and_makes_none() -> None:
    said = python(
        """
        import celery_broadcast
        from celery import _state

        with celery_broadcast.broadcasting():
            print(celery_broadcast.stats())
        print(_state.default_app)
        """
    )

    assert said.split() == ["{}", "None"]


def test_a_block_takes_the_settings_of_the_current_app() -> None:
    said = python(
        """
        import celery_broadcast
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.update(task_always_eager=True, broadcast_payload=False, broadcast_enabled=False)

        @celery_broadcast.on_job_event
        def trail(event): print(event.args)

        @app.task
        def job(secret): ...

        with celery_broadcast.broadcasting():
            job.delay("secret")
        """
    )

    assert said.split() == ["None", "None"]


def test_a_block_takes_the_settings_of_the_broadcast_that_is_on(app: Celery) -> None:
    kept: list[Any] = []
    celery_broadcast.on_job_event(name="kept")(kept.append)
    app.conf.update(broadcast_enabled=True, broadcast_events=["JobFinished"])
    celery_broadcast.install(app)
    assert app.conf.broadcast_enabled

    with broadcasting():
        run_one_job(app)

    assert [type(event) for event in kept] == [JobFinished]


def test_a_block_has_numbers_of_its_own(broadcasting_app: Celery, recorder: Recorder) -> None:
    run_one_job(broadcasting_app)

    with broadcasting():
        assert len(recorder.events) == 2  # what came before was handled before
        run_one_job(broadcasting_app)
        assert celery_broadcast.drain().left == 0
        assert celery_broadcast.stats()["recorder"].handled == 2

    assert celery_broadcast.stats()["recorder"].handled == 2
    assert len(recorder.events) == 4


def test_blocks_are_undone_from_the_inside_out(app: Celery, recorder: Recorder) -> None:
    before = receivers()

    with broadcasting():
        task(app, "on").delay()
        with broadcasting(enabled=False):
            task(app, "off").delay()
            with broadcasting():
                task(app, "on again").delay()
            task(app, "off again").delay()
        task(app, "still on").delay()

    assert [event.task_name for event in recorder.events[::2]] == ["on", "on again", "still on"]
    assert receivers() == before


def test_blocks_that_end_in_another_order_leave_it_as_it_was(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    """As those of fixtures whose scopes overlap do."""
    before = receivers()
    first, second = broadcasting(enabled=False), broadcasting()

    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    run_one_job(broadcasting_app)
    second.__exit__(None, None, None)

    assert len(recorder.events) == 2
    assert receivers() == before
    run_one_job(broadcasting_app)
    assert len(told(recorder)) == 4


def test_an_error_in_a_block_ends_it(app: Celery, recorder: Recorder) -> None:
    before = receivers()

    def fails() -> None:
        with broadcasting():
            run_one_job(app)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()

    assert receivers() == before
    assert len(recorder.events) == 2


def test_a_job_that_ends_in_a_block_and_started_before_is_told_as_before(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    inner = task(broadcasting_app, "inner")
    block = broadcasting(enabled=False)

    def turns_it_off() -> None:
        block.__enter__()
        inner.delay()

    task(broadcasting_app, "outer", turns_it_off).delay()
    block.__exit__(None, None, None)

    assert told(recorder) == ["JobStarted outer", "JobFinished outer"]


def test_a_job_that_starts_in_a_block_and_ends_after_it_has_no_end_without_a_start(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    inner = task(broadcasting_app, "inner")
    block = broadcasting(enabled=False)

    def turns_it_on() -> None:
        block.__exit__(None, None, None)
        inner.delay()

    block.__enter__()
    task(broadcasting_app, "outer", turns_it_on).delay()

    assert told(recorder) == ["JobStarted inner", "JobFinished inner"]


def test_an_app_that_is_configured_in_a_block_counts_from_its_end_on(
    app: Celery, recorder: Recorder
) -> None:
    app.conf.broadcast_enabled = True
    celery_broadcast.install(app)

    with broadcasting(enabled=False):
        run_one_job(app)  # Celery reads the configuration here
        assert recorder.events == []
    run_one_job(app)

    assert len(told(recorder)) == 2


def test_an_app_that_is_configured_on_in_a_block_that_is_on_tells_nothing_twice(
    app: Celery, recorder: Recorder
) -> None:
    app.conf.broadcast_enabled = True
    celery_broadcast.install(app)

    with broadcasting():
        run_one_job(app)

    assert len(told(recorder)) == 2
    run_one_job(app)
    assert len(told(recorder)) == 4


def test_an_app_that_is_turned_off_in_a_block_is_off_from_its_end_on(
    app: Celery, recorder: Recorder
) -> None:
    app.config_from_object({"broadcast_enabled": True})
    celery_broadcast.install(app)
    assert app.conf.broadcast_enabled

    with broadcasting():
        app.config_from_object({"broadcast_enabled": False})
        run_one_job(app)
    run_one_job(app)

    assert len(told(recorder)) == 2


def test_an_app_that_is_uninstalled_in_a_block_is_gone_after_it(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    on = receivers()

    with broadcasting():
        celery_broadcast.uninstall(broadcasting_app)
        run_one_job(broadcasting_app)
    run_one_job(broadcasting_app)

    assert len(told(recorder)) == 2
    assert receivers() != on
    assert celery_broadcast.stats() == {}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_block_inside_of_a_consumer_is_refused(*, enabled: bool) -> None:
    errors: list[BroadcastError] = []

    @celery_broadcast.on_job_event(JobFinished)
    def leaves(_: JobFinished) -> None:
        try:
            with broadcasting(enabled=enabled):
                pass
        except BroadcastError as error:
            errors.append(error)

    app = Celery("other", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    with broadcasting():
        run_one_job(app)
        celery_broadcast.drain()

    assert len(errors) == 1


def test_a_block_without_a_valid_flag_is_refused() -> None:
    with (
        pytest.raises(ConfigurationError, match="enabled must be True or False"),
        broadcasting(
            enabled="perhaps"  # type: ignore[arg-type]
        ),
    ):
        pass
