"""Whose limit counts: the machine's, a container's, a systemd service's."""

import os

import pytest

from convserve.files import cgroups as cgroup_places
from convserve_server.memory.machine import machine_memory_bytes, machine_processors


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
def test_the_least_limit_counts(cgroups, own, files, expected):
    unlimited = machine_memory_bytes()
    cgroups(own, files)
    assert machine_memory_bytes() == (expected or unlimited)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # a container
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 7),
        ("0::/\n", {"cpu.max": "900000 100000\n"}, 7),
        ("0::/a.slice/b.service\n", {"a.slice/cpu.max": "30000 10000", "a.slice/b.service/cpu.max": "max 100000"}, 3),
        ("4:cpu,cpuacct:/c\n", {"cpu/c/cpu.cfs_quota_us": "250000\n", "cpu/c/cpu.cfs_period_us": "50000\n"}, 5),
        ("4:cpu,cpuacct:/c\n", {"cpu/c/cpu.cfs_quota_us": "-1\n", "cpu/c/cpu.cfs_period_us": "100000\n"}, 7),
        ("4:memory:/c\n", {"cpu/c/cpu.cfs_quota_us": "100000\n", "cpu/c/cpu.cfs_period_us": "100000\n"}, 7),
        ("", {}, 7),
    ],
)
def test_a_quota_counts_as_fewer_processors(cgroups, monkeypatch, own, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    cgroups(own, files)
    assert machine_processors() == expected


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Gives this process other cgroups, with files of these contents."""

    def given(own, files):
        monkeypatch.setattr(cgroup_places, "_OWN_CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(cgroup_places, "_CGROUPS", tmp_path)
        (tmp_path / "cgroup").write_text(own)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)

    return given
