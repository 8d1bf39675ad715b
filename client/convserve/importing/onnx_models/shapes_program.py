"""Infers the shapes of one model's tensors for another process: a program of its own, as ONNX does it in C++.

    python shapes_program.py SECONDS

It ends after so many seconds, or when it takes too much memory. Standard input has a serialized model without weights,
standard output becomes a serialized GraphProto that has the shapes of its tensors and nothing else.
"""

from __future__ import annotations

import faulthandler
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
    shapes = onnx.GraphProto(value_info=(*graph.value_info, *graph.input, *graph.output))
    sys.stdout.buffer.write(shapes.SerializeToString())


if __name__ == "__main__":
    main()
