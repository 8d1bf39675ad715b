"""`convserve play`: every parameter of Conv2D as a control of a page in the browser."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

import click

from convserve._rpc.channel import TARGET_VARIABLE
from convserve.cli.command import OPTIONS, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.signals import graceful_stop
from convserve.errors import DeadlineExceededError, InvalidRequestError, UnavailableError
from convserve.files.reading import open_file
from convserve.play import serving
from convserve.play.own_server import OwnServer
from convserve.play.serving import PAGE, Page

_FIRST_LOOK_S = 2.0


@new_command("play")
@OPTIONS.option(
    "--port N", "the page's port on this machine (default: a free one)", type=click.IntRange(0, 65535), default=0
)
@OPTIONS.option("--browser/--no-browser", "open the page in the browser, or only print its address", default=True)
@OPTIONS.option("--page FILE.py", "a page of your own instead, such as --write made", default=str(PAGE))
@OPTIONS.option("--write FILE.py", "write the page as a file to change, and end")
@connection_options(timeout=60.0)
def command(port: int, browser: bool, page: str, write: str | None, connection: Connection) -> None:
    if write is not None:
        _write(Path(write))
        return
    try:
        open_file(page).close()
    except OSError as error:
        raise InvalidRequestError.for_field("page", "a file with a page", f"{page}: {error.strerror}") from error
    is_named = connection.target or os.environ.get(TARGET_VARIABLE)
    served = Page(Path(page), port)
    stopping, steps = threading.Event(), list[Callable[[], None]]([served.stop])

    def stop() -> None:
        stopping.set()
        for step in list(steps):
            step()

    def opened() -> None:
        print(f"convserve play: {served.url} (Ctrl-C ends it)", flush=True)
        if browser:
            webbrowser.open(served.url)

    with graceful_stop(stop, lambda _: None), contextlib.ExitStack() as stack:
        if not is_named and not _answers(connection):
            print(f"no server answers at {connection.address}: starting one (some seconds)", flush=True)
            server = stack.enter_context(contextlib.closing(OwnServer()))
            steps.append(server.stop)
            try:
                connection = dataclasses.replace(connection, target=server.address())
            except UnavailableError:
                if stopping.is_set():
                    return
                raise
        client = stack.enter_context(connection.client())
        client.info()  # a server that does not answer, or wants another token, is told of here
        serving.use(client, connection.address)
        served.run(opened)
    print("stopped", flush=True)
    os._exit(0)  # marimo's threads wait for browsers that have gone; of ours nothing is left


def _answers(connection: Connection) -> bool:
    with connection.client(shared_memory=False) as client:
        try:
            client.info(timeout=_FIRST_LOOK_S)
        except (UnavailableError, DeadlineExceededError):
            return False
    return True


def _write(file: Path) -> None:
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(PAGE.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequestError.for_field("write", "a new file", f"{file}: {error.strerror}") from error
    print(f"{file}: try `marimo edit {file}`, and `convserve play --page {file}`")
