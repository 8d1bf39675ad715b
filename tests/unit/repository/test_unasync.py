"""The blocking client's generated modules are what the asyncio client's make."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest

from tests.support.repository import ROOT

UNASYNC: dict[str, Any] = runpy.run_path(str(ROOT / "client" / "unasync.py"))
PACKAGE = UNASYNC["PACKAGE"]


@pytest.mark.parametrize("module", UNASYNC["MODULES"])
def test_a_generated_module_is_current(module: str) -> None:
    assert (PACKAGE / "_sync" / f"{module}.py").read_text() == UNASYNC["blocking"](module), "run: make sync"


def test_no_replacement_is_left_over() -> None:
    sources = "".join((PACKAGE / "_async" / f"{module}.py").read_text() for module in UNASYNC["MODULES"])
    assert [word for word in UNASYNC["WORDS"] if not re.search(word, sources)] == []
    assert [text for text in UNASYNC["PHRASES"] if text not in sources] == []


def test_what_stands_by_hand_has_the_same_names() -> None:
    from convserve._async import io as awaited
    from convserve._sync import io as blocking

    def names(module: Any) -> set[str]:
        own = {
            *("Lock", "RpcError", "ClosedChannelError", "sleep", "in_thread", "received"),
            *("home", "channels", "attempt", "connected"),
        }
        names = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        return own & set(vars(module)) | {name for name in names if not name.startswith("_")}

    assert names(awaited) == names(blocking) - {"Calls"}
