"""Calls a server through Triton's own client, in that client's environment, where nothing of ours is installed.

`python tritonclient_caller.py KIND TARGET` makes a client, KIND being blocking or awaited. From its input it takes
pickled orders, (whose, method, arguments, options), and writes a pickled answer to each: ("answer", value), ("error",
status, text) where the client raised its InferenceServerException, or ("defect", traceback).
"""

import asyncio
import contextlib
import os
import pickle
import queue
import sys
import traceback

import grpc
import tritonclient.grpc
import tritonclient.grpc.aio
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory


def asked(model_name, inputs, outputs=None, **options):
    """Returns the arguments of `infer` for arrays, or (region, bytes, offset, shape, datatype) where one is shared."""
    tensors = []
    for name, value in inputs.items():
        if isinstance(value, tuple):
            region, size, offset, shape, datatype = value
            tensor = tritonclient.grpc.InferInput(name, shape, datatype)
            tensor.set_shared_memory(region, size, offset)
        else:
            tensor = tritonclient.grpc.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    requested = None
    if outputs is not None:
        requested = [tritonclient.grpc.InferRequestedOutput(name) for name in outputs]
        for tensor, where in zip(requested, outputs.values(), strict=True):
            if where is not None:
                tensor.set_shared_memory(*where)
    return {"model_name": model_name, "inputs": tensors, "outputs": requested, **options}


def told(result):
    """Returns a result's head, and its outputs that came with it as arrays under "arrays"."""
    response = result.get_response()
    head = MessageToDict(response, preserving_proto_field_name=True)
    head.pop("raw_output_contents", None)
    here = [each.name for each in response.outputs if "shared_memory_region" not in each.parameters]
    return head | {"arrays": {name: result.as_numpy(name) for name in here}}


class Blocking:
    """What `tritonclient.grpc` does."""

    def __init__(self, target):
        self.client = tritonclient.grpc.InferenceServerClient(target)

    def call(self, method, *arguments, **options):
        """Calls any method of the client."""
        return getattr(self.client, method)(*arguments, **options)

    def infer(self, *arguments, **options):
        return told(self.client.infer(**asked(*arguments, **options)))

    def async_infer(self, *arguments, **options):
        """Returns what the client's callback is given."""
        answers = queue.Queue()
        self.client.async_infer(
            callback=lambda result, error: answers.put((result, error)), **asked(*arguments, **options)
        )
        result, error = answers.get(timeout=60)
        if error is not None:
            raise error
        return told(result)

    def stream(self, *requests):
        """Returns the answers of a stream, an error's text where one is an error."""
        answers = queue.Queue()
        self.client.start_stream(callback=lambda result, error: answers.put(error or told(result)))
        for arguments, options in requests:
            self.client.async_stream_infer(**asked(*arguments, **options))
        found = [answers.get(timeout=60) for _ in requests]
        self.client.stop_stream()
        return [str(each) if isinstance(each, Exception) else each for each in found]

    def close(self):
        self.client.close()


class Awaited:
    """What `tritonclient.grpc.aio` does."""

    def __init__(self, target):
        self.runner = asyncio.Runner()
        self.client = self.runner.run(self._connected(target))

    @staticmethod
    async def _connected(target):
        return tritonclient.grpc.aio.InferenceServerClient(target)

    def call(self, method, *arguments, **options):
        return self.runner.run(getattr(self.client, method)(*arguments, **options))

    def infer(self, *arguments, **options):
        return told(self.call("infer", **asked(*arguments, **options)))

    def stream(self, *requests):
        """Returns the answers of a stream, an error's text where one is an error."""
        return self.runner.run(self._stream(requests))

    async def _stream(self, requests):
        async def each_asked():
            for arguments, options in requests:
                yield asked(*arguments, **options)

        return [str(error) if error else told(result) async for result, error in self.client.stream_infer(each_asked())]

    def close(self):
        self.runner.run(self.client.close())
        self.runner.close()


KINDS = {"blocking": Blocking, "awaited": Awaited}


class Stub:
    """The service as the messages of tritonclient's stubs have it, for what none of its client's methods sends."""

    def __init__(self, target):
        self.channel = grpc.insecure_channel(target)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def call(self, method, request):
        """Returns the answer to a request; both as JSON."""
        return getattr(self.stub, method)(self._message(method, request), timeout=60)

    def infer(self, request):
        return told(tritonclient.grpc.InferResult(self.call("ModelInfer", request)))

    def stream(self, *requests):
        messages = [self._message("ModelStreamInfer", each) for each in requests]
        answers = self.stub.ModelStreamInfer(iter(messages), timeout=60)
        return [each.error_message or told(tritonclient.grpc.InferResult(each.infer_response)) for each in answers]

    @staticmethod
    def _message(method, request):
        called = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[method]
        return ParseDict(request, getattr(service_pb2, called.input_type.name)())

    def close(self):
        self.channel.close()


class Regions:
    """System shared memory, made with `tritonclient.utils.shared_memory`."""

    def __init__(self):
        self.handles = {}

    def create(self, name, key, size):
        self.handles[name] = shared_memory.create_shared_memory_region(name, key, size)

    def write(self, name, array, offset=0):
        shared_memory.set_shared_memory_region(self.handles[name], [array], offset)

    def read(self, name, dtype, shape, offset=0):
        return shared_memory.get_contents_as_numpy(self.handles[name], dtype, shape, offset).copy()

    def destroy(self, name):
        shared_memory.destroy_shared_memory_region(self.handles.pop(name))

    def close(self):
        for name in list(self.handles):
            self.destroy(name)


def main():
    """Answers orders until there are no more."""
    kind, target = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be among the answers
    parts = {"caller": KINDS[kind](target), "stub": Stub(target), "regions": Regions()}
    for whose, method, arguments, options in orders():
        try:
            value = getattr(parts[whose], method)(*arguments, **options)
            if isinstance(value, Message):
                value = MessageToDict(value, preserving_proto_field_name=True)
            answer = ("answer", value)
        except InferenceServerException as error:
            answer = ("error", error.status(), error.message())
        except grpc.RpcError as error:
            answer = ("error", str(error.code()), error.details())
        except Exception:
            answer = ("defect", traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()
    for each in parts.values():
        each.close()


def orders():
    """Yields what the test asks for, until it closes the pipe."""
    with contextlib.suppress(EOFError):
        while True:
            yield pickle.load(sys.stdin.buffer)  # noqa: S301 (from the test that started this)


if __name__ == "__main__":
    main()
