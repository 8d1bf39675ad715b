"""`make demo`: starts a server, sends it a real photograph, shows what comes back, stops the server.

The photograph is Grace Hopper's official portrait, a work of the U.S. Navy in the public domain, which matplotlib
ships. Pictures go to demo-output/. With `--readme` the README's picture, docs/demo.svg, is drawn again too.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import cbook, rc_context
from matplotlib.figure import Figure

import convserve
from convserve.files.images import read_image, write_picture
from convserve.layers.classic_kernels import classic_kernel
from convserve.tensors.codec import Array

OUTPUT = Path("demo-output")
README_PICTURE = Path(__file__).with_name("demo.svg")


@contextmanager
def server() -> Iterator[str]:
    """Starts `convserve serve` on a free port and yields its address once it is ready."""
    command = [sys.executable, "-m", "convserve", "serve", "--listen", "127.0.0.1:0", "--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = ""
        for line in process.stdout:
            print(f"   server: {line.rstrip()}")
            if line.startswith("listening on "):
                address = line.split()[-1]
            if line.startswith("ready"):
                break
        else:
            raise SystemExit(f"the server ended with status {process.wait()} before it was ready")
        yield address
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
        print(f"-- server stopped with status {process.returncode}")


def main() -> None:
    """Runs the demo."""
    OUTPUT.mkdir(exist_ok=True)
    print("-- starting a server (TensorFlow takes some seconds)")
    with server() as address, convserve.Client(address) as client:
        photo = read_image(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
        print(f"-- photograph: shape {photo.shape}, dtype {photo.dtype}")

        # One Sobel kernel per colour, so that the result is a colour picture again.
        sobel = classic_kernel("sobel-x", channels=3)
        edges = client.conv2d(photo, kernel=sobel, groups=3, padding="same")
        print(f"-- sobel-x: output shape {edges.shape}, dtype {edges.dtype}, {edges.min():g} to {edges.max():g}")
        write(OUTPUT / "sobel-x.png", edges)

        bank = convserve.Conv2D(64, 7, strides=2, padding="same", activation="relu", kernel_initializer="he_normal")
        plan = bank.plan(photo.shape)
        print(f"-- 64 filters, planned: output shape {plan.output_shape}, {plan.flops / 1e9:.2f} GFLOP")
        result = client.convolve(bank.with_seed(0), photo)
        milliseconds = result.timing.compute_us / 1e3
        print(f"-- 64 filters: output shape {result.output.shape}, {milliseconds:.0f} ms on {result.device}")
        write(OUTPUT / "filters.png", result.output, beside=photo)

    if "--readme" in sys.argv[1:]:
        draw_readme_picture(photo[0], edges[0], result.output[0])


def write(path: Path, output: Array, beside: Array | None = None) -> None:
    """Draws an output, its input beside it if given, and names the file."""
    write_picture(path, output, beside=beside)
    print(f"   wrote {path}")


def draw_readme_picture(photo: Array, edges: Array, maps: Array) -> None:
    """Draws the photograph, its edges and four of its feature maps side by side, as small as is good to look at."""
    figure = Figure(figsize=(7, 2.7), layout="constrained")
    left, middle, right = figure.subfigures(1, 3)
    scaled = (edges - edges.min()) / (edges.max() - edges.min())
    for part, title, pixels in ((left, "photograph", photo), (middle, "sobel-x", scaled)):
        part.suptitle(f"{title}, {pixels.shape}", fontsize=8)
        axes = part.add_subplot()
        axes.imshow(pixels[::4, ::4])
        axes.set_axis_off()
    right.suptitle(f"4 of 64 filters, {maps.shape}", fontsize=8)
    for axes, index in zip(right.subplots(2, 2).flat, (1, 5, 9, 12), strict=True):
        axes.imshow(maps[::4, ::4, index])
        axes.set_axis_off()
    # Without a date and with fixed names inside, the same pictures give the same file.
    with rc_context({"svg.hashsalt": "convserve", "svg.fonttype": "none"}):
        figure.savefig(README_PICTURE, metadata={"Date": None})
    print(f"   wrote {README_PICTURE.name}")


if __name__ == "__main__":
    main()
