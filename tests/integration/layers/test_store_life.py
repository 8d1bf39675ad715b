"""A server's folder of layers: killed at any moment, tampered with at rest and under way.

`CONVSERVE_TEST_KILLS=50 pytest -s tests/integration/layers/test_store_life.py` kills more often, and prints how long
each start took.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer, LayerNotFoundError, UnavailableError
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.store import LayerStore
from tests.support.servers.server_process import numpy_server

KILLS = int(os.environ.get("CONVSERVE_TEST_KILLS", "2"))
ONCE = convserve.RetryRule(attempts=1)
CONFIG = Conv2D(64, 1, use_bias=False, data_format="channels_last", dtype="float32")


def layer(seed: int, channels: int = 4) -> Layer:
    return Layer(CONFIG, np.random.default_rng(seed).integers(-8, 9, (1, 1, channels, 64)).astype("f4"))


class Writer(threading.Thread):
    """Puts one layer after the other until the server is gone, and remembers which were confirmed.

    Attributes:
        confirmed: The digests whose put was answered.
        name: The name under which all of them were put.
        led_to: The digest that the name led to when a put was answered last, and the one of the put that was not.
        failure: What ended it, if not the server's end.
    """

    def __init__(self, target: str, number: int, seeds: itertools.count[int], answered: threading.Semaphore) -> None:
        super().__init__(name=f"writer/{number}")
        self._target = target
        self._seeds = seeds
        self._answered = answered
        self._expects = number % 2 == 0
        self.confirmed: list[bytes] = []
        self.led_to: set[bytes] = set()
        self.failure: BaseException | None = None

    def run(self) -> None:
        sizes = random.Random(self.name)
        try:
            with convserve.Client(self._target, retry=ONCE) as client:
                while True:
                    given = layer(next(self._seeds), sizes.choice([4, 100, 3000]))
                    self.led_to = {*self.confirmed[-1:], given.digest}
                    # Every other one says what it expects there: what was confirmed last, after the first put.
                    expect = self.confirmed[-1] if self.confirmed and self._expects else None
                    client.put(given, name=self.name, expect=expect)
                    self.confirmed.append(given.digest)
                    self._answered.release()
        except UnavailableError:
            pass
        except BaseException as error:
            self.failure = error
        finally:
            for _ in range(100):
                self._answered.release()


def test_a_server_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    rng, seeds = random.Random(0), itertools.count()
    confirmed: set[bytes] = set()
    led_to: dict[str, set[bytes]] = {}
    starts = []
    for _ in range(KILLS + 1):
        began = time.monotonic()
        with numpy_server("--store", str(tmp_path)) as server:
            starts.append(time.monotonic() - began)
            with convserve.Client(server.target, retry=ONCE) as client:
                held = {each.digest: each for each in client.layers()}
                assert confirmed <= held.keys()
                for digest, each in held.items():  # those too whose put was not answered
                    assert Layer(each.config, *each.weights()).digest == digest
                for name, digests in led_to.items():
                    assert client.layer(name).digest in digests
                    assert client.versions(name)[-1].digest in digests
                if held:
                    given = rng.choice(list(held.values()))
                    x = np.ones((1, 1, 1, given.kernel_shape[2]), "f4")
                    np.testing.assert_array_equal(given(x).ravel(), given.weights()[0].sum(axis=(0, 1, 2)))
            assert not list((tmp_path / "quarantine").iterdir())
            assert not list(tmp_path.rglob("*.partial"))
            if len(starts) > KILLS:
                break
            answered = threading.Semaphore(0)
            writers = [Writer(server.target, number, seeds, answered) for number in range(3)]
            for writer in writers:
                writer.start()
            for _ in range(rng.randrange(10, 60)):
                answered.acquire()
            server.process.kill()
            for writer in writers:
                writer.join()
                assert writer.failure is None
                assert writer.confirmed
                confirmed.update(writer.confirmed)
                led_to[writer.name] = writer.led_to
    print(f"\n{len(confirmed)} layers confirmed, {len(held)} held; starts: {', '.join(f'{s:.1f} s' for s in starts)}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five layers under names, of which one is torn and one is tampered with, and things that are no layer."""
    store = LayerStore(2**30, LayerFiles(tmp_path, 2**30))
    for seed in range(5):
        store.put(layer(seed), Move(f"layer/{seed}"))
    torn, tampered = file_of(tmp_path, 1), file_of(tmp_path, 2)
    torn.write_bytes(torn.read_bytes()[:-100])
    flip(tampered)
    (tmp_path / "layers" / "README").write_text("not a layer")
    (tmp_path / "layers" / f"{'0' * 64}.safetensors.abc.partial").write_bytes(b"torn")
    (tmp_path / "names" / "name.json").write_text('{"name": "../../etc/passwd"')
    return tmp_path


def file_of(folder: Path, seed: int) -> Path:
    return folder / "layers" / f"{layer(seed).digest.hex()}.safetensors"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def test_what_was_tampered_with_is_quarantined_and_comes_back_from_the_client(folder: Path) -> None:
    with numpy_server("--store", str(folder), "--layer-memory-bytes", "1") as server:
        quarantined = folder / "quarantine"
        assert len(list(quarantined.iterdir())) == 2
        with convserve.Client(server.target) as client:
            x = np.ones((1, 1, 1, 4), "f4")

            def check(*seeds: int) -> None:
                for seed in seeds:
                    expected = layer(seed).kernel.sum(axis=(0, 1, 2))
                    np.testing.assert_array_equal(client.put(layer(seed), name=f"layer/{seed}")(x).ravel(), expected)

            found = {seed: client.layer(f"layer/{seed}") for seed in (0, 3, 4)}
            with pytest.raises(LayerNotFoundError):
                client.layer("layer/1")  # whose header does not fit the file
            with pytest.raises(LayerNotFoundError):
                client.layer("layer/2")(x)  # whose weights are read for the first time
            assert len(list(quarantined.iterdir())) == 4
            check(0, 1, 2, 3, 4)

            put = client.put(layer(3))
            flip(file_of(folder, 3))
            flip(file_of(folder, 4))
            with pytest.raises(LayerNotFoundError, match=found[4].digest.hex()):
                found[4](x)  # this client knows no weights of it
            np.testing.assert_array_equal(put(x).ravel(), layer(3).kernel.sum(axis=(0, 1, 2)))
            assert file_of(folder, 3).exists()
            assert not file_of(folder, 4).exists()
            assert len(list(quarantined.iterdir())) == 6
            check(0, 1, 2, 3, 4)
        log = server.log.read_text()
    assert log.count("is quarantined as") == 6
    assert "Traceback" not in log
