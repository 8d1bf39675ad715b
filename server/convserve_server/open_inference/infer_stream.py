"""ModelStreamInfer: one request after the other, of which the next are read and computed while one is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

from convserve_server.open_inference.wire import InferRequest, InferResponse
from convserve_server.scheduling.caller import Caller
from convserve_server.transport.in_flight_items import InFlightItems

Answer = tuple[str, Future[InferResponse]]
"""A request's id, and its response."""
InferItems = InFlightItems[InferRequest, Answer]
"""A stream's requests."""


def infer_answers(
    infer: Callable[[InferRequest, Caller], InferResponse], items: InferItems, pool: Executor
) -> Iterator[Answer]:
    """Yields the answers to one stream's requests, in order. One is fetched when the next is asked for.

    Raises:
        InvalidRequestError: If what comes is no request.
    """

    def read() -> None:
        while (request := items.next_message()) is not None and (item := items.begin()) is not None:
            response = pool.submit(infer, request, item.caller())
            items.put(item, (request.message.id, response))
            del request, response

    return items.answers(read)
