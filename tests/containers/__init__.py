"""The images and the compose stack, built and run by `python -m tests.containers`, where an engine is to be had."""
