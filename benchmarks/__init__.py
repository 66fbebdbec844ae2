"""What the broadcast costs, as ratios: `make bench`, or `python -m benchmarks NAME`."""

from __future__ import annotations

import sys
from pathlib import Path

# Redis and the workers are started as the tests start theirs.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
