"""`convserve serve`, which the command line loads by the name of this module."""

from __future__ import annotations

import argparse
import sys

import click

from convserve_server import settings

_DESCRIPTION = """\
Starts a server and runs until SIGTERM or Ctrl-C. It prints "listening on ADDRESS"
for each address and then, once the device has computed a known result, "ready";
the gRPC health check says SERVING from then on.
"""

_EXAMPLES = """\
examples:
  convserve serve
      on 127.0.0.1:50051, on the first GPU if there is one
  convserve serve --device cpu --listen 127.0.0.1:0
      on the CPU, on a free port, which is printed
  convserve serve --listen unix:///tmp/convserve.sock --listen 0.0.0.0:50051
      on a Unix socket, and open to the network
  convserve serve --listen 0.0.0.0:50051 --tls-certificate server.pem \
      --tls-key server.key --tokens-file tokens.txt
      encrypted, and for those who show a token of the file
  CONVSERVE_MAX_CALL_BYTES=2000000000 convserve serve
      every setting has an environment variable; a flag wins over it
"""


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False, short_help="start a server")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(words: tuple[str, ...]) -> int:
    """Serves; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="convserve serve",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    settings.add_arguments(parser)
    try:
        found = settings.read(parser.parse_args(words))
        from convserve_server import app  # late: it needs the server extra

        return app.run(found)
    except settings.SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
