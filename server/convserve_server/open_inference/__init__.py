"""The Open Inference Protocol beside the contract of our own: stored layers as models, for clients that exist."""
