"""`convserve info`: what a server is."""

from __future__ import annotations

import dataclasses

from convserve.cli.command import JSON, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.output.report import print_result
from convserve.display.units import bytes_text, flops_text


@new_command("info")
@JSON
@connection_options(timeout=10.0)
def command(as_json: bool, connection: Connection) -> None:
    with connection.client() as client:
        info = client.info()
    devices = [
        f"{device.name} ({device.description})" if device.description else device.name for device in info.devices
    ]
    usage = info.usage
    tf32 = "on: float32 convolutions on a GPU round factors to 10 bits" if info.tf32 else "off"
    rows = [
        ("server", f"convserve {info.version}, TensorFlow {info.tensorflow_version}, Keras {info.keras_version}"),
        ("devices", "\n".join(devices)),
        ("inputs", ", ".join(info.input_dtypes)),
        ("outputs", ", ".join(info.output_dtypes)),
        ("TF32", tf32),
        ("oneDNN", "on: its kernels compute on the CPU" if info.onednn else "off"),
        ("limits", f"messages up to {bytes_text(info.max_message_bytes)}"),
        ("", f"calls up to {bytes_text(info.max_call_bytes)} of memory and {info.max_layers_per_call} layers"),
        ("", f"and {flops_text(info.max_call_flops)}" if info.max_call_flops else ""),
        ("layers", f"{usage.stored_layers} stored, {bytes_text(usage.stored_memory_bytes)} in memory"),
        ("", f"{usage.evictions} evicted since the start; {usage.traces} compiled functions"),
    ]
    print_result(rows, dataclasses.asdict(info), as_json=as_json)
