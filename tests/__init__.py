"""The tests: unit/ without sockets and TensorFlow, integration/ with a real server."""
