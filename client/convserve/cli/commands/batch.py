"""`convserve batch`: apply a layer to many inputs, unattended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from convserve.batch.inputs import find_inputs
from convserve.batch.journal import NAME, Identity, Journal
from convserve.batch.outputs import FORMATS, OutputFolder
from convserve.batch.runner import Batch, is_done
from convserve.batch.sources import Reading
from convserve.cli.command import OPTIONS, OUTPUT, Failure, Section, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import output_dtype_option
from convserve.cli.options.layer_reference import FILE, REFERENCE, find_or_read
from convserve.cli.options.values import value_range
from convserve.cli.output import batch_report
from convserve.cli.output.batch_progress import Progress
from convserve.cli.output.batch_report import REPORT
from convserve.cli.output.failures import format_error
from convserve.cli.signals import graceful_stop
from convserve.errors import ConvserveError, InvalidRequestError
from convserve.files.arrays import unwritable
from convserve.files.inputs import INPUT_SUFFIXES

_HELP = f"""\
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
_RESUME = Section("going on")


@new_command(
    _HELP,
    _EPILOG,
    "INPUT... --layer NAME|DIGEST|FILE --output DIR [OPTIONS]",
)
@click.argument("input", metavar="INPUT", nargs=-1, required=True, help="what to compute, as above")
@OPTIONS.option(
    "--layer NAME|DIGEST|FILE",
    f"the layer: {REFERENCE}; or {FILE}. Repeat it for several, applied in order",
    dest="references",
    multiple=True,
    required=True,
)
@OPTIONS.option(
    "--input-range LOW,HIGH",
    "read pictures as float32, black as LOW and white as HIGH, such as 0,1 or -1,1 (default: uint8 as they are, 0 "
    "to 255, which is a quarter of the bytes)",
    type=value_range,
)
@OUTPUT.option("-o --output DIR", "the folder to write to", required=True)
@OUTPUT.option(
    "--format",
    "npy: numpy.load maps it; npz: compressed, under the name 'output'; zarr: compressed in chunks (default: npy)",
    type=click.Choice(tuple(FORMATS)),
    default="npy",
)
@output_dtype_option(OUTPUT)
@OUTPUT.option("--keep-suffix", "write 1.jpg to 1.jpg.npy, where there is a 1.png too", is_flag=True)
@OUTPUT.option("--json", "print the report as JSON", dest="as_json", is_flag=True)
@OUTPUT.option("--quiet", "show no progress", is_flag=True)
@_RESUME.option("--resume", "go on in a folder with results of the same run", is_flag=True)
@_RESUME.option("--retry-failed", "--resume, and try the items again that failed before", is_flag=True)
@connection_options(timeout=_WAIT_S)
def command(
    input: tuple[str, ...],  # noqa: A002 (the name of the field in errors)
    references: tuple[str, ...],
    output: str,
    as_json: bool,
    quiet: bool,
    resume: bool,
    retry_failed: bool,
    connection: Connection,
    **options: Any,
) -> int:
    folder = Path(output)
    with _usage_errors():
        inputs = find_inputs(input, folder, options["keep_suffix"])
        outputs = OutputFolder(folder, options["format"])
    with connection.client() as client:
        layers = [find_or_read(client, reference) for reference in references]
        noted = options | {"input_range": options["input_range"] and list(options["input_range"])}  # as JSON has it
        identity = Identity(str(inputs.folder), [layer.digest.hex() for layer in layers], noted)
        try:
            with _usage_errors():
                holds = partial(is_done, inputs, outputs)
                journal = Journal(folder, identity, holds, resume=resume or retry_failed)
        except OSError as error:
            raise unwritable("output", folder, error) from error
        with closing(Progress(quiet=quiet)) as progress:
            batch = Batch(
                list(layers),
                inputs,
                outputs,
                journal,
                reading=Reading(layers[0].config.data_format, options["input_range"], options["keep_suffix"]),
                output_dtype=options["output_dtype"],
                retry_failed=retry_failed,
                on_failure=progress.show_failure,
            )
            progress.watch(batch.tally)
            failure: Exception | None = None

            def stop() -> None:
                batch.stop()
                progress.show("stopping when what is in flight is done; once more to drop it")

            def last_words(number: int) -> None:
                journal.sync()
                batch_report.publish(
                    batch_report.report_of(batch, inputs, folder, number, None), folder, as_json=as_json
                )
                sys.stdout.flush()

            with graceful_stop(stop, last_words) as signals:
                try:
                    batch.run(client)
                except (ConvserveError, OSError) as error:
                    failure = error
                finally:
                    journal.close()
                progress.close()
                report = batch_report.report_of(batch, inputs, folder, signals[0] if signals else None, failure)
                batch_report.publish(report, folder, as_json=as_json)
    if isinstance(failure, ConvserveError):
        raise failure
    if failure is not None:
        raise unwritable("output", folder, failure) from failure  # type: ignore[arg-type]
    if signals and report["left"]:
        return 128 + signals[0]
    return 1 if report["failed"] else 0


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Gives what is wrong with the command the status of wrong usage."""
    try:
        yield
    except InvalidRequestError as error:
        raise Failure(format_error(error, click.get_current_context()), exit_code=2) from error
