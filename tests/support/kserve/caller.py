"""Calls a server through KServe's own client, in that client's environment: `python kserve_caller.py TARGET FOLDER`.

The folder has x.npy, and what the model "stem" makes of it, y.npy.
"""

import asyncio
import sys
from pathlib import Path

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput


async def main(target, folder):
    """Calls everything that the client has."""
    x, expected = (np.load(folder / f"{name}.npy") for name in "xy")
    async with InferenceGRPCClient(target) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("stem")
        print("is_server_live, is_server_ready, is_model_ready: True")

        # As raw bytes, then as lists of numbers.
        for binary in (True, False):
            tensor = InferInput("x", list(x.shape), "FP32")
            tensor.set_data_from_numpy(x, binary_data=binary)
            answer = await client.infer(
                InferRequest("stem", [tensor], request_id="1", request_outputs=[RequestedOutput("y")])
            )
            (y,) = answer.outputs
            assert (answer.id, answer.model_name, answer.model_version, y.name) == ("1", "stem", "1", "y")
            np.testing.assert_array_equal(y.as_numpy(), expected)
            print(f"infer with binary_data={binary}: {y.datatype} {y.shape}")

        for dtype, datatype in ((np.float16, "FP16"), (np.float64, "FP64"), (np.uint8, "UINT8"), (np.int8, "INT8")):
            tensor = InferInput("x", list(x.shape), datatype)
            tensor.set_data_from_numpy(x.astype(dtype))
            (y,) = (await client.infer(InferRequest("stem", [tensor]))).outputs
            np.testing.assert_array_equal(y.as_numpy(), expected)
            print(f"infer of {datatype}: {y.datatype} {y.shape}")

        try:
            await client.infer(InferRequest("other", [tensor]))
            raise AssertionError("a model that is not there answered")
        except grpc.RpcError as error:
            print(f"infer of a model that is not there: {error.code()}: {error.details()}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
