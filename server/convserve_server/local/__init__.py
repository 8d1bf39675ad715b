"""The parts of a server that compute, without its sockets: `Engine` for callers of the same process."""

from convserve.errors import needing

with needing("An engine in this process needs the server's packages: pip install 'convserve[server]'."):
    from convserve_server.local.engine import Engine

__all__ = ["Engine"]
