"""Deadlines, the retry rule and its budget. Nothing here does I/O."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from convserve.errors import (
    ConvserveError,
    DeadlineExceededError,
    FieldViolation,
    InvalidRequestError,
    LayerNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    TooLargeError,
    UnavailableError,
    short_repr,
)
from convserve.protocol.status import RpcFailure, from_rpc_error

DEFAULT_TIMEOUT_S = 60.0
_MAX_STEPS = 50  # in which a delay grows: a call may be sent so often that the power has no float
_EARNED = 0.5  # retries that an answered call adds to the budget


@dataclass(frozen=True)
class RetryRule:
    """When and how often a call that failed is sent again; a convolution is pure, so that is always safe.

    Retried are calls that nobody answered (UNAVAILABLE) and calls that a server refused for the time being
    (OVERLOADED, after the delay that it names), as long as the call's timeout allows. The client does it itself because
    gRPC's own retries silently leave out messages above 256 KiB.

    Attributes:
        attempts: The most times that a call is sent, the first included; 1 turns retries off.
        initial_s: The longest delay before the second attempt, in seconds. Delays are drawn from half of it to all.
        factor: Each further delay is longer by it.
        longest_s: The longest delay.
        budget: Refused calls that a client may send again before others of its calls are answered, each of which adds
            half a call to it: so that retries cannot make an overload worse.
    """

    attempts: int = 5
    initial_s: float = 0.1
    factor: float = 2.0
    longest_s: float = 5.0
    budget: float = 100.0

    def delay_s(self, attempt: int, error: Exception) -> float | None:
        """Returns how long to wait after the given attempt (from 1) failed, or None to give up."""
        if attempt >= self.attempts or not isinstance(error, UnavailableError | OverloadedError):
            return None
        growth = self.factor ** min(attempt - 1, _MAX_STEPS)
        backoff = min(self.longest_s, self.initial_s * growth) * random.uniform(0.5, 1.0)
        if isinstance(error, OverloadedError):  # those that were refused together are not to come back together
            return max(backoff, error.retry_after_s * random.uniform(1.0, 1.5))
        return backoff


class RetryBudget:
    """What is left of a client's retries of calls that were refused. Any thread may call its methods."""

    def __init__(self, rule: RetryRule) -> None:
        """Starts full."""
        self._most = self._left = rule.budget
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Notes an answered call."""
        if self._left < self._most:
            with self._lock:
                self._left = min(self._most, self._left + _EARNED)

    def take(self) -> bool:
        """Takes one retry; returns False, and takes nothing, if none is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Deadline:
    """When something must be done that may take several calls.

    Attributes:
        timeout: The seconds that it was given.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._end = time.monotonic() + timeout

    @classmethod
    def of(cls, timeout: Timeout, default: float) -> Deadline:
        """Returns the deadline itself, or one of so many seconds from now on.

        Raises:
            InvalidRequestError: If the timeout is not a number above 0.
        """
        return timeout if isinstance(timeout, Deadline) else cls(checked_timeout(timeout, default))

    def remaining_s(self) -> float:
        """Returns the seconds that are left."""
        return max(0.0, self._end - time.monotonic())

    def exceeded(self, attempts: int = 1) -> DeadlineExceededError:
        """Returns the error of what was not done in time."""
        tried = f" in {attempts} attempts" if attempts > 1 else ""
        return DeadlineExceededError(
            f"Expected an answer within timeout={self.timeout:g} seconds. Received none{tried}: "
            "raise the timeout, or send less in one call."
        )


Timeout = float | Deadline | None
"""How long a call may take: seconds, until when, or the client's default."""


class Call:
    """One call's attempts, whoever does the sending and the sleeping."""

    def __init__(self, rule: RetryRule, deadline: Deadline, budget: RetryBudget | None = None) -> None:
        self._rule = rule
        self._deadline = deadline
        self._budget = budget or RetryBudget(rule)
        self._attempt = 1

    def remaining_s(self) -> float:
        """Returns the seconds that are left."""
        return self._deadline.remaining_s()

    def delay_after(self, failure: RpcFailure | ConvserveError) -> float:
        """Returns the seconds to sleep before the next attempt.

        Raises:
            ConvserveError: The failure as one of the tree, if it is not to be retried.
        """
        error = failure if isinstance(failure, ConvserveError) else from_rpc_error(failure)
        # A call whose time is up while it sends is told as one that broke off.
        late = isinstance(error, UnavailableError) and not self.remaining_s()
        if late or isinstance(error, DeadlineExceededError):
            raise self._deadline.exceeded(self._attempt) from None
        delay = self._rule.delay_s(self._attempt, error)
        if delay is None or delay >= self.remaining_s():
            raise error from None
        if isinstance(error, OverloadedError) and not self._budget.take():
            raise error from None
        self._attempt += 1
        return delay

    def answered(self) -> None:
        """Notes that it has been."""
        self._budget.earn()


def skip_replica(failure: RpcFailure | ConvserveError, before: ConvserveError | None) -> ConvserveError:
    """Returns what to raise if no other server has an answer, where one of several does not have it.

    Args:
        failure: Why this one does not.
        before: What this returned for the server before.

    Raises:
        ConvserveError: The failure, if the other servers are not to be asked.
    """
    error = failure if isinstance(failure, ConvserveError) else from_rpc_error(failure)
    if not isinstance(error, LayerNotFoundError | UnavailableError):
        raise error from None
    return before if isinstance(before, LayerNotFoundError) else error


def check_cannot_keep(failure: RpcFailure | ConvserveError) -> None:
    """Checks that a server failed to store a layer because it has no room for it, or keeps none for this caller.

    Raises:
        ConvserveError: The failure, if it is another.
    """
    error = failure if isinstance(failure, ConvserveError) else from_rpc_error(failure)
    if not isinstance(error, OverloadedError | PermissionDeniedError | TooLargeError):
        raise error from None


def checked_timeout(timeout: float | None, default: float) -> float:
    """Returns a call's timeout in seconds.

    Raises:
        InvalidRequestError: If it is not a number above 0.
    """
    found = default if timeout is None else timeout
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 < found < float("inf"):
        text = f"Expected a number of seconds above 0. Received timeout={short_repr(found)}."
        raise InvalidRequestError(FieldViolation("timeout", text))
    return float(found)
