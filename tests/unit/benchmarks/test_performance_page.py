"""docs/performance.md and the README say what the results say."""

import re

import pytest

from tests.bench import report
from tests.bench.record import ROOT


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
def test_a_page_is_written_from_the_results(path):
    page, found = path.read_text(encoding="utf-8"), report.results()
    assert "written by python -m tests.bench.report" in page
    assert report.filled(page, found) == page, "python -m tests.bench.report writes it again"


def test_no_result_that_is_shown_is_of_a_quick_pass():
    assert not [name for name, result in report.results().items() if result["quick"]]


def test_the_pages_commands_exist():
    text = report.PAGE.read_text(encoding="utf-8")
    for program in re.findall(r"python -m tests\.bench\.(\w+)", text):
        assert (ROOT / "tests" / "bench" / f"{program}.py").exists(), program
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
