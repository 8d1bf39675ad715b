"""`convserve plan`: what a call would cost."""

from __future__ import annotations

import argparse

from convserve.cli.options.connection import add_connection_options, connect
from convserve.cli.options.layer import add_layer_options, given_parameters, require
from convserve.cli.options.values import shape
from convserve.cli.output.report import print_json, print_rows, shape_text
from convserve.display.units import bytes_text, flops_text
from convserve.tensors.codec import FLOAT_DTYPES, INPUT_DTYPES

HELP = "say what a call would cost, without computing it"

_DESCRIPTION = """\
Says what a call with this layer and this input shape would do: output shape,
parameters, floating-point operations, bytes, memory. Nothing is computed. The
server is asked, because it also says whether it would admit the call; with
--local no server is needed, and admission stays open."""

_EPILOG = """\
examples:
  will a batch of four photos fit the server?
    convserve plan --input-shape 4,600,600,3 --filters 64 --kernel-size 3

  the same without a server, for a program:
    convserve plan --input-shape 4,600,600,3 --filters 64 --kernel-size 3 --local --json

  8-bit input, strided, padded as in PyTorch's padding=1, float16 back:
    convserve plan --input-shape 1x224x224x3 --input-dtype uint8 --filters 64 \\
      --kernel-size 3 --strides 2 --padding 1,1,1,1 --output-dtype float16

Bytes are decimal: 1 MB is 1,000,000 bytes. A multiplication and an addition are
two operations. The exit status is 0 whether or not the call would be admitted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = "%(prog)s --input-shape N,H,W,C --filters N --kernel-size N [OPTIONS]"
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    call = parser.add_argument_group("call")
    call.add_argument(
        "--input-shape",
        type=shape,
        required=True,
        metavar="N,H,W,C",
        help="the input's shape with its batch axis, such as 4,600,600,3 or 4x600x600x3",
    )
    call.add_argument(
        "--input-dtype", choices=INPUT_DTYPES, default="float32", help="the input's type (default: %(default)s)"
    )
    call.add_argument(
        "--output-dtype", choices=FLOAT_DTYPES, help="the output's type (default: that of the computation)"
    )
    call.add_argument("--local", action="store_true", help="compute the plan here, without a server")
    call.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_layer_options(parser)
    add_connection_options(parser, timeout=10.0)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from convserve import Conv2D

    require(arguments, "--filters", "--kernel-size")
    conv2d = Conv2D(**given_parameters(arguments))
    dtypes = {"input_dtype": arguments.input_dtype, "output_dtype": arguments.output_dtype}
    if arguments.local:
        plan = conv2d.plan(arguments.input_shape, **dtypes)
    else:
        with connect(arguments) as client:
            plan = client.plan(conv2d, arguments.input_shape, **dtypes)
    if arguments.json:
        print_json(
            {
                "output_shape": plan.output_shape,
                "output_dtype": plan.output_dtype,
                "kernel_shape": plan.layers[0].kernel_shape,
                "parameters": plan.parameters,
                "flops": plan.flops,
                "input_bytes": plan.input_bytes,
                "weight_bytes": plan.weight_bytes,
                "output_bytes": plan.output_bytes,
                "memory_bytes": plan.memory_bytes,
                "admitted": plan.admitted,
                "refusal": plan.refusal,
            }
        )
        return 0
    admitted = "not asked (--local)"
    if plan.admitted is not None:
        admitted = "yes" if plan.admitted else f"no: {plan.refusal}"
    print_rows(
        [
            ("input", f"{shape_text(arguments.input_shape, arguments.input_dtype)}, {bytes_text(plan.input_bytes)}"),
            ("kernel", str(plan.layers[0].kernel_shape)),
            ("parameters", f"{plan.parameters:,}, {bytes_text(plan.weight_bytes)}"),
            ("output", f"{shape_text(plan.output_shape, plan.output_dtype)}, {bytes_text(plan.output_bytes)}"),
            ("work", flops_text(plan.flops)),
            ("memory", f"{bytes_text(plan.memory_bytes)} at once on the server, at least"),
            ("admitted", admitted),
        ]
    )
    return 0
