"""`convserve top`: what a server does at the moment."""

from __future__ import annotations

import http.client
import time
import urllib.request
from typing import Any

import click

from convserve.cli.command import OPTIONS, new_command
from convserve.cli.options.values import metrics_url, seconds
from convserve.cli.output import server_metrics
from convserve.cli.output.report import short_text, stdout_console, table_of
from convserve.cli.output.server_metrics import FIGURES, Scrape
from convserve.display.units import bytes_text
from convserve.errors import UnavailableError, needing, printable

_DEFAULT_URL = "http://127.0.0.1:9464/metrics"
_TIMEOUT_S = 5.0
_MAX_BYTES = 2**24


@new_command("top")
@click.argument(
    "url",
    type=metrics_url,
    default=_DEFAULT_URL,
    metavar="URL",
    help=f"the server's metrics: a URL, or the HOST:PORT of its --metrics (default: {_DEFAULT_URL})",
)
@OPTIONS.option("--interval SECONDS", "how often to ask (default: 2)", type=seconds, default=2.0)
@OPTIONS.option("--once", "print the figures since the server's start, and end")
def command(url: str, interval: float, once: bool) -> None:
    from rich.live import Live

    latest = _scraped(url)
    screen = _screen(url, None, latest)
    console = stdout_console()
    if once:
        console.print(screen)
        return
    with Live(screen, console=console, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            before, latest = latest, _scraped(url)
            live.update(_screen(url, before, latest), refresh=True)


def _scraped(url: str) -> Scrape:
    # Not through a proxy: metrics are asked for on the same machine or network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            body = answer.read(_MAX_BYTES + 1)
        if len(body) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        with needing("`convserve top` needs the package prometheus-client: pip install 'convserve[top]'."):
            return server_metrics.read(printable(body.decode()), time.time())
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if type(error) is http.client.BadStatusLine:  # and not that of an answer which ended
            reason = "something else than HTTP/1.1, as a gRPC port has it"
        advice = "start it with --metrics HOST:PORT, and name that address"
        text = f"Expected a server's metrics at {url}. Received none ({printable(str(reason))}): {advice}."
        raise UnavailableError(text) from error


def _screen(url: str, earlier: Scrape | None, latest: Scrape) -> Any:
    from rich.console import Group

    before = server_metrics.counted_from(earlier, latest)
    period = "in the last" if before.samples else "since its start,"
    title = f"{url}, {period} {latest.time - before.time:.1f} s"
    rows = (
        (method.name.rpartition("/")[2], *(short_text(figure(method)) for figure in FIGURES.values()))
        for method in server_metrics.methods(before, latest)
    )
    calls = table_of(("method", *FIGURES), rows, title=title, numbers=len(FIGURES))
    return Group(calls, "", table_of(("", ""), _state(before, latest)))


def _state(before: Scrape, latest: Scrape) -> list[tuple[str, str]]:
    def amount(name: str) -> int:
        return int(latest.value(name))

    def size(name: str) -> str:
        return bytes_text(amount(name))

    admitted = f"{size('convserve_admitted_bytes')} admitted of {size('convserve_max_admitted_bytes')}"
    devices = latest.by("device", "convserve_device_memory_bytes")
    stored = f"{amount('convserve_stored_layers')} stored, {size('convserve_stored_memory_bytes')} in memory"
    evicted, traces = amount("convserve_evictions_total"), amount("convserve_traces")
    refused = server_metrics.refusals(before, latest)
    return [
        ("calls", f"{amount('convserve_waiting_calls')} waiting, {amount('convserve_running_calls')} computed"),
        ("memory", f"{admitted}, {size('process_resident_memory_bytes')} resident"),
        *((device, f"{bytes_text(int(used))} in use") for device, used in devices.items()),
        ("layers", f"{stored}, {evicted} evicted; {traces} compiled functions"),
        ("refused", ", ".join(f"{count} {reason}" for reason, count in refused.items()) or "none"),
    ]
