"""Every setting of the server: one table that gives the flag, the environment variable, the default and the help text.

A flag wins over its variable, and a variable over the default. The variable of `--max-call-bytes` is
`CONVSERVE_MAX_CALL_BYTES`.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOKEN = r"[A-Za-z0-9._~+/-]{16,}=*"  # noqa: S105
"""What a token is: characters that RFC 6750 allows, and too many to be guessed."""
WHAT_A_TOKEN_IS = "at least 16 letters, digits and '.', '_', '~', '+', '/', '-'"  # noqa: S105


class SettingsError(ValueError):
    """A setting has a value that it cannot have; the text names flag and variable."""


def _setting(
    default: Any,
    help_text: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    pattern: str = "",
    least: int = 1,
    most: int = 2**31 - 1,
    metavar: str = "",
    secret: bool = False,
) -> Any:
    metadata: dict[str, Any] = {
        "help": help_text,
        "unit": unit,
        "choices": choices,
        "pattern": pattern,
        "metavar": metavar,
        "secret": secret,
    }
    metadata |= {"least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The settings, checked. Each field's metadata is its row of the table."""

    listen: tuple[str, ...] = _setting(
        ("127.0.0.1:50051",),
        "address to listen on: HOST:PORT or unix:///PATH; port 0 picks a free one and prints it; repeatable (in the "
        "variable: separated by commas). Another host than loopback is open to the network: see --tls-certificate and "
        "--tokens-file",
        metavar="ADDRESS",
    )
    device: str = _setting(
        "auto",
        "what computes: auto (the first GPU if there is one), cpu, gpu:N, or several GPUs as gpu:0,gpu:1",
        pattern=r"auto|cpu|gpu:\d{1,3}(,gpu:\d{1,3})*",
    )
    tf32: bool = _setting(
        False, "let float32 convolutions on a GPU use TensorFloat-32: faster, factors rounded to 10 bits of mantissa"
    )
    intra_op_threads: int = _setting(
        0, "threads that work at one operation on the CPU; 0 is TensorFlow's choice, one per core", least=0
    )
    inter_op_threads: int = _setting(0, "operations that run at once on the CPU; 0 is TensorFlow's choice", least=0)
    keep_memory: bool = _setting(
        True,
        "keep the CPU's memory of tensors for the next ones: with large ones up to several times as fast as to get it "
        "from the system each time, but the server stays as large as it has been",
    )
    warm_up: tuple[str, ...] = _setting(
        (),
        "layer and input to compute before the server is ready, as 'layer=NAME input_shape=1x224x224x3' of a stored "
        "layer or 'filters=64 kernel_size=7 strides=2 input_shape=1x224x224x3' with Conv2D's parameters; input_dtype= "
        "and output_dtype= too; repeatable (in the variable: separated by commas)",
        metavar="WORDS",
    )
    max_message_bytes: int = _setting(
        2**31 - 1,
        "largest request and response message, at least 4194304 so that a piece of a tensor is one",
        unit="bytes",
        least=2**22,
    )
    max_call_bytes: int = _setting(
        8 * 2**30,
        "largest memory that one call may need by its plan (see `convserve plan`), and that layers on their way to the "
        "store may take together",
        unit="bytes",
        most=2**63 - 1,
    )
    max_admitted_bytes: int = _setting(
        0,
        "most memory that the calls under way may need together by their plans, beside weights; a call that does not "
        "fit waits. 0: half of what the machine, or the container, has",
        unit="bytes",
        least=0,
        most=2**63 - 1,
    )
    max_waiting_calls: int = _setting(
        128,
        "most calls that wait to be computed; one caller may have half of the places that are left. Further ones are "
        "told to come again",
    )
    max_layers_per_call: int = _setting(64, "most layers in one call")
    concurrent_calls: int = _setting(
        1,
        "most computations at once on each device: of calls up to --max-batch-bytes, and as many of larger ones; "
        "further calls wait for their turn",
    )
    max_batch_samples: int = _setting(
        64, "most samples of several waiting calls for one layer that are computed together; 1 for no batching"
    )
    max_batch_bytes: int = _setting(
        4 * 2**20,
        "most memory of several waiting calls that are computed together: inputs, outputs and what is between. A GPU "
        "may gain from more",
        unit="bytes",
        most=2**63 - 1,
    )
    max_items_per_stream: int = _setting(100_000, "most items in one ConvolveStream")
    max_connections: int = _setting(1000, "most connections at once; further ones are closed")
    max_streams_per_connection: int = _setting(256, "most calls at once on one connection; further ones wait there")
    max_connection_age_s: int = _setting(
        0,
        "after which a connection is renewed, so that callers come to know new replicas; what is under way on it may "
        "take --drain-s more. 0: never",
        unit="seconds",
        least=0,
    )
    idle_s: int = _setting(
        60,
        "how long a call may send or fetch nothing while nothing but its caller is waited for",
        unit="seconds",
        least=1,
    )
    compression: bool = _setting(
        False,
        "take compressed messages. Tensors hardly shrink, and a small message that swells to a large one would come "
        "past --max-message-bytes",
    )
    handler_threads: int = _setting(64, "threads that receive and answer requests, beside those that wait")
    store: str = _setting("", "folder in which stored layers are durable; without one they live in memory")
    store_bytes: int = _setting(
        64 * 2**30, "most that the layers in that folder may take", unit="bytes", most=2**63 - 1
    )
    layer_memory_bytes: int = _setting(
        4 * 2**30,
        "most that stored layers may take in memory; those that a GPU computes with take as much there",
        unit="bytes",
        most=2**63 - 1,
    )
    shared_memory: bool = _setting(
        False,
        "let callers on this machine, by loopback or a Unix socket, pass tensors in memory that both map; those of the "
        "Open Inference Protocol in POSIX shared memory of their own user",
    )
    shared_memory_bytes: int = _setting(8 * 2**30, "most memory that callers may share", unit="bytes", most=2**63 - 1)
    pre_stop_s: int = _setting(
        0,
        "after SIGTERM: how long to go on serving while the health check already says NOT_SERVING",
        unit="seconds",
        least=0,
    )
    drain_s: int = _setting(30, "after that: how long calls under way may take to finish", unit="seconds", least=0)
    tls_certificate: str = _setting(
        "",
        "PEM file of the server's certificate, followed by those between it and its CA: every HOST:PORT is then "
        "encrypted. It is read again when it changes",
        metavar="FILE",
    )
    tls_key: str = _setting("", "PEM file of that certificate's private key, not encrypted", metavar="FILE")
    tls_client_ca: str = _setting(
        "",
        "PEM file of the CA that must have signed a caller's certificate (mutual TLS); without one none is asked for",
        metavar="FILE",
    )
    tokens_file: str = _setting(
        "",
        "file of the tokens that callers must show, a line for each: NAME TOKEN PERMISSIONS, the permissions out of "
        "read, compute, change with commas between them. It is read again when it changes",
        metavar="FILE",
    )
    token: str = _setting("", "a further token, which allows everything", pattern=f"({TOKEN})?", secret=True)
    open_inference: bool = _setting(
        True,
        "answer the Open Inference Protocol (inference.GRPCInferenceService) too, which clients of Triton and KServe "
        "speak: stored layers are its models",
    )
    reflection: bool = _setting(True, "answer gRPC server reflection, which grpcurl and its like use")
    channelz: bool = _setting(True, "answer gRPC channelz, which shows connections and their traffic")
    metrics: str = _setting(
        "",
        "address to serve metrics for Prometheus on over HTTP, as HOST:PORT; port 0 picks a free one and prints it; "
        "none if empty",
    )
    log_requests: bool = _setting(
        False,
        "log a line per request, with its caller; at a thousand calls a second that is a gigabyte an hour, which is "
        "for those who collect it",
    )
    log_format: str = _setting(
        "text", "what a line of the log is: text for people, or a JSON object", choices=("text", "json")
    )
    log_level: str = _setting("info", "least important message to log", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            SettingsError: Names flag, variable, what was expected and what was received.
        """
        for field in dataclasses.fields(self):
            value, row = getattr(self, field.name), field.metadata
            if isinstance(field.default, bool):
                self._require(field.name, isinstance(value, bool), "true or false", value)
            elif isinstance(field.default, int):
                least, most = row["least"], row["most"]
                within = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
                self._require(field.name, within, f"an integer from {least} to {most}", value)
            elif row["choices"]:
                self._require(field.name, value in row["choices"], f"one of {', '.join(row['choices'])}", value)
            elif row["pattern"]:
                matches = isinstance(value, str) and re.fullmatch(row["pattern"], value)
                expected = WHAT_A_TOKEN_IS if row["secret"] else "auto, cpu or gpu:N"
                self._require(field.name, bool(matches), expected, value)
        addresses = bool(self.listen) and all(_is_address(each) for each in self.listen)
        self._require("listen", addresses, "HOST:PORT or unix:///PATH", ", ".join(self.listen))
        by_http = not self.metrics or (_is_address(self.metrics) and not self.metrics.startswith("unix:"))
        self._require("metrics", by_http, "HOST:PORT, or nothing", self.metrics)

    @staticmethod
    def _require(name: str, holds: bool, expected: str, value: object) -> None:
        if not holds:
            is_secret = Settings.__dataclass_fields__[name].metadata["secret"]
            named = variable(name) if is_secret else f"{flag(name)} ({variable(name)})"
            received = "something else, which is not shown" if is_secret else repr(value)
            raise SettingsError(f"{named}: Expected {expected}. Received {received}.")

    def __repr__(self) -> str:
        """Returns all settings, but of a secret no more than whether it is set."""
        listed = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            listed.append(f"{field.name}={'***' if field.metadata['secret'] and value else repr(value)}")
        return f"Settings({', '.join(listed)})"


def flag(name: str) -> str:
    """Returns a setting's flag."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Returns a setting's environment variable."""
    return f"CONVSERVE_{name.upper()}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag per setting; what is not given stays out of the namespace.

    A secret has none: the command lines of a machine's processes can be read by all its users.
    """
    secrets = [field for field in dataclasses.fields(Settings) if field.metadata["secret"]]
    described = (f"{variable(each.name)}: {each.metadata['help']}" for each in secrets)
    parser.add_argument_group("from the environment alone", "; ".join(described))
    for field in dataclasses.fields(Settings):
        if field.metadata["secret"]:
            continue
        default = ", ".join(field.default) if isinstance(field.default, tuple) else str(field.default)
        unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
        options: dict[str, Any] = {
            "dest": f"setting_{field.name}",
            "default": argparse.SUPPRESS,
            "help": f"{field.metadata['help']} [{variable(field.name)}, default {default.lower()}{unit}]",
        }
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(field.default, tuple):
            options |= {"action": "append", "metavar": field.metadata["metavar"]}
        elif field.metadata["choices"]:
            options["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
        else:
            options["metavar"] = (
                field.metadata["metavar"]
                or field.metadata["unit"].upper()
                or ("N" if isinstance(field.default, int) else field.name.upper())
            )
        parser.add_argument(flag(field.name), **options)


def read(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Settings:
    """Returns the settings of a command line and an environment.

    Raises:
        SettingsError: If one has a value that it cannot have.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        given = getattr(arguments, f"setting_{field.name}", environment.get(variable(field.name)))
        if given is not None:
            found[field.name] = _parsed(field.default, given)
    return Settings(**found)


def _parsed(default: Any, given: Any) -> Any:
    """Returns a value of the default's type; what cannot be one is left for the check to refuse."""
    if isinstance(default, tuple):
        words = (each.strip() for each in (given.split(",") if isinstance(given, str) else given))
        return tuple(each for each in words if each or default)  # where nothing is a value, an empty word is nothing
    if isinstance(given, str) and isinstance(default, bool):
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(given.lower(), given)
    if isinstance(given, str) and isinstance(default, int):
        return int(given) if re.fullmatch(r"-?[0-9]{1,19}", given) else given
    return given


def is_loopback(address: str) -> bool:
    """Returns whether an address can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False


def _is_address(address: str) -> bool:
    if address.startswith("unix:"):
        return len(address) > len("unix:")
    host, _, port = address.rpartition(":")
    return bool(host) and bool(re.fullmatch(r"[0-9]{1,5}", port)) and int(port) < 2**16
