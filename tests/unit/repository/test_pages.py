"""All Markdown pages: links and anchors lead somewhere, commands exist, and tables say what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import convserve
from convserve import cli, errors
from convserve_server import settings
from tests.support.pages import anchors, blocks, links, pages, text
from tests.support.repository import ROOT

PAGES = pages()
SITE: dict[str, Any] = runpy.run_path(str(ROOT / "docs/build_site.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), f"{path}#{anchor}"
        assert ROOT in target.resolve().parents
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_a_broken_link_and_a_broken_anchor_would_be_seen() -> None:
    page = "# One Two\n[a](missing.md) [b](#one-two) ![c](p.svg) [d](https://x)\n```sh\n# not a heading [e](f)\n```\n"
    assert links(page) == [("missing.md", ""), ("", "one-two"), ("p.svg", "")]
    assert anchors(page) == {"one-two"}


def test_the_index_lists_every_page() -> None:
    index = text("docs/README.md")
    listed = {path for path, _ in links(index)}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_commands_exist(page: Path) -> None:
    named = re.findall(r"`make ([\w-]+)|^make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    for target in {first or second for first, second in named}:
        assert re.search(rf"^{target}:", text("Makefile"), re.MULTILINE), target


def test_settings_table_is_the_servers() -> None:
    page = text("docs/settings.md")
    for name in settings.Settings.model_fields:
        flag = "none" if settings.is_secret(name) else f"`{settings.flag(name)}`"
        default = settings.default_text(name)
        assert f"| {flag} | `{settings.variable(name)}` | {default} | {settings.help_text(name)} |" in page
    assert len(re.findall(r"^\| (?:`--|none)", page, re.MULTILINE)) == len(settings.Settings.model_fields)


def test_errors_table_names_every_class() -> None:
    page = text("docs/errors.md")
    for name, member in vars(errors).items():
        if (
            isinstance(member, type)
            and issubclass(member, errors.ConvserveError)
            and member is not errors.ConvserveError
        ):
            assert f"`{name}`" in page, name


def test_parameters_table_names_every_parameter() -> None:
    import inspect

    from convserve import Conv2D

    rows = "".join(re.findall(r"^\| (`.*?) \|", text("docs/parameters.md"), re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == set(inspect.signature(Conv2D).parameters)


def test_flags_and_variables_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    by_flag, by_variable = blocks(text("docs/settings.md"), "sh")[0].splitlines()
    flags = dict(re.findall(r"--([\w-]+)(?: ([^-\s]\S*))?", by_flag))
    variables = dict(re.findall(r"CONVSERVE_(\w+)=(\S+)", by_variable))
    assert {name.upper().replace("-", "_"): value or "true" for name, value in flags.items()} == variables
    assert {f"CONVSERVE_{name}" for name in variables} <= {
        settings.variable(name) for name in settings.Settings.model_fields
    }


def test_the_reference_shows_every_public_name() -> None:
    shown = {member for _, members in SITE["REFERENCE"].values() for member in members}
    assert shown <= {*dir(convserve), "keras"}
    left = {*dir(convserve)} - shown - {"__version__"}
    assert all(hasattr(errors, name) for name in left), left  # the reference shows that module whole


def test_links_lead_to_pages_of_the_site_or_to_the_repository() -> None:
    names = {"README.md": "index.md", "docs/limits.md": "limits.md", "examples/go/README.md": "examples/go/README.md"}
    moved, repository = SITE["moved"], SITE["REPOSITORY"]
    assert moved("[a](docs/limits.md#b)", "README.md", names) == "[a](limits.md#b)"
    assert moved("[a](../README.md) [b](#c)", "docs/limits.md", names) == "[a](index.md) [b](#c)"
    assert moved("[a](../proto/x.proto)", "docs/limits.md", names) == f"[a]({repository}/proto/x.proto)"
    assert moved("![a](docs/demo.svg)", "README.md", names) == "![a](demo.svg)"
    assert moved("[a](../../docs/limits.md)", "examples/go/README.md", names) == "[a](../../limits.md)"
    assert moved("```md\n[a](docs/limits.md)\n```\n", "README.md", names) == "```md\n[a](docs/limits.md)\n```\n"


def test_the_sites_menu_has_every_page() -> None:
    found = SITE["sources"]()
    menu = SITE["navigation"](found)
    assert [name for name, new in found.items() if f'"{new}"' not in menu and not name.startswith("examples/")] == []


def commands() -> set[str]:
    """Returns what follows `convserve` in the commands of all pages' blocks for a shell."""
    shell = "".join("".join(blocks(page.read_text(encoding="utf-8"), "sh")) for page in PAGES).replace("\\\n", " ")
    return set(re.findall(r"^(?:until |\w+=\S+ )*(?:\S*/)?convserve (.*?)(?: #.*)?$", shell, re.MULTILINE))


def test_options_of_commands_on_pages_exist(capsys: pytest.CaptureFixture[str]) -> None:
    used: dict[tuple[str, ...], set[str]] = {}
    for line in commands():
        words = line.split()
        command = words[: 2 if words[0] == "layers" else 1]
        used.setdefault(tuple(command), set()).update(re.findall(r"(?<=\s)--[\w-]+", " ".join(words)))
    assert {("serve",), ("conv2d",), ("layers", "put"), ("batch",), ("info",)} <= used.keys()
    for command, options in used.items():
        assert cli.main([*command, "--help"]) == 0, command
        shown = capsys.readouterr().out
        unknown = {option for option in options if not re.search(rf"{option}\b", shown)}
        assert not unknown, (command, unknown)


def test_contributing_says_what_every_command_of_the_makefile_does() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", text("Makefile"), re.MULTILINE)
    said = text("CONTRIBUTING.md") + text("README.md")
    assert [target for target in targets.split() if not re.search(rf"`?make {target}\b", said)] == []
