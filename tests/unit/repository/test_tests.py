"""What holds of the tests themselves."""

import re

from tests.support.repository import ROOT


def test_no_test_module_is_imported() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^(from|import) .*\btest_\w+", path.read_text(), re.MULTILINE), path
