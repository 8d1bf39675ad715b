"""What a server says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from convserve.display import html_tables
from convserve.display.units import bytes_text, flops_text
from convserve.protocol.results import reading_answers, values_of
from convserve.tensors.codec import dtype_name, dtype_number
from convserve.v1 import server_info_pb2

_MAX_INFO_BYTES = 2**16
_SAME = ("version", "tensorflow_version", "keras_version", "shared_memory_address")
_LIMITS = ("max_message_bytes", "max_call_bytes", "max_layers_per_call", "max_call_flops")


@dataclass(frozen=True)
class Device:
    """A processor that computes.

    Attributes:
        name: TensorFlow's name, for example "gpu:0".
        kind: "cpu" or "gpu".
        description: What the driver calls it; empty where unknown.
    """

    name: str
    kind: str
    description: str


@dataclass(frozen=True)
class Usage:
    """What a server holds.

    Attributes:
        stored_layers: Stored layers, in memory or on disk.
        stored_memory_bytes: Bytes of the stored layers that are in memory.
        evictions: Stored layers that left the memory for want of room, since the start.
        traces: Compiled functions, which layers of one geometry share.
    """

    stored_layers: int
    stored_memory_bytes: int
    evictions: int
    traces: int


@dataclass(frozen=True)
class ServerInfo:
    """What a server is and can do.

    Attributes:
        version: convserve's version.
        tensorflow_version: TensorFlow's version.
        keras_version: Keras' version.
        devices: The devices that compute.
        input_dtypes: The names of the dtypes accepted as input.
        output_dtypes: The names of the dtypes that a response may be asked for.
        tf32: Whether float32 convolutions on a GPU may use TensorFloat-32.
        max_message_bytes: The largest message of a request, in bytes; one of an answer may be as large, or larger.
        max_call_bytes: The largest `Plan.memory_bytes` of a call.
        max_layers_per_call: The most layers in one call.
        max_call_flops: The most floating-point operations of a call by its plan; 0 where an older server does not say.
        usage: What the server holds at this moment.
        shared_memory_address: The socket that takes shared memory; empty where there is none for this caller.
        onednn: Whether a CPU computes with oneDNN's kernels, else with TensorFlow's own (Eigen's).
    """

    version: str
    tensorflow_version: str
    keras_version: str
    devices: tuple[Device, ...]
    input_dtypes: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    tf32: bool
    max_message_bytes: int
    max_call_bytes: int
    max_layers_per_call: int
    usage: Usage
    shared_memory_address: str = ""
    max_call_flops: int = 0
    onednn: bool = False

    def to_message(self) -> server_info_pb2.ServerInfo:
        """Returns the contract's message."""
        return server_info_pb2.ServerInfo(
            **values_of(self, _SAME),
            devices=[server_info_pb2.Device(**vars(device)) for device in self.devices],
            input_dtypes=map(dtype_number, self.input_dtypes),
            output_dtypes=map(dtype_number, self.output_dtypes),
            numeric_mode=server_info_pb2.NumericMode(tf32=self.tf32, onednn=self.onednn),
            limits=server_info_pb2.Limits(**values_of(self, _LIMITS)),
            usage=server_info_pb2.Usage(**vars(self.usage)),
        )

    @classmethod
    @reading_answers
    def from_message(cls, message: server_info_pb2.ServerInfo) -> ServerInfo:
        """Returns what a message says; raises InternalError for one that no server sends."""
        if (size := message.ByteSize()) > _MAX_INFO_BYTES:
            raise DecodeError(f"{size} bytes about a server")
        return cls(
            **values_of(message, _SAME),
            devices=tuple(Device(**values_of(device, Device.__match_args__)) for device in message.devices),
            input_dtypes=tuple(dtype_name(number, "input_dtypes") for number in message.input_dtypes),
            output_dtypes=tuple(dtype_name(number, "output_dtypes") for number in message.output_dtypes),
            tf32=message.numeric_mode.tf32,
            onednn=message.numeric_mode.onednn,
            **values_of(message.limits, _LIMITS),
            usage=Usage(**values_of(message.usage, Usage.__match_args__)),
        )

    def rows(self) -> list[tuple[str, str]]:
        """Returns labels and texts that say it to people."""
        devices = [f"{each.name} ({each.description})" if each.description else each.name for each in self.devices]
        tf32 = "on: float32 convolutions on a GPU round factors to 10 bits" if self.tf32 else "off"
        usage = self.usage
        flops = f"\nand {flops_text(self.max_call_flops)}" if self.max_call_flops else ""
        return [
            ("server", f"convserve {self.version}, TensorFlow {self.tensorflow_version}, Keras {self.keras_version}"),
            ("devices", "\n".join(devices)),
            ("inputs", ", ".join(self.input_dtypes)),
            ("outputs", ", ".join(self.output_dtypes)),
            ("TF32", tf32),
            ("oneDNN", "on: its kernels compute on the CPU" if self.onednn else "off"),
            (
                "limits",
                f"messages up to {bytes_text(self.max_message_bytes)}\n"
                f"calls up to {bytes_text(self.max_call_bytes)} of memory and {self.max_layers_per_call} layers{flops}",
            ),
            (
                "layers",
                f"{usage.stored_layers} stored, {bytes_text(usage.stored_memory_bytes)} in memory\n"
                f"{usage.evictions} evicted since the start; {usage.traces} compiled functions",
            ),
        ]

    def _repr_html_(self) -> str:
        return html_tables.table("ServerInfo", [(label, text.replace("\n", "; ")) for label, text in self.rows()])
