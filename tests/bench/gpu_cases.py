"""The layers that `gpu` measures: W1 to W5, and every distinct Conv2D of ResNet-50 at batch 32."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from convserve import Conv2D
from convserve.bench.workloads import Workload, with_weights

MODES = {
    "float32": ("float32", False),
    "TF32": ("float32", True),
    "float16": ("float16", False),
    "bfloat16": ("bfloat16", False),
}
"""By name: the dtype of input, weights, computation and output, and whether TensorFloat-32 is allowed."""

RESNET = "ResNet-50"
_BATCH = 32
_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""ResNet-50's: filters, blocks, and the stride of the first block."""
_QUICK = ("conv1", "conv2_block1_2", "conv4_block2_1", "conv5_block1_2")


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its input.

    Attributes:
        name: What the table calls it.
        filters: The number of filters.
        kernel_size: The side of the kernel.
        strides: The step.
        padding: Keras' word.
        activation: Keras' name, or None.
        input_shape: (batch, height, width, channels).
        count: How many layers of the model have this geometry; 1 of W1 to W5.
    """

    name: str
    filters: int
    kernel_size: int
    strides: int
    padding: str
    activation: str | None
    input_shape: tuple[int, int, int, int]
    count: int = 1

    def workload(self, dtype: str) -> Workload:
        """Returns the layer with weights in a dtype, and its input."""
        config = Conv2D(
            self.filters, self.kernel_size, self.strides, self.padding, "channels_last",
            activation=self.activation, dtype=dtype,
        )  # fmt: skip
        return Workload(self.name, with_weights(config, self.input_shape), self.input_shape, dtype)

    def tiny(self) -> Case:
        """Returns the same with an input that a test has time for."""
        _, height, width, channels = self.input_shape
        small = 2, min(height, 12), min(width, 12), min(channels, 16)
        return dataclasses.replace(self, filters=min(self.filters, 8), input_shape=small)


def cases(quick: bool, tiny: bool) -> list[Case]:
    """Returns what is to be measured.

    Args:
        quick: Only four of ResNet-50's layers.
        tiny: With small inputs.
    """
    chosen = [*five(), *(each for each in resnet() if not quick or each.name.removeprefix(f"{RESNET} ") in _QUICK)]
    return [each.tiny() for each in chosen] if tiny else chosen


def five() -> list[Case]:
    """Returns the workloads of the peers."""
    return [
        Case("W1", 16, 3, 1, "same", "relu", (1, 32, 32, 3)),
        Case("W2", 64, 3, 1, "same", "relu", (1, 56, 56, 64)),
        Case("W3", 64, 7, 2, "same", "relu", (1, 224, 224, 3)),
        Case("W4", 64, 3, 1, "same", "relu", (32, 56, 56, 64)),
        Case("W5", 64, 1, 1, "valid", None, (4, 600, 600, 3)),
    ]


def resnet() -> list[Case]:
    """Returns ResNet-50's distinct layers as `keras.applications.ResNet50` has them, under the first one's name."""
    listed = [("conv1", 64, 7, 2, "valid", (230, 230, 3))]  # zeros are put around the image by a layer before it
    side, channels = 56, 64
    for number, (filters, blocks, stride) in enumerate(_STAGES, start=2):
        for block in range(1, blocks + 1):
            step = stride if block == 1 else 1
            inner = side // step
            name = f"conv{number}_block{block}"
            if block == 1:
                listed.append((f"{name}_0", 4 * filters, 1, step, "valid", (side, side, channels)))
            listed += [
                (f"{name}_1", filters, 1, step, "valid", (side, side, channels)),
                (f"{name}_2", filters, 3, 1, "same", (inner, inner, filters)),
                (f"{name}_3", 4 * filters, 1, 1, "valid", (inner, inner, filters)),
            ]
            side, channels = inner, 4 * filters
    found: dict[object, Case] = {}
    for name, filters, size, step, padding, shape in listed:
        made = Case(f"{RESNET} {name}", filters, size, step, padding, None, (_BATCH, *shape))
        same = dataclasses.replace(made, name="", padding="valid" if size == 1 else padding)
        known = found.get(same, dataclasses.replace(made, count=0))
        found[same] = dataclasses.replace(known, count=known.count + 1)
    return list(found.values())
