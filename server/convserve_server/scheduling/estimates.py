"""How long calls take: as long as those took that were alike, and no less than a device's speed allows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from convserve.layers.plan import Plan

_MAX_KEPT = 1000
_SMOOTHING = 0.2  # the share of the newest figure
_FASTER = 8  # times as fast as measured: what a device may be at most


class Estimates:
    """What the latest calls took. A user with several threads holds a lock around each method."""

    def __init__(self, flops_per_s: float) -> None:
        """Starts with no call, and with what a device was measured at."""
        self.flops_per_s = flops_per_s
        # Of calls that compute and move as much: seconds of a call's own share, and of a whole computation.
        self._seconds: OrderedDict[tuple[int, int], tuple[float, float]] = OrderedDict()

    def of(self, plan: Plan) -> tuple[float, float]:
        """Returns the seconds of a call's share of a computation, and of the whole; of calls unlike all others 0."""
        return self._seconds.get((plan.flops, plan.memory_bytes), (0.0, 0.0))

    def min_s(self, flops: int) -> float:
        """Returns what so many FLOPs take at least."""
        return flops / (_FASTER * self.flops_per_s)

    def note(self, plan: Plan, own_s: float, whole_s: float, is_dense: Callable[[], bool]) -> None:
        """Notes what a call took: its own share of a computation, and the whole of that."""
        key = plan.flops, plan.memory_bytes
        if own_s and plan.flops > own_s * self.flops_per_s and is_dense():
            self.flops_per_s = plan.flops / own_s
        share_s, computation_s = self._seconds.pop(key, (own_s, whole_s))
        share_s += _SMOOTHING * (own_s - share_s)
        computation_s += _SMOOTHING * (whole_s - computation_s)
        self._seconds[key] = share_s, computation_s
        if len(self._seconds) > _MAX_KEPT:
            self._seconds.popitem(last=False)
