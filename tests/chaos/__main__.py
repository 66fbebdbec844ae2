"""Kill the processes of a busy worker all the time, and check what is told of its jobs.

Every random decision follows from the seed: which jobs are sent, what each is
to do, when something is done to the worker and what, and what the consumers
make of each event. What that strikes depends on the machine's pace as well, so
the same seed gives the same run, not the same race.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from pathlib import Path

from nodes.redis_process import RedisProcess

from chaos.load import KINDS
from chaos.run import Order, run
from chaos.summary import summary
from chaos.telling import folder_of_run, tell
from chaos.verdicts import complaints


def main() -> int:
    """Do the runs that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats a run (default: a new one)")
    parser.add_argument("--jobs", type=int, default=10_000, help="of each run (default: 10000)")
    parser.add_argument("--kills", type=int, default=200, help="of each run (default: 200)")
    parser.add_argument("--runs", type=int, default=1, help="each with the next seed (default: 1)")
    parser.add_argument(
        "--without", nargs="*", default=(), choices=KINDS, metavar="KIND", help=", ".join(KINDS)
    )
    parser.add_argument("--keep", type=Path, help="where to leave the journal and the worker's log")
    arguments = parser.parse_args()

    # However it is ended, it tidies up on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    first = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    wrong = 0
    for seed in range(first, first + arguments.runs):
        order = Order(seed, arguments.jobs, arguments.kills, tuple(arguments.without))
        wrong += not _is_right(order, arguments.keep)
    return int(bool(wrong))


def _is_right(order: Order, keep: Path | None) -> bool:
    """Do one run, and say what came out."""
    print(f"seed {order.seed}: {order.jobs} jobs, {order.kills} kills", flush=True)
    with folder_of_run(f"{order.seed}", keep) as folder, RedisProcess() as server:
        result = run(order, server.url, folder)
    wrong = complaints(result)
    praise = "Every attempt has its one end, and every event is accounted for."
    tell(summary(result), wrong, command=order.command, praise=praise)
    return not wrong


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
