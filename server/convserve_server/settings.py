"""Every setting of the server: one table, of which flags, environment variables, checks and help are made.

A flag wins over its variable, and a variable over the default. The variable of `--max-call-bytes` is
`CONVSERVE_MAX_CALL_BYTES`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from convserve.protocol.addresses import ip_address, is_localhost, split_address, unix_path

TOKEN = r"[A-Za-z0-9._~+/-]{16,}=*"  # noqa: S105
"""What a token is: characters that RFC 6750 allows, and too many to be guessed."""
WHAT_A_TOKEN_IS = "at least 16 letters, digits and '.', '_', '~', '+', '/', '-'"  # noqa: S105

LEAST_MESSAGE_BYTES, LARGEST_MESSAGE_BYTES = 2**22, 2**31 - 1
"""What --max-message-bytes may be: a piece of a tensor is a message, and gRPC counts in 32 bits."""

_PREFIX = "CONVSERVE_"
# Variables that are not the server's: the client's, and those that Kubernetes makes of a Service named convserve.
_OTHER_VARIABLES = rf"{_PREFIX}(TARGET|(.*_)?(SERVICE_HOST|SERVICE_PORT|PORT)(_.*)?)"
_MIB, _GIB = 2**20, 2**30
_BYTES: dict[str, int | Fraction] = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": _MIB, "gi": _GIB, "ti": 2**40,
}  # fmt: skip
_FLOPS: dict[str, int | Fraction] = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_SECONDS: dict[str, int | Fraction] = {"": 1, "ms": Fraction(1, 1000), "s": 1, "m": 60, "h": 3600}


class SettingsError(ValueError):
    """A setting has a value that it cannot have; the text names flag and variable."""


def _in_units(
    kind: type[int | float], scales: Mapping[str, int | Fraction], ending: str, expected: str
) -> BeforeValidator:
    """Returns what reads a number, for integers a whole one, that a unit may follow, and after it an ending.

    pydantic's ByteSize is not strict enough: it reads "1.5" as 1 byte, "8 GB x" as 8 GB, and knows bits.
    """

    def read(given: Any) -> int | float:
        text = re.sub(f"{ending}$", "", str(given).lower()).rstrip()
        match = re.fullmatch(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([a-z]*)", text)
        number = Fraction(match[1]) * scales[match[2]] if match and match[2] in scales else None
        if number is None or (kind is int and number.denominator != 1):
            raise ValueError(expected)
        return kind(number)

    return BeforeValidator(read)


def _split(given: Any) -> tuple[str, ...]:
    return tuple(word.strip() for word in (given.split(",") if isinstance(given, str) else given))


_HOST_PORT = "HOST:PORT such as localhost:50051 or [::1]:50051"


def _are_addresses(addresses: tuple[str, ...]) -> bool:
    return bool(addresses) and all(unix_path(text) or split_address(text, least_port=0) for text in addresses)


def _check(holds: Callable[[Any], object], expected: str) -> AfterValidator:
    """Returns what refuses values of which something does not hold, or raises ValueError."""

    def checked(value: Any) -> Any:
        with suppress(ValueError):
            if holds(value):
                return value
        raise ValueError(expected)

    return AfterValidator(checked)


# Kinds of values. The text among the metadata is the value's placeholder in the help.
Count = Annotated[int, Field(ge=1, le=2**31 - 1), "N"]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1), "N"]
_SIZE = _in_units(int, _BYTES, "b", "a size such as 8GB, 512MiB or 4096")
_WORK = _in_units(int, _FLOPS, "flops?", "a number such as 500G, 10T or 4096")
_TIME = _in_units(float, _SECONDS, "", "a time such as 30s, 5m, 250ms or 1.5")
Bytes = Annotated[int, _SIZE, Field(ge=1, le=2**63 - 1), "SIZE"]
BytesOrZero = Annotated[int, _SIZE, Field(ge=0, le=2**63 - 1), "SIZE"]
MessageBytes = Annotated[
    BytesOrZero,
    Field(le=LARGEST_MESSAGE_BYTES),
    _check(lambda size: not size or size >= LEAST_MESSAGE_BYTES, "0, or a size of at least 4MiB"),
]
FlopsOrZero = Annotated[int, _WORK, Field(ge=0, le=2**63 - 1), "FLOPS"]
Seconds = Annotated[float, _TIME, Field(le=2**31 - 1), "TIME"]
File = Annotated[str, "FILE"]
Folder = Annotated[str, "DIR"]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Addresses = Annotated[Words, _check(_are_addresses, f"{_HOST_PORT}, or unix:///PATH"), "ADDRESS"]
BUCKET = re.compile(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]{1,62}(/[A-Za-z0-9._/-]*)?")
"""What a store in a bucket is; without user, password and query, in which credentials would go."""
Store = Annotated[
    str,
    _check(
        lambda given: "://" not in given or BUCKET.fullmatch(given),
        "a folder, or s3://BUCKET/PREFIX, gs:// or az://, with credentials in the environment and not in it (a folder "
        "that several servers share, file:// too, cannot be: it has no writing on a condition)",
    ),
    "DIR_OR_URL",
]
_DEVICE = re.compile(r"auto|cpu|gpu:[0-9]{1,3}(,gpu:[0-9]{1,3})*")
Device = Annotated[str, _check(_DEVICE.fullmatch, "auto, cpu or gpu:N"), "DEVICE"]
HttpAddress = Annotated[
    str, _check(lambda given: not given or split_address(given, least_port=0), f"{_HOST_PORT}, or nothing"), "ADDRESS"
]
Token = Annotated[SecretStr, _check(lambda t: re.fullmatch(f"({TOKEN})?", t.get_secret_value()), WHAT_A_TOKEN_IS)]


GROUPS = {
    "listen": "listening",
    "device": "computing",
    "max_message_bytes": "limits",
    "store": "stored layers and shared memory",
    "pre_stop_s": "stopping",
    "tls_certificate": "access",
    "open_inference": "protocols beside convserve's own",
    "metrics": "metrics and log",
}
"""The title of each part of the table, by the first setting of it."""


class Settings(BaseSettings):
    """The settings, checked: the given ones, else those of the environment, else the defaults."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, use_attribute_docstrings=True)

    listen: Addresses = ("127.0.0.1:50051",)
    """Address to listen on: HOST:PORT or unix:///PATH; port 0 picks a free one and prints it; repeatable (in the
    variable: separated by commas). Another host than loopback is open to the network: see --tls-certificate and
    --tokens-file."""
    device: Device = "auto"
    """What computes: auto (the first GPU if there is one), cpu, gpu:N, or several GPUs as gpu:0,gpu:1."""
    tf32: bool = False
    """Let float32 convolutions on a GPU use TensorFloat-32: faster, factors rounded to 10 bits of mantissa."""
    intra_op_threads: CountOrZero = 0
    """Threads that work at one operation on the CPU; 0: one per processor that the server may use, by a container's
    quota too."""
    inter_op_threads: CountOrZero = 0
    """Operations that run at once on the CPU; 0: likewise."""
    keep_memory: bool = True
    """Keep the CPU's memory of tensors for the next ones: with large ones up to several times as fast as to get it from
    the system each time, but the server stays as large as it has been."""
    warm_up: Annotated[Words, AfterValidator(lambda words: tuple(filter(None, words))), "WORDS"] = ()
    """Layer and input to compute before the server is ready, as 'layer=NAME input_shape=1x224x224x3' of a stored layer
    or 'filters=64 kernel_size=7 strides=2 input_shape=1x224x224x3' with Conv2D's parameters; input_dtype= and
    output_dtype= too; repeatable (in the variable: separated by commas)."""
    max_message_bytes: MessageBytes = 0
    """Largest request and response message, at least 4MiB so that a piece of a tensor is one. Each thread for calls may
    hold a request. 0: 2GiB, but of requests in a container what its memory leaves for each thread beside everything
    else."""
    max_call_bytes: Bytes = 8 * _GIB
    """Largest memory that one call may need by its plan (see `convserve plan`), and the weights of a layer. Layers on
    their way into the store have as much together, in a container half of --layer-memory-bytes."""
    max_call_flops: FlopsOrZero = 0
    """Most floating-point operations of one call by its plan, and of drawing its weights. 0: 10T on a CPU, which takes
    minutes, and 1P on a GPU."""
    max_admitted_bytes: BytesOrZero = 0
    """Most memory that the calls in flight may need together by their plans, beside weights; a call that does not fit
    waits. Small calls, of a 256th each at most, have a sixteenth beside it. A layer on its way into the store, about
    three times its weights, may take as much. 0: a third of what the machine, or the container, has: TensorFlow keeps
    about as much for further calls."""
    max_waiting_calls: Count = 128
    """Most calls that wait to be computed, and most open streams; one caller may have half of the slots that are left.
    Further ones are refused, with a time to retry after. In a container of less than 24GiB the default is 30."""
    max_layers_per_call: Count = 64
    """Most layers in one call."""
    concurrent_calls: CountOrZero = 0
    """Most calls larger than --max-batch-bytes that each device computes at once; further ones wait for their turn.
    Others are computed together, one batch after the other. More is faster for many callers, and slower for each of
    them. 0: 2 on a CPU, 1 on a GPU."""
    max_batch_samples: Count = 64
    """Most samples of several waiting calls for one layer that are computed together; 1 for no batching."""
    max_batch_bytes: BytesOrZero = 0
    """Most memory of several waiting calls that are computed together: inputs, outputs and what is between. 0: 1MiB on
    a CPU, 4MiB on a GPU, which may gain from more."""
    max_items_per_stream: Count = 100_000
    """Most items in one ConvolveStream."""
    max_connections: Count = 1000
    """Most connections at once; beyond that those that carry no call are closed, first those that never carried one,
    and those of strangers before those of known callers."""
    max_streams_per_connection: Count = 256
    """Most calls at once on one connection; further ones wait there."""
    max_connection_age_s: Seconds = 0
    """After which a connection is renewed, so that callers come to know new replicas; calls in flight on it may take
    --drain-s more. 0: never."""
    idle_s: Annotated[Seconds, Field(ge=1)] = 60
    """How long a call may send or fetch nothing while only its caller is waited for."""
    compression: bool = False
    """Take compressed messages. Tensors hardly shrink, and a small message that swells to a large one would come past
    --max-message-bytes."""
    handler_threads: Count = 64
    """Threads that receive and answer calls, beside those of calls that wait or are computed, --max-waiting-calls of
    streams, and as many as these, 64 at least, that wait for the messages of single calls. Others read streams and
    compute their items. In a container of less than 24GiB the default is 16, so that messages may be larger."""
    store: Store = ""
    """Folder in which stored layers are durable, of this server alone; or a bucket that several servers share, as
    s3://BUCKET/PREFIX, gs:// or az://, with credentials from the environment. Without one they live in memory."""
    store_bytes: BytesOrZero = 0
    """Most that the layers in that folder or bucket may take. 0: 64GiB of a bucket; of a folder what they take when the
    server starts, and nine tenths of what is free then on its volume."""
    store_age_s: Seconds = 1
    """How long a name that was read from a bucket leads where it led then; after that it is asked whether it moved."""
    store_cache: Folder = ""
    """Folder that keeps layers of a bucket on this machine; servers may share it. Without one they are in memory and
    fetched again."""
    store_cache_bytes: BytesOrZero = 0
    """Most that the layers in the folder of --store-cache may take. 0: what they take when the server starts, and nine
    tenths of what is free then on its volume."""
    layer_memory_bytes: BytesOrZero = 0
    """Most that stored layers may take in memory, beside those that had to go while calls and reads use them; those
    that a GPU computes with take as much there. 0: an eighth of what the machine, or the container, has, and 4GiB at
    most."""
    shared_memory: bool = False
    """Let callers on this machine, by loopback or a Unix socket, pass tensors in memory that both map; those of the
    Open Inference Protocol in POSIX shared memory of their own user."""
    shared_memory_bytes: BytesOrZero = 0
    """Most memory that callers may share, by convserve's protocol and as much by the Open Inference Protocol; one may
    share half of what is left. 0: 8GiB, and in a container an eighth of its memory for both together."""
    pre_stop_s: Seconds = 0
    """After SIGTERM: how long to go on serving while the health check already says NOT_SERVING."""
    drain_s: Seconds = 30
    """After that: how long calls in flight may take to finish."""
    tls_certificate: File = ""
    """PEM file of the server's certificate, followed by those between it and its CA: every HOST:PORT is then encrypted.
    The server reads it again when it changes."""
    tls_key: File = ""
    """PEM file of that certificate's private key, not encrypted."""
    tls_client_ca: File = ""
    """PEM file of the CA that must have signed a caller's certificate (mutual TLS); without one none is asked for."""
    tokens_file: File = ""
    """File of the tokens that callers must show, a line for each: NAME TOKEN PERMISSIONS, the permissions out of read,
    compute, change with commas between them. The server reads it again when it changes."""
    token: Token = SecretStr("")
    """A further token, which allows everything."""
    open_inference: bool = True
    """Answer the Open Inference Protocol (inference.GRPCInferenceService) too, which clients of Triton and KServe
    speak: stored layers are its models."""
    reflection: bool = True
    """Answer gRPC server reflection, which grpcurl and its like use."""
    channelz: bool = True
    """Answer gRPC channelz, which shows connections and their traffic."""
    metrics: HttpAddress = ""
    """Address to serve metrics for Prometheus on over HTTP, as HOST:PORT; port 0 picks a free one and prints it; none
    if empty."""
    log_requests: bool = False
    """Log a line per request, with its caller; at a thousand calls a second that is a gigabyte an hour, which is for
    those who collect it."""
    log_format: Literal["text", "json"] = "text"
    """What each line on stdout and in the log is: text for people, or a JSON object."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important message to log."""

    def shown(self) -> dict[str, Any]:
        """Returns the settings as the log shows them: numbers plain, of a secret whether it is set."""
        return {name: str(value) if is_secret(name) else value for name, value in self}


def read(flags: Mapping[str, Any]) -> Settings:
    """Returns the settings of the given flags, as text by the setting's name, and of the environment.

    Raises a SettingsError with a line for each wrong value: flag and variable, what was expected and received.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise SettingsError("\n".join(_refusal(problem, flags) for problem in error.errors())) from None


def _refusal(problem: ErrorDetails, flags: Mapping[str, Any]) -> str:
    name = str(problem["loc"][0])
    expected = re.sub("^(Input should be|Value error,) ", "Expected ", problem["msg"])
    expected = re.sub("^Expected (?=greater|less)", "Expected a value ", expected)
    if is_secret(name):
        return f"{variable(name)}: {expected}. Received something else, which is not shown."
    received = flags.get(name, os.environ.get(variable(name)))
    received = ", ".join(received) if isinstance(received, tuple) else received  # of a flag that may be repeated
    if name == "store" and re.search("[@?#]", str(received)):
        return f"{flag(name)} ({variable(name)}): {expected}. Received something with '@', '?' or '#', not shown."
    return f"{flag(name)} ({variable(name)}): {expected}. Received {received!r}."


def flag(name: str) -> str:
    """Returns a setting's flag."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Returns a setting's environment variable."""
    return _PREFIX + name.upper()


def default(name: str) -> Any:
    """Returns a setting's default."""
    return Settings.model_fields[name].default


def default_text(name: str) -> str:
    """Returns a setting's default as people write it, such as 8GiB, 30s or true."""
    value = default(name)
    if name.endswith("_s"):
        return f"{value:g}s"
    if name.endswith("_bytes"):
        scale = next((scale for scale in ("gi", "mi") if value and value % _BYTES[scale] == 0), "")
        return f"{value // _BYTES[scale]}{scale.title()}B" if scale else f"{value} bytes"
    return ", ".join(value) if isinstance(value, tuple) else str(value).lower()


def help_text(name: str) -> str:
    """Returns what a setting means, in one line."""
    return " ".join(str(Settings.model_fields[name].description).split())


def metavar(name: str) -> str:
    """Returns the placeholder of a setting's value in the help."""
    field = Settings.model_fields[name]
    choices = "{" + ",".join(map(str, get_args(field.annotation))) + "}"
    return next((text for text in field.metadata if isinstance(text, str)), choices)


def is_secret(name: str) -> bool:
    """Returns whether a setting is a secret, which has no flag: all users can read the command lines of a machine."""
    return isinstance(default(name), SecretStr)


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Returns a warning for each variable that looks like a setting and is none."""
    known = [variable(name) for name in Settings.model_fields]
    warnings = []
    for name in sorted(environment):
        is_prefixed = name.startswith(_PREFIX)
        similar = difflib.get_close_matches(name, known, n=1, cutoff=0.8 if is_prefixed else 0.9)
        if (is_prefixed or similar) and name not in known and not re.fullmatch(_OTHER_VARIABLES, name):
            warnings.append(f"{name} is no setting, and is ignored." + "".join(f" Did you mean {s}?" for s in similar))
    return warnings


def is_loopback(address: str) -> bool:
    """Returns whether an address can be reached from this machine only."""
    host = address.rpartition(":")[0]
    ip = ip_address(host)  # None for a name, which may lead anywhere
    return address.startswith("unix:") or is_localhost(host) or (ip is not None and ip.is_loopback)
