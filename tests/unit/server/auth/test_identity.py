"""Which process a connection is from, also where its number is not known."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from convserve_server.auth import identity

CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"


def test_processes_of_other_containers_are_told_apart(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "socket")
        listener.bind(path)
        listener.listen()
        others = [subprocess.Popen([sys.executable, "-c", CONNECT, path]) for _ in range(2)]
        accepted = [listener.accept()[0] for _ in others]
        for _ in range(2):
            mine = socket.socket(socket.AF_UNIX)
            mine.connect(path)
            accepted += [listener.accept()[0], mine]
        first, second, own, _, again, _ = accepted
        assert {identity.peer_process(each) for each in (first, second)} == {f"process {each.pid}" for each in others}
        names = [identity.other_container(each, 7) for each in (first, second, own, again)]
        for each in accepted:
            each.close()
        assert [each.wait() for each in others] == [0, 0]
    assert names[2] == names[3]
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 9):
        assert len(set(names)) == 3
    with socket.socket() as none:  # as where Linux does not know
        assert identity.other_container(none, 7) == "user 7 of another container"
