"""`convserve health`: is a server serving?"""

from __future__ import annotations

from convserve import Client
from convserve.cli.command import Failure, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.errors import ConvserveError, DeadlineExceededError


@new_command("health")
@connection_options(timeout=5.0, token=False)
def command(connection: Connection) -> None:
    try:
        with Client(connection.target, timeout=connection.timeout, token="", tls=connection.encryption()) as client:
            found: str = client.health()
    except DeadlineExceededError:
        found = f"no answer within {connection.timeout:g} s"
    except ConvserveError as error:
        found = " ".join(str(error).split())
    if found != "SERVING":
        raise Failure(f"not serving: {connection.address}: {found}")
    print(found)
