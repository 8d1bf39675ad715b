"""`convserve play` in a real browser; all of it with `make play`, a short form where marimo and a browser are there."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from tests.support.browser import browser as real_browser
from tests.support.processes import ended_afterwards

pytest.importorskip("marimo", reason="marimo is not installed: see `make play`")
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")

SETTLED_MS = 15_000
SHAPE, PICTURES, KERNEL, FACTS, CODE = ".card.wide .figure", ".pictures", ".weights", ".facts", ".copy"


@pytest.fixture(scope="module")
def browser():
    with real_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def context(browser):
    """What the pages share, so that marimo's files are read once."""
    return browser.new_context()


@pytest.fixture(scope="module")
def url(server, browser):
    """The page's address; the browser is asked for first, so that nothing starts where there is none."""
    command = [sys.executable, "-m", "convserve", "play", "--no-browser", "--target", server.target]
    with ended_afterwards(command, stdout=subprocess.PIPE, text=True) as process:
        yield re.search(r"http://\S+", process.stdout.readline())[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stdout.read() == "stopped\n"


@dataclass
class Opened:
    """A page that is open in the browser."""

    page: object
    asked: list

    def control(self, name):
        group = self.page.locator(f"details:has([data-parameter={name}])")
        if not group.evaluate("each => each.open"):
            group.locator("summary").click()
        return self.page.locator(f"[data-parameter={name}]")

    def html(self, part):
        """Returns what a part of the page shows, but for times, which differ from call to call."""
        parts = self.page.locator(part).all()
        return re.sub(r"[\d.]+ (us|ms|s)\b", "", "".join(each.inner_html() for each in parts))

    def changed(self, part, act):
        """Does something, and waits until a part of the page shows something else."""
        before = self.html(part)
        act()
        for _ in range(SETTLED_MS // 50):
            if self.html(part) != before:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{part} has not changed")

    def slide(self, name, key="ArrowRight", which=0):
        thumb = self.control(name).locator("[role=slider]").nth(which)
        thumb.focus()
        thumb.press(key)

    def choose(self, name, label):
        self.control(name).locator("select").select_option(label=label)

    def type(self, name, text, which=0):
        field = self.control(name).locator("input").nth(which)
        field.fill(text)
        field.press("Tab")

    def switch(self, name):
        self.control(name).locator("[role=switch]").click()


@pytest.fixture
def opened(context, url):
    """Opens the page with a query, at a width and in a colour scheme."""
    pages = []

    def open_page(query="", width=1280, scheme="light"):
        pages.append(context.new_page())
        page, asked = pages[-1], []
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}?{query}")
        page.wait_for_selector(".play .pictures svg", timeout=SETTLED_MS * 2)
        return Opened(page, asked)

    yield open_page
    for page in pages:
        page.close()


def test_a_slider_moves_the_shape_and_a_refusal_stands_at_its_control(opened, url):
    at = opened("size=16")
    assert "(1, 14, 12, 4)" in at.html(SHAPE)
    at.changed(SHAPE, lambda: at.slide("strides"))
    assert "(1, 7, 12, 4)" in at.html(SHAPE)
    at.changed(".controls", lambda: at.slide("dilation_rate", which=1))
    at.page.wait_for_selector("[data-parameter=strides] .refusal")
    assert "Expected strides of 1" in at.control("strides").locator(".refusal").inner_text()
    assert at.page.locator(".refusal").count() == 1
    assert parse_qs(urlsplit(at.page.url).query) == {"size": ["16"], "strides": ["2,1"], "dilation_rate": ["1,2"]}
    assert {urlsplit(each).netloc for each in at.asked if each.startswith("http")} == {urlsplit(url).netloc}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),  # a forwarded port
        ({"Host": "example.com"}, 403),
        ({"Origin": "http://example.com"}, 403),
    ],
)
def test_the_page_is_for_this_machine_and_for_no_other_website(url, headers, status):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:  # noqa: S310 (our own)
            found = answer.status
    except urllib.error.HTTPError as refused:
        found = refused.code
        refused.close()
    assert found == status


@pytest.mark.slow
def test_without_a_server_one_is_started_and_stopped(browser, tmp_path):
    opener = tmp_path / "opener"
    opener.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    opener.chmod(0o755)
    command = [sys.executable, "-m", "convserve", "play"]
    environment = {**os.environ, "BROWSER": str(opener), "CONVSERVE_TARGET": ""}  # which names none
    with ended_afterwards(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        said = process.stdout.readline()
        if "no server answers" not in said:
            pytest.skip("a server listens at the usual address")
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (own,) = (each for each in children if b"serve" in Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0"))
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector(".play .facts", timeout=SETTLED_MS * 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        page.close()
    assert (tmp_path / "opened").read_text().strip() == address
    assert not Path(f"/proc/{own}").exists()


ACTS = {
    "picture": (PICTURES, lambda at: at.choose("picture", "a digit")),
    "size": (SHAPE, lambda at: at.slide("picture")),
    "grey": (SHAPE, lambda at: at.switch("picture")),
    "kernel": (KERNEL, lambda at: at.choose("kernel", "emboss: relief, as if lit from the upper left")),
    "seed": (PICTURES, lambda at: at.type("seed", "5")),
    "filters": (SHAPE, lambda at: at.slide("filters")),
    "kernel_size height": (SHAPE, lambda at: at.slide("kernel_size")),
    "kernel_size width": (SHAPE, lambda at: at.slide("kernel_size", which=1)),
    "strides height": (SHAPE, lambda at: at.slide("strides")),
    "strides width": (SHAPE, lambda at: at.slide("strides", which=1)),
    "padding same": (SHAPE, lambda at: at.choose("padding", "same")),
    "padding explicit": (SHAPE, lambda at: at.choose("padding", "explicit")),
    "data_format": (SHAPE, lambda at: at.choose("data_format", "channels_first")),
    "dilation_rate height": (SHAPE, lambda at: at.slide("dilation_rate")),
    "dilation_rate width": (SHAPE, lambda at: at.slide("dilation_rate", which=1)),
    "activation": (PICTURES, lambda at: at.choose("activation", "relu")),
    "use_bias": (FACTS, lambda at: at.switch("use_bias")),
    "kernel_initializer": (PICTURES, lambda at: at.choose("kernel_initializer", "ones")),
    "bias_initializer": (PICTURES, lambda at: at.choose("bias_initializer", "ones")),
    "kernel_regularizer": (FACTS, lambda at: at.choose("kernel_regularizer", "l2")),
    "bias_regularizer": (FACTS, lambda at: at.choose("bias_regularizer", "l2")),
    "activity_regularizer": (FACTS, lambda at: at.choose("activity_regularizer", "l1")),
    "kernel_constraint": (KERNEL, lambda at: at.choose("kernel_constraint", "non_neg")),
    "bias_constraint": (CODE, lambda at: at.choose("bias_constraint", "non_neg")),
    "name": (CODE, lambda at: at.type("name", "edges")),
    "dtype": (FACTS, lambda at: at.choose("dtype", "mixed_float16")),
    "trainable": (CODE, lambda at: at.switch("trainable")),
    "input_shape": (FACTS, lambda at: at.type("input_shape", "60,60,3")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTS)
def test_each_control_changes_what_is_shown(opened, name):
    part, act = ACTS[name]
    at = opened("size=16")
    at.changed(part, lambda: act(at))
    assert at.page.locator(".refusal").count() == 0
    shown = at.html(part)
    again = opened(urlsplit(at.page.url).query)  # the link carries it
    assert again.html(part) == shown


@pytest.mark.slow
def test_groups_change_the_parameters(opened):
    at = opened("size=16&filters=6")
    at.slide("groups")
    at.page.wait_for_selector("[data-parameter=groups] .refusal")  # two groups of three channels
    at.changed(FACTS, lambda: at.slide("groups"))
    assert "60" in at.page.locator(".card", has_text="Parameters").inner_text()  # 3 * 3 * 1 * 6 + 6


@pytest.mark.slow
def test_parameters_of_a_name_are_typed_and_refused_there(opened):
    at = opened("size=16&kernel_regularizer=l2")
    at.changed(FACTS, lambda: at.type("kernel_regularizer", "l2=0.5"))
    at.type("kernel_regularizer", "l2=-1")
    at.page.wait_for_selector("[data-parameter=kernel_regularizer] .refusal")
    assert "at least 0" in at.page.locator(".refusal").inner_text()


@pytest.mark.slow
def test_numbers_are_edited(opened):
    at = opened("picture=numbers&kernel=numbers&filters=2")
    at.changed(PICTURES, lambda: at.type("picture", "100"))
    assert ">100<" in at.html(PICTURES)
    at.changed(SHAPE, lambda: at.slide("picture"))  # rows
    assert "(1, 6, 5, 1)" in at.html(SHAPE)
    at.changed(KERNEL, lambda: at.type("kernel", "7", which=4))
    assert at.html(KERNEL).count(">7<") == 2  # the second filter repeats the first
    at.slide("kernel")
    at.page.wait_for_timeout(500)
    at.changed(KERNEL, lambda: at.type("kernel", "9"))
    assert (at.html(KERNEL).count(">9<"), at.html(KERNEL).count(">7<")) == (1, 2)
    at.changed(KERNEL, lambda: at.slide("kernel_size"))
    assert at.html(KERNEL).count(">9<") == 1


@pytest.mark.slow
def test_the_pixel_moves_with_its_window_and_its_sum(opened):
    at = opened("picture=numbers&kernel=numbers&filters=1&padding=same&dilation_rate=2,2&row=0&column=0")
    assert "y[0, 0, 0, 0] = " in at.page.locator(".answer").inner_text()
    before = at.html(".one-pixel")
    thumb = at.page.locator(".top [role=slider]").nth(1)
    thumb.focus()
    at.changed(PICTURES, lambda: thumb.press("ArrowRight"))
    assert "y[0, 0, 1, 0] = " in at.page.locator(".answer").inner_text()
    assert at.html(".one-pixel") != before
    assert at.page.locator(".input .tap").count() == 9
    assert at.page.locator(".zoom .gap").count() == 25 - 9
    at.changed(".top", lambda: at.page.locator(".top [role=switch]").click())
    at.page.get_by_text("One scale: ").wait_for()


@pytest.mark.slow
def test_two_settings_stand_side_by_side(opened):
    at = opened("size=16")
    at.page.get_by_role("button", name="Hold these settings").click()
    at.page.wait_for_selector(".sides")
    at.changed(".sides", lambda: at.slide("strides"))
    sides = [each.inner_text() for each in at.page.locator(".side").all()]
    assert "(1, 14, 12, 4)" in sides[0]
    assert "(1, 7, 12, 4)" in sides[1]
    again = opened(urlsplit(at.page.url).query)
    again.page.wait_for_selector(".sides")
    assert [each.inner_text()[:30] for each in again.page.locator(".side").all()] == [each[:30] for each in sides]
    again.page.get_by_role("button", name="Let them go").click()
    again.page.wait_for_selector(".sides", state="detached")


@pytest.mark.slow
def test_the_code_that_is_shown_gives_the_number_that_is_shown(opened):
    at = opened("size=16&row=3&column=4&filter=1&activation=relu")
    text = at.page.locator(".code pre").nth(1).text_content()
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(text, names)  # noqa: S102 (code of ours)
    where, value = re.search(r"y\[(.*)\] = (\S+)", at.page.locator(".answer").inner_text()).groups()
    assert where == "0, 3, 4, 1"
    assert names["y"][0, 3, 4, 1] == pytest.approx(float(value), rel=1e-5)


@pytest.mark.slow
def test_a_picture_is_uploaded(opened, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.arange(20 * 10 * 3, dtype=np.uint8).reshape(20, 10, 3)).save(tmp_path / "own.png")
    at = opened("size=16&picture=checkerboard")
    at.choose("picture", "a picture of your own")
    at.page.wait_for_selector("[data-parameter=picture] .refusal")
    at.page.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    at.page.wait_for_selector(".facts")
    assert "(1, 16, 8, 3)" in at.html(SHAPE)
    assert "own.png" in at.html(CODE)


@pytest.mark.slow
def test_a_link_that_cannot_be_read_is_told_of(opened):
    at = opened("filters=many")
    assert "filters: Expected" in at.page.locator(".refusal").inner_text()
    assert at.page.locator(".facts").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    "query",
    [
        "",
        "picture=numbers&kernel=numbers&kernel_size=5,5&padding=same&held=size%3D16",
        "kernel_size=9,9&dilation_rate=3,3",
    ],
)
def test_nothing_is_wider_than_the_window(opened, query, width, scheme):
    at = opened(query, width, scheme)
    at.page.wait_for_selector(".code pre")
    wider = at.page.evaluate(
        """width => [...document.querySelectorAll('.play *')].filter(each => !each.closest('pre'))
        .filter(each => each.getBoundingClientRect().right > width + 1).map(each => each.className || each.tagName)""",
        width,
    )
    assert wider == []
    assert at.page.evaluate("document.documentElement.scrollWidth") <= width
    tops = [at.page.locator(part).bounding_box()["y"] for part in (".play .controls", ".play .top")]
    assert tops == sorted(tops)  # the controls first, and what they change in the same window
    assert tops[1] < 900
    ink = at.page.evaluate("getComputedStyle(document.querySelector('.play')).color")
    assert (min(map(int, re.findall(r"\d+", ink)[:3])) > 200) is (scheme == "dark")
