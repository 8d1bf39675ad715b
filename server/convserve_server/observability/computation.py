"""What is told of a forward pass to those who observe calls."""

from __future__ import annotations

from convserve.tensors.codec import Array
from convserve_server.observability.call_record import Computation
from convserve_server.scheduling.scheduler import Convolved


def computation(began_ns: int, x: Array, answer: Convolved) -> Computation:
    """Returns what is told of a forward pass.

    Args:
        began_ns: When the request path took it, in nanoseconds since 1970.
        x: The input.
        answer: What came of it.
    """
    computed, timing = answer.computed, answer.timing
    return Computation(
        began_ns=began_ns,
        queue_us=timing.queue_us,
        compute_us=timing.compute_us,
        batch_size=computed.batch_size,
        device=computed.device,
        warm=computed.warm,
        input_shape=x.shape,
        output_shape=computed.output.shape,
        input_bytes=x.nbytes,
        output_bytes=computed.output.nbytes,
    )
