"""The parts of a server with which the services answer calls."""

from __future__ import annotations

from typing import NamedTuple

from convserve.errors import UnavailableError
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


class BackendGate:
    """Gives services the backend once the server is ready."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self.is_ready = False  # again while it stops, though calls are answered

    def open(self, backend: Backend) -> None:
        """Gives this backend from now on."""
        self._backend, self.is_ready = backend, True

    @property
    def backend(self) -> Backend:
        """The backend; raises an UnavailableError while the server starts."""
        if self._backend is None:
            raise UnavailableError("Expected a server that is ready. This one is still starting; retry.")
        return self._backend
