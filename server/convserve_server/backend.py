"""The parts of a server with which the services answer calls."""

from __future__ import annotations

from typing import NamedTuple

from convserve_server.engine_api import Engine
from convserve_server.layer_store.store import LayerStore
from convserve_server.scheduling.admission import Admission
from convserve_server.scheduling.scheduler import Scheduler


class Backend(NamedTuple):
    """The parts of a server that is ready.

    Attributes:
        engine: Applies layers to tensors.
        admission: Plans and admits calls.
        scheduler: Computes admitted calls.
        store: Holds the layers.
    """

    engine: Engine
    admission: Admission
    scheduler: Scheduler
    store: LayerStore
