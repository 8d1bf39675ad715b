"""`convserve batch`: apply a layer to many inputs, unattended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from convserve.batch.dry_run import forecast
from convserve.batch.formats.arrays import FORMATS
from convserve.batch.formats.pictures import PICTURE_FORMATS, Pictures, picture_range
from convserve.batch.inputs import find_inputs
from convserve.batch.job import Job
from convserve.batch.journal import NAME, Identity, Journal
from convserve.batch.outputs import OutputFolder
from convserve.batch.runner import Batch, is_done
from convserve.batch.sources import Reading, first_channels
from convserve.cli.command import OPTIONS, OUTPUT, Failure, Section, format_error, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import output_dtype_option
from convserve.cli.options.layer_reference import CLASSIC, FILE, REFERENCE, chain
from convserve.cli.options.values import limits, limits_or
from convserve.cli.output.batch_report import REPORT, Progress, publish, show_forecast
from convserve.cli.signals import graceful_stop
from convserve.errors import ConvserveError, InvalidRequestError, LayerNotFoundError
from convserve.files.inputs import INPUT_SUFFIXES
from convserve.files.writing import unwritable

_RESUME = Section("going on")


def _no_kernel(_context: click.Context, _option: click.Parameter, kernel: str | None) -> None:
    if kernel is not None:
        raise click.UsageError(f"--kernel is an option of conv2d: here a classic kernel is --layer {kernel}")


@new_command("batch", journal=NAME, report=REPORT, suffixes=", ".join(INPUT_SUFFIXES))
@click.argument("input", metavar="INPUT", nargs=-1, required=True, help="what to compute, as above")
@OPTIONS.option(
    "--layer NAME|DIGEST|FILE",
    f"the layer: {REFERENCE}; or {FILE}; or {CLASSIC}. Repeat it for several, applied in order",
    dest="references",
    multiple=True,
    required=True,
)
@OPTIONS.option("--kernel NAME", "", hidden=True, expose_value=False, callback=_no_kernel)
@OPTIONS.option(
    "--input-range LOW,HIGH",
    "read pictures as float32, black as LOW and white as HIGH, such as 0,1 or -1,1 (default: uint8 as they are, 0 "
    "to 255, which is a quarter of the bytes)",
    type=limits,
)
@OPTIONS.option("--limit N", "take the first N inputs alone, by their names", type=click.IntRange(1))
@OPTIONS.option(
    "--dry-run",
    "say which inputs there are, their shapes, bytes and calls; send and write nothing (the server is only asked what "
    "a stored layer is)",
)
@OUTPUT.option("-o --output DIR", "the folder to write to", required=True)
@OUTPUT.option(
    "--format",
    "npy: numpy.load maps it; npz: compressed, under the name 'output'; zarr: compressed in chunks; png, jpg, webp: "
    "a picture of 1 or 3 channels (default: npy)",
    type=click.Choice((*FORMATS, *PICTURE_FORMATS)),
    default="npy",
)
@OUTPUT.option(
    "--value-range LOW,HIGH|own",
    "in pictures LOW and below is black, HIGH and above white; own: the least and the greatest value of each picture "
    "(default: that of --input-range, else 0,255)",
    type=limits_or("own"),
)
@OUTPUT.option(
    "--mode",
    "write all pictures in colour, or in grey (default: as the layer's channels are)",
    type=click.Choice(("rgb", "grey")),
)
@output_dtype_option(OUTPUT)
@OUTPUT.option("--keep-suffix", "write 1.jpg to 1.jpg.npy, where there is a 1.png too")
@OUTPUT.option("--json", "print the report as JSON", dest="as_json")
@OUTPUT.option("--quiet", "show no progress")
@_RESUME.option("--resume", "go on in a folder with results of the same run")
@_RESUME.option("--retry-failed", "--resume, and try the items again that failed before")
@connection_options(timeout=300.0)
def command(
    input: tuple[str, ...],  # noqa: A002 (the name of the field in errors)
    references: tuple[str, ...],
    output: str,
    as_json: bool,
    quiet: bool,
    resume: bool,
    retry_failed: bool,
    limit: int | None,
    dry_run: bool,
    connection: Connection,
    **options: Any,
) -> int:
    folder, format_name = Path(output), options["format"]
    with _usage_errors(folder):
        ends = picture_range(options["value_range"], options["input_range"], format_name, options["mode"])
        found = find_inputs(input, folder, options["keep_suffix"])
        inputs = found if limit is None else replace(found, names=found.names[:limit])
        outputs = OutputFolder(folder, "npy" if format_name in PICTURE_FORMATS else format_name)
    with connection.client() as client:
        read_as = partial(Reading, input_range=options["input_range"], keep_suffix=options["keep_suffix"])
        with _usage_errors(folder):
            layers = chain(
                client, references, lambda data_format: first_channels(inputs, read_as(data_format)), put=not dry_run
            )
        noted = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}  # as JSON
        identity = Identity(str(inputs.folder), [layer.digest.hex() for layer in layers], noted)
        with _usage_errors(folder):
            if format_name in PICTURE_FORMATS:
                outputs = OutputFolder(folder, Pictures(format_name, layers[-1].config, ends, options["mode"]))
            holds = partial(is_done, inputs, outputs)
            journal = Journal(folder, identity, holds, resume=resume or retry_failed, read_only=dry_run)
        reading = read_as(layers[0].config.data_format)
        job = Job(layers, inputs, outputs, journal, reading, options["output_dtype"], retry_failed)
        if dry_run:
            with closing(journal):
                coming = forecast(job)
            show_forecast(coming, job, as_json=as_json)
            return 1 if coming.failures else 0
        with closing(Progress(quiet=quiet)) as progress:
            batch = Batch(job, progress.show_failure)
            progress.watch(batch.tally)
            failure: Exception | None = None

            def stop() -> None:
                batch.stop()
                progress.show("stopping when what is in flight is done; once more to drop it")

            def last_words(number: int) -> None:
                journal.sync()
                publish(batch, as_json, number, None)
                sys.stdout.flush()

            with graceful_stop(stop, last_words) as signals:
                try:
                    batch.run(client)
                    journal.close()
                except Exception as error:  # a defect, too, ends a run with a report
                    failure = error
                    journal.close()
                progress.close()
                report = publish(batch, as_json, signals[0] if signals else None, failure)
    if isinstance(failure, OSError) and not isinstance(failure, ConvserveError):
        raise unwritable("output", folder, failure) from failure
    if failure is not None:
        raise failure
    if signals and report["left"]:
        return 128 + signals[0]
    return 1 if report["failed"] else 0


@contextmanager
def _usage_errors(folder: Path) -> Iterator[None]:
    """Gives what is wrong with the command the status of wrong usage; a folder that cannot be written is in words."""
    try:
        yield
    except (InvalidRequestError, LayerNotFoundError) as error:
        raise Failure(format_error(error, click.get_current_context()), exit_code=2) from error
    except ConvserveError:
        raise
    except OSError as error:
        raise unwritable("output", folder, error) from error
