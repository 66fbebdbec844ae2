"""From the broker to a remote consumer: one thread for each group that this process reads."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from celery_broadcast.dispatcher import Delivery
from celery_broadcast.errors import RelayError, WireError
from celery_broadcast.events import Event
from celery_broadcast.relay.gaps import Gaps
from celery_broadcast.relay.in_hand import ParcelInHand, text_of
from celery_broadcast.relay.pauses import seconds_after
from celery_broadcast.relay.payload import cut
from celery_broadcast.relay.signing import SENT_AGAIN, Signer, Verifier
from celery_broadcast.relay.transport import (
    DeadLetter,
    Group,
    Limits,
    Parcel,
    Received,
    Transport,
)
from celery_broadcast.relay.wire import Arrived, Contents, failed_again, in_text, read, split
from celery_broadcast.selection import Kind, kind_of
from celery_broadcast.subscription import Subscription
from celery_broadcast.throttle import Throttle
from celery_broadcast.waiting import wait_until_set

logger: logging.Logger = logging.getLogger(__name__)

# How long the broker is asked for a parcel while nothing is in hand: so long a
# stop may have to wait.
_SECONDS_OF_A_LOOK = 0.5

# How often it is asked for one more while some are in hand.
_SECONDS_BETWEEN_LOOKS = 0.05

# Nothing is tried while the broker is away. If it is there and still can't be told that a
# parcel is done, it has the parcel back, and hands it out again.
_MOST_VAIN_TRIES = 2

_SECONDS_BETWEEN_LINES = 60.0

# Why the broker can't be read, in different words, before it can be read again.
_MOST_REASONS_TOLD = 20

# The names of tasks and queues can be made up without end.
_MOST_KINDS_REMEMBERED = 10_000

# Of a name in the log, in characters.
_MOST_OF_NAME = 255

# How often it is looked whether this is the only replica, as only that one can
# tell what is missing.
_SECONDS_BETWEEN_COUNTS = 1.0


class Incoming:
    """Receives for one group, has the consumer handle it, and acknowledges what is handled.

    Args:
        subscription: of the consumer, as it was declared.
        group: the consumer as the broker knows it.
        transport: belongs to this thread alone, which closes it.
        accept: hands events to the consumer; never waits.
        has_given_up: tells whether the consumer handles nothing more.
        limits: the lease, and how big a parcel may be; so much is in hand at most,
            and one parcel more.
        max_deliveries: how often the consumer may raise on an event, and die with it.
        verifier: tells which parcels are to be opened; None is all.
        signer: signs those that are sent again; None if nobody asks for that.
    """

    def __init__(  # noqa: PLR0913  # all by name
        self,
        *,
        subscription: Subscription,
        group: Group,
        transport: Transport,
        accept: Callable[[Sequence[Delivery]], None],
        has_given_up: Callable[[], bool] = lambda: False,
        limits: Limits | None = None,
        max_deliveries: int = 5,
        verifier: Verifier | None = None,
        signer: Signer | None = None,
    ) -> None:
        self.name: str = subscription.name
        self._subscription = subscription
        self._group = group
        self._transport = transport
        self._accept = accept
        self._consumer_has_given_up = has_given_up
        self._limits = limits or Limits()
        self._max_deliveries = max_deliveries
        self._verifier = verifier
        self._signer = signer
        batch = subscription.batch
        # So many that the consumer always has something to do, and not more: what is
        # in hand no other replica gets, and it comes again if this one dies.
        self._events_wanted = subscription.concurrency if batch is None else 2 * batch.max_events
        self._in_hand: list[ParcelInHand] = []
        self._wanted: dict[Kind, bool] = {}
        # Reentrant, as a signal handler may come here.
        self._changed = threading.Condition()
        self._is_stopping = False
        self._is_let_go = False
        self._has_tried_to_give_back = False
        self._renew_at = 0.0
        self._look_at = 0.0
        self._has_looked = False
        self._failures = 0
        self._told: set[str] = set()
        self._gaps = Gaps(self._limits.lease)
        self._count_at = 0.0
        self._replicas = 1
        self._gap_lines = Throttle(first_after=0.0, then_every=_SECONDS_BETWEEN_LINES)
        #: What came, and what was done with it, by a word: "parcels", "events",
        #: "refused", "repeated", "split", "again", "dead", "given-back"; "missing" is
        #: what didn't.
        self.counts: Counter[str] = Counter()
        #: Set while the group is declared and read; not while the broker is away.
        self.is_reading: threading.Event = threading.Event()
        #: Whether it has ended by something that nothing here expects.
        self.has_crashed: bool = False
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"broadcast-incoming:{self.name}", daemon=True
        )

    # On any thread.

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more, and is done with what it took."""
        return self._ended.is_set()

    @property
    def has_given_up(self) -> bool:
        """Whether it ended because the consumer has given up."""
        return self._consumer_has_given_up()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the system gives no further thread.
        """
        self._thread.start()

    def stop(self) -> None:
        """Take no more; once this returns, the consumer is handed nothing more."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def let_go(self) -> None:
        """Give back what isn't handled, and end; return at once. Called after the drain."""
        with self._changed:
            self._is_stopping = self._is_let_go = True
            in_hand = list(self._in_hand)
            self._changed.notify_all()
        for parcel in in_hand:
            parcel.let_go()

    def wait_for_end(self, deadline: float) -> bool:
        """Wait for the end of the thread; return whether it has come.

        Args:
            deadline: when to go on all the same, by the monotonic clock.
        """
        return self._thread.ident is None or wait_until_set(self._ended, deadline)

    # On its own thread.

    def _run(self) -> None:
        try:
            while not self._is_done():
                self._step_and_go_on()
        except BaseException:
            self.has_crashed = True
            logger.critical("consumer %r: nobody reads for it any more", self.name, exc_info=True)
        finally:
            self.is_reading.clear()
            self._transport.close()
            self._ended.set()

    def _is_done(self) -> bool:
        if self._has_tried_to_give_back:
            return True  # the broker is away: it gives to another what this one had
        is_over = self._is_stopping or self._subscription.switch.is_cancelled
        return (is_over or self._consumer_has_given_up()) and not self._in_hand

    def _step_and_go_on(self) -> None:
        """Do a step; if that fails, say why, each reason once, and wait for longer each time."""
        is_last = self._is_let_go  # before the step, so that it is tried once after that
        try:
            self._step()
        except RelayError as error:
            if self._is_news(error):
                logger.warning(
                    "consumer %r can't read from the broker, and goes on trying with growing "
                    "pauses: %s",
                    self.name,
                    error,
                )
        except Exception as error:
            if self._is_news(error):
                logger.exception("consumer %r can't read from the broker, and tries on", self.name)
        else:
            if not self.is_reading.is_set() and not self._is_stopping:
                self._say_reading()
            return
        self._has_tried_to_give_back = is_last
        self.is_reading.clear()
        self._gaps.forget()  # others may have had its share meanwhile
        self._failures += 1
        with self._changed:
            self._changed.wait_for(lambda: self._is_let_go, seconds_after(self._failures))

    def _step(self) -> None:
        """Do what is to be done now; wait a little if that is nothing.

        Raises:
            RelayError: the broker.
        """
        if not self.is_reading.is_set() and not self._is_stopping:
            self._transport.declare(self._group)
        self._renew()
        if not self._is_alone():
            self._gaps.forget()  # what doesn't come here may go to another replica
        self._say_missing()
        for parcel in [parcel for parcel in self._in_hand if not parcel.pending]:
            self._finish_or_refuse(parcel)
        for parcel in [parcel for parcel in self._in_hand if not parcel.is_handed_over]:
            if self._transport.is_lost(parcel.received):
                self._in_hand.remove(parcel)  # it comes again, and then has its turn
        if len(self._in_hand) == 1:
            self._hand_over(self._in_hand[0])  # what had to wait until it is alone
        if self._has_room() and time.monotonic() >= self._look_at:
            self._look()
        else:
            self._leave_to_others()
            self._wait()

    def _is_news(self, error: Exception) -> bool:
        """Tell whether it hasn't failed with this since it read the last time."""
        told = f"{type(error).__name__}: {error}"
        is_news = told not in self._told and len(self._told) < _MOST_REASONS_TOLD
        if is_news:
            self._told.add(told)
        return is_news

    def _say_reading(self) -> None:
        if self._failures:
            logger.info("consumer %r reads from the broker again", self.name)
        self._failures = 0
        self._told.clear()
        self.is_reading.set()

    def _has_room(self) -> bool:
        """Tell whether another parcel is to be taken."""
        if not self._is_open() or any(each.is_suspect for each in self._in_hand):
            return False
        if sum(each.pending for each in self._in_hand) >= self._events_wanted:
            return False
        size = sum(len(each.received.parcel.body) for each in self._in_hand)
        return size < self._limits.max_parcel_bytes

    def _is_open(self) -> bool:
        """Tell whether the consumer is to get anything now."""
        switch = self._subscription.switch
        is_shut = self._is_stopping or switch.is_paused or switch.is_cancelled
        return not (is_shut or self._consumer_has_given_up())

    def _look(self) -> None:
        """See whether there is a parcel, and take it."""
        is_idle = not self._in_hand
        self._has_looked = True
        received = self._transport.receive(self._group, _SECONDS_OF_A_LOOK if is_idle else 0.0)
        if received is not None and not self._is_open():  # while it waited
            self._transport.give_back(self._group, received)
        elif received is not None:
            try:
                self._take(received)
            except BaseException:
                # Nobody has it in hand, and some brokers give no other before it is back.
                with contextlib.suppress(RelayError):
                    self._transport.give_back(self._group, received)
                raise
        elif not is_idle:
            self._look_at = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def _leave_to_others(self) -> None:
        """Give back what was sent ahead, while the consumer is paused: RabbitMQ does that.

        It would be kept from other replicas, and count as delivered again every 30 minutes.
        """
        if self._has_looked and not self._in_hand and not self._is_open():
            self._has_looked = False
            self._transport.close()  # the next look connects anew

    def _wait(self) -> None:
        now = time.monotonic()
        until = self._renew_at if self._in_hand else now + _SECONDS_OF_A_LOOK
        if self._has_room():
            until = min(until, self._look_at)
        with self._changed:
            self._changed.wait_for(self._is_something_to_do, max(0.0, until - now))

    def _is_something_to_do(self) -> bool:
        if any(not parcel.pending for parcel in self._in_hand):
            return True
        return self._is_stopping and not self._in_hand

    def _renew(self) -> None:
        now = time.monotonic()
        if self._in_hand and now >= self._renew_at:
            self._renew_at = now + self._limits.lease / 3  # first: if it raises, not at once again
            self._transport.renew(self._group, [parcel.received for parcel in self._in_hand])

    # What comes.

    def _take(self, received: Received) -> None:
        """Decide what is to be done with a parcel, and do it.

        Raises:
            RelayError: the broker; nothing else, whatever a stranger has sent.
        """
        self.counts["parcels"] += 1
        refusal = self._refusal_of(received)
        if refusal == SENT_AGAIN:  # as a rule since the broker missed the first acknowledgement
            self.counts["repeated"] += 1
            self._transport.acknowledge(self._group, received)
            return
        if refusal:
            self._refuse(received, refusal)
            return
        try:
            parcel = self._parcel_in_hand(received, read(received.parcel, self._limits))
        except RelayError:
            raise
        except Exception as error:  # noqa: BLE001  # of the parcel: it would raise again each time
            self._refuse(received, _why(error))
        else:
            if parcel is not None:
                self._accept_parcel(parcel)

    def _refusal_of(self, received: Received) -> str:
        if received.refusal or self._verifier is None:
            return received.refusal
        return self._verifier.refusal(received.parcel)

    def _parcel_in_hand(self, received: Received, contents: Contents) -> ParcelInHand | None:
        """Return what is to be handled; None if that is nothing, and all is done."""
        arrived = contents.arrived
        if self._subscription.payload == "text":
            arrived = list(map(in_text, arrived))
        if received.deliveries:
            self._gaps.forget()  # another replica had it, so who knows what else
        elif not received.is_sent_alone:
            self._note_numbers(received.parcel, arrived)
        # Of two with one id, only the first could be sent again.
        has_twins = len({each.event_id for each in arrived}) < len(arrived)
        if len(arrived) + len(contents.refused) > 1 and (received.deliveries or has_twins):
            self._split(received)
            return None
        if contents.refused:
            self.counts["refused"] += len(contents.refused)
            self._put_aside(
                [
                    # Signed, as what it came in was: or it couldn't ever be replayed.
                    self._letter(received, "refused", each.error, self._sign(each.parcel))
                    for each in contents.refused
                ]
            )
        if len(arrived) == 1 and self._is_dead(received.deliveries + arrived[0].failures):
            self._bury(received, arrived[0])
            return None
        self.counts["events"] += len(arrived)
        return ParcelInHand(received, arrived, self._wants, self._changed)

    def _wants(self, event: Event) -> bool:
        kind = kind_of(event)
        wanted = self._wanted.get(kind)
        if wanted is None:
            if len(self._wanted) >= _MOST_KINDS_REMEMBERED:
                self._wanted.clear()
            wanted = self._wanted[kind] = self._subscription.selection.wants(kind)
        return wanted

    def _is_dead(self, deliveries: int) -> bool:
        return deliveries >= self._max_deliveries

    def _refuse(self, received: Received, why: str) -> None:
        self.counts["refused"] += 1
        self._put_aside([self._letter(received, "refused", why)])
        # Not remembered as acknowledged: it may bear the signature of another one.
        self._transport.acknowledge(self._group, received)

    def _split(self, received: Received) -> None:
        """Give each event a parcel of its own: one of them may have killed the process."""
        self.counts["split"] += 1
        parcels = split(received.parcel, self._limits)
        self._transport.send_to(self._group, [self._sign(parcel) for parcel in parcels])
        self._acknowledge(self._group, received)

    def _bury(self, received: Received, arrived: Arrived) -> None:
        text = f"The consumer raised on it {arrived.failures} times.\n{arrived.error}"
        reason = "raised" if arrived.failures >= received.deliveries else "killed"
        if received.deliveries:
            text = (
                f"It was handed out {received.deliveries} times, and each time the process that "
                f"had it died, or was silent for longer than the lease. {text}"
            )
        self._put_aside([self._letter(received, reason, text.rstrip(), failures=arrived.failures)])
        self._acknowledge(self._group, received)

    def _acknowledge(self, group: Group, received: Received) -> None:
        self._transport.acknowledge(group, received)
        if self._verifier is not None:
            self._verifier.acknowledged(received.parcel)

    def _sign(self, parcel: Parcel) -> Parcel:
        return parcel if self._signer is None else self._signer.sign(parcel)

    def _put_aside(self, letters: Sequence[DeadLetter]) -> None:
        self._transport.put_aside(self._group, letters)
        self.counts["dead"] += len(letters)
        for letter in letters:
            logger.error(
                "consumer %r: %s of %s was put aside (%s), to be seen with: celery -A ... "
                "broadcast dead-letters show %s",
                self.name,
                _named(letter.parcel.event_type) or "something",
                _named(letter.parcel.task_name) or "no known task",
                letter.reason,
                self.name,
            )

    def _letter(
        self,
        received: Received,
        reason: str,
        error: str,
        parcel: Parcel | None = None,
        failures: int = 0,
    ) -> DeadLetter:
        return DeadLetter(
            parcel=received.parcel if parcel is None else parcel,
            reason=reason,
            error=error,
            deliveries=received.deliveries + failures,
            put_aside_at=time.time(),
        )

    def _accept_parcel(self, parcel: ParcelInHand) -> None:
        with self._changed:
            if not self._in_hand:
                self._renew_at = time.monotonic() + self._limits.lease / 3
            self._in_hand.append(parcel)
        # A suspect is handled alone, so that nobody else dies with it.
        if not parcel.is_suspect or len(self._in_hand) == 1:
            self._hand_over(parcel)

    def _hand_over(self, parcel: ParcelInHand) -> None:
        with self._changed:  # so that no stop comes in between
            if parcel.is_handed_over:
                return
            parcel.is_handed_over = True
            if not self._is_stopping:
                if parcel.deliveries:
                    self._accept(parcel.deliveries)
                return
        parcel.let_go()

    # What became of it.

    def _finish_or_refuse(self, parcel: ParcelInHand) -> None:
        """Finish a parcel; put it aside whole if something in it makes that impossible.

        Raises:
            RelayError: the broker.
        """
        try:
            self._finish(parcel)
        except RelayError:
            raise
        except Exception as error:  # noqa: BLE001  # of the parcel: it would raise again each time
            self._refuse(parcel.received, _why(error))
            self._in_hand.remove(parcel)

    def _finish(self, parcel: ParcelInHand) -> None:
        """Send on what failed or was dropped, and have the broker forget the rest.

        Raises:
            RelayError: the broker; the next call goes on where this one was.
        """
        if self._transport.is_lost(parcel.received):
            self._in_hand.remove(parcel)  # another gets it, or this one again
            return
        if parcel.is_dropped():
            self._tell_broker(parcel, self._transport.give_back)
            self.counts["given-back"] += len(parcel.deliveries)
            return
        if not parcel.is_put_aside:
            self._put_aside_failed(parcel)
            parcel.is_put_aside = True
        if not parcel.is_sent_again:
            self._send_again(parcel)
            parcel.is_sent_again = True
        self._tell_broker(parcel, self._acknowledge)

    def _put_aside_failed(self, parcel: ParcelInHand) -> None:
        letters = []
        for arrived, error in parcel.with_outcome("failed"):
            failures = arrived.failures + 1
            if self._is_dead(parcel.received.deliveries + failures):
                packed = failed_again(parcel.received.parcel, arrived, error)
                text = f"The consumer raised on it {failures} times, the last time:\n{error}"
                letters.append(
                    self._letter(parcel.received, "raised", text, self._sign(packed), failures)
                )
        if letters:
            self._put_aside(letters)

    def _send_again(self, parcel: ParcelInHand) -> None:
        received = parcel.received
        again = [
            failed_again(received.parcel, arrived, error)
            for arrived, error in parcel.with_outcome("failed")
            if not self._is_dead(received.deliveries + arrived.failures + 1)
        ]
        dropped = {arrived.event_id for arrived, _ in parcel.with_outcome("dropped")}
        if dropped:
            again += [
                alone
                for alone in split(received.parcel, self._limits)
                if {each.event_id for each in read(alone, self._limits).arrived} & dropped
            ]
        if again:
            self._transport.send_to(self._group, [self._sign(parcel) for parcel in again])
            self.counts["again"] += len(again)

    def _tell_broker(self, parcel: ParcelInHand, tell: Callable[[Group, Received], None]) -> None:
        try:
            tell(self._group, parcel.received)
        except RelayError:
            parcel.vain_tries += 1
            if parcel.vain_tries >= _MOST_VAIN_TRIES:
                self._in_hand.remove(parcel)  # it is handed out again, to whomever
            raise
        self._in_hand.remove(parcel)

    # What doesn't come.

    def _note_numbers(self, parcel: Parcel, arrived: Sequence[Arrived]) -> None:
        by_producer: dict[str, list[int]] = {}
        for each in arrived:
            if each.task_sequence and not each.failures:
                by_producer.setdefault(each.producer, []).append(each.task_sequence)
        for producer, numbers in by_producer.items():
            lane = producer, parcel.event_type, parcel.task_name
            if self._gaps.note(lane, numbers, time.monotonic()):
                self._count_at = 0.0  # count again: another may just have come

    def _is_alone(self) -> bool:
        """Tell whether this is the only replica; the broker is asked now and then."""
        now = time.monotonic()
        if now >= self._count_at and self.is_reading.is_set():
            self._count_at = now + _SECONDS_BETWEEN_COUNTS
            self._replicas = self._transport.replicas(self._group)
        return self._replicas <= 1

    def _say_missing(self) -> None:
        now = time.monotonic()
        found = self._gaps.surely_missing(now)
        if found is None:
            return
        missing, lane = found
        self.counts["missing"] += missing
        self._gap_lines.add(missing, now)
        if self._gap_lines.due_in(now) != 0.0:
            return
        count, _ = self._gap_lines.say(now)
        with contextlib.suppress(Exception):  # a handler of the log may raise
            logger.warning(
                "consumer %r has not got %d events, the last of them %s of %s from %s: the broker "
                "has dropped them, as too much waited there or for too long, or the worker has, "
                "as it could not reach the broker",
                self.name,
                count,
                lane[1],
                _named(lane[2]),
                _named(lane[0]),
            )


def _named(text: str) -> str:
    """Return a name for the log: it may be a stranger's, and have lines of its own in it."""
    short = cut(text, _MOST_OF_NAME)
    return short if short.isprintable() else repr(short)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, WireError) else text_of(error)
