"""ModelStreamInfer: one request after the other, of which the next are read and computed while one is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing

from convserve.protocol.status import to_status
from convserve_server.observability.call_record import CallRecord
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import InferRequest, InferResponse
from convserve_server.scheduling.caller import Caller
from convserve_server.transport.call_errors import to_convserve_error
from convserve_server.transport.in_flight_items import InFlightItems

InferItems = InFlightItems[InferRequest, str, InferResponse]
"""A stream's requests, by their ids."""


def infer_stream(
    infer: Callable[[InferRequest, Caller], InferResponse], items: InferItems, call: CallRecord
) -> Iterator[bytes]:
    """Yields the messages that answer one stream's requests, in order; InvalidRequestError if one is no request."""

    def read() -> None:
        while (request := items.next_message()) is not None:
            item = items.begin(request.message.id)
            item.submit(infer, request, item.caller())
            del request, item

    with closing(items.results(read)) as results:
        for request_id, result in results:
            yield _message(request_id, result, call)
            del result  # and with it the output, before the wait for the next one


def _message(request_id: str, result: Future[InferResponse], call: CallRecord) -> bytes:
    try:
        response = result.result()
    except Exception as error:
        del result  # which has the error, in whose traceback this frame is
        answer = to_convserve_error(error, call)
        call.refused_item(answer)
        text = to_status(answer).details  # which has a bound, as a call's own
        del answer
        failed = messages.ModelInferResponse(id=request_id)
        return messages.ModelStreamInferResponse(error_message=text, infer_response=failed).SerializeToString()
    response.message.parameters["triton_final_response"].bool_param = True
    return response.serialize_in_stream()
