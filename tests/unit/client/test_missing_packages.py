"""A package that is missing is to be installed; one that is there and cannot be imported is named with the reason."""

from __future__ import annotations

import runpy
import sys

import pytest

from convserve import MissingDependencyError
from convserve.errors import needing

INSTALL = "pip install it"


@pytest.fixture
def run(tmp_path):
    """Runs code as a module of ours."""

    def run_as(name, code):
        file = tmp_path / "ours.py"
        file.write_text(code)
        with needing(INSTALL):
            runpy.run_path(str(file), run_name=name)

    return run_as


@pytest.fixture
def said(run):
    """Returns what is said where a module of the client runs code."""

    def of(code):
        with pytest.raises(MissingDependencyError) as raised:
            run("convserve.module", code)
        assert isinstance(raised.value.__cause__, ImportError)
        return str(raised.value)

    return of


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Writes a package that runs code when it is imported."""

    def write(code):
        (tmp_path / "apackage.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    sys.modules.pop("apackage", None)


@pytest.mark.parametrize("code", ["import nosuchpackage", "import importlib; importlib.import_module('nosuch.module')"])
def test_a_package_that_is_missing_is_to_be_installed(said, code):
    assert said(code) == INSTALL


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nosuchmodule", "No module named 'nosuchmodule'"),
        ("raise ImportError('libx.so.1: cannot open')", "libx.so.1: cannot open"),
        ("raise ImportError('Many\\nlines') from ImportError('libx.so.1: cannot open')", "libx.so.1: cannot open"),
        ("raise ImportError('Many\\nlines')", "Many lines"),
    ],
)
def test_a_package_that_is_broken_is_named_with_the_reason(said, package, code, reason):
    package(code)
    assert said("import apackage") == f"apackage is installed and cannot be imported: {reason}"


def test_a_package_without_what_is_imported_from_it_is_named(said, package):
    package("")
    assert said("from apackage import nosuchname").startswith("apackage is installed and cannot be imported: cannot")


def test_a_module_of_our_own_that_is_missing_is_a_defect(run):
    with pytest.raises(ModuleNotFoundError, match=r"convserve_server\.lost") as raised:
        run("convserve_server.app", "import convserve_server.lost")
    assert not isinstance(raised.value, MissingDependencyError)


def test_what_was_explained_already_stays_so():
    with pytest.raises(MissingDependencyError, match="another"), needing(INSTALL):
        raise MissingDependencyError("another")
