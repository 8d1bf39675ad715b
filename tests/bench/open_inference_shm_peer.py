"""convserve through Triton's own client and system shared memory, as a peer of the kit."""

from pathlib import Path

from peerkit import home

_over_grpc = home.load_peer(Path(__file__).with_name("open_inference_peer.py"))
VENV, CLIENT_VENV = _over_grpc.VENV, _over_grpc.CLIENT_VENV


def server(launch):
    """Returns the command line that serves on `launch.address`."""
    return [*_over_grpc.server(launch), "--shared-memory"]


def connect(address):
    """Returns call(layer, x): the input is written to where the server reads it, the output is read where it lies."""
    import atexit
    import math
    import uuid

    import numpy as np
    import tritonclient.grpc as triton
    from peerkit import layers
    from tritonclient.utils import shared_memory

    client, made = triton.InferenceServerClient(address), {}

    def region(name, size):
        key = f"convserve-{uuid.uuid4().hex}-{name}"
        handle = shared_memory.create_shared_memory_region(key, key, size, create_only=True)
        atexit.register(shared_memory.destroy_shared_memory_region, handle)
        client.register_system_shared_memory(key, key, size)
        return key, handle

    def regions(layer):
        if layer not in made:
            shapes = layers.LAYERS[layer].input_shape, layers.LAYERS[layer].output_shape()
            sizes = [4 * math.prod(shape) for shape in shapes]
            (x_key, x_handle), (y_key, y_handle) = (region(f"{layer}-{size}", size) for size in sizes)
            x = triton.InferInput("x", shapes[0], "FP32")
            x.set_shared_memory(x_key, sizes[0])
            y = triton.InferRequestedOutput("y")
            y.set_shared_memory(y_key, sizes[1])
            made[layer] = x, x_handle, y, y_handle, shapes[1]
        return made[layer]

    def call(layer, x):
        shared_x, x_handle, shared_y, y_handle, shape = regions(layer)
        shared_memory.set_shared_memory_region(x_handle, [x])
        client.infer(layer, [shared_x], outputs=[shared_y])
        return shared_memory.get_contents_as_numpy(y_handle, np.float32, shape)

    return call
