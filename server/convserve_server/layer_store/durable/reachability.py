"""Whether a bucket answers: who cannot reach it learns so at once.

After a failure nobody asks it but one thread, every second, until that is answered. That it is away, and that it is
back, is logged once, and so is what a bucket refuses that answers. What is logged has no query strings, in which some
clouds' credentials go.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from convserve.errors import ConvserveError, UnavailableError

log = logging.getLogger("convserve")

_PROBE_S = 1.0
_REFUSAL_S = 1.0  # what fails later was not answered, unless it was a write, which takes as long as its content
_WRITES = ("put", "copy")


class NotModifiedError(Exception):
    """An object is the one that was seen."""


class Reachability:
    """What is known of whether a bucket answers. Its methods may be called from any thread.

    Attributes:
        requests: How many there were, by operation and result.
        seconds: How long they took, by operation.
    """

    def __init__(self, shown: str, probe: Callable[[], object]) -> None:
        """Takes how the bucket is called in texts, and a request that does nothing."""
        self._shown, self._probe = shown, probe
        self._lock = threading.Lock()
        self._since: float | None = None  # when it went away
        self._refused: set[str] = set()  # operations
        self.requests: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def is_away(self) -> bool:
        """Whether it is known not to answer."""
        return self._since is not None

    def error(self) -> UnavailableError:
        """Returns the error of a bucket that is away, or has refused something."""
        since = self._since
        received = "a refusal, which is in the server's log"
        if since is not None:
            received = f"nothing for {time.monotonic() - since:.0f} s"
        text = (
            f"Expected {self._shown}, the server's --store, to answer. Received {received}: layers in memory and names "
            "that were seen are served meanwhile, and nothing is stored or moved, unless it was under way. Retry."
        )
        return UnavailableError(text)

    @contextmanager
    def asking(self, operation: str) -> Iterator[None]:
        """Counts what is asked in the block, and notices that nobody answers: UnavailableError."""
        if self.is_away:
            raise self.error()
        began, result = time.monotonic(), "failed"
        try:
            yield
            result = "answered"
            self._refused.discard(operation)
        except (NotModifiedError, GeneratorExit):
            result = "answered"
            raise
        except ConvserveError:
            raise
        except Exception as error:
            may_be_refusal = operation in _WRITES or time.monotonic() - began < _REFUSAL_S
            if may_be_refusal and self._answers():
                self._report_refusal(operation, error)
            else:
                self._went_away(error)
            raise self.error() from None
        finally:
            with self._lock:
                self.requests[operation, result] += 1
                self.seconds[operation] += time.monotonic() - began

    def _answers(self) -> bool:
        with suppress(Exception):
            self._probe()
            return True
        return False

    def _report_refusal(self, operation: str, error: Exception) -> None:
        """Says once, until it is done again, that something is refused."""
        with self._lock:
            is_known = operation in self._refused
            self._refused.add(operation)
        if not is_known:
            log.error("%s refuses %s: %s", self._shown, operation, text_of(error))

    def _went_away(self, error: Exception) -> None:
        with self._lock:
            if self._since is not None:
                return
            self._since = time.monotonic()
        try:
            threading.Thread(target=self._watch, name="bucket", daemon=True).start()
        except RuntimeError:  # the system starts none: whoever asks next finds out
            self._since = None
        # Last, as a log that takes no more holds up this thread alone then.
        log.error("%s is away: layers in memory and names that were seen are served: %s", self._shown, text_of(error))

    def _watch(self) -> None:
        """Asks until somebody answers."""
        while not self._answers():
            time.sleep(_PROBE_S)
        with self._lock:
            away_s = time.monotonic() - (self._since or 0)
            self._since = None
        log.warning("%s is back after %.1f s", self._shown, away_s)


def text_of(error: Exception) -> str:
    """Returns what an error says, in a line and without secrets: obstore adds how it came to be in many."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())
    text = re.sub(r"<(?:\?xml|Error).*?<Message>(.*?)</Message>.*", r"\1", text)
    text = re.sub(r"://[^\s/@]*@", "://", text)  # a user and a password, as the endpoint's address may have them
    return re.sub(r"(://[^\s?]*)\?[^\s\"'>]*", r"\1", text)[:500].rstrip(".: ")
