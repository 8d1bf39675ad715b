"""Long trials of the service, each a command. `make test` has short forms of those that hold today."""
