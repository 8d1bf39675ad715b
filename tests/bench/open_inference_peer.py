"""convserve through Triton's own client over gRPC, as a peer of the kit: with the calls that Triton's peer gets."""

from pathlib import Path

from peerkit import home

_native = home.load_peer(Path(__file__).with_name("convserve_peer.py"))
VENV, CLIENT_VENV = _native.VENV, "client"  # the callers have nothing of convserve


def server(launch):
    """Returns the command line that serves on `launch.address`, with the five layers in its store."""
    _store_layers(launch.state / "store")
    return [*_native.server(launch), "--store", launch.state / "store"]


def connect(address):
    """Returns call(layer, x)."""
    from peerkit import clients

    return clients.open_inference(address)


def _store_layers(folder):
    """Stores the layers under their names; the folder is the server's to open once this has returned."""
    from peerkit import layers

    import convserve
    from convserve_server.layer_store.durable.files import LayerFiles
    from convserve_server.layer_store.names import Move
    from convserve_server.layer_store.store import LayerStore

    store = LayerStore(2**30, LayerFiles(folder, 2**30))
    for name, layer in layers.LAYERS.items():
        config = convserve.Conv2D(
            layer.filters,
            layer.kernel,
            layer.stride,
            layer.padding.lower(),
            data_format="channels_last",
            activation="relu" if layer.relu else None,
        )
        store.put(convserve.Layer(config, *layers.make_weights(name)), Move(name))
