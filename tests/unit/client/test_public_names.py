"""What `convserve` offers, and that it says so in one way."""

import subprocess
import sys

import convserve

WITHOUT_DEPENDENCIES = """
import inspect, sys
import convserve
dir(convserve)
assert not {"grpc", "matplotlib", "tensorflow"} & sys.modules.keys()
sys.modules["matplotlib"] = sys.modules["tensorflow"] = None
listed = dict(inspect.getmembers(convserve))
print("importing" in listed, "ray" in listed, "plot" in listed, "keras" in dir(convserve), hasattr(convserve, "keras"))
for name in ("plot", "keras"):
    try:
        getattr(convserve, name)
    except AttributeError as error:
        print("pip install" in str(error))
    try:
        exec(f"from convserve import {name}")
    except convserve.MissingDependencyError as error:
        print("pip install" in str(error))
"""


def test_what_is_listed_is_public_and_there() -> None:
    assert set(dir(convserve)) - {"keras"} == {*convserve.__all__, "importing", "plot", "ray"}
    assert all(hasattr(convserve, name) for name in dir(convserve))
    assert convserve.__all__ == sorted(convserve.__all__)
    kinds = [getattr(convserve, name) for name in convserve.__all__ if isinstance(getattr(convserve, name), type)]
    assert {kind.__module__ for kind in kinds} == {"convserve", "convserve.errors"}


def test_its_modules_are_there_without_an_import_of_their_own() -> None:
    program = "import convserve; dir(convserve); print(convserve.importing.read, convserve.plot.kernels, convserve.ray)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_a_module_that_lacks_a_package_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_DEPENDENCIES], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["True True False False False", *["True"] * 4, ""], done.stderr
