"""A server for the page alone: its process ends with the page's, however that ends."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections import deque

from convserve._rpc.channel import default_target
from convserve.errors import MissingDependencyError, UnavailableError

_LAST_LINES = 20


class OwnServer:
    """A convserve server that lives as long as the page, also where that is killed."""

    def __init__(self) -> None:
        """Starts one on a free port; raises MissingDependencyError without the server extra."""
        if any(importlib.util.find_spec(name) is None for name in ("convserve_server", "tensorflow", "keras")):
            text = f"No server answers at {default_target()}, and none can be started here: pip install "
            raise MissingDependencyError(f"{text}'convserve[server]', or name a server with --target.")
        command = [sys.executable, "-m", __name__, "serve", "--listen", "127.0.0.1:0"]
        # Away from the terminal, whose Ctrl-C is for the page: it stops the server afterwards.
        self._process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def address(self) -> str:
        """Returns where it listens, once it is ready; raises UnavailableError if it ends before."""
        assert self._process.stdout is not None  # noqa: S101 (it is a pipe)
        address, said = "", []
        for line in self._process.stdout:
            said.append(line.rstrip())
            if line.startswith("listening on "):
                address = line.split()[-1]
            if line.startswith("ready"):
                # What it logs later must not fill the pipe.
                threading.Thread(target=deque, args=(self._process.stdout, 0), daemon=True).start()
                return address
        text = "\n".join(said[-_LAST_LINES:])
        raise UnavailableError(f"the server ended with status {self._process.wait()} before it was ready:\n{text}")

    def stop(self) -> None:
        """Asks it to end."""
        self._process.terminate()

    def close(self) -> None:
        """Ends it, and waits for that."""
        self.stop()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end_with_parent() -> None:
    """Ends this process when the other end of its stdin is closed: the page's process holds it, and says nothing."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from convserve.cli import main

    sys.exit(main())
