"""The names of Services for the pods of a node without CoreDNS: of those that have no address of their own."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

_DOMAIN = "svc.cluster.local"
_TTL_S = 1
_SILENT = DNSLogger(logf=lambda _line: None)


class Names(BaseResolver):  # type: ignore[misc]
    """Answers at an address, port 53, until the end of the block."""

    def __init__(self, address: str, api: str, token: str, certificate: Path) -> None:
        """Takes the address, where the API server is, what it takes as proof of who asks, and its certificate."""
        self._address, self._api = address, api
        self._headers = {"Authorization": f"Bearer {token}"}
        self._trusted = ssl.create_default_context(cafile=certificate)

    def __enter__(self) -> Self:
        self._servers = [
            DNSServer(self, address=self._address, port=53, tcp=tcp, logger=_SILENT) for tcp in (False, True)
        ]
        for server in self._servers:
            server.start_thread()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.stop()

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:  # noqa: ARG002
        """Answers one question: with the addresses of a Service's ready pods."""
        reply, name = request.reply(), request.q.qname
        labels = str(name).rstrip(".").lower().split(".")
        addresses = self._addresses(*labels[:2]) if len(labels) == 5 and ".".join(labels[2:]) == _DOMAIN else None
        if addresses is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            for address in addresses:
                reply.add_answer(RR(name, QTYPE.A, rdata=A(address), ttl=_TTL_S))
        return reply

    def _addresses(self, service: str, namespace: str) -> list[str] | None:
        url = f"{self._api}/api/v1/namespaces/{namespace}/endpoints/{service}"
        request = urllib.request.Request(url, headers=self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, context=self._trusted) as answer:  # noqa: S310
                found = json.load(answer)
        except urllib.error.HTTPError:
            return None
        return [each["ip"] for subset in found.get("subsets", ()) for each in subset.get("addresses", ())]
