"""Engine: a server's way through a call, for callers of the same process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from convserve.errors import FieldViolation, InvalidRequestError, InvalidWeightsError, needing
from convserve.layers.layer import Layer, planned, planned_call
from convserve.layers.plan import Plan
from convserve.protocol.call_arguments import Layers, check_output, checked_timeout, layers_of, output_name
from convserve.protocol.results import Result, Timing, copied
from convserve.protocol.server_info import Device
from convserve.protocol.stored_layers import StoredLayerBase
from convserve.tensors.codec import INPUT_DTYPES, Array, name_of, standard_array, standard_dtype
from convserve_server.engine.startup import load_engine
from convserve_server.engine_api import Engine as FrameworkEngine
from convserve_server.local.parts import admission_of, fitted_to, scheduler_of, started_engine
from convserve_server.scheduling.caller import Caller
from convserve_server.settings import Settings, SettingsError, read

SETTINGS = (
    *("tf32", "intra_op_threads", "inter_op_threads", "keep_memory", "max_call_bytes", "max_call_flops"),
    *("max_admitted_bytes", "max_waiting_calls", "max_layers_per_call", "concurrent_calls", "max_batch_samples"),
    "max_batch_bytes",
)
"""The settings of a server that an Engine takes too: what computes, and how large calls may be."""


class Engine:
    """Computes as a server does, in this process: no sockets, no copies of tensors.

    It has a server's limits, queues and batches, divides what does not fit a device, and raises what a client raises.
    Threads may share it. A process has one configuration of TensorFlow, so that all its engines, and other users of
    TensorFlow, have to agree on devices and threads. It does not survive a fork, and is not pickled: make it where it
    is used.

    Example:
        >>> with Engine(device="cpu") as engine:
        ...     y = engine.convolve(convserve.Conv2D(64, 3, activation="relu"), x).output
    """

    def __init__(
        self, device: str = "auto", *, load_engine: Callable[..., FrameworkEngine] = load_engine, **settings: Any
    ) -> None:
        """Starts TensorFlow, which takes seconds, and computes a known result.

        Args:
            device: auto (the first GPU if there is one), cpu, gpu:N, or several GPUs as gpu:0,gpu:1.
            load_engine: What starts the framework, called as `engine.startup.load_engine`.
            **settings: Settings of a server of the same names and defaults, variables of the environment included:
                those in `SETTINGS`, such as max_call_bytes="8GB".

        Raises:
            InvalidRequestError: For a setting or device that there is not, or one that TensorFlow, which this process
                uses already, does not have.
            MissingDependencyError: Without TensorFlow.
        """
        for name in settings.keys() - set(SETTINGS):
            raise InvalidRequestError.for_field(name, f"a setting out of {', '.join(SETTINGS)}", "another one")
        try:
            given: Settings = read({"device": device, **settings})
            self._engine = started_engine(given, _starting()(load_engine))
        except SettingsError as error:
            raise InvalidRequestError(FieldViolation("settings", str(error))) from error
        effective = fitted_to(self._engine, given)
        self._admission, self._scheduler = admission_of(effective, self._engine), scheduler_of(effective, self._engine)
        self._process, self._closed = os.getpid(), False

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that compute."""
        return self._engine.devices

    def convolve(
        self,
        layers: Layers,
        x: Any,
        *,
        output_dtype: Any = None,
        batching: bool = True,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Applies one or several layers, in order, as `Client.convolve` does.

        Args:
            layers: A Layer or Conv2D, a stored layer whose weights are known in this process, or a list of them.
            x: (batch, height, width, channels), or (batch, channels, height, width) with
                `data_format="channels_first"`; float32, float16, bfloat16, float64, uint8 or int8. C-contiguous memory
                that is aligned to 64 bytes is read where it is.
            output_dtype: A floating-point dtype; None for the last layer's compute dtype.
            batching: Whether it may be computed together with other threads' calls for the same layers.
            out: An array for the output, as in `Client.conv2d`; it is the result's `output`.
            timeout: Seconds after which it is not begun any more, and its next part is not computed; None for as long
                as it takes.

        Returns:
            The output with losses, times, device and the seeds that were drawn. The output may be the framework's own
            memory and is read-only, unless `out` is given.

        Raises:
            InvalidArgumentError: For wrong arguments, and what is larger than the limits.
            OverloadedError: If more threads wait than `max_waiting_calls`.
            OutOfMemoryError: If the smallest parts do not fit the device.
            DeadlineExceededError: After the timeout.
        """
        self._check_usable()
        listed, wanted = self._known(layers), output_name(output_dtype)
        array = standard_array(x, "input", INPUT_DTYPES)
        if out is not None:
            weights = [weight for layer in listed for weight in layer.arrays.values()]
            check_output(out, planned_call(listed, array.shape, name_of(array), wanted), (array, *weights))
        caller = _caller(checked_timeout(timeout))
        permit = self._admission.admit(listed, array.shape, name_of(array), wanted, caller)
        done = self._scheduler.convolve(permit, listed, array, caller, unbatched=not batching)
        if out is None:
            output = done.output.view()
            output.flags.writeable = False
        else:
            output = copied(done.output, out)
        computation = done.computation
        return Result(
            output=output,
            losses=done.losses,
            layers=done.layers,
            timing=Timing(computation.queue_us, computation.compute_us),
            batch_size=computation.batch_size,
            device=computation.device,
            warm=computation.warm,
        )

    def plan(
        self,
        layers: Layers,
        input_shape: Sequence[int] | None = None,
        *,
        input_dtype: Any = "float32",
        output_dtype: Any = None,
    ) -> Plan:
        """Returns what a call would do, and whether it would be taken, as `Client.plan` does.

        Raises InvalidArgumentError for wrong arguments.
        """
        self._check_usable()
        listed, wanted = layers_of(layers), output_name(output_dtype)
        dtype = standard_dtype(input_dtype, "input_dtype", INPUT_DTYPES)
        planned(listed, input_shape, dtype, wanted)
        configured = [layer if isinstance(layer, Layer) else Layer(layer.config) for layer in listed]
        return self._admission.plan(configured, input_shape, dtype, wanted)

    def _known(self, layers: Layers) -> list[Layer]:
        """Returns the layers of a call; those that a caller may write to anew, so that nothing is kept of them."""
        known, listed = [], layers_of(layers)
        self._admission.check_layers(len(listed))
        for layer in listed:
            local = layer.local if isinstance(layer, StoredLayerBase) else layer
            if local is None:
                expected = "layers with their weights, or to be drawn"
                received = f"{layer!r}, whose weights only servers have"
                raise InvalidWeightsError.for_field("layers", expected, received, "Its weights() brings them here.")
            if any(weight.flags.writeable for weight in local.arrays.values()):
                local = Layer(local.config, local.kernel, local.bias)
            known.append(local)
        return known

    def _check_usable(self) -> None:
        if self._closed:
            raise InvalidRequestError.for_field("engine", "an open engine", "a call after it was closed")
        if os.getpid() != self._process:
            expected = "the process that made it, as TensorFlow computes in no fork"
            raise InvalidRequestError.for_field("engine", expected, "a fork of it: make an Engine there")

    def __reduce__(self) -> Any:
        """Raises InvalidRequestError: devices and threads do not go to another process."""
        expected = "the process that made it"
        raise InvalidRequestError.for_field("engine", expected, "another one: make an Engine with its arguments there")

    def close(self) -> None:
        """Lets no further call begin. TensorFlow keeps its devices until the process ends."""
        self._closed = True

    def __enter__(self) -> Self:
        """Returns the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the engine."""
        self.close()

    def __repr__(self) -> str:
        """Returns the names of its devices."""
        return f"<convserve_server.local.Engine {', '.join(device.name for device in self.devices)}>"


@contextmanager
def _starting() -> Iterator[None]:
    """Raises what keeps TensorFlow from starting as errors of ours."""
    try:
        with needing("An engine in this process needs TensorFlow and Keras: pip install 'convserve[server]'."):
            yield
    except RuntimeError as error:  # of what cannot be changed once TensorFlow computes
        expected = "devices and threads as this process has given TensorFlow already"
        raise InvalidRequestError.for_field("settings", expected, f"others: {error}") from error


def _caller(timeout: float) -> Caller:
    """Returns who waits in this thread, for so many seconds: threads take turns as callers of a server do."""
    end = time.monotonic() + timeout
    return Caller(
        name=f"thread {threading.get_ident()}",
        is_active=lambda: time.monotonic() < end,
        remaining_s=lambda: max(0.0, end - time.monotonic()),
    )
