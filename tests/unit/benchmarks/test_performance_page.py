"""docs/performance.md says what the results say, and where remote starts to pay is computed rightly."""

import math
import re
from xml.etree import ElementTree

import pytest

from tests.bench import break_even, report
from tests.bench.record import ROOT


def test_the_page_and_its_plot_are_written_from_the_results():
    page, found = report.PAGE.read_text(encoding="utf-8"), report.results()
    assert report.filled(page, found) == page, "python -m tests.bench.report writes it again"
    drawn = report.plot(found)
    assert (report.PLOT.read_text(encoding="utf-8") if report.PLOT.exists() else None) == drawn


def test_no_result_that_is_shown_is_of_a_quick_pass():
    assert not [name for name, result in report.results().items() if result["quick"]]


def test_the_page_has_every_part():
    parts = set(re.findall(r"<!-- (\w+): written by", report.PAGE.read_text(encoding="utf-8")))
    memory, triton = {"memory", "memory_shared"}, {"open_inference", "perf_analyzer"}
    assert parts == memory | triton | {
        "headline",
        "peers",
        "targets",
        "break_even",
        "server_kinds",
        "parts",
        "xla",
        "pipeline",
        "gpu",
    }


def test_the_pages_commands_exist():
    text = report.PAGE.read_text(encoding="utf-8")
    for program in re.findall(r"python -m tests\.bench\.(\w+)", text):
        assert (ROOT / "tests" / "bench" / f"{program}.py").exists(), program
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


CONSTANTS = break_even.Constants(cores=2, here_gflops=100.0, ns_per_byte=2.0, ns_per_byte_shared=0.5)


@pytest.mark.parametrize("link", [0.1, 10.0, math.inf])
def test_at_the_threshold_both_take_equally_long(link):
    gflop_per_mb = CONSTANTS.threshold(100.0, 2.0, link)
    megabytes = 50.0
    gflop = gflop_per_mb * megabytes
    there = megabytes * 1e6 * (8 / (link * 1e9) + 2e-9) + gflop / CONSTANTS.there_gflops
    assert gflop / 100.0 == pytest.approx(there)


def test_a_faster_gpu_hardly_moves_the_threshold():
    faster = break_even.Constants(2, 100.0, 2.0, 0.5, there_gflops=2 * break_even.THERE_GFLOPS)
    assert faster.threshold(100.0, 2.0, 10.0) == pytest.approx(CONSTANTS.threshold(100.0, 2.0, 10.0), rel=0.01)


def test_constants_come_from_the_results():
    peers = {"cores": 2, "results": [{"w4c1": {"ref_p50_ms": 74.05}}]}
    costs = [(1_000_000, 9.0), (10_000_000, 2.0), (100_000_000, 3.0), (1_000_000_000, 4.0)]
    memory = {"bytes": [{"bytes_each_way": size, "ns_per_byte_moved": cost} for size, cost in costs]}
    found = break_even.constants(peers, memory, memory)
    assert found.here_gflops == pytest.approx(100.0, rel=0.01)  # 7.4 GFLOP
    assert found.ns_per_byte == found.ns_per_byte_shared == 3.0


def test_the_plot_is_svg_within_its_frame():
    root = ElementTree.fromstring(break_even.draw(CONSTANTS))  # noqa: S314 (our own)
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    names = {"x", "x1", "x2", "y", "y1", "y2"}
    for element in root.iter():
        for name in names & set(element.attrib):
            assert 0 <= float(element.attrib[name]) <= (width if name.startswith("x") else height)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert any("shared memory" in text for text in texts)
    assert any(text.startswith("W5") for text in texts)


def test_layers_are_sorted_by_what_they_compute_per_byte():
    found = break_even.layers()
    assert [value for _, value in found] == sorted(value for _, value in found)
    assert dict(found)["W5: 1x1, 3 to 64"] == pytest.approx(
        4 * 600 * 600 * 64 * 7 / 1e9 / (4 * 600 * 600 * 67 * 4 / 1e6)
    )
