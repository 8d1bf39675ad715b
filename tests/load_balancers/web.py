"""Those who speak no gRPC, through Envoy's filters: the commands and the program that docs/load-balancers.md has."""

from __future__ import annotations

import json
import shlex
import shutil
import struct
import subprocess
import sys
import threading
from base64 import b64decode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from convserve import Client, Conv2D, Layer
from tests.load_balancers.servers import Servers
from tests.support.browser import FLAGS
from tests.support.pages import blocks, text
from tests.support.repository import ROOT

_PAGE = "docs/load-balancers.md"
_LAYER = Layer(Conv2D(1, 3, use_bias=False, data_format="channels_last"), np.ones((3, 3, 1, 1), "f4"))
_CALL = 'convolve("http://{target}", "{name}", Array(200 * 300).fill(1), [1, 200, 300, 1], 198 * 298)'
_SHOWN = "(y) => `${y.length} of ${y.reduce((a, b) => a + b) / y.length}`, (error) => error.message"


def describe_contract(folder: Path) -> None:
    """Writes the contract as Envoy reads it."""
    buf = Path(sys.executable).with_name("buf")
    subprocess.run([buf, "build", ROOT / "proto", "-o", folder / "convserve.binpb"], check=True, timeout=60)


def curl(target: str) -> str:
    """Runs the page's command, and one with an error."""
    (command,) = (each for each in blocks(text(_PAGE), "sh") if each.startswith("curl"))
    words = shlex.split(command.replace("localhost:8080", target))
    output = json.loads(_printed(*words))["output"]
    assert output["shape"] == ["1"] * 4, output
    assert struct.unpack("<f", b64decode(output["data"])) == (9.0,), output
    wrong = [word.replace('"filters": 1', '"filters": 0') for word in words]
    refused = _printed(*wrong, "--write-out", "%{http_code} %header{grpc-message}")
    assert refused.startswith("400 filters: Expected"), refused
    return f"an output of 9; an error: {refused}"


def _printed(*command: str) -> str:
    silent = [*command, "--silent", "--noproxy", "*"]
    return subprocess.run(silent, capture_output=True, text=True, check=True, timeout=60).stdout


def fetch(target: str, servers: Servers, folder: Path) -> str:
    """Runs the page's program in a browser, in a page from elsewhere; in Node.js where there is no browser."""
    for place in servers.places:
        with Client(place.target) as client:
            client.put(_LAYER, name="sum")
    (program,) = blocks(text(_PAGE), "js")
    run, where = (_in_browser, "Chromium") if shutil.which("chromium") else (_in_node, "Node.js")
    shown = [run(program, _CALL.format(target=target, name=name), folder) for name in ("sum", "nobody's")]
    assert shown[0] == f"{198 * 298} of 9", shown
    assert "Expected the name of a stored layer" in shown[1], shown
    return f"in {where}: {shown[0]}; an error: {shown[1]}"


def _in_node(program: str, call: str, folder: Path) -> str:
    file = folder / "page.mjs"
    file.write_text(f"{program}\n{call}.then({_SHOWN}).then(console.log);")
    return subprocess.run(["node", file], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _in_browser(program: str, call: str, folder: Path) -> str:
    script = f"{program}\n{call}.then({_SHOWN}).then((shown) => document.body.textContent = shown);"
    (folder / "page.html").write_text(f"<!doctype html><body>waiting</body><script>{script}</script>")
    pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    try:
        profile = f"--user-data-dir={folder}/chromium"
        command = ["chromium", "--headless", *FLAGS, profile, "--virtual-time-budget=20000", "--dump-dom"]
        address = f"http://localhost:{pages.server_port}/page.html"
        done = subprocess.run([*command, address], capture_output=True, text=True, check=True, timeout=120)
    finally:
        pages.shutdown()
        pages.server_close()
    return done.stdout.partition("<body>")[2].partition("<")[0].strip()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""
