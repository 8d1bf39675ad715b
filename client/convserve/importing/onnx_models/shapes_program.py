"""Infers the shapes of one model's tensors for another process: a program of its own, as ONNX does it in C++.

    python shapes_program.py SECONDS

It ends after so many seconds, or when it takes too much memory. Standard input has a serialized model without weights,
standard output becomes a JSON object: by the name of a tensor its dimensions, null for one that is open.
"""

from __future__ import annotations

import faulthandler
import json
import sys

_MOST_BYTES = 4 * 2**30


def main() -> None:
    """Reads a model, infers, and writes what it found."""
    faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)  # also when nobody is left to end this process
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    except (ImportError, OSError, ValueError):  # Windows has none, and a lower limit may be set already
        pass
    import onnx
    from onnx import shape_inference

    model = onnx.load_model_from_string(sys.stdin.buffer.read())
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    found = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dimensions = [each.dim_value if each.HasField("dim_value") else 0 for each in tensor.shape.dim]
            found[value.name] = [size if size > 0 else None for size in dimensions]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
