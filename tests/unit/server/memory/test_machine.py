"""Whose limit counts: the machine's, a container's, a systemd service's."""

import pytest

from convserve_server.memory import machine
from convserve_server.memory.machine import machine_memory_bytes


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "9000000"}, 9_000_000),  # a container
        ("0::/system.slice/convserve.service\n", {"system.slice/convserve.service/memory.max": "8000000"}, 8_000_000),
        (
            "0::/a.slice/b.service\n",
            {"a.slice/memory.max": "7000000", "a.slice/b.service/memory.max": "max"},
            7_000_000,
        ),
        ("7:cpu:/x\n4:memory:/c\n0::/\n", {"memory/c/memory.limit_in_bytes": "6000000"}, 6_000_000),
        ("4:cpu,memory:/hidden\n", {"memory/memory.limit_in_bytes": "5000000"}, 5_000_000),
        ("4:cpu:/c\n", {"memory/c/memory.limit_in_bytes": "1"}, None),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("", {}, None),
    ],
)
def test_the_least_limit_counts(tmp_path, monkeypatch, own, files, expected):
    unlimited = machine_memory_bytes()
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    (tmp_path / "cgroup").write_text(own)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert machine_memory_bytes() == (expected or unlimited)
