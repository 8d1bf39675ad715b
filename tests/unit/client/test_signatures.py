"""What completion and `help()` show of the calls."""

from __future__ import annotations

import inspect
import pickle
import pydoc
import re

import pytest

from convserve import AsyncClient, Client, Conv2D

OWN = ["kernel", "bias", "seed", "output_dtype", "out", "timeout", "unknown"]
either = pytest.mark.parametrize("client", [Client, AsyncClient])


@either
def test_conv2d_has_the_parameters_of_conv2d(client):
    theirs = dict(inspect.signature(Conv2D).parameters)
    ours = dict(inspect.signature(client.conv2d).parameters)
    assert list(ours) == ["self", "x", *theirs, *OWN]
    for name, parameter in theirs.items():
        if name in ("filters", "kernel_size"):  # which a kernel may tell
            assert ours[name] == parameter.replace(default=None, annotation=f"{parameter.annotation} | None")
        else:
            assert ours[name] == parameter


@either
def test_help_explains_each_of_them(client):
    text = pydoc.plain(pydoc.render_doc(client.conv2d))
    assert "padding: 'str | int | Sequence[int] | Sequence[Sequence[int]]' = 'valid'" in text
    for name in inspect.signature(client.conv2d).parameters.keys() - {"self"}:
        assert re.search(rf"^ +(\*\*)?{name}: [A-Z(\"]", text, re.MULTILINE), name


@either
def test_a_keyword_that_there_is_not_is_refused_by_the_clients_name(client):
    with pytest.raises(TypeError, match=rf"^{client.__name__}\.convolve\(\) got an unexpected keyword"):
        client.convolve(None, [], [], timout=3)
    with pytest.raises(TypeError, match=rf"^{client.__name__}\.__init__\(\) got"):
        client("localhost:1", time_out=3)
    assert pickle.loads(pickle.dumps(client.map)) is client.map  # noqa: S301


@either
def test_what_a_call_gives_by_position_is_what_keras_takes_there(client):
    bound = inspect.signature(client.conv2d).bind("client", "x", 64, 3, 2, "same", "channels_first", 1, 4, "relu")
    assert dict(list(bound.arguments.items())[4:]) == {
        "strides": 2, "padding": "same", "data_format": "channels_first", "dilation_rate": 1, "groups": 4,
        "activation": "relu",
    }  # fmt: skip
