"""What a server may hold at once, part by part, and whether its container has as much memory.

This is the one place where the parts are summed. A part that the settings leave open is derived from the memory.
"""

from __future__ import annotations

from typing import NamedTuple

from convserve_server.memory.machine import container_memory_bytes, machine_memory_bytes
from convserve_server.settings import LARGEST_MESSAGE_BYTES, LEAST_MESSAGE_BYTES, Settings, SettingsError, default

_MIB, _GIB = 2**20, 2**30
# The process with its threads, 256 MiB of layers whose weights it draws, and what the C library keeps. Measured when
# ready: 236 MB of its own and 348 MB of files on a CPU; CUDA's libraries are an estimate.
_PROCESS_BYTES = {False: 768 * _MIB, True: 2 * _GIB}
_MAX_LAYER_BYTES = 4 * _GIB
_MAX_SHARED_BYTES = 8 * _GIB
_MIN_RECEIVING = 64  # calls that wait for their messages: calls that are begun at once are without them for a moment
CONCURRENT_CALLS = {"cpu": 2, "gpu": 1}
"""Large calls at once on a device of a kind, where --concurrent-calls is 0. Two share a CPU's cores better than one."""
_SIZES = ("max_message_bytes", "max_call_bytes", "max_admitted_bytes", "layer_memory_bytes", "shared_memory_bytes")
_THREADS = ("handler_threads", "max_waiting_calls", "concurrent_calls")
# In a smaller container messages of fewer threads may be larger: a client of another language sends a tensor as one.
_FEW_THREADS = {"handler_threads": 16, "max_waiting_calls": 30}
_FEW_THREADS_BELOW = 24 * _GIB


class CallThreads(NamedTuple):
    """How many threads there may be for calls, of which each may hold a message."""

    handlers: int  # that answer
    receiving: int  # that wait for the messages of single calls
    streams: int
    admitted: int  # that wait to be computed, or are computed


class Part(NamedTuple):
    """Memory that a server may take for one thing."""

    size: int
    text: str


def call_threads(settings: Settings) -> CallThreads:
    """Returns the threads that callers can have (SECURITY.md)."""
    waiting, handlers = settings.max_waiting_calls, settings.handler_threads
    concurrent = settings.concurrent_calls or CONCURRENT_CALLS["gpu" if "gpu" in settings.device else "cpu"]
    computed = concurrent * len(settings.device.split(","))
    return CallThreads(handlers, max(_MIN_RECEIVING, handlers), waiting, waiting + computed)


def share_of_calls(memory_bytes: int) -> int:
    """Returns what calls in flight may take together by default."""
    return memory_bytes // 3


def upload_bytes(settings: Settings) -> int:
    """Returns what layers on their way may take together, of what `fitted` returned; one alone may take more."""
    return settings.max_call_bytes if container_memory_bytes() is None else settings.layer_memory_bytes // 2


def fitted(settings: Settings) -> Settings:
    """Returns settings whose open sizes are filled in: messages, layers in memory and shared memory; also threads.

    Raises SettingsError, with the sum, where settings make it exceed the container's memory.
    """
    container = container_memory_bytes()
    few = _FEW_THREADS if container is not None and container < _FEW_THREADS_BELOW else {}
    given = settings.model_fields_set
    settings = settings.model_copy(update={name: few[name] for name in few.keys() - given})
    effective = _filled(settings, container)
    if container is not None:
        by_default = settings.model_copy(update={name: default(name) for name in (*_SIZES, *_THREADS)} | few)
        parts = _parts(effective, container)
        if _sum(parts) > max(container, _sum(_parts(_filled(by_default, container), container))):
            raise SettingsError(_refusal(parts, container))
    return effective


def described(settings: Settings) -> tuple[str, bool]:
    """Returns the sum as a text, of settings that `fitted` returned, and whether it fits; "" without a container."""
    container = container_memory_bytes()
    if container is None:
        return "", True
    parts = _parts(settings, container)
    listed = " + ".join(f"{_gib(part.size)} {part.text}" for part in parts)
    return f"at most {_gib(_sum(parts))} of the container's {_gib(container)}: {listed}", _sum(parts) <= container


def _filled(settings: Settings, container: int | None) -> Settings:
    memory = machine_memory_bytes() if container is None else container
    kinds = _kinds_of_shared_memory(settings)
    layers = settings.layer_memory_bytes or min(_MAX_LAYER_BYTES, machine_memory_bytes() // 8)
    shared = settings.shared_memory_bytes
    if not shared:
        shared = _MAX_SHARED_BYTES if container is None else min(_MAX_SHARED_BYTES, memory // 8 // max(1, kinds))
    filled = settings.model_copy(update={"layer_memory_bytes": layers, "shared_memory_bytes": shared})
    message = settings.max_message_bytes
    if not message and container is None:
        message = LARGEST_MESSAGE_BYTES
    elif not message:
        others = _sum(_parts(filled, memory))  # without messages, whose size is 0 yet
        left = memory - others - memory // 16
        each = left // sum(call_threads(settings)) // _MIB * _MIB
        message = min(LARGEST_MESSAGE_BYTES, max(LEAST_MESSAGE_BYTES, each))
    return filled.model_copy(update={"max_message_bytes": message})


def _kinds_of_shared_memory(settings: Settings) -> int:
    """Returns how many kinds there are, each of which has a budget: that of convserve's clients, and the other one."""
    return settings.shared_memory * (1 + settings.open_inference)


def _parts(settings: Settings, memory: int) -> list[Part]:
    calls = settings.max_admitted_bytes or share_of_calls(memory)
    threads, kinds = sum(call_threads(settings)), _kinds_of_shared_memory(settings)
    uploads = settings.layer_memory_bytes // 2
    message = f"{settings.max_message_bytes / _MIB:g} MiB"
    parts = [
        Part(_PROCESS_BYTES["gpu" in settings.device], "TensorFlow and the process itself"),
        Part(
            threads * settings.max_message_bytes,
            f"messages, {threads} (by --handler-threads and --max-waiting-calls) of --max-message-bytes, {message}",
        ),
        Part(calls + calls // 16, "calls in flight: --max-admitted-bytes, and a sixteenth for small ones"),
        Part(settings.layer_memory_bytes, "stored layers: --layer-memory-bytes"),
        Part(uploads, "layers on their way: half of that"),
        Part(kinds * settings.shared_memory_bytes, f"shared memory: {kinds} x --shared-memory-bytes"),
    ]
    return [part for part in parts if part.size]


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"


def _sum(parts: list[Part]) -> int:
    return sum(part.size for part in parts)


def _refusal(parts: list[Part], container: int) -> str:
    expected = f"Expected settings that need at most the container's {_gib(container)} of memory."
    first = f"{expected} Received {_gib(_sum(parts))}:"
    lines = (f"{_gib(part.size):>12}  {part.text}" for part in parts)
    return "\n".join((first, *lines, "Lower one of these settings, or give the container more memory."))
