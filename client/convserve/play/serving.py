"""The page, served on loopback, and the client that it asks with."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convserve._rpc.channel import default_target
from convserve._sync.client import Client
from convserve.errors import InvalidRequestError, needing

PAGE = Path(__file__).with_name("app.py")
_HOST = "127.0.0.1"

_page: list[tuple[Client, str]] = []


def use(client: Client, target: str) -> None:
    """Has the page ask this client's server, which code to copy calls `target`."""
    _page[:] = [(client, target)]


def client_of_page() -> tuple[Client, str]:
    """Returns the page's client and target: those of `convserve play`, else of the server at $CONVSERVE_TARGET."""
    if not _page:
        target = default_target()
        use(Client(target), target)
    return _page[0]


class Page:
    """The page as a web server in a thread.

    Raises MissingDependencyError without marimo, or InvalidRequestError if the port is taken.
    """

    def __init__(self, file: Path, port: int) -> None:
        """Takes a port of this machine's, 0 for a free one, for the page of a file."""
        with needing("`convserve play` needs marimo and uvicorn: pip install 'convserve[play]'."):
            import marimo
            import uvicorn
        self._socket = socket.socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((_HOST, port))
        except OSError as error:
            self._socket.close()
            raise InvalidRequestError.for_field("port", "a free port", f"{port}: {error.strerror}") from error
        self.url = f"http://{_HOST}:{self._socket.getsockname()[1]}/"
        application: Any = marimo.create_asgi_app(quiet=True).with_app(path="/", root=str(file)).build()
        # Browsers keep their connections open: they are not waited for.
        config = uvicorn.Config(_for_own_pages(application), log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)

    def run(self, opened: Callable[[], None]) -> None:
        """Serves until `stop`; calls `opened` once the page can be asked for."""
        # In a thread, so that signals stay with the command.
        thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="convserve-play")
        thread.start()
        while thread.is_alive() and not self._server.started:
            thread.join(0.05)
        if thread.is_alive():
            opened()
        thread.join()
        self._socket.close()

    def stop(self) -> None:
        """Ends `run`."""
        self._server.should_exit = True


def _for_own_pages(application: Any) -> Any:
    """Returns the application for pages that come from itself: marimo answers those of any website in the browser."""
    from starlette.responses import PlainTextResponse

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            host = headers.get(b"host", "")
            is_own = headers.get(b"origin", f"http://{host}") == f"http://{host}"
            if host.partition(":")[0] not in (_HOST, "localhost") or not is_own:
                await PlainTextResponse("Only for pages of this address.", 403)(scope, receive, send)
                return
        await application(scope, receive, send)

    return guarded
