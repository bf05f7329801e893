"""How requests share the device, as measured at start and as the operator has set it. Plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from predictor.speed import Curve


@dataclass(frozen=True)
class Policy:
    curve: Curve  # seconds of a forward by rows
    row_limit: int  # rows of default size that share a forward at most; 0: requests take turns
    first_come: bool = False  # and not shortest remaining work first
    fixed_rows: bool = False  # every forward has as many rows as its size allows, so that company changes no bit
    max_seconds: float = math.inf  # of work accepted and unfinished
    hang_after: float = math.inf  # seconds, whatever was expected
