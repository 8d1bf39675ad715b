"""What computes calls, started as the settings say: the engine, and what admits and schedules before it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TypeVar

from convserve_server.engine_api import Engine
from convserve_server.memory.budget import CONCURRENT_CALLS, share_of_calls
from convserve_server.memory.machine import is_limited, machine_memory_bytes, machine_processors
from convserve_server.memory.malloc import configure_malloc
from convserve_server.scheduling.admission import Admission, Limits
from convserve_server.scheduling.batcher import Batching
from convserve_server.scheduling.scheduler import Scheduler
from convserve_server.settings import LARGEST_MESSAGE_BYTES, Settings
from convserve_server.warm_up import check_devices, flops_per_s

log = logging.getLogger("convserve")

T = TypeVar("T")

_MAX_KEPT_BYTES = 2**28  # free memory of the C library's, which gRPC and Python take what they send and receive from
# Where the process has a limit of its own. On several threads Eigen maps buffers for a whole convolution, many times as
# large as its input, and raises what ends the process if it gets none.
_EIGENS_THREADS = 1
# By kind of device, where the settings leave it open.
_MAX_CALL_FLOPS = {"cpu": 10**13, "gpu": 10**15}
_MAX_BATCH_BYTES = {"cpu": 2**20, "gpu": 2**22}


def started_engine(settings: Settings, load_engine: Callable[..., Engine]) -> Engine:
    """Returns the engine, once it has computed a known result; `load_engine` as `engine.startup.load_engine`."""
    if settings.keep_memory:
        configure_malloc(min(_MAX_KEPT_BYTES, machine_memory_bytes() // 16))
    processors = machine_processors()
    threads = processors if processors < (os.cpu_count() or 1) else 0  # TensorFlow does not know of quotas
    engine = load_engine(
        settings.device,
        settings.tf32,
        intra_op_threads=settings.intra_op_threads or (_EIGENS_THREADS if is_limited() else threads),
        inter_op_threads=settings.inter_op_threads or threads,
        keep_memory=settings.keep_memory,
        verbose=settings.log_level == "debug",
    )
    check_devices(engine)
    return engine


def fitted_to(engine: Engine, settings: Settings) -> Settings:
    """Returns settings whose limits that depend on the device are filled in."""
    kind = engine.devices[0].kind
    limits = {
        "max_call_flops": settings.max_call_flops or _MAX_CALL_FLOPS[kind],
        "max_admitted_bytes": _max_admitted_bytes(settings, engine.onednn),
        "concurrent_calls": settings.concurrent_calls or CONCURRENT_CALLS[kind],
        "max_batch_bytes": min(settings.max_batch_bytes or _MAX_BATCH_BYTES[kind], settings.max_call_bytes),
    }
    return settings.model_copy(update=limits)


def admission_of(settings: Settings, engine: Engine, max_answer_bytes: int = LARGEST_MESSAGE_BYTES) -> Admission:
    """Returns what plans and admits calls, within the limits of settings that `fitted_to` returned."""
    limits, devices = _named(Limits, settings, max_answer_bytes=max_answer_bytes), len(engine.devices)
    concurrent = devices, devices * settings.concurrent_calls
    return Admission(limits, concurrent, settings.max_batch_bytes, flops_per_s(engine))


def scheduler_of(settings: Settings, engine: Engine) -> Scheduler:
    """Returns what computes admitted calls, together or in parts where need be, by settings of `fitted_to`."""
    return Scheduler(engine, _named(Batching, settings))


def _named(kind: type[T], settings: Settings, **changes: int) -> T:
    """Returns a dataclass whose fields are settings of the same names, but for some changes."""
    names = kind.__dataclass_fields__.keys() - changes.keys()  # type: ignore[attr-defined]
    return kind(**{name: getattr(settings, name) for name in names}, **changes)


def _max_admitted_bytes(settings: Settings, onednn: bool) -> int:
    """Returns what calls may need together, and no more than there is where want of memory would end the process."""
    memory_bytes, wanted = machine_memory_bytes(), settings.max_admitted_bytes
    third = share_of_calls(memory_bytes)
    # Where TensorFlow's allocator, which has three quarters, has none left, oneDNN's operations write all the same.
    most = third if is_limited() else memory_bytes // 2 if onednn else wanted
    if wanted <= most:
        return wanted or third
    why = "ulimit -v or -d leaves this process" if is_limited() else "for oneDNN's kernels it is half of"
    log.warning("--max-admitted-bytes is %d, as %s %d", most, why, memory_bytes)
    return most
