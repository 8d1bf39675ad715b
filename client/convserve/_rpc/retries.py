"""Deadlines, the retry rule and its budget. Nothing here does I/O."""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import grpc

from convserve.errors import (
    ConvserveError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
    short_repr,
)
from convserve.protocol.call_arguments import is_number
from convserve.protocol.status import from_rpc_error, tells_of_tls

_MAX_STEPS = 50  # in which a delay grows
_SUCCESS_TOKENS = 0.5  # retries that a success adds to the budget


@dataclass(frozen=True)
class RetryRule:
    """When and how often a call that failed is sent again, within its timeout.

    Two failures are retried: nobody answered (UNAVAILABLE), and a server refused the call for the time being
    (OVERLOADED, retried after the delay that the server names). A convolution is pure and a layer is a value, so that
    is safe, with two exceptions. A `put`, `update_weights` or `move_away` of a name without `expect` is not sent again
    if a server may have carried it out: another caller may have moved the name since. A `delete` or `move_away` whose
    retry finds nothing has succeeded if a server may have carried out an earlier attempt.

    The client retries by itself because gRPC's own retries silently leave out messages above 256 KiB.

    Attributes:
        attempts: The most times that a call is sent, the first included; 1 turns retries off.
        initial_s: The longest delay before the second attempt, in seconds. Delays are drawn from half of it to all.
        factor: Each further delay is longer by it.
        longest_s: The longest delay.
        budget: Refused calls that a client may send again before others of its calls succeed, each of which adds half
            a call to it: so that retries cannot make an overload worse.
    """

    attempts: int = 5
    initial_s: float = 0.1
    factor: float = 2.0
    longest_s: float = 5.0
    budget: float = 100.0

    def __post_init__(self) -> None:
        """Raises InvalidRequestError for what is no number, below 0, or above all floats; infinity is one."""
        for name, value in vars(self).items():
            least = 1 if name == "attempts" else 0
            if not (is_number(value) and (least <= value <= sys.float_info.max or value == math.inf)):
                raise InvalidRequestError.for_field(f"retry.{name}", f"a number of at least {least}", short_repr(value))

    def delay_s(self, attempt: int, error: Exception) -> float | None:
        """Returns how long to wait after the given attempt (from 1) failed, or None to give up."""
        if attempt >= self.attempts or not isinstance(error, UnavailableError | OverloadedError):
            return None
        backoff = self.initial_s
        for _ in range(min(attempt - 1, _MAX_STEPS)):  # of a power some have no float
            backoff *= self.factor
        backoff = min(self.longest_s, backoff) * random.uniform(0.5, 1.0)
        if isinstance(error, OverloadedError):  # those that were refused together are not to come back together
            return max(backoff, error.retry_after_s * random.uniform(1.0, 1.5))
        return backoff


def checked_rule(rule: RetryRule | None) -> RetryRule:
    """Returns a caller's rule, or the default; raises InvalidRequestError for what is none, such as a number."""
    if not isinstance(rule, RetryRule | None):
        received = f"retry={short_repr(rule)}: give RetryRule(attempts=...), where 1 is for no retries"
        raise InvalidRequestError.for_field("retry", "a convserve.RetryRule or None", received)
    return rule or RetryRule()


NO_RETRIES = RetryRule(attempts=1)
"""The rule of a call whose retries the caller counts."""
UNTIL_READY = RetryRule(attempts=sys.maxsize, longest_s=0.5, budget=math.inf)
"""The rule of a caller that waits for a server."""


def with_retries(rule: RetryRule) -> RetryRule:
    """Returns a client's rule for the items of `map`: they are retried as long as their timeout lasts."""
    # A budget bounds what many callers send at once; of a pipeline's calls there are a few, which wait ever longer.
    return rule if rule.attempts == 1 else replace(rule, attempts=sys.maxsize, budget=math.inf)


class RetryBudget:
    """What is left of a client's retries of refused calls. Any thread may call its methods."""

    def __init__(self, rule: RetryRule) -> None:
        self._max = self._left = rule.budget
        self._lock = threading.Lock()

    def record_success(self) -> None:
        """Adds half a retry."""
        if self._left < self._max:
            with self._lock:
                self._left = min(self._max, self._left + _SUCCESS_TOKENS)

    def try_spend(self) -> bool:
        """Takes one retry; returns False, and takes nothing, if none is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Deadline:
    """When something must be done that may take several calls, all of them within `timeout` seconds.

    Attributes:
        timeout: These seconds.
        rule: When to send each call again; None for the client's rule.
    """

    def __init__(
        self, timeout: float, clock: Callable[[], float] = time.monotonic, rule: RetryRule | None = None
    ) -> None:
        self.timeout, self.rule = timeout, rule
        self._clock = clock
        self._end = clock() + timeout

    def remaining_s(self) -> float:
        """Returns the seconds that are left."""
        return max(0.0, self._end - self._clock())

    def exceeded(self, attempts: int = 1, refusal: str = "", *, is_divisible: bool = False) -> DeadlineExceededError:
        """Returns the error of what was not done in time, with the words of a server that refused it before."""
        tried = f" in {attempts} attempts" if attempts > 1 else ""
        advice = "raise the timeout, or send less in one call." if is_divisible else "raise the timeout."
        text = f"Expected an answer within timeout={self.timeout:g} seconds. Received none{tried}: {advice}"
        return DeadlineExceededError(f"{text} ({refusal})" if refusal else text)


Timeout = float | Deadline | None
"""How long a call may take: seconds, until when, or the client's default."""


@dataclass
class Call:
    """One call's attempts, whoever does the sending and the sleeping.

    Attributes:
        rule: When to send again.
        deadline: When the call must be done.
        budget: What is left of the client's retries.
        moves_name: Whether the call must not be carried out a second time, later.
        is_divisible: Whether the caller may send less in one call.
        may_be_done: Whether a server may have carried out an attempt whose answer was lost.
    """

    rule: RetryRule
    deadline: Deadline
    budget: RetryBudget
    moves_name: bool = False
    is_divisible: bool = False
    may_be_done: bool = False
    _attempt: int = 1
    _earlier: str = ""  # why the attempt before failed
    _tls_failure: ConvserveError | None = None

    def delay_after(self, failure: grpc.RpcError | ConvserveError) -> float:
        """Returns the seconds to sleep before the next attempt.

        Raises ConvserveError: The failure as one of the tree, if it is not to be retried.
        """
        outcome = self._outcome(failure)
        if not isinstance(outcome, ConvserveError):
            return outcome
        try:
            raise outcome from None
        finally:
            del outcome, failure  # whose frames, with the input, this one would keep: it is one of them

    def _outcome(self, failure: grpc.RpcError | ConvserveError) -> float | ConvserveError:
        """Returns the seconds to sleep before the next attempt, or the error where there is none."""
        error = from_rpc_error(failure)
        remaining_s = self.deadline.remaining_s()
        # A call whose time is up while it sends fails as one that broke off.
        late = isinstance(error, UnavailableError) and not remaining_s
        if late or isinstance(error, DeadlineExceededError):
            is_told = not late and str(error).startswith("Expected ")  # else it is gRPC's own
            refusal = str(error) if is_told else self._earlier
            return self.deadline.exceeded(self._attempt, refusal, is_divisible=self.is_divisible)
        self.may_be_done |= isinstance(error, UnavailableError) and error.may_be_done
        # Of a name with several addresses gRPC tells why the last one failed, which may be one where nobody listens.
        if tells_of_tls(error):
            self._tls_failure = error
        elif isinstance(error, UnavailableError) and not error.may_be_done:
            error = self._tls_failure or error
        delay = self.rule.delay_s(self._attempt, error)
        if isinstance(error, UnavailableError) and self._attempt == self.rule.attempts > 1:
            error.args = (f"{error} The client tried {self._attempt} times (RetryRule).",)
        if delay is None or delay >= remaining_s or (self.moves_name and self.may_be_done):
            return error
        if isinstance(error, OverloadedError) and not self.budget.try_spend():
            return error
        self._attempt += 1
        self._earlier = str(error)
        return delay
