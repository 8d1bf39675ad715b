"""What the page shows of an outcome, as HTML: figures with their formulas, pictures, the sum of a pixel, the code."""

from __future__ import annotations

import numpy as np

from convserve.display.pixels import finite_range
from convserve.display.units import bytes_text, duration_text, flops_text
from convserve.play.convolution.calls import Outcome
from convserve.play.convolution.code import command_line, keras_code, python_code
from convserve.play.convolution.formulas import flops_formula, parameters_formula, size_formula
from convserve.play.convolution.windows import Padding, WrittenSum, padding_of, window_of, written_sum
from convserve.play.drawing import input_svg, kernel_svg, map_svg, number_text, scale_for, zoom_svg
from convserve.play.layout import escaped, note, plain_refusal

MAX_MAPS, _MAX_KERNELS = 16, 24
_MAX_TERMS = 400
_COLOURS = ("red", "green", "blue")


def facts(made: Outcome) -> str:
    """Returns the figures: shape, parameters, operations, bytes, time."""
    conv2d, plan, x = made.conv2d, made.plan, made.x
    if conv2d is None or plan is None or x is None or made.pixels is None:
        return ""
    cards = []
    height, width = made.pixels.shape[:2]
    sizes = [size_formula(conv2d, size, direction) for direction, size in enumerate((height, width))]
    words = f"<i>size</i> = {escaped(sizes[0][0])}"
    lines = [f"{side} <b>{escaped(numbers)}</b>" for side, (_, numbers) in zip(("height", "width"), sizes, strict=True)]
    channels = f"channels <b>{conv2d.filters} filter{'s' if conv2d.filters > 1 else ''}</b>"
    made_of_them = plan.output_shape[3 if conv2d.data_format == "channels_last" else 1]
    if made_of_them != conv2d.filters:
        channels += f", of which glu makes <b>{made_of_them}</b>"
    shape = f"{escaped(x.shape)} <span class='arrow'>→</span> {escaped(plan.output_shape)}"
    cards.append(_card("Output shape", shape, [words, *lines, channels], "wide"))
    parameters = [escaped(parameters_formula(conv2d, plan)), f"kernel {escaped(plan.layers[0].kernel_shape)}"]
    cards.append(_card("Parameters", f"{plan.parameters:,}", parameters))
    cards.append(_card("Operations", flops_text(plan.flops), [escaped(flops_formula(conv2d, plan))]))
    sent = [f"input {bytes_text(plan.input_bytes)}, {x.dtype}", f"weights {bytes_text(plan.weight_bytes)}"]
    cards.append(_card("Bytes", bytes_text(plan.output_bytes), [f"output, {plan.output_dtype}", *sent]))
    if made.result is not None:
        timing, losses = made.result.timing, made.result.losses[0]
        waited = f"waited {duration_text(timing.queue_us)} before"
        cards.append(
            _card("Time on the server", duration_text(timing.compute_us), [f"on {escaped(made.result.device)}", waited])
        )
        penalties = [f"{name} {value:.6g}" for name, value in losses.given()]
        if penalties:
            cards.append(_card("Losses of the regularizers", penalties[0], penalties[1:]))
    if made.later is not None:
        cards.append(_card("For input_shape", escaped((None, *made.later[1:])), [f"of {escaped(conv2d.input_shape)}"]))
    return f'<div class="facts">{"".join(cards)}</div>'


def pictures(made: Outcome, *, most: int = MAX_MAPS) -> str:
    """Returns the input, with the window of the pixel that is chosen, and the feature maps, on one scale."""
    pixels, conv2d, settings = made.pixels, made.conv2d, made.settings
    if pixels is None:
        return ""
    height, width, channels = pixels.shape
    if conv2d is None or made.plan is None or made.maps is None:
        picture = input_svg(pixels, Padding(), None, scale_for(height, width, Padding()))
        wrong = ", ".join(name for name in made.refusals if name)
        text = note(f"No output: see {wrong}.") if wrong else ""
        return f'<div class="pictures">{_figure("input", _size(pixels), picture)}</div>{text}'
    padding = padding_of(conv2d, height, width)
    scale = scale_for(height, width, padding)
    maps = made.maps.astype(np.float32) if made.maps.dtype.itemsize < 4 else made.maps
    row, column, number = pixel_of(made)
    window = window_of(conv2d, height, width, row, column)
    caption = f"{_size(pixels)}{', mean of its channels' if channels not in (1, 3) else ''}"
    drawn = [_figure("input", caption, input_svg(pixels, padding, window, scale))]
    count = min(maps.shape[-1], most)
    limits = finite_range(maps[..., :count]) if settings.shared_range else None
    for each in [number, *range(number), *range(number + 1, count)][:count] if number >= count else range(count):
        low, high = finite_range(maps[..., each])
        caption = f"{number_text(low)} to {number_text(high)}"
        picture = map_svg(maps[..., each], limits, scale, (row, column) if each == number else None)
        drawn.append(_figure(f"filter {each}", caption, picture, "chosen" if each == number else ""))
    text = f'<div class="pictures">{"".join(drawn)}</div>'
    if limits is not None:
        text += note(f"One scale: {number_text(limits[0])} is dark, {number_text(limits[1])} is bright.")
    if count < maps.shape[-1]:
        text += note(f"{count} of {maps.shape[-1]} feature maps.")
    return text


def pixel_of(made: Outcome) -> tuple[int, int, int]:
    """Returns the row, column and filter that are chosen, within the output."""
    wanted = (made.settings.row, made.settings.column, made.settings.filter)
    sizes = (1, 1, 1) if made.maps is None else made.maps.shape
    row, column, number = (max(0, min(want, size - 1)) for want, size in zip(wanted, sizes, strict=True))
    return row, column, number


def pixel_sum(made: Outcome) -> WrittenSum | None:
    """Returns the sum of the pixel that is chosen."""
    if made.conv2d is None or made.pixels is None or made.kernel is None or made.maps is None:
        return None
    return written_sum(made.conv2d, made.pixels, made.kernel, made.bias, pixel_of(made))


def sum_of_pixel(made: Outcome) -> str:
    """Returns the window from near, and its sum written out up to the number that the server computed."""
    written = pixel_sum(made)
    if written is None or made.conv2d is None or made.pixels is None or made.maps is None:
        return ""
    row, column, number = pixel_of(made)
    has_parts = len(written.channels) > 1
    zooms, sums, steps = [], [], []
    for index, channel in enumerate(written.channels):
        name = f"channel {channel}"
        name += f", {_COLOURS[channel]}" if made.pixels.shape[-1] == 3 else ""
        zooms.append(_figure(name, "", zoom_svg(made.pixels, written, index)))
        sums.append(_terms(written, index, name if has_parts else ""))
    last = float(made.maps[row, column, number])
    if has_parts:
        parts = [_bracketed(float(part.sum())) for part in written.products]
        steps.append(f"{' + '.join(parts)} = {number_text(float(written.products.sum()))}")
    if written.bias is not None:
        steps.append(f"+ bias {_bracketed(written.bias)} = {number_text(written.total)}")
    activation = made.conv2d.activation.keras_name
    if activation != "linear":
        steps.append(f"{escaped(activation)} → {number_text(last)}")
    place = f"0, {number}, {row}, {column}"
    if made.settings.data_format == "channels_last":
        place = f"0, {row}, {column}, {number}"
    lines = "".join(f"<p>{line}</p>" for line in [*sums, *steps])
    result = f'<p class="answer">y[{place}] = {last:.6g} <span>as the server computed it</span></p>'
    return f'<div class="zooms">{"".join(zooms)}</div><div class="sum">{lines}{result}</div>'


def kernels(made: Outcome) -> str:
    """Returns the kernel: of each filter a matrix a channel, and what a constraint makes of it in an update."""
    if made.kernel is None:
        return ""
    text = _kernel_grid(made.kernel)
    if made.constrained is not None and made.conv2d is not None and made.conv2d.kernel_constraint is not None:
        text += note(f"After an update of the weights with {made.conv2d.kernel_constraint.keras_name}:")
        text += f'<div class="constrained">{_kernel_grid(made.constrained)}</div>'
    if made.bias is not None:
        shown = ", ".join(number_text(float(value)) for value in made.bias[:16])
        text += note(f"bias [{shown}{', …' if made.bias.size > 16 else ''}]")
    return text


def code(made: Outcome, target: str, file: str) -> dict[str, str]:
    """Returns the code to copy by its heading, as HTML; nothing for what was refused."""
    if made.result is None:
        return {}
    texts = {
        "Keras": keras_code(made, file),
        "convserve": python_code(made, target, file),
        "Command line": command_line(made, target, file),
    }
    # The class is marimo's, which puts a button to copy on it.
    return {
        name: f'<div class="codehilite"><pre><code>{escaped(text)}</code></pre></div>' for name, text in texts.items()
    }


def comparison(held: Outcome, made: Outcome) -> str:
    """Returns two outcomes side by side, with what differs in their settings above."""
    changes = held.settings.differences(made.settings)
    rows = "".join(
        f"<tr><th>{escaped(name)}</th><td>{escaped(old)}</td><td>{escaped(new)}</td></tr>" for name, old, new in changes
    )
    table = f"<table><tr><th></th><th>held</th><th>now</th></tr>{rows}</table>" if changes else ""
    table = table or note("Both are the same: change something.")
    sides = (("held", held), ("now", made))
    columns = "".join(f'<section class="side"><h3>{name}</h3>{_short(each)}</section>' for name, each in sides)
    return f'{table}<div class="sides">{columns}</div>'


def _short(made: Outcome) -> str:
    if made.plan is None or made.result is None:
        return "".join(plain_refusal(text) for listed in made.refusals.values() for text in listed)
    figures = [
        str(made.plan.output_shape),
        f"{made.plan.parameters:,} parameters",
        flops_text(made.plan.flops),
        bytes_text(made.plan.output_bytes),
        duration_text(made.result.timing.compute_us),
    ]
    return f'<p class="figures">{" · ".join(map(escaped, figures))}</p>{pictures(made, most=4)}'


def _kernel_grid(kernel: np.ndarray) -> str:
    values = kernel.astype(np.float32)
    depth, filters = values.shape[2:]
    most = float(np.abs(values).max()) or 1.0
    same = depth > 1 and np.array_equal(values, np.broadcast_to(values[:, :, :1], values.shape))
    places = [(number, channel) for number in range(filters) for channel in range(1 if same else depth)]
    drawn = []
    for number, channel in places[:_MAX_KERNELS]:
        where = "" if depth == 1 else ", every channel" if same else f", channel {channel}"
        drawn.append(_figure(f"filter {number}{where}", "", kernel_svg(values[:, :, channel, number], most)))
    more = len(places) - len(drawn)
    return f'<div class="kernels">{"".join(drawn)}</div>{note(f"and {more} more") if more > 0 else ""}'


def _terms(written: WrittenSum, index: int, name: str) -> str:
    values, weights = written.values[index].ravel(), written.weights[index].ravel()
    total = number_text(float(written.products[index].sum()))
    terms = [
        f"{number_text(float(value))}·{_bracketed(float(weight))}"
        for value, weight in zip(values, weights, strict=True)
    ]
    left_out = f" + … {len(terms) - _MAX_TERMS} more" if len(terms) > _MAX_TERMS else ""
    label = f"<em>{escaped(name)}</em> " if name else ""
    return f"{label}{' + '.join(terms[:_MAX_TERMS])}{left_out} = <b>{total}</b>"


def _bracketed(value: float) -> str:
    return f"({number_text(value)})" if value < 0 else number_text(value)


def _size(pixels: np.ndarray) -> str:
    height, width, channels = pixels.shape
    return f"{height} × {width}, {channels} channel{'s' if channels > 1 else ''}"


def _figure(title: str, caption: str, picture: str, kind: str = "") -> str:
    text = f"<figcaption><b>{escaped(title)}</b> <span>{escaped(caption)}</span></figcaption>"
    return f'<figure class="{kind}">{picture}{text}</figure>'


def _card(title: str, figure: str, lines: list[str], kind: str = "") -> str:
    below = "".join(f"<p>{line}</p>" for line in lines)
    return f'<div class="card {kind}"><h3>{title}</h3><p class="figure">{figure}</p>{below}</div>'
