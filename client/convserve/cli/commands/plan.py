"""`convserve plan`: what a call would cost."""

from __future__ import annotations

import dataclasses
from typing import Any

from convserve.cli.command import JSON, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import CALL, Parameters, call_options, layer_options, require
from convserve.cli.output.report import print_result, shape_text
from convserve.display.units import bytes_text, flops_text
from convserve.layers.conv2d import Conv2D
from convserve.tensors.codec import Shape


@new_command("plan")
@call_options(required=True)
@CALL.option("--local", "compute the plan here, without a server")
@JSON
@layer_options()
@connection_options(timeout=10.0)
def command(
    input_shape: Shape, local: bool, as_json: bool, parameters: Parameters, connection: Connection, **dtypes: Any
) -> None:
    require(parameters, "filters", "kernel_size")
    conv2d = Conv2D(**parameters)
    if local:
        plan = conv2d.plan(input_shape, **dtypes)
    else:
        with connection.client() as client:
            plan = client.plan(conv2d, input_shape, **dtypes)
    kernel_shape = plan.layers[0].kernel_shape
    answers = {None: "not asked (--local)", True: "yes", False: f"no: {plan.refusal}"}
    rows = [
        ("input", f"{shape_text(input_shape, dtypes['input_dtype'])}, {bytes_text(plan.input_bytes)}"),
        ("kernel", str(kernel_shape)),
        ("parameters", f"{plan.parameters:,}, {bytes_text(plan.weight_bytes)}"),
        ("output", f"{shape_text(plan.output_shape, plan.output_dtype)}, {bytes_text(plan.output_bytes)}"),
        ("work", flops_text(plan.flops)),
        ("memory", f"{bytes_text(plan.memory_bytes)} at once on the server, at least"),
        ("admitted", answers[plan.admitted]),
    ]
    document = dataclasses.asdict(plan) | {"kernel_shape": kernel_shape}
    del document["layers"]
    print_result(rows, document, as_json=as_json)
