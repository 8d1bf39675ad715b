"""What a server may hold at once: the sizes that are derived, and the sums that are refused."""

import re

import pytest

from convserve_server.memory import budget
from convserve_server.memory.budget import call_threads, described, fitted, share_of_calls, upload_bytes
from convserve_server.settings import SettingsError, read

MIB, GIB = 2**20, 2**30
LARGEST = 2**31 - 1
SIZES = [GIB, 3 * GIB, 4 * GIB, 5 * GIB, 8 * GIB, 24 * GIB, 100 * GIB, 2**40]


@pytest.fixture
def container(monkeypatch):
    """Gives the process a container of so many bytes, or None of a machine with 24 GiB."""

    def given(size):
        monkeypatch.setattr(budget, "container_memory_bytes", lambda: size)
        monkeypatch.setattr(budget, "machine_memory_bytes", lambda: size or 24 * GIB)

    return given


def held(settings, memory):
    """Returns what the settings allow together, added up anew."""
    kinds = settings.shared_memory * (1 + settings.open_inference)
    calls = settings.max_admitted_bytes or memory // 3
    return (
        sum(call_threads(settings)) * settings.max_message_bytes
        + calls
        + calls // 16
        + settings.layer_memory_bytes
        + upload_bytes(settings)
        + kinds * settings.shared_memory_bytes
    )


@pytest.mark.parametrize("shared", ["false", "true"])
@pytest.mark.parametrize("memory", [size for size in SIZES if size >= 4 * GIB])
def test_by_default_all_that_callers_can_take_fits_the_container(container, memory, shared):
    container(memory)
    settings = fitted(read({"shared_memory": shared}))
    assert held(settings, memory) <= memory - 768 * MIB
    assert settings.max_message_bytes >= 4 * MIB
    assert settings.max_message_bytes == LARGEST or settings.max_message_bytes % MIB == 0
    assert settings.layer_memory_bytes == min(4 * GIB, memory // 8)


def test_a_server_of_few_threads_fits_a_small_container_too(container):
    container(2.75 * GIB)
    settings = fitted(read({"handler_threads": "8", "max_waiting_calls": "16"}))
    assert held(settings, 2.75 * GIB) <= 2 * GIB


@pytest.mark.parametrize(("memory", "threads"), [(8 * GIB, (16, 30)), (24 * GIB, (64, 128)), (None, (64, 128))])
def test_a_small_container_has_fewer_threads_so_that_a_tensor_fits_a_message(container, memory, threads, monkeypatch):
    container(memory)
    settings = fitted(read({}))
    assert (settings.handler_threads, settings.max_waiting_calls) == threads
    assert settings.max_message_bytes > 4 * 600 * 600 * 3 * 4 + 2**16
    monkeypatch.setenv("CONVSERVE_MAX_WAITING_CALLS", "128")
    given = fitted(read({"handler_threads": "64"}))
    assert (given.handler_threads, given.max_waiting_calls) == (64, 128)


@pytest.mark.parametrize("shared", ["false", "true"])
@pytest.mark.parametrize("memory", SIZES)
def test_a_server_without_settings_starts_in_any_container_and_computes_what_it_did(container, memory, shared):
    container(memory)
    settings = fitted(read({"shared_memory": shared}))
    text, fits = described(settings)
    assert fits == (held(settings, memory) + 768 * MIB <= memory)
    assert text.startswith(
        f"at most {(held(settings, memory) + 768 * MIB) / GIB:.2f} GiB of the container's {memory / GIB:.2f}"
    )
    assert settings.max_admitted_bytes == 0, "a third, once the engine is there"
    assert share_of_calls(memory) == memory // 3


@pytest.mark.parametrize("flags", [{}, {"shared_memory": "true"}, {"max_message_bytes": "64MiB"}])
def test_a_machine_without_a_containers_limit_keeps_what_it_had(container, flags):
    container(None)
    settings = fitted(read(flags))
    assert settings.max_message_bytes == (64 * MIB if "max_message_bytes" in flags else LARGEST)
    assert (settings.layer_memory_bytes, settings.shared_memory_bytes) == (3 * GIB, 8 * GIB)
    assert upload_bytes(settings) == settings.max_call_bytes
    assert described(settings) == ("", True)


@pytest.mark.parametrize(
    ("memory", "flags", "named"),
    [
        (4 * GIB, {"max_message_bytes": "64MiB"}, "8.88 GiB  messages, 142 .*--max-message-bytes, 64 MiB"),
        (4 * GIB, {"layer_memory_bytes": "3GiB"}, "3.00 GiB  stored layers: --layer-memory-bytes"),
        (24 * GIB, {"max_admitted_bytes": "24GiB"}, "25.50 GiB  calls in flight: --max-admitted-bytes"),
        (24 * GIB, {"handler_threads": "4000"}, "messages, 8258 .*--max-message-bytes, 4 MiB"),
        (8 * GIB, {"handler_threads": "1000"}, "messages, 2062 .*--max-message-bytes, 4 MiB"),
        (8 * GIB, {"shared_memory": "true", "shared_memory_bytes": "3GiB"}, r"6.00 GiB  shared memory: 2 x"),
        (4 * GIB, {"device": "gpu:0,gpu:1", "layer_memory_bytes": "2GiB"}, "2.00 GiB  TensorFlow"),
        (2**41, {"max_message_bytes": "2147483647"}, None),
        (2**40, {"max_message_bytes": "2147483647"}, "messages, 386"),
    ],
)
def test_settings_that_exceed_the_container_are_refused_with_the_sum(container, memory, flags, named):
    container(memory)
    if named is None:
        fitted(read(flags))
        return
    with pytest.raises(SettingsError) as caught:
        fitted(read(flags))
    first, *parts, last = str(caught.value).splitlines()
    expected, received = re.search(r"container's (\S+) GiB of memory\. Received (\S+) GiB:$", first).groups()
    assert float(expected) == memory / GIB < float(received)
    assert sum(float(re.match(r" *(\S+) GiB  ", line)[1]) for line in parts) == pytest.approx(float(received), abs=0.05)
    assert re.search(named, "\n".join(parts))
    assert last.startswith("Lower one of these settings")


@pytest.mark.parametrize("memory", [GIB, 3 * GIB])
@pytest.mark.parametrize("flags", [{"layer_memory_bytes": "16MiB"}, {"max_admitted_bytes": "100MiB"}, {"drain_s": "5"}])
def test_settings_that_ask_for_less_than_the_defaults_are_never_refused(container, memory, flags):
    container(memory)
    fitted(read({"shared_memory": "true", **flags}))


def test_a_size_that_is_given_leaves_less_to_messages(container):
    container(24 * GIB)
    by_default, given = (fitted(read(flags)) for flags in ({}, {"layer_memory_bytes": "5GiB"}))
    assert given.layer_memory_bytes == 5 * GIB
    assert 4 * MIB <= given.max_message_bytes < by_default.max_message_bytes


def test_fewer_threads_leave_more_to_each_message(container):
    container(24 * GIB)
    messages = [
        fitted(read({"handler_threads": each, "max_waiting_calls": each})).max_message_bytes
        for each in ("64", "16", "4")
    ]
    assert messages == sorted(set(messages))
