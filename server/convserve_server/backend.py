"""The parts of a server with which the services answer calls."""

from __future__ import annotations

from typing import NamedTuple

from convserve_server.engine_api import Engine
from convserve_server.layer_store.registry import LayerRegistry
from convserve_server.layer_store.store import LayerStore
from convserve_server.scheduling.admission import Admission
from convserve_server.scheduling.scheduler import Scheduler


class Backend(NamedTuple):
    """The parts of a server that is ready."""

    engine: Engine
    admission: Admission
    scheduler: Scheduler
    store: LayerStore
    registry: LayerRegistry
