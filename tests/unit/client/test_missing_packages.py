"""A package that is missing is to be installed; one that is there and cannot be imported is named with the reason."""

from __future__ import annotations

import runpy
import subprocess
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
        assert raised.value.__cause__ is not None
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
        ("raise RuntimeError('compiled for another NumPy')", "compiled for another NumPy"),
        ("import inspect; inspect.float_", "module 'inspect' has no attribute 'float_'"),
        ("raise TypeError", "TypeError"),
        ("import json; json.loads('x')", "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_a_package_that_is_broken_is_named_with_the_reason(said, package, code, reason):
    package(code)
    assert said("import apackage") == f"apackage is installed and cannot be imported: {reason}"


def test_a_package_without_what_is_imported_from_it_is_named(said, package):
    package("")
    assert said("from apackage import nosuchname").startswith("apackage is installed and cannot be imported: cannot")


@pytest.mark.parametrize(
    ("error", "named"), [("ImportError('why')", "another_package"), ("RuntimeError('why')", "apackage")]
)
def test_of_several_packages_the_one_to_look_at_is_named(said, package, tmp_path, error, named):
    """Which is the one that lacks something, or, as most other errors are of two that do not fit, the one we need."""
    package("import another_package")
    (tmp_path / "another_package.py").write_text(f"raise {error}")
    assert said("import apackage") == f"{named} is installed and cannot be imported: why"


@pytest.mark.parametrize("code", ["import json; json.loads('x')", "raise ValueError", "[].index(1)"])
def test_what_is_raised_while_nothing_is_imported_stays_as_it_is(run, code):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (of any text)
        run("convserve.module", code)
    assert not isinstance(raised.value, MissingDependencyError)


def test_what_our_own_module_raises_while_it_is_imported_stays_as_it_is(run, package):
    package("exec('1 / 0', {'__name__': 'convserve.plugin'})")  # a package that imports one of ours
    with pytest.raises(ZeroDivisionError):
        run("convserve.module", "import apackage")


def test_a_module_of_ours_is_not_there_where_its_package_is_broken(package, tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise RuntimeError('compiled for another NumPy')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import convserve, inspect\n"
        "print(hasattr(convserve, 'plot'), bool(inspect.getmembers(convserve)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False True\n"


def test_a_module_of_our_own_that_is_missing_is_a_defect(run):
    with pytest.raises(ModuleNotFoundError, match=r"convserve_server\.lost") as raised:
        run("convserve_server.app", "import convserve_server.lost")
    assert not isinstance(raised.value, MissingDependencyError)


def test_what_was_explained_already_stays_so():
    with pytest.raises(MissingDependencyError, match="another"), needing(INSTALL):
        raise MissingDependencyError("another")
