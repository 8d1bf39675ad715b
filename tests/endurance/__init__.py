"""Long trials of the service: each is a command, and in a short form a test of `make test`."""
