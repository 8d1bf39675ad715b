"""`convserve serve`, found by the command line through the entry-point group `convserve.commands`."""

from __future__ import annotations

import argparse
import sys

from convserve_server import settings

HELP = "start a server"

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds description, examples and a flag per setting."""
    parser.description = _DESCRIPTION
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    settings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serves; returns the exit status."""
    try:
        found = settings.read(arguments)
        from convserve_server import app  # late: it needs the server extra

        return app.run(found)
    except settings.SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
