"""What `gpu` starts for PyTorch, whose convolutions on an NVIDIA GPU are cuDNN's: the same layers, called there.

Nothing but PyTorch and numpy is imported, because both frameworks bring a cuDNN of their own: this runs in an
environment that holds none of TensorFlow's. It reads commands as lines of JSON and answers each with one.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

_WARM_UP = 3
_AT_ONCE = 10


class Worker:
    """PyTorch on one device."""

    def __init__(self, device, tf32):
        import torch

        self._torch = torch
        self._device = torch.device("cpu" if device == "cpu" else "cuda:0")
        torch.zeros(1, device=self._device)  # fails here rather than at the first layer
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32

    def about(self, _):
        torch = self._torch
        return {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}

    def prepare(self, job):
        torch = self._torch
        x, kernel, bias = (np.load(Path(job["folder"]) / f"{name}.npy") for name in ("x", "kernel", "bias"))
        self._dtype, self._x = getattr(torch, job["dtype"]), x
        on_device = [self._tensor(each).to(self._device) for each in (kernel.transpose(3, 2, 0, 1).copy(), bias)]
        weights, bias = on_device[0].contiguous(memory_format=torch.channels_last), on_device[1]
        pads, strides, activated = _same_padding(job, x.shape, kernel.shape), job["strides"], bool(job["activation"])
        even = pads[0] == pads[1] and pads[2] == pads[3]

        def resident(given):
            if not even:
                given = torch.nn.functional.pad(given, pads)
            padding = (pads[2], pads[0]) if even else 0
            made = torch.nn.functional.conv2d(given, weights, bias, strides, padding)
            return torch.relu_(made) if activated else made

        def whole(given):
            return _array(resident(self._on_device(given)))

        self._resident, self._whole = resident, whole
        with torch.inference_mode():
            for _ in range(_WARM_UP):
                y = whole(x)
        np.save(job["output"], y)
        return {}

    def measure(self, job):
        with self._torch.inference_mode():
            whole = _times(lambda: self._whole(self._x), 1, lambda: None, job["seconds"])
            on_device = self._on_device(self._x)
            device = _times(lambda: self._resident(on_device), _AT_ONCE, self._sync, job["seconds"])
        return {"whole_ms": whole, "device_ms": device}

    def _tensor(self, array):
        made = self._torch.from_numpy(array)
        return made.view(self._torch.bfloat16) if self._dtype == self._torch.bfloat16 else made

    def _on_device(self, array):
        """Returns an NHWC array as what PyTorch calls NCHW in channels_last memory: the same bytes."""
        return self._tensor(array).to(self._device).permute(0, 3, 1, 2)

    def _sync(self):
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)


def _array(made):
    """Returns an output as an NHWC array; bfloat16, which numpy has not, as integers."""
    import torch

    out = made.permute(0, 2, 3, 1).contiguous().cpu()
    return (out.view(torch.int16) if out.dtype == torch.bfloat16 else out).numpy()


def _times(call, at_once, sync, seconds):
    """Returns the median milliseconds of a call."""
    sync()
    end, took = time.perf_counter() + seconds, []
    while not took or time.perf_counter() < end:
        begun = time.perf_counter()
        for _ in range(at_once):
            call()
        sync()
        took.append((time.perf_counter() - begun) / at_once)
    return statistics.median(took) * 1e3


def _same_padding(job, shape, kernel_shape):
    """Returns (left, right, top, bottom) as TensorFlow pads, which puts an odd one at the end."""
    if job["padding"] == "valid":
        return 0, 0, 0, 0
    totals = []
    for axis in (1, 0):
        size, window, step = shape[1 + axis], kernel_shape[axis], job["strides"]
        total = max((-(-size // step) - 1) * step + window - size, 0)
        totals += [total // 2, total - total // 2]
    return tuple(totals)


def main():
    """Answers commands until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    worker = Worker(sys.argv[1], sys.argv[2] == "tf32")
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = getattr(worker, job["do"])(job)
        except Exception as error:
            answer = {"failure": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
