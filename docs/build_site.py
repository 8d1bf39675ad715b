"""`make docs`: gathers the pages in site/, with an API reference from the docstrings, and has Zensical build the site.

Zensical is the successor of Material for MkDocs by the same people, with releases every week; Material itself ends on
2027-05-05, and the MkDocs that it needs had its last release in 2024. It also checks links and anchors.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
REPOSITORY = "https://github.com/convserve/convserve/blob/main"

PAGES = {"README.md": "index.md", "docs/README.md": "documentation.md"}
"""Pages that have another name on the site; those of the root and of docs/ keep theirs."""

REFERENCE = {
    "client": ("The blocking client", ["Client", "StoredLayer", "RetryRule", "TLS"]),
    "async_client": ("The asyncio client", ["AsyncClient", "AsyncStoredLayer"]),
    "layers": ("Layers and plans", ["Conv2D", "Layer", "Plan", "LayerPlan"]),
    "results": ("Results", ["Result", "Losses", "Timing", "Device", "ServerInfo", "Usage", "NameVersion"]),
    "activations": ("Activations", ["activations"]),
    "initializers": ("Initializers", ["initializers"]),
    "regularizers": ("Regularizers and constraints", ["regularizers", "constraints"]),
    "errors": ("Errors", ["errors"]),
    "importing": ("Importing models", ["importing"]),
    "keras": ("Remote Keras layers", ["keras"]),
    "ray": ("Ray Data", ["ray"]),
    "plot": ("Plots", ["plot"]),
}
"""The pages of the API reference: their file, their title, and what of `convserve` they show."""

_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?(\))")


def sources() -> dict[str, str]:
    """Returns the pages: where each lies in the repository, and where on the site."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]
    names = (path.relative_to(ROOT).as_posix() for path in sorted(found))
    return {name: PAGES.get(name, name.removeprefix("docs/")) for name in names}


def moved(text: str, name: str, pages: dict[str, str]) -> str:
    """Returns a page with its links as they are on the site: to other pages there, else to the repository."""
    own = os.path.dirname(pages[name])

    def target(match: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(name), match[2]))
        if path in pages:
            new = os.path.relpath(pages[path], own or ".")
        elif path.startswith("docs/") and Path(path).suffix in (".svg", ".png"):
            new = os.path.relpath(path.removeprefix("docs/"), own or ".")
        else:
            new = f"{REPOSITORY}/{path}"
        return f"{match[1]}{new}{match[3] or ''}{match[4]}"

    # Code is left as it is.
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(target, part) for part in parts)


def navigation(pages: dict[str, str]) -> str:
    """Returns the list of pages, which is the index': its sections with their links, and the reference behind them."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    sections = ['{ "Home" = "index.md" }', '{ "All pages" = "documentation.md" }']
    for part in index.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        paths = (
            (title, os.path.normpath(f"docs/{path}")) for title, path in re.findall(r"\[([^]]+)\]\(([^)]+)\)", body)
        )
        entries = [
            f'{{ "{title}" = "{pages[path]}" }}' for title, path in paths if pages.get(path, "index.md") != "index.md"
        ]
        sections.append(f'{{ "{heading}" = [{", ".join(entries)}] }}')
    reference = ", ".join(f'{{ "{title}" = "reference/{name}.md" }}' for name, (title, _) in REFERENCE.items())
    sections.append(f'{{ "API reference" = [{reference}] }}')
    return "nav = [\n  " + ",\n  ".join(sections) + ",\n]"


def gather() -> None:
    """Writes what Zensical reads."""
    shutil.rmtree(SITE, ignore_errors=True)
    pages = sources()
    for name, new in pages.items():
        path = SITE / "pages" / new
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(moved((ROOT / name).read_text(encoding="utf-8"), name, pages), encoding="utf-8")
    for beside in (path for kind in ("svg", "png", "css") for path in (ROOT / "docs").rglob(f"*.{kind}")):
        path = SITE / "pages" / beside.relative_to(ROOT / "docs")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(beside, path)
    (SITE / "pages" / "reference").mkdir()
    for name, (title, members) in REFERENCE.items():
        body = "\n\n".join(f"::: convserve.{member}" for member in members)
        (SITE / "pages" / "reference" / f"{name}.md").write_text(f"# {title}\n\n{body}\n", encoding="utf-8")
    settings = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    (SITE / "zensical.toml").write_text(settings.replace("nav = []", navigation(pages)), encoding="utf-8")


if __name__ == "__main__":
    gather()
    zensical = Path(sys.executable).with_name("zensical")
    sys.exit(subprocess.run([zensical, "build", "--strict"], cwd=SITE, check=False).returncode)
