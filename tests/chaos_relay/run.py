"""One run: workers, replicas, a broker and who kills them, from the first job to the last event."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from celery import Celery
from chaos.journal import JOURNAL, Journal
from nodes.deadline import wait_until
from nodes.local_process import LocalProcess
from nodes.worker_process import WorkerProcess

from celery_broadcast.errors import RelayError
from celery_broadcast.relay.choice import Choice
from celery_broadcast.relay.transport import Group
from celery_broadcast.settings import Settings
from chaos_relay.brokers import BROKERS
from chaos_relay.journal import DECODER, AnyLine, Handled, Key, Published

WORKERS = 2
CONCURRENCY = 2
REPLICAS = 2

#: The remote consumers of `chaos_relay.app`, and whether each wants the starts too.
GROUPS: Mapping[str, bool] = {"pager": False, "audit": False, "ledger": True}

#: As `chaos_relay.app` says.
POISON, MURDER = "poison-", "murder-"

MAX_DELIVERIES = 3
LEASE_SECONDS = 3.0

# So many jobs are sent at once whenever as many more could wait.
JOBS_AT_ONCE = 100
JOBS_AHEAD = 400

PACE_SECONDS = 0.01

# Nothing happens for so long only if nothing is left to happen: a lease is over long before, and
# the relay's pauses are no longer than that.
QUIET_SECONDS = 45.0
STOPS_WITHIN_SECONDS = 60.0

# A job that nobody has heard of for so long is lost, or comes again after minutes: a worker looks
# now and then only into what Redis keeps of those that are gone.
LOST_AFTER_SECONDS = 30.0

# How often the dead letters are read.
LETTERS_EVERY_SECONDS = 1.0

#: What a worker writes when Celery ends it, with the exit code 1: of a Redis that goes while there
#: is a job to acknowledge, kombu makes an error that Celery doesn't expect.
GIVEN_UP = "Unrecoverable error"

_SIGKILL = -9


@dataclass(frozen=True)
class Order:
    """What a run is to be like.

    Attributes:
        broker: "redis" or "rabbitmq".
        seed: of everything that is drawn at random.
        jobs: how many are sent.
        kills: how many replicas are killed.
        restarts: how often the broker is, by SIGTERM and SIGKILL in turn.
    """

    broker: str
    seed: int
    jobs: int = 20_000
    kills: int = 12
    restarts: int = 2

    @property
    def command(self) -> str:
        """What repeats it, in the folder of the repository."""
        return (
            f'make chaos-relay OPTIONS="--broker {self.broker} --seed {self.seed} '
            f'--jobs {self.jobs} --kills {self.kills} --restarts {self.restarts}"'
        )


@dataclass(frozen=True)
class Letter:
    """A dead letter: the jobs whose ends are in it, and why it was put aside."""

    task_ids: tuple[str, ...]
    reason: str


@dataclass
class Result:
    """What came out of a run.

    Attributes:
        lines: what the processes wrote down.
        letters: the dead letters, by group.
        done: what was done to replicas and broker, and how often.
        deaths: how many replicas died of an event, by group.
        exit_codes: of workers and replicas that were asked to end, by their names.
        logs: of workers and replicas, by their names.
        seconds: how long the jobs took, and until every group had its events.
        troubles: what didn't come about in time, or not as it should.
    """

    order: Order
    lines: list[AnyLine] = field(default_factory=list)
    letters: dict[str, list[Letter]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    exit_codes: dict[str, int] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    troubles: list[str] = field(default_factory=list)

    @property
    def given_up(self) -> frozenset[str]:
        """The workers that Celery has ended, as it does at some restarts of a broker."""
        return frozenset(name for name, log in self.logs.items() if GIVEN_UP in log)


Strike: TypeAlias = tuple[int, str]


def plan(random: Random, order: Order) -> list[Strike]:
    """Draw what is done once so many jobs have ended, in this order: groups, or the broker."""
    strikes = [
        (random.randrange(order.jobs), random.choice(list(GROUPS))) for _ in range(order.kills)
    ]
    # One in each part of the run, and none at its very begin: RabbitMQ 3.10 that is killed
    # right after a quorum queue was declared never confirms to it again.
    part = order.jobs // (order.restarts + 1)
    strikes += [
        (part * (number + 1) + random.randrange(part // 2), "broker")
        for number in range(order.restarts)
    ]
    return sorted(strikes)


def task_ids(random: Random, order: Order) -> list[str]:
    """Draw the ids of the jobs; one is poison to a consumer, and one kills another."""
    ids = [f"{random.getrandbits(64):016x}" for _ in range(order.jobs)]
    poison, murder = random.sample(range(order.jobs // 4, 3 * order.jobs // 4), 2)
    ids[poison] = f"{POISON}{ids[poison]}"
    ids[murder] = f"{MURDER}{ids[murder]}"
    return ids


def run(order: Order, folder: Path) -> Result:
    """Let a broker, workers and replicas of its own go through it.

    Args:
        order: what it is to be like.
        folder: where the journal and the logs are left; an empty one.
    """
    with BROKERS[order.broker]() as server:
        chaos = _Chaos(order, server, folder)
        try:
            return chaos.unfold()
        finally:
            chaos.tear_down()
            for name, log in chaos.result.logs.items():
                (folder / f"{name}.log").write_text(log)


class _Node(WorkerProcess):
    app = "chaos_relay.app"


class _Replica(_Node):
    """A process of `celery broadcast consume` for one group."""

    def __init__(self, group: str, name: str, config: Mapping[str, Any], journal: Path) -> None:
        super().__init__(name, config, environment={JOURNAL: str(journal)})
        self.group = group

    @property
    def command(self) -> list[str]:
        program = super().command[:5]  # up to the app
        return [*program, "broadcast", "consume", self.group]

    @property
    def ready_line(self) -> str:
        return "broadcast is ready"


class _Chaos:
    """A run while it lasts."""

    def __init__(self, order: Order, server: LocalProcess, folder: Path) -> None:
        url = server.celeryconfig["url"]
        self.result = Result(order)
        self._order = order
        self._server = server
        self._journal: Journal[AnyLine] = Journal(folder / "journal", DECODER)
        self._config = {
            "broker_url": url,
            "broadcast_enabled": True,
            "broadcast_drain_timeout": 30.0,
            "broadcast_relay_lease": LEASE_SECONDS,
            "broadcast_relay_max_deliveries": MAX_DELIVERIES,
            "task_default_queue": f"chaos-relay-{order.seed}",
            "task_ignore_result": True,
            # Redis keeps for so long what a worker had that is gone, or that has reconnected; and
            # RabbitMQ has a job on its disk before the next one is sent.
            "broker_transport_options": {"visibility_timeout": 10}
            if order.broker == "redis"
            else {"confirm_publish": True},
        }
        self._app = Celery(set_as_current=False)
        self._app.conf.update(self._config)
        settings = Settings(relay_lease=LEASE_SECONDS, relay_max_deliveries=MAX_DELIVERIES)
        self._transport = Choice(lambda: self._app, settings).new_transport()
        self._who = Random(f"{order.seed} who")
        self._numbers: Counter[str] = Counter()
        self._workers: list[_Node] = []
        self._replicas: list[_Replica] = []
        self._published: dict[str, set[Key]] = {group: set() for group in GROUPS}
        self._handled: dict[str, set[Key]] = {group: set() for group in GROUPS}
        self._ended: set[str] = set()
        self._last_line_at = time.monotonic()

    def unfold(self) -> Result:
        """Go through the run; return what came out."""
        result = self.result
        for _ in range(REPLICAS):
            for group in GROUPS:
                self._replicas.append(self._new_replica(group))
        for _ in range(WORKERS):
            self._workers.append(self._new_worker())
        for node in (*self._replicas, *self._workers):
            node.ready()
        started = time.monotonic()
        self._go_through(
            task_ids(Random(f"{self._order.seed} jobs"), self._order),
            plan(Random(f"{self._order.seed} plan"), self._order),
        )
        for worker in self._workers:
            if GIVEN_UP not in worker.logs():  # it is ending, or has ended
                worker.ready()
            worker.kill("SIGTERM")
        for worker in self._workers:
            self._see_end_of(worker)
        self._wait_until_quiet(self._has_everything)
        result.seconds = time.monotonic() - started
        for replica in self._replicas:
            replica.ready()
            replica.kill("SIGTERM")
        for replica in self._replicas:
            self._see_end_of(replica)
        self._read_on()
        self._read_letters()
        result.lines = self._journal.lines
        return result

    def tear_down(self) -> None:
        """End what still runs, and keep what it wrote."""
        for node in (*self._workers, *self._replicas):
            self.result.logs[node.name] = node.logs()
            node.teardown()
        self._transport.close()
        self._app.close()

    def _go_through(self, ids: list[str], strikes: list[Strike]) -> None:
        """Send the jobs, always some ahead of the workers, and strike when it is time."""
        pace = threading.Event()
        to_send, due = list(reversed(ids)), list(reversed(strikes))
        lost = 0
        while True:
            self._read_on()
            self._see_after_replicas()
            self._see_after_workers()
            waiting = len(ids) - len(to_send) - len(self._ended) - lost
            if self._is_quiet(LOST_AFTER_SECONDS):  # by a broker that is killed, or a worker
                again = [  # without these a run proves nothing
                    task_id
                    for task_id in ids[: len(ids) - len(to_send)]
                    if task_id.startswith((POISON, MURDER)) and task_id not in self._ended
                ]
                for task_id in again:
                    self._send(task_id)
                lost, waiting = lost + waiting - len(again), len(again)
                self._last_line_at = time.monotonic()
            if to_send and waiting <= JOBS_AHEAD:
                for _ in range(min(JOBS_AT_ONCE, len(to_send))):
                    self._send(to_send.pop())
                self._last_line_at = time.monotonic()
            while due and due[-1][0] <= len(self._ended):
                self._strike(due.pop()[1])
            if not to_send and waiting <= 0:
                break
            pace.wait(PACE_SECONDS)
        for _, name in reversed(due):
            self._strike(name)

    def _send(self, task_id: str) -> None:
        is_marked = task_id.startswith((POISON, MURDER))
        if not is_marked and int(task_id[-1], 16) == 0:
            self._app.send_task("chaos_relay.app.fails", ("at random",), task_id=task_id)
        else:
            self._app.send_task("chaos_relay.app.noop", task_id=task_id)

    def _strike(self, name: str) -> None:
        if name == "broker":
            how = ("SIGTERM", "SIGKILL")[self.result.done.total() - self.result.done["kill"] & 1]
            self._server.kill(how)
            self._server.wait()
            self._server.start()
            self._server.ready()
            self.result.done[f"restart by {how}"] += 1
            return
        running = [
            each for each in self._replicas if each.group == name and each.status == "running"
        ]
        if running:
            victim = self._who.choice(running)
            victim.kill("SIGKILL")
            self._replace(victim)
            self.result.done["kill"] += 1

    def _see_after_replicas(self) -> None:
        """Start anew what an event has killed, as whatever watches such processes does."""
        for replica in list(self._replicas):
            if replica.status == "running":
                continue
            code = replica.wait()
            if code != _SIGKILL:
                self.result.troubles.append(f"{replica.name} ended by itself, with {code}.")
            self.result.deaths[replica.group] += 1
            self._replace(replica)

    def _see_after_workers(self) -> None:
        for number, worker in enumerate(self._workers):
            if worker.status == "exited":
                log = self.result.logs[worker.name] = worker.logs()
                if GIVEN_UP not in log:
                    self.result.troubles.append(f"{worker.name} ended by itself: {worker.wait()}")
                worker.teardown()
                self._workers[number] = self._new_worker()

    def _replace(self, replica: _Replica) -> None:
        self.result.logs[replica.name] = replica.logs()
        replica.teardown()
        self._replicas[self._replicas.index(replica)] = self._new_replica(replica.group)

    def _new_replica(self, group: str) -> _Replica:
        self._numbers[group] += 1
        name = f"{group}-{self._numbers[group]}"
        replica = _Replica(group, name, self._config, self._journal.path)
        replica.start()
        return replica

    def _new_worker(self) -> _Node:
        self._numbers["worker"] += 1
        worker = _Node(
            f"worker-{self._numbers['worker']}",
            self._config,
            concurrency=CONCURRENCY,
            environment={JOURNAL: str(self._journal.path)},
        )
        worker.start()
        return worker

    def _read_on(self) -> None:
        for line in self._journal.read_on():
            self._last_line_at = time.monotonic()
            if isinstance(line, Handled):
                self._handled[line.group].add(line.key)
            elif isinstance(line, Published):
                is_start = line.event == "JobStarted"
                if not is_start:
                    self._ended.add(line.task_id)
                for group, wants_starts in GROUPS.items():
                    if wants_starts or not is_start:
                        self._published[group].add(line.key)

    def _is_quiet(self, seconds: float) -> bool:
        """Tell whether nobody has written a line for so long."""
        return time.monotonic() - self._last_line_at > seconds

    def _wait_until_quiet(self, fact: Callable[[], bool]) -> None:
        """Wait until the fact is true, or nothing happens any more: the verdict is another's."""
        pace, look_at = threading.Event(), 0.0
        while not self._is_quiet(QUIET_SECONDS):
            self._read_on()
            self._see_after_replicas()
            if time.monotonic() >= look_at:
                if fact():
                    return
                look_at = time.monotonic() + LETTERS_EVERY_SECONDS
            pace.wait(PACE_SECONDS)

    def _has_everything(self) -> bool:
        """Tell whether all that was published is handled, or among the dead letters."""
        missing = {group: self._published[group] - self._handled[group] for group in GROUPS}
        if sum(map(len, missing.values())) > WORKERS:  # more than the two that are to die
            return False
        self._read_letters()
        dead = {
            (group, task_id)
            for group, letters in self.result.letters.items()
            for letter in letters
            for task_id in letter.task_ids
        }
        return all((group, key[1]) in dead for group, keys in missing.items() for key in keys)

    def _read_letters(self) -> None:
        for group in GROUPS:
            try:
                found = self._transport.dead_letters(
                    Group(name=group, event_types=("JobFinished",)), limit=1_000
                )
            except RelayError as error:  # its connection is of before the restart
                self.result.troubles.append(f"The dead letters of {group} can't be read: {error}")
                continue
            self.result.letters[group] = [
                Letter(
                    task_ids=tuple(event["taskid"] for event in json.loads(each.parcel.body)),
                    reason=each.reason,
                )
                for each in found
            ]

    def _see_end_of(self, node: _Node) -> None:
        try:
            wait_until(lambda: node.status == "exited", STOPS_WITHIN_SECONDS)
        except TimeoutError:
            self.result.troubles.append(f"{node.name} did not stop.")
        else:
            self.result.exit_codes[node.name] = node.wait()
