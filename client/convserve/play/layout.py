"""Where everything is on the page: controls with their sentences, groups, sections. HTML, without marimo."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from convserve.errors import printable
from convserve.play.convolution.calls import Outcome


def escaped(value: object) -> str:
    """Returns a value as text of the page."""
    return html.escape(printable(str(value)))


_HATCH = (
    '<svg class="definitions" width="0" height="0"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="hatch-ground" width="6" height="6"></rect>'
    '<rect class="hatch" width="1.5" height="6"></rect></pattern></defs></svg>'
)
"""How padding is filled."""


def refusal(made: Outcome, *controls: str) -> str:
    """Returns what the refusals of some controls say, to stand beside them."""
    return "".join(plain_refusal(text) for control in controls for text in made.refusals.get(control, ()))


def plain_refusal(text: str) -> str:
    """Returns a refusal that no control is to blame for."""
    return f'<p class="refusal" role="alert">{escaped(text)}</p>' if text else ""


def control(made: Outcome, name: str, default: str, sentence: str, *controls: object) -> str:
    """Returns one parameter: its name, Keras' default, its controls, what it does, and what refuses it."""
    shown = f'<span class="default">{escaped(default)}</span>' if default else ""
    parts = "".join(f"<div>{each}</div>" for each in controls)
    wrong = refusal(made, name)
    return (
        f'<div class="control{" wrong" if wrong else ""}" data-parameter="{name}"><div class="name">{name}{shown}</div>'
        f'<div class="inputs">{parts}</div>{wrong}<p class="sentence">{escaped(sentence)}</p></div>'
    )


def group(title: str, *rows: str, is_open: bool = True) -> str:
    """Returns a group of parameters, which opens where one of them is refused."""
    text = "".join(rows)
    opened = " open" if is_open or 'class="refusal"' in text else ""
    return f'<details class="group"{opened}><summary>{title}</summary>{text}</details>'


def note(text: str) -> str:
    """Returns a remark in place of a control."""
    return f'<p class="note">{escaped(text)}</p>'


def beside(*controls: object) -> str:
    """Returns controls beside each other, where there is room."""
    return f'<div class="beside">{"".join(f"<div>{each}</div>" for each in controls)}</div>'


def matrix(rows: Sequence[Sequence[object]]) -> str:
    """Returns the numbers of a matrix to edit, as a grid."""
    cells = "".join(f"<div>{each}</div>" for row in rows for each in row)
    return f'<div class="matrix" style="--columns: {len(rows[0])}">{cells}</div>'


def page(
    *,
    head: str,
    controls: str,
    facts: str,
    pictures: str,
    total: str,
    kernels: str,
    codes: dict[str, str],
    comparison: str,
    address: str,
) -> str:
    """Returns the whole page; `address` is the link that carries all parameters."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    copies = "".join(
        f'<details class="code"{" open" if number == 0 else ""}><summary>{name}</summary>{text}</details>'
        for number, (name, text) in enumerate(codes.items())
    )
    link = (
        f'<p class="link"><a href="{html.escape(address)}">A link to these settings</a>: the address above is it.</p>'
    )
    hint = "The window of one output pixel, from near: what lies under each weight, padding hatched, gaps dim."
    blocks = [
        ("one-pixel", "One pixel of the output", f'<p class="note">{hint}</p>{total}' if total else ""),
        ("weights", "Kernel", kernels),
        ("copy", "Copy as", copies + link),
        ("compare", "Two settings side by side", comparison),
    ]
    more = "".join(f'<section class="{kind}"><h2>{title}</h2>{text}</section>' for kind, title, text in blocks if text)
    return (
        f'<style>{style}</style><div class="play"><header><h1>Conv2D</h1>'
        f"<p>Every parameter of <code>keras.layers.Conv2D</code> is a control.</p></header>{head}"
        f'<div class="top">{facts}<section>{_HATCH}{pictures}</section></div>'
        f'<aside class="controls">{controls}</aside><div class="more">{more}</div></div>'
    )
