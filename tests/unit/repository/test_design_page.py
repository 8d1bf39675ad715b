"""The page for developers names files and functions that are there."""

import ast
import re

import pytest

from tests.support.repository import ROOT

PAGE = (ROOT / "docs/design.md").read_text()
FILES = sorted(set(re.findall(r"`((?:client|server)/[\w/]+\.py)`", PAGE)))
NAMES = sorted(set(re.findall(r"`((?:client|server)/[\w/]+\.py)`: `([\w.]+)`", PAGE)))


def defined(path: str) -> set[str]:
    """Returns the functions and classes of a file, methods by their own name and by their class' too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("path", FILES)
def test_a_named_file_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(("path", "name"), NAMES)
def test_a_named_function_is_there(path: str, name: str) -> None:
    assert name in defined(path)


def test_the_page_names_files_and_functions() -> None:
    assert len(FILES) > 10
    assert len(NAMES) > 5
