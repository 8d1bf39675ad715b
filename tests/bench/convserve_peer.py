"""convserve over gRPC on loopback, as a peer of the kit (see its README: peers in files of their own)."""

VENV = CLIENT_VENV = None  # the environment that runs the benchmark: convserve with its server extra


def server(launch):
    """Returns the command line that serves on `launch.address`."""
    # The reference computes on the CPU, also where there is a GPU.
    return [launch.python, "-m", "convserve", "serve", "--listen", launch.address, "--device", "cpu"]


def connect(address, shared_memory=False):
    """Returns call(layer, x): the layers are put once, as their callers would, and called often."""
    from peerkit import layers

    import convserve

    client = convserve.Client(address, shared_memory=shared_memory)
    stored = {}
    for name, layer in layers.LAYERS.items():
        kernel, bias = layers.make_weights(name)
        config = convserve.Conv2D(
            layer.filters,
            layer.kernel,
            layer.stride,
            layer.padding.lower(),
            data_format="channels_last",
            activation="relu" if layer.relu else None,
        )
        stored[name] = client.put(config, kernel=kernel, bias=bias)
    return lambda layer, x: stored[layer](x)
