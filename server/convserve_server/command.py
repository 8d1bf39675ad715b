"""`convserve serve`: a click command with a flag for each setting."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from convserve_server import settings
from convserve_server.observability.logs import write_json_lines
from convserve_server.settings import Settings, default_text, flag, help_text, is_secret, metavar, variable

_DESCRIPTION = """\
Start a server and run until SIGTERM or Ctrl-C. Once the device has computed a known result it listens, prints
"listening on ADDRESS" for each address and then "ready"; the gRPC health check says SERVING.
"""

_EXAMPLES = """\
\b
examples:
  convserve serve
      on 127.0.0.1:50051, on the first GPU if there is one
  convserve serve --device cpu --listen 127.0.0.1:0
      on the CPU, on a free port, which is printed
  convserve serve --listen unix:///tmp/convserve.sock --listen 0.0.0.0:50051
      on a Unix socket, and open to the network
  convserve serve --listen 0.0.0.0:50051 --tls-certificate server.pem \\
      --tls-key server.key --tokens-file tokens.txt
      encrypted, and for those who show a token of the file
  CONVSERVE_MAX_CALL_BYTES=2GB convserve serve --drain-s 5m
      every setting has an environment variable; a flag wins over it
"""


class _GroupedCommand(click.Command):
    """A command that lists its options in the groups of the settings' table."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        title, groups = "", dict[str, list[tuple[str, str]]]()
        for option in self.get_params(ctx):
            title = settings.GROUPS.get(str(option.name), title) if option.name in Settings.model_fields else "options"
            record = option.get_help_record(ctx)
            groups.setdefault(title, []).extend([record] if record else [])
        secrets = [(variable(name), help_text(name)) for name in Settings.model_fields if is_secret(name)]
        for name, rows in (groups | {"from the environment alone": secrets}).items():
            with formatter.section(name):
                formatter.write_dl(rows)


def _option(name: str) -> click.Option:
    """Returns a setting's flag. Its value stays text, so that flags and variables are read and refused alike."""
    text = f"{help_text(name)} [{variable(name)}, default {default_text(name) or 'none'}]"
    value = settings.default(name)
    if isinstance(value, bool):
        return click.Option([f"{flag(name)}/{flag(f'no_{name}')}"], default=None, help=text)
    return click.Option([flag(name)], metavar=metavar(name), multiple=isinstance(value, tuple), help=text)


def _serve(**flags: Any) -> None:
    if (flags["log_format"] or os.environ.get(variable("log_format"))) == "json":
        write_json_lines()  # first, for whatever is wrong
    try:
        given = {name: value for name, value in flags.items() if value not in (None, ())}
        effective = settings.read(given)
        from convserve_server import app  # late: it needs the server extra

        status = app.run(effective)
    except settings.SettingsError as error:
        for line in str(error).splitlines():
            click.echo(f"error: {line}", err=True)
        status = 2
    sys.exit(status)


command = _GroupedCommand(
    "serve",
    callback=_serve,
    params=[_option(name) for name in Settings.model_fields if not is_secret(name)],
    help=_DESCRIPTION,
    short_help="start a server",
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},  # also where it is run by itself
)
