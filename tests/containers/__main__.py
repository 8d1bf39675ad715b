"""Builds the images, runs the compose stack, and shows what docs/containers.md says of it.

    python -m tests.containers [--folder FOLDER] [--network host] [--keep-images]

Without an engine it says so and ends with status 0, having tried nothing.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convserve import __version__
from tests.containers import base_image
from tests.containers.engine import Engine, NoEngineError, engine
from tests.containers.stack import Stack
from tests.support.repository import ROOT

SERVER, CLIENT = f"convserve/server:{__version__}", f"convserve/client:{__version__}"
_MB = 1e6
_KILLS = 2


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.containers", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where an engine that is started here keeps everything")
    parser.add_argument("--network", default="default", help="of builds: host, where the engine's own leads nowhere")
    parser.add_argument("--keep-images", action="store_true", help="do not remove the images at the end")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="convserve-containers-"))
    try:
        with engine(folder) as found:
            say("engine", "started here" if found.is_ours else "the one that runs")
            try:
                say(base_image.NAME, base_image.provide(found, folder))
                build(found, arguments.network)
                alone(found)
                with Stack(found) as stack:
                    stay_up(stack)
                with Stack(found) as stack:
                    access(stack)
            finally:
                if not arguments.keep_images:
                    subprocess.run(["docker", "image", "rm", SERVER, CLIENT], env=found.environment, check=False)
    except NoEngineError as error:
        print(f"skipped: {error}")
        return 0
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print("all of it holds")
    return 0


def build(found: Engine, network: str) -> None:
    """Builds both images, and says how large they are."""
    options = ["--network", network]
    if "PIP_CERT" in os.environ:
        options += ["--build-arg", f"PIP_CERT={os.environ['PIP_CERT']}"]
    for image, target in ((CLIENT, "client"), (SERVER, "server")):
        started = time.monotonic()
        found.docker("build", *options, "-f", f"{ROOT}/server/Dockerfile", "--target", target, "-t", image, str(ROOT))
        say(image, f"built in {time.monotonic() - started:.0f} s")
        label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
        expect("its label", found.docker("image", "inspect", "--format", label, image).strip(), __version__)
        shown = ["run", "--rm", "--entrypoint", "cat", image]
        listed = found.docker(*shown, "/usr/share/doc/convserve/licences.md")
        expect("its licences", [f"| {name}" in listed for name in ("convserve", "numpy", "tensorflow")],
               [True, True, target == "server"])  # fmt: skip
        expect(
            "its bill of materials", "CycloneDX" in found.docker(*shown, "/usr/share/doc/convserve/sbom.cdx.json"), True
        )
    base = size(found, base_image.NAME)
    for image in (CLIENT, SERVER):
        say(image, f"{(size(found, image) - base) / _MB:.0f} MB beyond the base's {base / _MB:.0f} MB")


def size(found: Engine, image: str) -> int:
    """Returns an image's bytes as they are when unpacked."""
    return int(found.docker("image", "inspect", "--format", "{{.Size}}", image))


def alone(found: Engine) -> None:
    """Runs the server's image without compose: nobody's root, nothing writable but its volumes, stopped by a signal."""
    name = f"convserve-trial-{secrets.token_hex(4)}"
    options = ["--read-only", "--cap-drop", "ALL", "--network", "none"]
    found.docker("run", "--detach", "--name", name, *options, SERVER, "serve", "--device", "cpu")
    try:
        wait_for_health(found, name)
        expect("who it is", found.docker("exec", name, "id", "--user").strip(), "10001")
        expect("its health", found.docker("exec", name, "convserve", "health").strip(), "SERVING")
        found.docker("stop", "--time", "60", name)
        expect("its end", found.docker("inspect", "--format", "{{.State.ExitCode}}", name).strip(), "0")
    finally:
        found.docker("rm", "--force", "--volumes", name)


def wait_for_health(found: Engine, name: str) -> None:
    """Waits until the image's own check says that a container is healthy."""
    deadline = time.monotonic() + 300
    state = "{{.State.Status}} {{.State.Health.Status}}"
    while (health := found.docker("inspect", "--format", state, name).strip()) != "running healthy":
        if time.monotonic() > deadline or not health.startswith("running"):
            raise SystemExit(f"{name} is {health}:\n{found.docker('logs', name)}")
        time.sleep(0.5)


def stay_up(stack: Stack) -> None:
    """Brings the stack up, runs the demo, and kills the server under calls."""
    stack.up()
    expect("its warning", "open to the network" in stack.log("server"), True)
    before = stack.metrics()
    expect("in shared memory", stack.call(SHARED, "--network", "none").strip(), "right")
    grown = {key: value - before.get(key, 0) for key, value in stack.metrics().items()}
    tensors = sum(value for key, value in grown.items() if key[0] == "convserve_input_bytes_total")
    messages = sum(value for key, value in grown.items() if key[0] == "convserve_received_bytes_total")
    expect("tensors in messages", messages < tensors / 100, True)
    say("shared memory", f"{tensors / _MB:.1f} MB of tensors came with {messages:.0f} bytes of messages")
    for demo in ("demo", "demo-shared-memory"):
        print(stack.demo(demo))
    name = stack.begin(CALLS)
    for _ in range(_KILLS):
        stack.wait_for(name, stack.count(name) + 100)
        stack.kill("server")
        stack.up()
    stack.wait_for(name, stack.count(name) + 100)
    expect(f"calls over {_KILLS} kills", stack.end(name), "every call was answered and right")
    expect("its health", stack.run("exec", "-T", "server", "convserve", "health").strip(), "SERVING")
    stack.run("stop", "server")
    expect("its end", stack.run("ps", "--all", "--format", "{{.ExitCode}}", "server").strip(), "0")


def access(stack: Stack) -> None:
    """Brings the stack up with TLS and tokens, which are files."""
    files = stack.certificates()
    token = secrets.token_urlsafe(32)
    (files / "tokens.txt").write_text(f"trial {token} read,compute\n")
    stack.variables |= {
        "CONVSERVE_TOKENS_FILE": str(files / "tokens.txt"),
        "CONVSERVE_TLS_CERTIFICATE": str(files / "server.pem"),
        "CONVSERVE_TLS_KEY": str(files / "server.key"),
    }
    stack.up()
    expect("its warning", "open to the network" in stack.log("server"), False)
    expect(
        "who has a token", stack.call(OVER_TLS.format(token=token), "--volume", f"{files}:/files:ro").strip(), "right"
    )
    expect("who has none", stack.call(OVER_TLS.format(token=""), "--volume", f"{files}:/files:ro").strip(), "refused")


def expect(what: str, found: object, expected: object) -> None:
    """Ends the trial unless something is what it should be."""
    say(what, str(found))
    if found != expected:
        raise SystemExit(f"{what}: Expected {expected}. Received {found}.")


def say(what: str, text: str) -> None:
    """Prints a line at once."""
    print(f"{what}: {text}", flush=True)


SHARED = """
import numpy as np, convserve
with convserve.Client("unix:///run/convserve/server.sock") as client:
    x = client.empty((8, 512, 512, 3)); x[...] = 1
    y = client.conv2d(x, kernel=np.ones((3, 3, 3, 2), "f4"))
    print("right" if y.shape == (8, 510, 510, 2) and (y == 27).all() else "wrong")
"""

OVER_TLS = """
import numpy as np, convserve
tls = convserve.TLS(ca="/files/client.pem")
with convserve.Client("server:50051", tls=tls, token="{token}") as client:
    try:
        y = client.conv2d(np.ones((1, 4, 4, 1)), kernel=np.ones((4, 4, 1, 1)))
        print("right" if (y == 16).all() else "wrong")
    except convserve.UnauthenticatedError:
        print("refused")
"""

# Finds a layer by its name and calls it, now and then with a tensor that goes in pieces, until it is told to stop.
CALLS = """
import signal, sys, numpy as np, convserve
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
kernel = np.arange(12, dtype="f4").reshape(1, 1, 3, 4)
with convserve.Client("server:50051", timeout=300, retry=convserve.RetryRule(attempts=1000)) as client:
    client.put(convserve.Conv2D(4, 1, use_bias=False), kernel=kernel, name="trial")
    number = 0
    while not stopped:
        x = np.full((1, 8, 8, 3) if number % 10 else (1, 700, 700, 3), number % 97, "f4")
        y = client.layer("trial")(x)
        assert (y == (number % 97) * kernel.sum((0, 1, 2))).all(), number
        number += 1
        print(number, flush=True)
print("every call was answered and right", flush=True)
"""


if __name__ == "__main__":
    sys.exit(main())
