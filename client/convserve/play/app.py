# /// script
# [tool.marimo.display]
# theme = "system"
# [tool.marimo.runtime]
# output_max_bytes = 32_000_000 # two for each character of the page
# ///
"""The page of `convserve play`, a marimo notebook: every parameter of Conv2D is a control.

Change it: `convserve play --write my_page.py`, then `marimo edit my_page.py`. What the pictures, formulas and codes are
is worked out by the modules beside this file; here stand the controls, and where everything is on the page.
"""

import marimo

app = marimo.App(width="full", app_title="convserve play: Conv2D")

with app.setup:
    import contextlib
    import dataclasses
    from urllib.parse import parse_qsl, urlencode

    import marimo as mo

    from convserve.errors import InvalidArgumentError
    from convserve.files.images import INPUT_PICTURE_SUFFIXES
    from convserve.play import choices, layout, view
    from convserve.play.convolution.calls import outcome
    from convserve.play.convolution.pictures import Upload
    from convserve.play.convolution.settings import MAX_GRID, OBJECTS, SIZES, Settings, parts_of, resized, text_of
    from convserve.play.serving import client_of_page


@app.cell
def _():
    """What the link says, once; afterwards the controls say it, and the link follows them."""
    request = mo.app_meta().request
    words = {} if request is None else {name: listed[0] for name, listed in request.query_params.items()}
    try:
        start, wrong_link = Settings.from_query(words), ""
    except InvalidArgumentError as error:
        start, wrong_link = Settings(), f"The link: {error}"
    link = mo.query_params()
    held, set_held = mo.state(words.get("held", ""))
    client, target = client_of_page()
    # What was set outlives the controls that a change of another one makes anew.
    kept = {name: getattr(start, name) for name in ("grid", "numbers", "row", "column", "filter")} | {"edited": 0}
    typed = {field: parts_of(getattr(start, field)) for field in OBJECTS}
    return client, held, kept, link, set_held, start, target, typed, wrong_link


@app.cell
def _(start):
    """The input."""
    given = mo.ui.dictionary(
        {
            "picture": choices.dropdown(mo.ui, "picture", start.picture),
            "size": mo.ui.slider(steps=SIZES, value=start.size, show_value=True, full_width=True, label="size"),
            "grey": mo.ui.switch(start.grey, label="grey"),
            "rows": choices.slider(mo.ui, 1, MAX_GRID, len(start.grid), "rows"),
            "columns": choices.slider(mo.ui, 1, MAX_GRID, len(start.grid[0]), "columns"),
        }
    )
    upload = mo.ui.file(filetypes=list(INPUT_PICTURE_SUFFIXES), max_size=2**25, label="Upload")
    return given, upload


@app.cell
def _(given, kept):
    grid = choices.matrix(mo.ui, resized(kept["grid"], given.value["rows"], given.value["columns"]))
    return (grid,)


@app.cell
def _(start):
    """Conv2D's parameters in Keras' order; those whose value is a name are below."""
    layer = mo.ui.dictionary(
        {
            "filters": choices.slider(mo.ui, 1, 32, start.filters),
            "kernel_size": choices.pair(mo.ui, 1, 9, start.kernel_size),
            "strides": choices.pair(mo.ui, 1, 8, start.strides),
            "padding": choices.dropdown(mo.ui, "padding", "explicit" if "," in start.padding else start.padding),
            "amounts": choices.padding_amounts(mo.ui, start.padding),
            "data_format": choices.dropdown(mo.ui, "data_format", start.data_format),
            "dilation_rate": choices.pair(mo.ui, 1, 6, start.dilation_rate),
            "groups": choices.slider(mo.ui, 1, 8, start.groups),
            "use_bias": mo.ui.switch(start.use_bias),
            "kernel": choices.dropdown(mo.ui, "kernel", start.kernel),
            "seed": mo.ui.number(step=1, value=start.seed, full_width=True),
            "name": mo.ui.text(start.name, placeholder="None", full_width=True),
            "dtype": choices.dropdown(mo.ui, "dtype", start.dtype),
            "trainable": mo.ui.switch(start.trainable),
            "input_shape": mo.ui.text(start.input_shape, placeholder="None, or such as 600,600,3", full_width=True),
        }
    )
    return (layer,)


@app.cell
def _(typed):
    """Activation, initializers, regularizers and constraints: a name, and parameters of its own."""
    names = mo.ui.dictionary({field: choices.dropdown(mo.ui, field, name) for field, (name, _) in typed.items()})
    return (names,)


@app.cell
def _(names, typed):
    for _field, _name in names.value.items():
        if typed[_field][0] != _name:
            typed[_field] = (_name, "")  # another name has other parameters
    parameters = mo.ui.dictionary(
        {
            field: mo.ui.text(text, placeholder=choices.parameters(field, name), full_width=True)
            for field, (name, text) in typed.items()
        }
    )
    return (parameters,)


@app.cell
def _(kept, layer):
    """The kernel's numbers, of one filter at a time."""
    _last = layer.value["filters"] - 1
    edited = choices.slider(mo.ui, 0, max(1, _last), min(kept["edited"], _last), "of filter")
    return (edited,)


@app.cell
def _(edited, kept, layer):
    kept["edited"] = edited.value
    _size = layer.value["kernel_size"].values()
    numbers = choices.matrix(mo.ui, resized(kept["numbers"][edited.value % len(kept["numbers"])], *_size))
    return (numbers,)


@app.cell
def _(edited, given, grid, kept, layer, numbers, parameters, start, typed):
    """All that the controls say, as one value."""
    kept["grid"] = choices.matrix_of(grid)
    if layer.value["kernel"] == "numbers":
        kept["numbers"] = choices.with_matrix(
            kept["numbers"], edited.value, choices.matrix_of(numbers), layer.value["filters"]
        )
    typed.update({field: (typed[field][0], text) for field, text in parameters.value.items()})
    _said = given.value | layer.value | {name: kept[name] for name in ("grid", "numbers")}
    _said |= {name: tuple(_said[name].values()) for name in choices.PAIRS}
    _said |= {field: text_of(*typed[field]) for field in OBJECTS}
    _said["padding"] = choices.padding_text(_said["padding"], _said["amounts"])
    _said["seed"] = int(_said["seed"] or 0)
    settings = dataclasses.replace(start, **{name: value for name, value in _said.items() if hasattr(start, name)})
    return (settings,)


@app.cell
def _(client, settings, upload):
    """The call: whenever a control has moved, the server is asked."""
    _file = upload.value[0] if upload.value else None
    uploaded = None if _file is None else Upload(_file.name, _file.contents)
    # What takes seconds says so; at all others that would only flicker.
    _is_long = settings.filters * settings.size**2 > 2**23
    with mo.status.spinner("The server computes ...") if _is_long else contextlib.nullcontext():
        made = outcome(settings, client, uploaded)
    return made, uploaded


@app.cell
def _(kept, made, start):
    """The pixel of the output whose sum is written out: its sliders end where the output does."""
    pixel = choices.pixel(mo.ui, made.maps, kept)
    shared_range = mo.ui.switch(kept.get("shared_range", start.shared_range), label="one scale for all")
    return pixel, shared_range


@app.cell
def _(kept, made, pixel, shared_range):
    kept.update(choices.moved(pixel.value, made.maps, kept), shared_range=shared_range.value)
    _where = {name: kept[name] for name in ("row", "column", "filter", "shared_range")}
    shown = dataclasses.replace(made, settings=dataclasses.replace(made.settings, **_where))
    return (shown,)


@app.cell
def _(held, link, shown):
    """The link follows the controls."""
    _words = shown.settings.to_query() | ({"held": held()} if held() else {})
    for _name in [each for each in link.to_dict() if each not in _words]:
        link.remove(_name)
    for _name, _value in _words.items():
        if link.get(_name) != _value:
            link.set(_name, _value)
    address = "?" + urlencode(_words)
    return (address,)


@app.cell
def _(set_held, shown):
    """Two settings side by side: buttons, in a cell of their own, as marimo runs no cell again for what it sets."""
    _query = urlencode(shown.settings.to_query()) or "filters=4"
    hold = mo.ui.button(label="Hold these settings", on_change=lambda _: set_held(_query), kind="success")
    release = mo.ui.button(label="Let them go", on_change=lambda _: set_held(""))
    return hold, release


@app.cell
def _(client, held, hold, release, shown, uploaded):
    comparison = layout.beside(hold, *([release] if held() else []))
    if held():
        try:
            _settings = Settings.from_query(dict(parse_qsl(held())))
            comparison += view.comparison(outcome(_settings, client, uploaded), shown)
        except InvalidArgumentError as error:
            comparison += layout.plain_refusal(str(error))
    return (comparison,)


@app.cell
def _(edited, given, grid, layer, names, numbers, parameters, settings, shown, upload):
    """The controls: Keras' defaults at the right, and what refuses a value below it."""

    def parameter(name, default, sentence, *controls):
        if name in OBJECTS:
            controls = [names[name], *([parameters[name]] if choices.parameters(name, names.value[name]) else [])]
        elif not controls:
            controls = [layout.beside(*layer[name].values()) if name in choices.PAIRS else layer[name]]
        return layout.control(shown, name, default, sentence, *controls)

    _inputs = [given["picture"]]
    if settings.picture == "numbers":
        _inputs += [
            layout.matrix(grid),
            layout.beside(given["rows"], given["columns"]),
        ]
    else:
        _inputs += [upload] if settings.picture == "upload" else []
        _inputs += [given["size"], given["grey"]] if settings.picture in ("photo", "upload") else [given["size"]]
    _kernel, _own = [layer["kernel"]], []
    if settings.kernel == "numbers":
        _kernel += [layout.matrix(numbers)]
        _kernel += [edited] if layer.value["filters"] > 1 else []
    elif settings.kernel != "initializer":
        _own = [layout.note("the kernel's own: it filters each channel by itself")]
    _amounts = [layout.beside(*layer["amounts"].values())] if layer.value["padding"] == "explicit" else []
    controls = [
        layout.group(
            "Input",
            parameter("picture", "", "What the layer is applied to; a picture's values go from 0 to 255.", *_inputs),
        ),
        layout.group(
            "Kernel",
            parameter("kernel", "drawn", "The weights: (height, width, channels / groups, filters).", *_kernel),
            parameter("seed", "None", "The same seed draws the same weights again."),
        ),
        layout.group(
            "Conv2D",
            parameter("filters", "required", "How many feature maps the output has.", *_own),
            parameter("kernel_size", "required", "Rows and columns of the window.", *_own),
            parameter("strides", "(1, 1)", "How far the window moves from one output pixel to the next."),
            parameter(
                "padding",
                '"valid"',
                "valid: the window stays inside. same: zeros around, so that stride 1 keeps the size. explicit: as "
                "many as you say, which only convserve has.",
                layer["padding"],
                *_amounts,
            ),
            parameter("data_format", "None", "Whether channels are the last axis, or the one after the batch."),
            parameter("dilation_rate", "(1, 1)", "Steps between the window's taps: above 1 it has gaps."),
            parameter("groups", "1", "Channels are split into groups, each with filters of its own.", *_own),
            parameter("activation", "None", "The function that is applied last."),
            parameter("use_bias", "True", "Whether each filter adds a number of its own."),
        ),
        layout.group(
            "Initializers",
            parameter("kernel_initializer", '"glorot_uniform"', "How the kernel's numbers are drawn."),
            parameter("bias_initializer", '"zeros"', "How the bias is drawn."),
        ),
        layout.group(
            "Regularizers and constraints",
            parameter("kernel_regularizer", "None", "A penalty on the kernel: a loss beside the output."),
            parameter("bias_regularizer", "None", "A penalty on the bias."),
            parameter("activity_regularizer", "None", "A penalty on the output, after the activation."),
            parameter("kernel_constraint", "None", "What an update makes of the kernel; no output changes."),
            parameter("bias_constraint", "None", "What an update makes of the bias."),
            is_open=False,
        ),
        layout.group(
            "name, dtype, trainable, input_shape",
            parameter("name", "None", "A label without “/”."),
            parameter("dtype", "None", "In which numbers is computed; mixed: weights are kept in float32."),
            parameter("trainable", "True", "A layer that is not trainable has no kernel or bias loss."),
            parameter("input_shape", "None", "The expected input, without its batch axis."),
            is_open=False,
        ),
    ]
    return (controls,)


@app.cell
def _(address, comparison, controls, pixel, shared_range, shown, target, uploaded, wrong_link):
    """The page."""
    _movers = [*pixel.values(), shared_range] if shown.maps is not None else []
    mo.Html(
        layout.page(
            head=layout.plain_refusal(wrong_link) + layout.refusal(shown, ""),
            controls="".join(controls),
            facts=view.facts(shown),
            pictures=view.pictures(shown) + layout.beside(*_movers),
            total=view.sum_of_pixel(shown),
            kernels=view.kernels(shown),
            codes=view.code(shown, target, uploaded.name if uploaded else "picture.png"),
            comparison=comparison,
            address=address,
        )
    )
    return


if __name__ == "__main__":
    app.run()
