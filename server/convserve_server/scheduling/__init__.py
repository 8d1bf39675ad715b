"""Who is admitted, who waits, and what is computed together. No gRPC, no TensorFlow."""
