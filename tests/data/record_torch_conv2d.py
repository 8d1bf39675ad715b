"""Records what PyTorch's conv2d computes, so that tests need no PyTorch.

pip install torch==2.13.0
python tests/data/record_torch_conv2d.py > tests/data/torch_conv2d.json
"""

import json
import sys

import torch

# name: input (N, C, H, W), weight (out, in / groups, H, W), whether there is a bias, torch's other arguments
CASES = {
    "strides 2, padding 1, on even sides": ((2, 3, 6, 8), (4, 3, 3, 3), True, {"stride": 2, "padding": 1}),
    "ResNet's first": ((1, 3, 12, 12), (2, 3, 7, 7), False, {"stride": 2, "padding": 3}),
    "a shortcut of ResNet": ((1, 4, 6, 6), (3, 4, 1, 1), False, {"stride": 2}),
    "dilation 2": ((1, 2, 8, 7), (3, 2, 3, 3), True, {"padding": 2, "dilation": 2}),
    "groups 2": ((1, 4, 5, 6), (6, 2, 3, 3), True, {"padding": 1, "groups": 2}),
    "depthwise, strides 2": ((1, 4, 6, 6), (4, 1, 3, 3), True, {"stride": 2, "padding": 1, "groups": 4}),
    "another height than width": ((1, 2, 7, 9), (3, 2, 2, 5), True, {"stride": (1, 3), "padding": (0, 2)}),
    "the word same, an even kernel": ((1, 2, 5, 6), (3, 2, 4, 2), True, {"padding": "same"}),
    "the word valid": ((1, 2, 5, 6), (3, 2, 3, 3), True, {"padding": "valid", "dilation": (1, 2)}),
}


def main() -> None:
    """Prints the cases as JSON."""
    torch.manual_seed(0)
    found = []
    for name, (x_shape, weight_shape, has_bias, arguments) in CASES.items():
        # Few digits, so that the file stays small; they are exact in it.
        x, weight, bias = (
            torch.randn(shape).mul(16).round().div(16) for shape in (x_shape, weight_shape, weight_shape[:1])
        )
        y = torch.nn.functional.conv2d(x, weight, bias if has_bias else None, **arguments)
        arrays = {"x": x, "weight": weight, "bias": bias if has_bias else None, "y": y}
        found.append(
            {"name": name, "arguments": arguments}
            | {
                key: None if each is None else {"shape": list(each.shape), "values": each.flatten().tolist()}
                for key, each in arrays.items()
            }
        )
    lines = ",\n".join(json.dumps(each) for each in found)
    head = {"made_with": f"torch {torch.__version__}", "made_by": "python tests/data/record_torch_conv2d.py"}
    sys.stdout.write(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
