"""Layers, plans and figures in a notebook: what IPython's own formatters make of them."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import convserve
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.protocol.results import Losses, Result, Timing
from convserve.protocol.server_info import Device, ServerInfo, Usage
from convserve.protocol.stored_layers import LayerList, StoredLayerBase

formatters = pytest.importorskip("IPython.core.formatters")

KERNEL = np.zeros((3, 3, 3, 8), np.float32)
CONFIG = Conv2D(8, 3, activation="relu", data_format="channels_last", dtype="float32")


class Tables(HTMLParser):
    """The cells of each row of each table, and the tags that were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.caption = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not attrs
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "caption":
            self.caption += data
        else:
            self.tables[-1][-1][-1] += data


def displayed(value: object) -> Tables:
    """Returns what a notebook shows of a value."""
    data, _ = formatters.DisplayFormatter().format(value)
    assert data["text/plain"].split() == repr(value).split()  # a long list is broken into lines
    tables = Tables(data["text/html"])
    assert tables.tags <= {"table", "caption", "tr", "th", "td"}
    return tables


def known(**changes: Any) -> StoredLayerBase:
    parts = {"digest": bytes(range(32)), "name": "edges", "names": ("edges", "old/edges"), "config": CONFIG}
    return StoredLayerBase(**{**parts, "kernel_shape": KERNEL.shape, "local": None, **changes})


def test_a_configuration_shows_what_is_not_a_default() -> None:
    tables = displayed(CONFIG)
    assert tables.caption == "Conv2D"
    assert tables.tables == [[["filters", "8"], ["kernel_size", "(3, 3)"], ["activation", str(CONFIG.activation)]]]


def test_a_layer_shows_its_weights_size() -> None:
    (rows,) = displayed(Layer(CONFIG, KERNEL, np.zeros(8, np.float32))).tables
    assert ["kernel", "(3, 3, 3, 8) float32"] in rows
    assert ["parameters", "224, 896 bytes"] in rows
    (rows,) = displayed(Layer(CONFIG)).tables
    assert rows[-1] == ["weights", "drawn by the server"]


def test_a_stored_layer_shows_its_names_and_digest() -> None:
    tables = displayed(known())
    assert tables.caption == "StoredLayerBase"
    assert tables.tables[0][:2] == [["name", "edges, old/edges"], ["digest", "000102030405"]]
    assert ["activation", str(CONFIG.activation)] in tables.tables[0]
    assert ["kernel", "(3, 3, 3, 8) float32"] in tables.tables[0]
    assert displayed(known(name="new", names=())).tables[0][0] == ["name", "new"]
    assert displayed(known(name=None, names=())).tables[0][0] == ["name", "none"]


def test_both_clients_stored_layers_are_shown() -> None:
    for kind in (convserve.StoredLayer, convserve.AsyncStoredLayer):
        assert issubclass(kind, StoredLayerBase)


def test_a_plan_shows_what_a_call_comes_to() -> None:
    (rows,) = displayed(CONFIG.plan((4, 600, 600, 3))).tables
    assert rows == [
        ["output", "(4, 598, 598, 8) float32, 45.77 MB"],
        ["input", "17.28 MB"],
        ["kernel", "(3, 3, 3, 8)"],
        ["parameters", "224, 896 bytes"],
        ["work", "629.4 MFLOP"],
        ["memory", "126.1 MB at once on the server, at least"],
    ]


def test_a_plan_of_a_chain_shows_each_layer() -> None:
    from convserve.layers.plan import plan

    summary, layers = displayed(plan([CONFIG, Conv2D(2, 1, data_format="channels_last")], (1, 10, 10, 3))).tables
    assert ["layers", "2"] in summary
    assert layers[0] == ["layer", "kernel", "output", "parameters", "work"]
    assert layers[1][:4] == ["0", "(3, 3, 3, 8)", "(1, 8, 8, 8)", "224"]
    assert layers[2][:4] == ["1", "(1, 1, 8, 2)", "(1, 8, 8, 2)", "18"]


def test_a_plan_shows_the_servers_word() -> None:
    import dataclasses

    plan = CONFIG.plan((1, 9, 9, 3))
    assert displayed(dataclasses.replace(plan, admitted=True)).tables[0][-1] == ["admitted", "yes"]
    refused = dataclasses.replace(plan, admitted=False, refusal="Expected <b>less</b>.")
    assert displayed(refused).tables[0][-1] == ["admitted", "no: Expected <b>less</b>."]


def test_a_result_shows_what_a_call_came_to() -> None:
    y = np.zeros((2, 5, 5, 8), np.float32)
    one = Result(y, (Losses(kernel=0.5),), (CONFIG.with_seed(3),), Timing(20, 3100), 4, "cpu:0", False)
    tables = displayed(one)
    assert tables.caption == "Result"
    (rows,) = tables.tables
    assert rows[:2] == [["output", "(2, 5, 5, 8) float32, 1.6 kB"], ["computed in", "3.1 ms, after a wait of 20 us"]]
    assert ["on", "cpu:0, its first call with this geometry"] in rows
    assert ["batch size", "4"] in rows
    assert ["kernel loss", "0.5"] in rows
    assert rows[-1][0] == "drawn by"
    assert "seed=3" in rows[-1][1]
    chain = Result(y, (Losses(), Losses(activity=2.0)), (None, CONFIG), Timing(0, 1), 2, "gpu:0", True)
    summary, layers = displayed(chain).tables
    assert ["on", "gpu:0"] in summary
    assert layers[1] == ["0", "given or stored", "none"]
    assert layers[2][2] == "activity 2"


def test_a_server_shows_what_it_is() -> None:
    limits = {"max_message_bytes": 2**31 - 1, "max_call_bytes": 2**33, "max_layers_per_call": 64}
    devices = (Device("gpu:0", "gpu", "a <fast> one"), Device("gpu:1", "gpu", ""))
    info = ServerInfo(
        "1", "2.21", "3.15", devices, ("float32",), ("float32",), False, **limits, usage=Usage(2, 500, 0, 7)
    )
    tables = displayed(info)
    assert tables.caption == "ServerInfo"
    (rows,) = tables.tables
    assert rows[:2] == [
        ["server", "convserve 1, TensorFlow 2.21, Keras 3.15"],
        ["devices", "gpu:0 (a <fast> one); gpu:1"],
    ]
    assert rows[-1] == ["layers", "2 stored, 500 bytes in memory; 0 evicted since the start; 7 compiled functions"]


def test_a_list_of_layers_has_a_row_for_each() -> None:
    listed = LayerList([known(), known(name=None, names=())])
    assert listed == [listed[0], listed[1]]
    (rows,) = displayed(listed).tables
    assert rows[0][:3] == ["name", "digest", "kernel"]
    assert rows[1] == ["edges, old/edges", "000102030405", "(3, 3, 3, 8)", "1", "valid", "relu", "896 bytes"]
    assert rows[2][0] == "-"
    grouped = Conv2D(6, 3, strides=(2, 1), padding=((0, 1), (2, 3)), groups=3, data_format="channels_last")
    ((_, row),) = displayed(LayerList([known(config=grouped, kernel_shape=(3, 3, 1, 6))])).tables
    assert row[2:6] == ["(3, 3, 1, 6) in 3 groups", "2,1", "0,1,2,3", "linear"]
    assert displayed(LayerList()).tables == [[rows[0]]]


@pytest.mark.parametrize("name", ["<script>alert(1)", "<img src=x onerror=y>", '"&amp;<td>'])
def test_names_are_text(name: str) -> None:
    config = Conv2D(8, 3, name=name, data_format="channels_last", dtype="float32")
    for value in (config, Layer(config)):
        assert ["name", name] in displayed(value).tables[0]
    hostile = f"{name}</td></tr></table>"  # which no server of ours would let anybody have
    assert ["name", hostile] in displayed(known(name=hostile, names=(hostile,))).tables[0]
