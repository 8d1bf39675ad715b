"""moto's server, which speaks S3, in an environment of its own, and a proxy before it that can be away or silent."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.processes import ended_afterwards
from tests.support.repository import ROOT
from tests.support.servers.counting_proxy import CountingProxy

_ENVIRONMENT = ROOT / ".venv-moto"
_MOTO = "moto[server]==5.2.5"


class BucketProxy(CountingProxy):
    """Stands before the bucket.

    Attributes:
        is_away: Whether every connection is cut.
        is_silent: Whether nothing is answered.
    """

    def __init__(self, server: str) -> None:
        self.is_away = self.is_silent = False
        super().__init__(server)

    def _forward(self, data: bytes, source: socket.socket, target: socket.socket) -> bool:
        while self.is_silent:
            time.sleep(0.01)
        return not self.is_away and super()._forward(data, source, target)


@contextmanager
def bucket_server(bucket: str = "convserve-trial") -> Iterator[tuple[BucketProxy, dict[str, str]]]:
    """Starts it with an empty bucket; yields the proxy, and the variables with which servers find the bucket."""
    program = _installed()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "-H", "127.0.0.1", "-p", str(port)]
    with ended_afterwards(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        _make(f"http://127.0.0.1:{port}/{bucket}")
        proxy = BucketProxy(f"127.0.0.1:{port}")
        try:
            yield (
                proxy,
                {
                    "AWS_ENDPOINT_URL": f"http://{proxy.target}",
                    "AWS_ALLOW_HTTP": "true",
                    "AWS_REGION": "us-east-1",
                    "AWS_ACCESS_KEY_ID": "key-of-the-trial",
                    "AWS_SECRET_ACCESS_KEY": "secret-of-the-trial",
                },
            )
        finally:
            proxy.is_silent = False
            proxy.close()


def _installed() -> Path:
    """Returns moto's program, which it installs if it is not there: some fifty packages, once."""
    program = _ENVIRONMENT / "bin/moto_server"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", _ENVIRONMENT], check=True)
        pip = [_ENVIRONMENT / "bin/pip", "install", "--quiet", "--disable-pip-version-check", _MOTO]
        subprocess.run(pip, check=True)
    return program


def _make(url: str) -> None:
    while True:
        with suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30)  # noqa: S310
            return
        time.sleep(0.05)
