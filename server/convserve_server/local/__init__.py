"""The parts of a server that compute, without its sockets: `Engine` for callers of the same process."""

from convserve.errors import MissingDependencyError

try:
    from convserve_server.local.engine import Engine
except ModuleNotFoundError as error:
    text = f"{error}: an engine in this process needs the server's packages: pip install 'convserve[server]'"
    raise MissingDependencyError(text) from error

__all__ = ["Engine"]
