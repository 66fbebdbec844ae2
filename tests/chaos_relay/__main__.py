"""Kill replicas and restart the broker under a stream of events, and check that none is lost.

Two workers send the events of their jobs to three groups of two replicas each. One event is
raised on by a consumer, and one kills the process of another. At the end it is checked, event by
event, that each group has handled every one, or put it aside where it should.

Every random decision follows from the seed. What that strikes depends on the machine's pace as
well, so the same seed gives the same run, not the same race.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from pathlib import Path

from chaos.telling import folder_of_run, tell

from chaos_relay.brokers import BROKERS
from chaos_relay.run import Order, run
from chaos_relay.summary import summary
from chaos_relay.verdicts import complaints


def main() -> int:
    """Do the runs that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos_relay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--broker", choices=sorted(BROKERS), help="(default: one after the other)")
    parser.add_argument("--seed", type=int, help="repeats a run (default: a new one)")
    parser.add_argument("--jobs", type=int, default=20_000, help="of each run (default: 20000)")
    parser.add_argument("--kills", type=int, default=12, help="of replicas (default: 12)")
    parser.add_argument("--restarts", type=int, default=2, help="of the broker (default: 2)")
    parser.add_argument("--runs", type=int, default=1, help="each with the next seed (default: 1)")
    parser.add_argument("--keep", type=Path, help="where to leave the journal and the logs")
    arguments = parser.parse_args()

    # However it is ended, it tidies up on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    first = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    wrong = 0
    for broker in [arguments.broker] if arguments.broker else sorted(BROKERS):
        for seed in range(first, first + arguments.runs):
            order = Order(broker, seed, arguments.jobs, arguments.kills, arguments.restarts)
            wrong += not _is_right(order, arguments.keep)
    return int(bool(wrong))


def _is_right(order: Order, keep: Path | None) -> bool:
    """Do one run, and say what came out."""
    print(f"{order.broker}, seed {order.seed}: {order.jobs} jobs", flush=True)
    with folder_of_run(f"{order.broker}-{order.seed}", keep) as folder:
        result = run(order, folder)
    wrong = complaints(result)
    praise = "Every group has every event, or has put it aside where it should."
    tell(summary(result), wrong, command=order.command, praise=praise)
    return not wrong


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
