"""`convserve top`: what a server does at the moment."""

from __future__ import annotations

import http.client
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import click

from convserve.cli.command import OPTIONS, new_command
from convserve.cli.options.values import seconds
from convserve.cli.output import server_metrics
from convserve.cli.output.report import short_text, stdout_console
from convserve.display.units import bytes_text
from convserve.errors import MissingDependencyError, UnavailableError

if TYPE_CHECKING:
    from convserve.cli.output.server_metrics import MethodFigures, Scrape

_HELP = """\
Shows what a server does, by its metrics: calls per second, latency percentiles,
batch sizes, waiting times and tensors' bytes by method, then the memory, and what
was refused and why. It asks again every --interval seconds, until Ctrl-C; figures
are of the time in between. "queue" and "compute" are 90th percentiles of what was
waited for a device, and of what it took; "now" are calls that have not ended.
Percentiles are as exact as the metrics' buckets."""

_EPILOG = """\
examples:
  convserve serve --metrics 127.0.0.1:9464
  convserve top

  another server, once, since it was started:
    convserve top http://gpu-host:9464/metrics --once"""

_DEFAULT_URL = "http://127.0.0.1:9464/metrics"
_TIMEOUT_S = 5.0
_COLUMNS = ("calls /s", "now", *(f"{name} ms" for name in ("p50", "p90", "p99", "queue", "compute")), "batch")
_COLUMNS += ("in MB/s", "out MB/s")
_WIDTH = 140  # characters of a line where there is no terminal


def _url(text: str) -> str:
    if text.startswith(("http://", "https://")):
        return text
    host, _, port = text.rpartition(":")
    if "/" in text or not host or not port.isdecimal():
        raise click.BadParameter(f"expected http://HOST:PORT/metrics or HOST:PORT. Received {text!r}.")
    return f"http://{text}/metrics"


@new_command(
    "watch a server: calls, latencies, batches, memory (needs convserve[top])", _HELP, _EPILOG, "[URL] [OPTIONS]"
)
@click.argument(
    "url",
    type=_url,
    default=_DEFAULT_URL,
    metavar="URL",
    help=f"the server's metrics: a URL, or the HOST:PORT of its --metrics (default: {_DEFAULT_URL})",
)
@OPTIONS.option("--interval SECONDS", "how often to ask (default: 2)", type=seconds, default=2.0)
@OPTIONS.option("--once", "print the figures since the server's start, and end", is_flag=True)
def command(url: str, interval: float, once: bool) -> None:
    from rich.live import Live

    latest = _scraped(url)
    before = server_metrics.before_the_start(latest)
    console = stdout_console(_WIDTH)
    if once:
        console.print(_screen(url, before, latest))
        return
    with Live(_screen(url, before, latest), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            before, latest = latest, _scraped(url)
            live.update(_screen(url, server_metrics.counted_from(before, latest), latest), refresh=True)


def _scraped(url: str) -> Scrape:
    """Returns a server's metrics.

    Raises:
        UnavailableError: If it does not answer with any.
        MissingDependencyError: If what reads them is not installed.
    """
    # Not through a proxy: metrics are asked for on the same machine or network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            return server_metrics.read(answer.read().decode(), time.time())
    except ModuleNotFoundError as error:
        text = "`convserve top` needs the package prometheus-client: pip install 'convserve[top]'."
        raise MissingDependencyError(text) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        text = (
            f"Expected a server's metrics at {url}. Received none ({reason}): start it with --metrics HOST:PORT, and "
            "name that address."
        )
        raise UnavailableError(text) from error


def _screen(url: str, before: Scrape, latest: Scrape) -> Any:
    from rich.console import Group
    from rich.table import Table

    period = "in the last" if before.samples else "since its start,"
    title = f"{url}, {period} {latest.time - before.time:.1f} s"
    calls = Table(title=title, title_justify="left", box=None, pad_edge=False)
    calls.add_column("method", no_wrap=True)
    # Most in two lines, so that a terminal of 80 characters shows them all.
    for name in _COLUMNS:
        calls.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for method, figures in server_metrics.methods(before, latest).items():
        calls.add_row(method.rpartition("/")[2], *_cells(figures))
    state = Table(box=None, show_header=False, pad_edge=False)
    for label, text in _state(before, latest):
        state.add_row(label, text)
    return Group(calls, "", state)


def _cells(figures: MethodFigures) -> list[str]:
    latencies = figures.latency_s or (None, None, None)
    return [
        short_text(figures.calls_per_s),
        str(figures.in_flight),
        *(
            "" if time_s is None else short_text(time_s * 1e3)
            for time_s in (*latencies, figures.queue_s, figures.compute_s)
        ),
        "" if figures.batch is None else f"{figures.batch:.3g}",
        *(short_text(rate / 1e6) for rate in (figures.input_bytes_per_s, figures.output_bytes_per_s)),
    ]


def _state(before: Scrape, latest: Scrape) -> list[tuple[str, str]]:
    def amount(name: str) -> int:
        return int(latest.value(name))

    admitted = bytes_text(amount("convserve_admitted_bytes"))
    most = bytes_text(amount("convserve_max_admitted_bytes"))
    rows = [
        ("calls", f"{amount('convserve_waiting_calls')} waiting, {amount('convserve_running_calls')} computed"),
        ("memory", f"{admitted} admitted of {most}, {bytes_text(amount('process_resident_memory_bytes'))} resident"),
    ]
    for device, size in latest.by("device", "convserve_device_memory_bytes").items():
        rows.append((device, f"{bytes_text(int(size))} in use"))
    stored = bytes_text(amount("convserve_stored_memory_bytes"))
    rows.append(
        (
            "layers",
            f"{amount('convserve_stored_layers')} stored, {stored} in memory, {amount('convserve_evictions_total')} "
            f"evicted; {amount('convserve_traces')} compiled functions",
        )
    )
    refused = ", ".join(f"{count} {reason}" for reason, count in server_metrics.refusals(before, latest).items())
    rows.append(("refused", refused or "none"))
    return rows
