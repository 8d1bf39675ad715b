"""Keeps room for new connections: where there are too many, those that are idle are closed.

gRPC refuses further connections once it has as many as it may have. That alone would let whoever opens enough of them,
and answers pings, keep everybody else out for ever. So gRPC may have some more than --max-connections (options.py), and
of those beyond it a thread closes the ones that carry no call, in this order:

1. those that have carried none, after a moment for the first;
2. those whose callers showed neither token nor certificate;
3. the others;

of each of these first the ones of whoever has most, be it a host or an identified caller, and those that are idle for
longest.

gRPC shows Python no connections, so the thread finds them among the process' descriptors. It shuts the socket down,
which gRPC takes for the peer's doing; the descriptor stays gRPC's own.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import os
import socket
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

from convserve.protocol.addresses import unix_path
from convserve_server.auth.identity import Identity, is_local, peer_process
from convserve_server.memory.descriptors import open_descriptors

log = logging.getLogger("convserve")

_PAUSE_S = 0.1
_NEARLY_FULL, _LOOK_EVERY_S = 0.75, 1.0  # so that it is known how long connections have been there
_GRACE_S = 3.0  # for a connection's first call
_LOG_EVERY_S = 60.0


def with_spare(max_connections: int) -> int:
    """Returns how many connections gRPC may have, with some for those that come before others are closed."""
    return max_connections + max(8, math.ceil(max_connections / 8))


@dataclass(slots=True)
class _Use:
    """What calls made of a connection."""

    in_flight: set[object] = field(default_factory=set)
    last: float = 0.0
    caller: str = ""  # who showed a token or certificate


class _Connection(NamedTuple):
    serial: int  # of the system's, which gives later ones higher numbers on the whole
    descriptor: int
    peer: str  # as gRPC names it; for a Unix socket the process at the other end
    host: str


class Connections:
    """The connections of a server. Its methods may be called from any thread."""

    def __init__(self, max_connections: int, with_spare: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Knows of none yet. gRPC may have so many `with_spare`, fewer where descriptors are few."""
        self._max, self._clock = min(max_connections, max(1, with_spare * 8 // 9)), clock
        self._lock = threading.Lock()
        self._used: OrderedDict[str, _Use] = OrderedDict()  # by peer, that of the latest call last
        self._seen: dict[str, float] = {}  # by peer: since when, of those without a call
        self._ports: set[int] = set()
        self._paths: set[str] = set()
        self._logged, self._closed = -_LOG_EVERY_S, 0
        self._looked, self._others = 0.0, 0  # when connections were counted, and how many other descriptors there were

    def began(self, peer: str, call: object) -> None:
        """Notes that a call on a connection began."""
        with self._lock:
            use = self._used.pop(peer, None) or _Use()
            self._used[peer] = use
            use.in_flight.add(call)
            use.last = self._clock()
            for _ in range(2 if len(self._used) > 2 * self._max else 0):  # two, so that there are soon fewer
                oldest, use = self._used.popitem(last=False)
                if use.in_flight:  # else it has ended, or is as good as new
                    self._used[oldest] = use

    def identified(self, peer: str, identity: Identity) -> None:
        """Notes whose a call is that began."""
        use = self._used.get(peer)  # None if the call has ended since
        if use is not None and identity.proof:
            use.caller = identity.caller

    def ended(self, peer: str, call: object) -> None:
        """Notes that a call ended, or that a single one has its whole answer, which its caller may never fetch."""
        with self._lock:
            use = self._used.get(peer)
            if use is not None and call in use.in_flight:
                use.in_flight.remove(call)
                use.last = self._clock()

    def listens_at(self, address: str) -> None:
        """Says that gRPC has connections to an address, as `listen` returns it."""
        if path := unix_path(address):
            self._paths |= {path, address.removeprefix("unix:")}  # as it is, and as gRPC gives it to the system
        else:
            self._ports.add(int(address.rpartition(":")[2]))

    def watch(self, addresses: Iterable[str]) -> None:
        """Starts to keep room among the connections to these addresses."""
        for address in addresses:
            self.listens_at(address)
        threading.Thread(target=self._watch, name="connections", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(_PAUSE_S)
            try:
                self.look()
            except OSError:  # there is no descriptor for the look itself
                continue
            except Exception:
                log.exception("no connection could be closed to make room for others")

    def look(self) -> None:
        """Makes room if there may be too many connections, none of which is without a descriptor."""
        count, now = len(open_descriptors()), self._clock()
        is_time = now >= self._looked + _LOOK_EVERY_S
        if count - self._others > self._max or (is_time and count > _NEARLY_FULL * self._max):
            self._looked = now
            self._others = count - self.make_room()

    def make_room(self) -> int:
        """Closes idle connections, as many as there are too many; returns how many there were."""
        there = list(self._there())
        now = self._clock()
        with self._lock:
            uses = {each.peer: self._used.get(each.peer) for each in there}
            self._seen = {peer: self._seen.get(peer, now) for peer, use in uses.items() if use is None}
            owners = [(use.caller if (use := uses[each.peer]) else "") or each.host for each in there]
        new = sorted((self._seen[each.peer], each) for each in there if uses[each.peer] is None)
        # The latest ones, so that a flood of others leaves those who are about to call, and those who have called.
        may_call = {each.peer for first, each in new[-max(1, self._max // 4) :] if now < first + _GRACE_S}
        counts = Counter(owners)
        candidates: list[tuple[tuple[bool, bool, int, float], _Connection]] = []
        for each, owner in zip(there, owners, strict=True):
            use = uses[each.peer]
            if use is not None and use.in_flight:
                continue
            is_unix = each.peer.startswith("unix:")  # of which nobody knows whether they carry calls
            if is_unix and counts[owner] <= self._max // 2:
                continue
            last = self._seen[each.peer] if use is None else use.last
            is_used = use is not None or each.peer in may_call or is_unix
            is_identified = use is not None and bool(use.caller)
            candidates.append(((is_identified, is_used, -counts[owner], last), each))
        excess = len(there) - self._max
        if excess > 0:  # then of those without any use some more, for as many may come again at once
            unused = sum(not is_used for (_, is_used, *_), _ in candidates)
            excess = max(excess, min(unused, excess + self._max // 4))
        worst = [each for _, each in sorted(candidates)[: max(0, excess)]]
        closed = sum(self._at(each.descriptor, closed=each) == each for each in worst)
        self._report(closed, counts, now)
        return len(there)

    def _report(self, closed: int, counts: Counter[str], now: float) -> None:
        self._closed += closed
        if self._closed and now >= self._logged + _LOG_EVERY_S:
            host, count = counts.most_common(1)[0]
            text = "%d idle connections were closed to make room for others: --max-connections allows %d; %s has %d"
            log.warning(text, self._closed, self._max, host, count)
            self._logged, self._closed = now, 0

    def _there(self) -> Iterator[_Connection]:
        return filter(None, map(self._at, open_descriptors()))

    def _at(self, descriptor: int, *, closed: _Connection | None = None) -> _Connection | None:
        """Returns the connection at a descriptor, if there is one, which is shut down if it is the one to be closed."""
        with suppress(OSError), _socket(descriptor) as opened:
            found = self._connection(os.fstat(opened.fileno()).st_ino, descriptor, opened)
            if found is not None and found == closed:
                opened.shutdown(socket.SHUT_RDWR)
            return found
        return None

    def _connection(self, serial: int, descriptor: int, opened: socket.socket) -> _Connection | None:
        """Returns what a socket is; raises OSError if it is a listener."""
        if opened.family == socket.AF_UNIX and opened.getsockname() in self._paths:
            opened.getpeername()
            return _Connection(serial, descriptor, f"unix:{descriptor}", peer_process(opened))
        if opened.family not in (socket.AF_INET, socket.AF_INET6) or opened.getsockname()[1] not in self._ports:
            return None
        host, port, *_ = opened.getpeername()
        host = host.removeprefix("::ffff:")
        peer = f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"
        if is_local(peer):
            return _Connection(serial, descriptor, peer, "this machine")
        # Whoever has one address of IPv6 has a network of them.
        whose = str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False)) if ":" in host else host
        return _Connection(serial, descriptor, peer, whose)


@contextmanager
def _socket(descriptor: int) -> Iterator[socket.socket]:
    """Opens a socket of this process by another descriptor, which nobody closes meanwhile; OSError if it is none."""
    # Files are left alone: once any descriptor of one is closed, the process' locks on it end, such as the store's.
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    copy = os.dup(descriptor)
    try:
        opened = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with opened:
        yield opened
