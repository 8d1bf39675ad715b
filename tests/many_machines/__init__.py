"""The programs of docs/many-machines.md, each with its engine, run by `python -m tests.many_machines`."""
