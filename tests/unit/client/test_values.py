"""Values are values: they can be copied and sent to other processes, and are equal then, whatever they are made of."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import Client, Conv2D, InvalidRequestError, Layer, activations, constraints, initializers, regularizers
from convserve._keras_object import KerasObject
from convserve.errors import ConvserveError, FieldViolation
from convserve.protocol.status import CLASS_OF_REASON


def loaded(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301


Copy = Callable[[Any], Any]
COPIES: dict[str, Copy] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda value, protocol=protocol: loaded(pickle.dumps(value, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}
try:
    import cloudpickle

    COPIES["cloudpickle"] = lambda value: loaded(cloudpickle.dumps(value))
except ImportError:
    pass  # Ray's, Dask's and Spark's own: where they are, it is
EVERY_COPY = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)

FAMILIES: list[type[KerasObject]] = [
    activations.Activation,
    initializers.Initializer,
    regularizers.Regularizer,
    constraints.Constraint,
]
MEMBERS = {member for family in FAMILIES for member in family.members.values()}
GIVEN: dict[str, Any] = {"seed": 7, "axis": (-1,), "input_axes": (0, 1), "output_axes": [3], "gain": 2.0, "alpha": 0.5}


def members() -> list[KerasObject]:
    """Returns every member, with its defaults and with parameters of its own."""
    made = []
    for member in sorted(MEMBERS, key=lambda kind: (kind.family, kind.keras_name)):
        names = [field.name for field in dataclasses.fields(member)]
        required = {field.name: 0.25 for field in dataclasses.fields(member) if field.metadata["required"]}
        given = {name: value for name, value in GIVEN.items() if name in names}
        if member.family == "activation":
            given = {name: -2 if name == "axis" else value for name, value in given.items()}
        made += [member(**required), member(**required | given)]
    return made


KERNEL = np.arange(36, dtype="f4").reshape(3, 3, 2, 2)
CONFIGS = [
    Conv2D(2, 3),
    Conv2D(2, 3, padding=((1, 0), (0, 2)), kernel_regularizer="l2", bias_constraint="non_neg", name="a"),
    *(Conv2D(2, 3, activation=each) for each in members() if each.family == "activation"),
]  # fmt: skip
PLAN = Conv2D(2, 3).plan((1, 8, 8, 2))
RESULT = convserve.Result(
    np.ones((1, 2)), (convserve.Losses(1.0),), (Conv2D(2, 3),), convserve.Timing(1, 2), 1, "cpu:0", True
)
INFO = convserve.ServerInfo(
    "1",
    "2",
    "3",
    (convserve.Device("cpu:0", "cpu", ""),),
    ("float32",),
    (),
    False,
    1,
    2,
    3,
    convserve.Usage(1, 2, 3, 4),
)
OTHERS = [PLAN, PLAN.layers[0], RESULT.losses[0], RESULT.timing, INFO, convserve.RetryRule(attempts=2)]


@EVERY_COPY
def test_keras_objects(copied: Copy) -> None:
    for value in members():
        again = copied(value)
        assert (type(again), again, hash(again)) == (type(value), value, hash(value))


@EVERY_COPY
def test_configurations(copied: Copy) -> None:
    for value in [*CONFIGS, *OTHERS, convserve.TLS(ca="ca.pem", certificate=b"x", key="key.pem")]:
        again = copied(value)
        assert (type(again), again, hash(again)) == (type(value), value, hash(value))


@EVERY_COPY
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16"])
def test_layers(copied: Copy, dtype: str) -> None:
    config = Conv2D(2, 3, dtype=dtype, activation="tanh")
    for layer in (Layer(config), Layer(config, KERNEL, np.ones(2))):
        again = copied(layer)
        assert again.config == config
        for weight in ("kernel", "bias"):
            np.testing.assert_array_equal(getattr(again, weight), getattr(layer, weight), strict=True)
        if layer.kernel is not None:
            assert again.digest == layer.digest


def test_a_copy_of_weights_that_could_not_be_changed_has_the_digest_of_what_they_become() -> None:
    kernel = KERNEL.copy()
    kernel.flags.writeable = False
    layer = Layer(Conv2D(2, 3, use_bias=False), kernel)
    before = layer.digest
    again = loaded(pickle.dumps(layer))
    again.kernel[:] = 1
    again.kernel.flags.writeable = False
    assert again.digest != before == layer.digest


@EVERY_COPY
def test_results(copied: Copy) -> None:
    again = copied(RESULT)
    np.testing.assert_array_equal(again.output, RESULT.output)
    assert dataclasses.replace(again, output=None) == dataclasses.replace(RESULT, output=None)


def errors() -> list[ConvserveError]:
    violation = FieldViolation("kernel", "Expected x. Received y.")
    made = [
        kind(violation) if issubclass(kind, convserve.InvalidArgumentError) else kind("text")
        for kind in {*CLASS_OF_REASON.values(), convserve.DeadlineExceededError, convserve.MissingDependencyError}
    ]
    made += [
        convserve.LayerNotFoundError("none", layer="a", by_name=True),
        convserve.OverloadedError("busy", retry_after_s=1.5),
        convserve.InternalError("defect", error_id="abc"),
    ]
    made[0].add_note("In the RemoteConv2D 'a'.")
    return made


@EVERY_COPY
def test_errors(copied: Copy) -> None:
    for error in errors():
        again = copied(error)
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
        assert again.code_name == error.code_name


KINDS = [convserve.Client, convserve.AsyncClient]


@EVERY_COPY
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_is_its_settings(copied: Copy, kind: Any) -> None:
    target = ["10.0.0.1:1", "10.0.0.2:2"]
    retry = convserve.RetryRule(attempts=2)
    again = copied(kind(target, timeout=7, retry=retry, shared_memory=False, tls=True))
    assert repr(again) == f"<convserve.{kind.__name__} ipv4:10.0.0.1:1,10.0.0.2:2 timeout=7s>"
    assert again._arguments == {
        "target": target, "timeout": 7, "retry": retry, "shared_memory": False, "token": None, "tls": True,
    }  # fmt: skip


PICKLES = pytest.mark.parametrize("copied", [COPIES[name] for name in COPIES if "pickle" in name])


@PICKLES
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_was_given_stays_where_it_is(copied: Copy, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = kind("localhost:1", token="a-secret-of-mine")  # noqa: S106
    assert b"secret" not in pickle.dumps(client)
    again = copied(client)
    with pytest.raises(InvalidRequestError, match="the token again, which does not go from one process to another"):
        again._connected()
    monkeypatch.setenv("CONVSERVE_TOKEN", "that-of-the-process")
    assert copied(client)._access._metadata == (("authorization", "Bearer that-of-the-process"),)
    assert copied(copied(client))._access._metadata == (("authorization", "Bearer that-of-the-process"),)


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_token_comes_from_stays(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    none, environments = kind("localhost:1", token=""), kind("localhost:1")
    monkeypatch.setenv("CONVSERVE_TOKEN", "that-of-the-process")
    again = loaded(pickle.dumps([none, environments]))
    assert [bool(each._access._metadata) for each in again] == [False, True]
    given = kind("localhost:1", token="a-secret-of-mine")  # noqa: S106
    for copied in (copy.copy, copy.deepcopy):  # in this process, in which it was given
        assert copied(given)._access._metadata == given._access._metadata


def test_a_token_that_would_be_sent_in_the_clear_is_refused_by_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    written = pickle.dumps(Client("10.0.0.1:1"))
    monkeypatch.setenv("CONVSERVE_TOKEN", "that-of-the-process")
    client = loaded(written)
    layer = Layer(Conv2D(2, 3), KERNEL, np.ones(2))
    calls: list[Callable[[], Any]] = [client.info, lambda: client.delete("a"), lambda: client.move_away("a")]
    calls += [lambda: client.missing([layer]), lambda: list(client.map(layer, [np.zeros((8, 8, KERNEL.shape[2]))]))]
    for call in calls:
        with pytest.raises(InvalidRequestError, match="tls: Expected an encrypted connection"):
            call()
    client.close()


def test_a_private_key_is_not_written() -> None:
    tls = convserve.TLS(certificate=b"-----BEGIN CERTIFICATE-----", key=b"-----BEGIN PRIVATE KEY-----")
    client = Client("10.0.0.1:1", tls=tls)
    with pytest.raises(InvalidRequestError, match="make the client there"):
        pickle.dumps(client)
    assert copy.copy(client)._arguments == client._arguments


STORED = {convserve.Client: convserve.StoredLayer, convserve.AsyncClient: convserve.AsyncStoredLayer}


@EVERY_COPY
@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_layer_takes_its_weights_along(copied: Copy, kind: Any) -> None:
    layer = Layer(Conv2D(2, 3, activation="mish"), KERNEL, np.ones(2))
    client = kind("localhost:1", timeout=7)
    parts = {"digest": layer.digest, "config": layer.config, "kernel_shape": KERNEL.shape, "local": layer}
    stored = STORED[kind](client, **parts, name="a", names=("a", "b"))
    stored.uploads, stored.forms["x"] = 3, object()
    again = copied(stored)
    assert (again.digest, again.config, again.name, again.names) == (layer.digest, layer.config, "a", ("a", "b"))
    assert again.local.digest == layer.digest
    assert (again.uploads, again.forms) == (0, {})
    assert repr(again._connection) == repr(client)


def test_layers_of_one_client_have_one_afterwards() -> None:
    client = Client("localhost:1")
    parts = {"digest": bytes(32), "config": Conv2D(2, 3), "kernel_shape": KERNEL.shape}
    layers = [convserve.StoredLayer(client, **parts) for _ in range(2)]
    for copied in (copy.deepcopy, COPIES["pickle 4"]):
        first, second = copied(layers)
        assert first._connection is second._connection is not client
    assert copy.copy(layers[0])._connection is client


def test_what_a_value_says_of_itself_is_bounded() -> None:
    kept = convserve.initializers.GlorotUniform(input_axes=[0] * 8, output_axes=[-1])
    assert kept.input_axes == (0,) * 8
    with pytest.raises(convserve.InvalidConfigurationError, match="up to 8 integers"):
        convserve.initializers.GlorotUniform(input_axes=[0] * 9)
    with pytest.raises(convserve.InvalidConfigurationError, match="window"):
        convserve.initializers.STFT(window="w" * 101)
