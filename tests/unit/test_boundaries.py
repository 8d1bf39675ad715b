"""Who may import whom: the table of the architecture, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import convserve

ROOT = Path(__file__).resolve().parents[2]
CLIENT, SERVER = ROOT / "client" / "convserve", ROOT / "server" / "convserve_server"
GRPC = {"grpc", "grpc_status", "google.rpc", "google.protobuf"}
STUBS = {"convserve.v1", "google.protobuf"}
TENSORFLOW = {"tensorflow", "keras"}

MODEL = {
    "keras_object", "initializers", "regularizers", "constraints", "activations", "arguments", "conv2d",
    "conv2d_message", "digest", "plan", "layer", "notebook",
}  # fmt: skip
"""The layer model: configuration, validation, shapes, weights."""
CODEC = {"tensor", "frame"}
PARTS = ("calls", "connection", "layer", "map", "servers", "tensors")
"""Of a client's shell."""


def ours(*names: str) -> set[str]:
    return {f"convserve.{name}" for name in names}


def theirs(*names: str) -> set[str]:
    return {f"convserve_server.open_inference.{name}" for name in names}


# The modules of the Open Inference Protocol: only its service knows gRPC.
OPEN_INFERENCE: dict[str, set[str]] = {
    "wire_names": {"google.protobuf"} | theirs("v2"),
    "wire": {"convserve"} | theirs("v2"),
    "datatypes": {"convserve"},
    "infer_tensors": {"numpy", "convserve"} | theirs("v2", "datatypes", "wire"),
    "layer_models": {"convserve", "convserve_server.layer_keeper"},
    "model_descriptions": {"google.protobuf", "convserve", "convserve_server.layer_keeper"}
    | theirs("v2", "datatypes", "layer_models"),
    "model_statistics": theirs("v2"),
    "stateless_layer": {"convserve"} | theirs("v2"),
    "system_memory": {"numpy", "convserve"} | theirs("infer_tensors"),
    "inference": {"convserve"}
    | {f"convserve_server.{name}" for name in ("aligned", "call_record", "caller", "computation", "convolver")}
    | theirs("v2", "datatypes", "infer_tensors", "layer_models", "model_descriptions", "model_statistics")
    | theirs("stateless_layer", "system_memory", "wire"),
    "infer_stream": {f"convserve_server.{name}" for name in ("caller", "items_under_way")} | theirs("wire"),
    "inference_service": {"grpc", "convserve"}
    | {f"convserve_server.{name}" for name in ("call_record", "callers", "convolver", "interceptors", "layer_keeper")}
    | {f"convserve_server.{name}" for name in ("caller", "direct_calls", "handler_threads", "items_under_way")}
    | {"convserve_server.silence"}
    | theirs(
        "v2", "infer_stream", "inference", "layer_models", "model_descriptions", "model_statistics", "system_memory"
    )
    | theirs("wire", "wire_names"),
}

# What a module may import besides the standard library, itself and (in the client) the version.
ALLOWED: dict[str, set[str]] = {
    "convserve.errors": {"grpc"} | STUBS,
    "convserve.status": GRPC | STUBS | ours("errors"),
    **{f"convserve.{name}": {"numpy", "ml_dtypes"} | STUBS | ours("errors", *CODEC) for name in CODEC},
    **{f"convserve.{name}": {"numpy"} | STUBS | ours("errors", *CODEC, *MODEL) for name in MODEL},
    "convserve.layer": {"numpy"} | STUBS | ours("errors", "keras_export", *CODEC, *MODEL),
    "convserve.result": STUBS | ours("errors", *CODEC, *MODEL),
    "convserve.stored": {"numpy"} | STUBS | ours("errors", *CODEC, *MODEL),
    "convserve.layer_messages": {"numpy"} | STUBS | ours("errors", "stored", *CODEC, *MODEL),
    "convserve.stream": {"numpy", "google.protobuf"}
    | STUBS
    | ours("_rpc", "errors", "result", "status", "stored", *CODEC, *MODEL),
    "convserve.shared_memory": {"numpy"} | STUBS | ours("errors", *CODEC),
    "convserve._sharing": {"grpc", "numpy", "google.protobuf"}
    | STUBS
    | ours("_channel", "_rpc", "shared_memory", "errors", "result", "stored", *CODEC, *MODEL),
    "convserve._channel": ours("_version", "errors"),
    "convserve.access": {"grpc"} | ours("_channel", "errors"),
    "convserve._rpc": STUBS | ours("errors", "result", "status", "stored", *CODEC, *MODEL),
    **{
        f"convserve._{kind}": {"grpc"}
        | STUBS
        | ours("_rpc", "_channel", "_forks", "access", *(f"_{kind}_{part}" for part in PARTS))
        | ours("layer_messages", "pipeline", "stored", "errors", "result", *CODEC, *MODEL)
        for kind in ("sync", "async")
    },
    "convserve._sync_connection": {"grpc"}
    | STUBS
    | ours("_channel", "_forks", "_rpc", "_sync_servers", "_sync_tensors", "access", "errors"),
    "convserve._forks": ours("errors"),
    "convserve._sync_calls": set(),
    "convserve.items": {"numpy"} | ours("_rpc", "errors", *CODEC),
    "convserve.pipeline": {"numpy"} | ours("_rpc", "errors", "items", *CODEC, *MODEL),
    **{
        f"convserve._{kind}_map": ours("_rpc", f"_{kind}", f"_{kind}_calls", "items", "pipeline", "errors", *CODEC)
        for kind in ("sync", "async")
    },
    **{
        f"convserve._{kind}_tensors": {"grpc", "numpy"}
        | STUBS
        | ours("_rpc", "_sharing", f"_{kind}_calls", "stream", "result", *CODEC)
        for kind in ("sync", "async")
    },
    **{
        f"convserve._{kind}_servers": {"grpc"} | STUBS | ours("_channel", "_rpc", "access", "layer_messages", "errors")
        for kind in ("sync", "async")
    },
    **{
        f"convserve._{kind}_layer": STUBS
        | ours("_rpc", f"_{kind}", "layer_messages", "stored", "errors", "result", *CODEC, *MODEL)
        for kind in ("sync", "async")
    },
    "convserve.amounts": set(),
    "convserve.notebook": ours("amounts", *CODEC, *MODEL),
    "convserve.pixels": {"numpy"} | ours("errors"),
    "convserve.panels": {"numpy", "matplotlib"} | ours("errors"),
    "convserve.feature_maps": {"numpy"} | ours("panels", "pixels"),
    "convserve.pictures": {"numpy", "PIL"} | ours("array_files", "errors", "feature_maps", "pixels"),
    "convserve.plot": {"numpy"} | ours("errors", "feature_maps", "panels", "pixels", "stored", *CODEC, *MODEL),
    "convserve.bench": set(),
    "convserve.bench.machine": ours("_version"),
    "convserve.bench.loops": set(),
    "convserve.bench.summary": {"numpy"} | ours("bench.loops"),
    "convserve.bench.workloads": {"numpy"} | ours("errors", *CODEC, *MODEL),
    "convserve.bench.correctness": {"numpy"} | ours("errors", *CODEC, *MODEL),
    "convserve.bench.in_process": {"tensorflow", "keras"} | ours("bench.workloads", *CODEC),
    "convserve.bench.echo": {"grpc", "convserve.v1"} | ours("frame", "status"),
    "convserve.bench.course": ours("bench", "_sync", "errors", "result", "tensor"),
    "convserve.bench.measurement": ours("bench", "_sync"),
    "convserve.bench.plot": {"matplotlib"} | ours("bench.course", "errors"),
    "convserve.input_files": {"numpy"} | ours("array_files", "errors", "pictures"),
    "convserve.batch": set(),
    "convserve.batch.inputs": ours("array_files", "errors", "input_files"),
    "convserve.batch.zarr_files": {"numpy"} | ours("errors", "tensor"),
    "convserve.batch.opened": {"numpy"}
    | ours("array_files", "batch.inputs", "batch.zarr_files", "errors", "input_files", "pictures", "tensor"),
    "convserve.batch.read_ahead": set(),
    "convserve.batch.outputs": {"numpy"} | ours("array_files", "batch.zarr_files", "errors", "tensor"),
    "convserve.batch.journal": ours("errors", "tensor"),
    "convserve.batch.tally": set(),
    "convserve.batch.pipeline": ours("_sync", "_sync_layer", "batch", "errors", "layer", "tensor"),
    "convserve.cli.batch_progress": {"rich"} | ours("batch.tally"),
    "convserve.cli.server_figures": {"prometheus_client"},
    "convserve.cli.top": {"rich"} | ours("amounts", "cli.server_figures", "cli.values", "errors"),
    "convserve.keras": {"keras", "tensorflow", "numpy"}
    | ours("_channel", "_rpc", "access", "keras_remote", "errors", *CODEC, *MODEL),
    "convserve.keras_remote": {"numpy"} | ours("_sync", "_sync_layer", "access", "stored", "errors", *CODEC, *MODEL),
    "convserve.importing.hdf5": {"numpy"} | ours("bfloat16", "errors", "importing.untrusted", "tensor"),
    # A program of its own: it starts in a fraction of the time that importing convserve takes.
    "convserve.importing.hdf5_program": {"h5py", "numpy"},
    "convserve_server.settings": set(),
    "convserve_server.aligned": {"numpy", "convserve"},
    "convserve_server.batcher": {"convserve"}
    | {f"convserve_server.{name}" for name in ("caller", "fair_line", "handler_threads")},
    "convserve_server.admission": {"convserve", "convserve_server.caller", "convserve_server.waiting_room"},
    "convserve_server.drawn_layers": {"convserve"},
    "convserve_server.convolver": {
        "convserve",
        *(f"convserve_server.{name}" for name in ("admission", "batcher", "caller", "drawn_layers", "waiting_room")),
    },
    "convserve_server.tiles": {"convserve"},
    "convserve_server.loss_sums": {"numpy", "convserve"},
    "convserve_server.memory_bounds": set(),
    "convserve_server.divided_engine": {"convserve"}
    | {f"convserve_server.{name}" for name in ("convolver", "division", "memory_bounds")},
    "convserve_server.division": {
        "numpy",
        "convserve",
        *(f"convserve_server.{name}" for name in ("aligned", "convolver", "loss_sums", "memory_bounds", "tiles")),
    },
    "convserve_server.warm_up": {
        "numpy",
        "convserve",
        *(f"convserve_server.{name}" for name in ("convolver", "layer_keeper", "settings")),
    },
    "convserve_server.layer_files": {"numpy", "google.protobuf", "safetensors", "convserve"}
    | {"convserve_server.layer_names"},
    "convserve_server.layer_names": set(),
    "convserve_server.layer_pins": set(),
    "convserve_server.store_refusals": {"convserve"},
    "convserve_server.stored_layer": {"convserve"},
    "convserve_server.store": {"convserve"}
    | {
        f"convserve_server.{name}"
        for name in ("layer_files", "layer_names", "layer_pins", "store_refusals", "stored_layer")
    },
    "convserve_server.layer_keeper": {"convserve"}
    | {f"convserve_server.{name}" for name in ("byte_budget", "convolver", "layer_names", "store", "stored_layer")},
    "convserve_server.byte_budget": {"convserve"},
    "convserve_server.silence": set(),
    "convserve_server.handler_threads": set(),
    "convserve_server.caller": set(),
    "convserve_server.fair_line": set(),
    "convserve_server.machine_memory": set(),
    "convserve_server.kept_memory": set(),
    "convserve_server.server_options": {"convserve", "convserve_server.settings"},
    "convserve_server.waiting_room": {"convserve", "convserve_server.caller", "convserve_server.fair_line"},
    "convserve_server.callers": {"convserve_server.caller"},
    "convserve_server.direct_call": {"grpc", "convserve_server.call_record"},
    "convserve_server.direct_calls": {"grpc", "convserve"}
    | {f"convserve_server.{name}" for name in ("call_record", "callers", "direct_call", "interceptors")}
    | {f"convserve_server.{name}" for name in ("observing_interceptor", "silence")},
    "convserve_server.tokens": {f"convserve_server.{name}" for name in ("callers", "settings")},
    "convserve_server.credentials": {"grpc", "convserve_server.settings"},
    "convserve_server.authentication": {"grpc", "convserve"}
    | {f"convserve_server.{name}" for name in ("call_record", "callers", "interceptors", "tokens")},
    "convserve_server.layer_references": {"convserve", "convserve_server.layer_keeper"},
    "convserve_server.shared_memory": {"numpy", "convserve"},
    "convserve_server.convolve_stream": {"numpy", "convserve"}
    | {f"convserve_server.{name}" for name in ("aligned", "caller", "items_under_way", "waiting_room")},
    "convserve_server.convolution_service": {
        "grpc",
        "numpy",
        "convserve",
        *(
            f"convserve_server.{name}"
            for name in (
                "call_record",
                "callers",
                "computation",
                "convolver",
                "convolve_stream",
                "direct_calls",
                "handler_threads",
                "interceptors",
                "items_under_way",
                "layer_keeper",
                "layer_references",
                "shared_memory",
                "silence",
            )
        ),
    },
    "convserve_server.layer_service": {
        "grpc",
        "numpy",
        "convserve",
        "convserve_server.layer_keeper",
    },
    "convserve_server.computation": {"convserve"}
    | {f"convserve_server.{name}" for name in ("call_record", "convolver")},
    "convserve_server.items_under_way": {"convserve_server.caller", "convserve_server.silence"},
    **{f"convserve_server.open_inference.{name}": allowed for name, allowed in OPEN_INFERENCE.items()},
    "convserve_server.interceptors": {
        "grpc",
        "google.protobuf",
        "convserve",
        *(f"convserve_server.{name}" for name in ("call_record", "callers", "silence")),
    },
    "convserve_server.call_record": {"convserve"},
    "convserve_server.observing_interceptor": {
        "grpc",
        *(f"convserve_server.{name}" for name in ("call_record", "callers")),
    },
    "convserve_server.metrics": {
        "prometheus_client",
        *(f"convserve_server.{name}" for name in ("call_record", "convolver", "layer_keeper")),
    },
    "convserve_server.request_log": {"convserve_server.call_record"},
    "convserve_server.stderr_log": {"pythonjsonlogger"},
    "convserve_server.tracing": {"grpc", "opentelemetry", "convserve", "convserve_server.call_record"},
    "convserve_server.command": {"convserve_server.settings", "convserve_server.app"},
}
# The client's modules for people who have Keras.
DROP_IN = ours("keras", "keras_remote", "keras_export")
# The one module beside them that computes in the caller's own process, to compare with.
IN_PROCESS = ours("bench.in_process")
# Everything in the server but these may not know TensorFlow.
ENGINE = "convserve_server.engine"


def modules(package: Path) -> dict[str, Path]:
    """Returns the hand-written modules of a package by dotted name."""
    found = {}
    for path in package.rglob("*.py"):
        if not {"v1", "v2"} & set(path.parts):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Returns the dotted names that a module imports, wherever it does; modules of a package by their own names."""
    found, roots = set(), (CLIENT.parent, SERVER.parent)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from convserve import frame` imports convserve.frame.
            found |= {
                f"{node.module}.{alias.name}"
                if any((parent / str(node.module).replace(".", "/") / f"{alias.name}.py").exists() for parent in roots)
                else str(node.module)
                for alias in node.names
            }
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_module_imports_only_what_it_may(module: str) -> None:
    path = (modules(CLIENT) | modules(SERVER))[module]
    strange = {name for name in imports(path) if name != module and not within(name, ALLOWED[module])}
    assert not strange


def test_client_never_imports_the_server_or_tensorflow() -> None:
    for module, path in modules(CLIENT).items():
        allowed = TENSORFLOW if module in DROP_IN | IN_PROCESS else set()
        strange = {name for name in imports(path) if within(name, {"convserve_server", *TENSORFLOW} - allowed)}
        assert not strange, module


def test_only_the_drop_in_itself_is_above_the_drop_in() -> None:
    for module, path in modules(CLIENT).items():
        if module not in DROP_IN:
            # Layer.to_keras imports the export when it is called.
            late = ours("keras_export") if module == "convserve.layer" else set()
            assert not imports(path) & (DROP_IN - late), module


def test_only_a_process_of_its_own_meets_libhdf5() -> None:
    everything = modules(CLIENT) | modules(SERVER)
    knowing = {m for m, path in everything.items() if any(within(n, {"h5py"}) for n in imports(path))}
    assert knowing == {"convserve.importing.hdf5_program"}


def test_matplotlib_is_known_where_it_draws_alone() -> None:
    knowing = {m for m, path in modules(CLIENT).items() if any(within(n, {"matplotlib"}) for n in imports(path))}
    assert knowing == {"convserve.panels", "convserve.bench.plot"}


def test_sync_and_async_never_import_each_other() -> None:
    assert "convserve._async" not in imports(CLIENT / "_sync.py")
    assert "convserve._sync" not in imports(CLIENT / "_async.py")


def test_only_the_engine_knows_tensorflow() -> None:
    knowing = {m for m, path in modules(SERVER).items() if any(within(n, TENSORFLOW) for n in imports(path))}
    assert knowing
    assert all(module.startswith(f"{ENGINE}.") for module in knowing), knowing


def test_only_the_composition_root_imports_the_engine() -> None:
    outside = {m: imports(path) for m, path in modules(SERVER).items() if not m.startswith(ENGINE)}
    assert {m for m, names in outside.items() if any(within(n, {ENGINE}) for n in names)} == {"convserve_server.app"}


def test_prometheus_and_opentelemetry_are_known_where_they_are_used_alone() -> None:
    knowing = {
        module: {name.split(".")[0] for name in imports(path)} & {"prometheus_client", "opentelemetry", "rich"}
        for module, path in (modules(CLIENT) | modules(SERVER)).items()
    }
    assert {module: names for module, names in knowing.items() if names} == {
        "convserve.cli.batch_progress": {"rich"},
        "convserve.cli.server_figures": {"prometheus_client"},
        "convserve.cli.top": {"rich"},
        "convserve_server.metrics": {"prometheus_client"},
        "convserve_server.tracing": {"opentelemetry"},
    }


def test_all_names_what_is_importable() -> None:
    public = {name for name in vars(convserve) if not name.startswith("_")}
    # Modules of the package appear as attributes once anything imports them; they are not offered by name.
    loaded = {name for name in public if f"convserve.{name}" in sys.modules}
    assert set(convserve.__all__) - {"__version__"} >= public - loaded
    assert all(hasattr(convserve, name) for name in convserve.__all__)
    assert convserve.__all__ == sorted(convserve.__all__)


def test_import_loads_no_optional_package() -> None:
    heavy = [
        "tensorflow",
        "keras",
        "matplotlib",
        "PIL",
        "convserve.cli",
        "convserve.pictures",
        "convserve.plot",
        "convserve.bench",
    ]
    heavy += ["prometheus_client", "opentelemetry", "rich", "zarr", "IPython", "convserve.batch"]
    code = f"import sys, convserve; print([name for name in {heavy!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_files_are_short_enough_to_read() -> None:
    long = {
        m: n for m, path in (modules(CLIENT) | modules(SERVER)).items() if (n := path.read_text().count("\n")) > 360
    }
    assert not long


def test_files_are_named_for_what_they_know() -> None:
    vague = {"utils", "util", "common", "helpers", "core", "misc"}
    assert not {m for m in modules(CLIENT) | modules(SERVER) if vague & set(m.split("."))}
