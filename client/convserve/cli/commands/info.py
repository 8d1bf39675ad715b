"""`convserve info`: what a server is."""

from __future__ import annotations

import dataclasses

from convserve.cli.command import JSON, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.output.report import print_result


@new_command("info")
@JSON
@connection_options(timeout=10.0)
def command(as_json: bool, connection: Connection) -> None:
    with connection.client() as client:
        info = client.info()
    print_result(info.rows(), dataclasses.asdict(info), as_json=as_json)
