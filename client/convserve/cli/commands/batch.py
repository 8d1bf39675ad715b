"""`convserve batch`: apply a layer to many inputs, unattended."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.batch.inputs import Inputs, find_inputs
from convserve.batch.journal import NAME, Identity, Journal
from convserve.batch.outputs import FORMATS, OutputFolder
from convserve.batch.runner import Batch, is_so
from convserve.batch.sources import Reading
from convserve.cli.options.connection import add_connection_options, connect
from convserve.cli.options.layer_reference import FILE, REFERENCE, find_or_read
from convserve.cli.options.values import value_range
from convserve.cli.output.batch_progress import progress_of, speed_text
from convserve.cli.output.failures import told
from convserve.cli.output.report import print_json, print_rows
from convserve.cli.signals import graceful_stop
from convserve.display.units import bytes_text
from convserve.errors import ConvserveError, InvalidRequestError
from convserve.files.arrays import unwritable
from convserve.files.inputs import INPUT_SUFFIXES
from convserve.tensors.codec import FLOAT_DTYPES

if TYPE_CHECKING:
    from convserve import StoredLayer

HELP = "apply a layer to many files: folders of pictures, arrays, Zarr; can be resumed"

REPORT = "report.json"
"""The report's name in the folder for outputs."""

_DESCRIPTION = f"""\
Applies a layer to every input, and writes each output to a file of its input's
name in the folder --output, subfolders included: photos/a/1.jpg becomes
DIR/a/1.npy. An output is there as a whole, or not at all. {NAME} in the
folder notes what is done, so that a run that was cut short, by whatever, goes on
with --resume: nothing is lost, nothing is done twice. An input that fails does
not stop the others, nor does a server that is away for less than --timeout.

INPUT is any number of
  a folder         every file in it and below that can be read; not hidden ones
  a pattern        such as 'photos/**/*.jpg', in quotes; ** means any folders
  a file           {", ".join(INPUT_SUFFIXES)}; archive.npz:name for one array
  a Zarr folder    an array, or a group of arrays (needs convserve[zarr])

A picture, and an array of three dimensions or two, is one sample, and its output
has no batch axis. An array of four dimensions is a batch of samples along the
first axis. It may be larger than the memory: a .npy file is mapped, Zarr is read
in parts, and what is computed of it so far survives too."""

_EPILOG = f"""\
exit status:
  0    every item is done
  1    some failed, or the run had to stop; {REPORT} in the folder says why
  2    the command cannot be carried out as it is given
  130  Ctrl-C: what was in flight was finished, the rest was not begun
       (143 for SIGTERM); a second one drops what is in flight

examples:
  the edges of a folder of photos, with a layer that is stored first:
    convserve layers put --name edges --kernel sobel-x --input-channels 3
    convserve batch photos --layer edges --output edges

  after a crash, Ctrl-C or a full disk, or with new photos in the folder:
    convserve batch photos --layer edges --output edges --resume

  a layer of a model's file, its pictures scaled from 0 to 1, compressed outputs:
    convserve batch 'photos/**/*.jpg' --layer resnet50.keras:conv1_conv \\
      --input-range 0,1 --format npz -o features

  one array of a million samples, float16 outputs as one Zarr array:
    convserve batch samples.npy --layer stem --format zarr \\
      --output-dtype float16 -o features

  several layers in one go, each applied to what the one before gave:
    convserve batch photos --layer stem --layer head -o features

  what failed, once more:
    convserve batch photos --layer edges -o edges --retry-failed"""

_WAIT_S = 300.0
_MAX_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = "%(prog)s INPUT... --layer NAME|DIGEST|FILE --output DIR [OPTIONS]"
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("input", metavar="INPUT", nargs="+", help="what to compute, as above")
    parser.add_argument(
        "--layer",
        metavar="NAME|DIGEST|FILE",
        action="append",
        required=True,
        help=f"the layer: {REFERENCE}; or {FILE}. Repeat it for several, applied in order",
    )
    parser.add_argument(
        "--input-range",
        type=value_range,
        metavar="LOW,HIGH",
        help="read pictures as float32, black as LOW and white as HIGH, such as 0,1 or, with a minus, "
        "--input-range=-1,1 (default: uint8 as they are, 0 to 255, which is a quarter of the bytes)",
    )
    outputs = parser.add_argument_group("output")
    outputs.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder to write to")
    outputs.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="npy",
        help="npy: numpy.load maps it; npz: compressed, under the name 'output'; zarr: compressed in chunks "
        "(default: %(default)s)",
    )
    outputs.add_argument(
        "--output-dtype", choices=FLOAT_DTYPES, help="the outputs' type (default: that of the computation)"
    )
    outputs.add_argument(
        "--keep-suffix", action="store_true", help="write 1.jpg to 1.jpg.npy, where there is a 1.png too"
    )
    outputs.add_argument("--json", action="store_true", help="print the report as JSON")
    outputs.add_argument("--quiet", action="store_true", help="show no progress")
    again = parser.add_argument_group("going on")
    again.add_argument("--resume", action="store_true", help="go on in a folder with results of the same run")
    again.add_argument(
        "--retry-failed", action="store_true", help="--resume, and try the items again that failed before"
    )
    add_connection_options(parser, timeout=_WAIT_S)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    folder = Path(arguments.output)
    try:
        inputs = find_inputs(arguments.input, folder, arguments.keep_suffix)
        outputs = OutputFolder(folder, arguments.format)
    except InvalidRequestError as error:
        return _refused(error, arguments)
    with connect(arguments) as client:
        layers = [find_or_read(client, each) for each in arguments.layer]
        try:
            journal = _journal(arguments, layers, inputs, outputs)
        except InvalidRequestError as error:
            return _refused(error, arguments)
        except OSError as error:
            raise unwritable("output", folder, error) from error
        data_format = layers[0].config.data_format
        with progress_of(quiet=arguments.quiet) as progress:
            batch = Batch(
                list(layers),
                inputs,
                outputs,
                journal,
                reading=Reading(data_format, arguments.input_range, arguments.keep_suffix),
                output_dtype=arguments.output_dtype,
                retry_failed=arguments.retry_failed,
                on_failure=progress.tell_failure,
            )
            progress.watch(batch.tally)
            failure: Exception | None = None

            def stop() -> None:
                batch.stop()
                progress.tell("stopping when what is in flight is done; once more to drop it")

            def last_words(number: int) -> None:
                journal.sync()
                _tell(_report(batch, inputs, folder, number, None), folder, as_json=arguments.json)
                sys.stdout.flush()

            with graceful_stop(stop, last_words) as signals:
                try:
                    batch.run(client)
                except (ConvserveError, OSError) as error:
                    failure = error
                finally:
                    journal.close()
    report = _report(batch, inputs, folder, signals[0] if signals else None, failure)
    _tell(report, folder, as_json=arguments.json)
    if isinstance(failure, ConvserveError):
        raise failure
    if failure is not None:
        raise unwritable("output", folder, failure) from failure  # type: ignore[arg-type]
    if signals and report["left"]:
        return 128 + signals[0]
    return 1 if report["failed"] else 0


def _journal(
    arguments: argparse.Namespace, layers: list[StoredLayer], inputs: Inputs, outputs: OutputFolder
) -> Journal:
    options = {
        "format": arguments.format,
        "output_dtype": arguments.output_dtype,
        "input_range": None if arguments.input_range is None else list(arguments.input_range),
        "keep_suffix": arguments.keep_suffix,
    }
    identity = Identity(str(inputs.folder), [each.digest.hex() for each in layers], options)
    resume = arguments.resume or arguments.retry_failed
    return Journal.open(outputs.folder, identity, partial(is_so, inputs, outputs), resume=resume)


def _report(
    batch: Batch, inputs: Inputs, folder: Path, number: int | None, failure: Exception | None
) -> dict[str, Any]:
    counts, seconds = batch.tally.counts, batch.tally.seconds
    moved = counts.input_bytes + counts.output_bytes
    stopped = None if number is None else signal.Signals(number).name
    return {
        "input": str(inputs.folder),
        "output": str(folder),
        "items": counts.items,
        "done": counts.done,
        "skipped": counts.skipped,
        "failed": counts.failed,
        "left": counts.left,
        "samples": counts.samples,
        "input_bytes": counts.input_bytes,
        "output_bytes": counts.output_bytes,
        "seconds": round(seconds, 3),
        "mb_per_s": round(moved / seconds / 1e6, 3),
        "stopped": (str(failure) or type(failure).__name__) if failure is not None else stopped,
        "failures": [{"input": key, "reason": reason} for key, reason in batch.tally.failures],
    }


def _tell(report: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    """Writes the report to its file, and prints it."""
    _write_report(folder / REPORT, report)
    if as_json:
        print_json(report)
    else:
        _print_report(report, folder)


def _write_report(path: Path, report: dict[str, Any]) -> None:
    partial_path = path.with_name(f"{path.name}.partial")
    try:
        partial_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        os.replace(partial_path, path)
    except OSError as error:  # the same report is printed, and a full disk is told otherwise
        print(f"{path} was not written: {error.strerror or error}", file=sys.stderr)


def _print_report(report: dict[str, Any], folder: Path) -> None:
    parts = [f"{report['done']:,} done"]
    parts += [f"{report[name]:,} {text}" for name, text in _OTHERS.items() if report[name]]
    samples = f", of {report['samples']:,} samples" if report["samples"] != report["done"] else ""
    seconds = f"{report['seconds']:,.1f} s, {speed_text(report['mb_per_s'] * 1e6)} in and out together"
    failures = [f"{each['input']}: {each['reason']}" for each in report["failures"][:_MAX_SHOWN]]
    if report["failed"] > len(failures):
        failures.append(f"and {report['failed'] - len(failures):,} more, in {folder / REPORT}")
    advice = "--resume does the rest" if report["left"] else ""
    if report["failed"] and not report["left"]:
        advice = "--retry-failed tries what failed again"
    print_rows(
        [
            ("items", f"{report['items']:,}: {', '.join(parts)}{samples}"),
            ("in", bytes_text(report["input_bytes"])),
            ("out", bytes_text(report["output_bytes"])),
            ("time", seconds),
            ("failed", "\n".join(failures)),
            ("written", str(folder)),
            ("next", advice),
        ]
    )


_OTHERS = {"skipped": "done before", "failed": "failed", "left": "not done"}


def _refused(error: InvalidRequestError, arguments: argparse.Namespace) -> int:
    """Tells what is wrong with the command, and returns the status of wrong usage."""
    print(told(error, arguments), file=sys.stderr)
    return 2
