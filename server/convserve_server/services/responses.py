"""What Convolve and ConvolveStream have in common: an output's dtype, and a response."""

from __future__ import annotations

from convserve.layers import messages as conv2d_message
from convserve.tensors.codec import FLOAT_DTYPES, dtype_name
from convserve.v1 import convolution_service_pb2 as messages
from convserve_server.scheduling.scheduler import Result


def output_dtype(number: int) -> str | None:
    """Returns the dtype that a request asks for; None for the last layer's own."""
    return dtype_name(number, "output_dtype", FLOAT_DTYPES) if number else None


def response_without_output(result: Result) -> messages.ConvolveResponse:
    """Returns the message that says what was computed, without the output."""
    computation = result.computation
    return messages.ConvolveResponse(
        layers=[
            messages.LayerOutcome(
                conv2d=None if config is None else conv2d_message.to_message(config), losses=losses.to_message()
            )
            for config, losses in zip(result.layers, result.losses, strict=True)
        ],
        timing=messages.Timing(queue_us=computation.queue_us, compute_us=computation.compute_us),
        batch_size=computation.batch_size,
        device=computation.device,
        warm=computation.warm,
    )
