"""How a server computes a layer on a CPU: what it holds at once, when in float64, and when with a channel of zeros.

It computes in float64 where oneDNN's kernels err; they have none for float64. TensorFlow 2.21 has oneDNN 3.7.3, which
for AVX-512 (`brg_conv_fwd`) copies some images first, row by row (`exec_trans`): those of one channel (in bfloat16 also
groups of one), and those that a kernel of width 1 makes an output of width 1 of. Sizes of that copy are wrong:

* with one channel, a stride along the width and an output of width 1 the kernel looks for rows at multiples of stride
  times window, where they are not (`LDA` under `reduce_kw`): it gives numbers of anything that lies there. In bfloat16
  it does so with some other numbers of channels, too, 16 and 24 of those tried;
* with a stride along the height that exceeds the kernel's height the copy gets too little memory, and its end is
  written past it (`get_inp_size`; oneDNN's pull request 5494).

By oneDNN's issue 5942 padding of whole windows ends processes. For AMX it copies whatever it computes, so the
server lets it use none.

In bfloat16 the kernels multiply pairs of channels. An odd one they pair with what lies behind it, the next pixel, times
zero: of an infinity or NaN there this makes NaN, outside its windows. A channel of zeros makes the number even.
"""

from __future__ import annotations

from typing import Any

from convserve.activations import ReLU
from convserve.tensors.codec import itemsize

# Tensors as large as the convolution's output that an activation holds at once, its input among them, as TensorFlow
# computes it; others hold one. Measured: tests/endurance/peak_memory.py.
_HELD_BY_ACTIVATION = {
    "sparsemax": 5, "soft_shrink": 4, "sparse_plus": 4, "gelu": 3, "hard_shrink": 3, "sparse_sigmoid": 3, "softmax": 2,
    "log_softmax": 2, "mish": 2, "silu": 2, "celu": 2, "elu": 2, "hard_silu": 2, "tanh_shrink": 2, "squareplus": 2,
    "glu": 2,
}  # fmt: skip


def onednn_computes() -> bool:
    """Returns whether oneDNN's kernels compute on this process' CPU, as TensorFlow decided when it was imported.

    Not promised: test_endurance.py fails first.
    """
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())


def in_float64(conv2d: Any, channels: int) -> bool | None:
    """Returns whether a layer is computed in float64; None if it is where its output has a width of 1.

    `conv2d` is a plan's Geometry, `channels` are the input's, of all groups.
    """
    if conv2d.compute_dtype == "float64":
        return False
    (height, width), (stride_h, stride_w) = conv2d.kernel_size, conv2d.strides
    if not isinstance(conv2d.padding, str):
        window = ((size - 1) * by + 1 for size, by in zip(conv2d.kernel_size, conv2d.dilation_rate, strict=True))
        if any(max(amounts) >= size for amounts, size in zip(conv2d.padding, window, strict=True)):
            return True
    one_channel = channels == (1 if conv2d.compute_dtype == "float32" else conv2d.groups)
    if one_channel and stride_h > height and width > 1:
        return True
    in_one_row = one_channel or conv2d.compute_dtype == "bfloat16"
    return None if (in_one_row and stride_w > 1) or stride_h > height > 1 == width else False


def with_even_channels(conv2d: Any, channels: int) -> bool:
    """Returns whether a group's channels get one of zeros; `conv2d` and `channels` are as for `in_float64`."""
    is_depthwise = conv2d.filters == conv2d.groups == channels > 1  # which has kernels without pairs
    return conv2d.compute_dtype == "bfloat16" and channels // conv2d.groups % 2 == 1 and not is_depthwise


def held_bytes(conv2d: Any, inputs: int, weights: int, outputs: int, wide: bool) -> int:
    """Returns the bytes that exist at once while a CPU computes a layer of so many elements; if `wide` in float64.

    With TensorFlow's own kernels it never is.
    """
    size = itemsize(conv2d.compute_dtype)
    # Groups are put side by side and back; 16 bits are computed in 32, in copies twice as large, or with even channels.
    copies = 3 if size == 2 else 2 if conv2d.groups > 1 else 1
    elements = copies * (inputs + weights + outputs)
    if conv2d.data_format == "channels_first":  # to and from channels_last
        elements = max(elements, 2 * inputs, 2 * outputs)
    held = _HELD_BY_ACTIVATION.get(conv2d.activation.keras_name, 1)
    if conv2d.activation.keras_name == "relu" and conv2d.activation != ReLU():
        held = 3
    if conv2d.activity_regularizer is not None:
        held = max(held, 2)
    widened = 8 * (2 if conv2d.groups > 1 else 1) + size if wide else 0
    return max(size * elements, size * held * outputs, widened * (inputs + weights + outputs))
