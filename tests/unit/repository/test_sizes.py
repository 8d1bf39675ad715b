"""Folders and files stay small enough to read."""

from collections import Counter

from tests.support.repository import modules

MAX_MODULES_IN_A_FOLDER, MAX_LINES = 10, 360


def test_folders_hold_few_modules() -> None:
    folders = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    assert not {folder for folder, count in folders.items() if count > MAX_MODULES_IN_A_FOLDER}


def test_files_are_short() -> None:
    lines = {module: path.read_text().count("\n") for module, path in modules().items()}
    assert not {module: count for module, count in lines.items() if count > MAX_LINES}
