"""Who may import whom: a row per package, read from the syntax trees, and proved in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.support.repository import modules

PROTOBUF, GRPC, NUMPY = {"google"}, {"grpc", "grpc_status", "google"}, {"numpy"}
TENSORFLOW = {"tensorflow", "keras"}

# Each package may import the packages above it, and of other distributions those in its row.
CLIENT: dict[str, set[str]] = {
    "convserve._version": set(),
    "convserve._stop_signals": set(),
    "convserve.v1": PROTOBUF,
    "convserve.errors": {"grpc"},  # when an error's code is asked for
    "convserve._keras_object": PROTOBUF,
    "convserve.constraints": set(),
    "convserve.initializers": set(),
    "convserve.regularizers": set(),
    "convserve.activations": set(),
    "convserve.tensors": NUMPY | PROTOBUF | {"ml_dtypes"},
    "convserve.display": NUMPY | {"matplotlib", "IPython"},
    "convserve.layers": NUMPY | TENSORFLOW,
    "convserve.files": NUMPY | PROTOBUF | {"PIL", "safetensors"},
    "convserve.protocol": NUMPY | GRPC | {"typing_extensions"},  # for type checkers alone
    "convserve.plot": NUMPY,
    "convserve.models": NUMPY,
    "convserve.importing": NUMPY | PROTOBUF | {"h5py", "onnx"},
    "convserve._rpc": NUMPY | GRPC,
    "convserve._sync": NUMPY | GRPC,
    "convserve._async": NUMPY | GRPC,
    "convserve": set(),
    "convserve.ray": NUMPY,  # and no Ray: it is a class of plain arrays
    "convserve.batch": NUMPY,
    "convserve.bench": NUMPY | GRPC | {"matplotlib", "tensorflow"},
    "convserve.keras": NUMPY | TENSORFLOW,
    "convserve.cli": NUMPY | GRPC | {"click", "prometheus_client", "rich"},
    "convserve.play": NUMPY | {"click", "marimo", "matplotlib", "PIL", "starlette", "uvicorn"},
    "convserve.__main__": set(),
}
SHARED = set(list(CLIENT)[: list(CLIENT).index("convserve.plot")]) - {"convserve._keras_object", "convserve.display"}
"""What the server may import of the client's distribution: what both ends share, and never a client."""
SERVER: dict[str, set[str]] = {
    "convserve_server.settings": {"pydantic", "pydantic_core", "pydantic_settings"},
    "convserve_server.addresses": set(),
    "convserve_server.engine_api": set(),
    "convserve_server.memory": NUMPY,
    "convserve_server.health": GRPC | {"grpc_health"},
    "convserve_server.engine": NUMPY | TENSORFLOW,
    "convserve_server.layer_store": NUMPY | PROTOBUF | {"obstore", "safetensors"},
    "convserve_server.tiling": NUMPY,
    "convserve_server.scheduling": set(),
    "convserve_server.backend": set(),
    "convserve_server.warm_up": NUMPY,
    "convserve_server.local": set(),
    "convserve_server.auth": {"grpc"},
    "convserve_server.observability": GRPC | {"opentelemetry", "prometheus_client", "pythonjsonlogger"},
    "convserve_server.transport": GRPC | {"grpc_channelz"},
    "convserve_server.services": NUMPY | GRPC,
    "convserve_server.open_inference": NUMPY | GRPC,
    "convserve_server.reflection": GRPC | {"grpc_reflection"},
    "convserve_server.shutdown": {"grpc", "grpc_channelz"},
    "convserve_server.app": GRPC | {"grpc_channelz", "grpc_health"},
    "convserve_server.command": {"click"},
}


@cache
def imports(module: str) -> frozenset[str]:
    """Returns the dotted names that a module imports, wherever it does; modules of ours by their own names."""
    names = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in modules() else str(node.module))
    return frozenset(name for name in names if name.split(".")[0] not in sys.stdlib_module_names)


def package(name: str) -> str:
    """Returns the package of a module that has a row; convserve and convserve_server hold single modules too."""
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("name", [*CLIENT, *SERVER])
def test_a_package_imports_those_above_it_alone(name: str) -> None:
    rows = CLIENT if name in CLIENT else SERVER
    above = list(rows)[: list(rows).index(name)]
    allowed = {*above, name, *rows[name], *(SHARED if rows is SERVER else ())}
    for module in modules():
        if package(module) == name:
            used = {package(each) if each.startswith("convserve") else each.split(".")[0] for each in imports(module)}
            assert used <= allowed, module


def test_every_module_has_a_row() -> None:
    assert {package(module) for module in modules()} - {"convserve_server"} == {*CLIENT, *SERVER} - {"convserve.v1"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    ours = modules().keys() - {"convserve"}
    TopologicalSorter({module: imports(module) & ours - {module} for module in ours}).prepare()  # raises CycleError


def test_what_is_late_or_heavy_is_known_in_one_place() -> None:
    def knowing(*distributions: str) -> set[str]:
        return {m for m in modules() if {name.split(".")[0] for name in imports(m)} & set(distributions)}

    assert knowing("h5py") == {"convserve.importing.hdf5_program"}  # libhdf5 gets a process of its own
    assert {m for m in knowing("onnx") if not m.startswith("convserve.importing.onnx_")} == set()
    assert knowing("prometheus_client") <= {
        "convserve.cli.output.server_metrics",
        "convserve_server.observability.metrics",
        "convserve_server.observability.metrics_endpoint",
        "convserve_server.observability.metrics_page",
    }
    assert knowing("marimo", "uvicorn") == {"convserve.play.app", "convserve.play.serving"}
    assert knowing("obstore") == {"convserve_server.layer_store.durable.bucket"}
    assert knowing("opentelemetry") == {"convserve_server.observability.tracing"}
    engine = {m for m in modules() if any(name.startswith("convserve_server.engine.") for name in imports(m))}
    assert {m for m in engine if package(m) != "convserve_server.engine"} == {
        "convserve_server.app",
        "convserve_server.local.engine",
    }
    # Layer.to_keras imports the export when it is called.
    client = {m for m in knowing(*TENSORFLOW) if m.startswith("convserve.") and package(m) != "convserve.keras"}
    assert client == {"convserve.bench.in_process", "convserve.layers.keras_layers", "convserve.layers.on_cpu"}


def loaded(*imported: str) -> list[str]:
    code = f"import sys, {', '.join(imported)}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_what_schedules_stores_and_tiles_loads_no_grpc() -> None:
    names = loaded(*(m for m in modules() if package(m).split(".")[-1] in ("scheduling", "layer_store", "tiling")))
    assert not [name for name in names if name.split(".")[0] in {"grpc", *TENSORFLOW}]
    assert not {"convserve._sync", "convserve._async", "convserve._rpc"} & set(names)


def test_a_client_loads_no_optional_package() -> None:
    names = loaded("convserve._sync.client", "convserve._async.client")
    heavy = {*TENSORFLOW, "matplotlib", "PIL", "prometheus_client", "opentelemetry", "rich", "zarr", "IPython"}
    assert not heavy & set(names)
    assert not {"convserve.cli", "convserve.files.images", "convserve.plot", "convserve.bench"} & set(names)
