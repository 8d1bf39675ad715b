"""Admission, fair queues and dynamic batching of calls. No gRPC, no TensorFlow."""
