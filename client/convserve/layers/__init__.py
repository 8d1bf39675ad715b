"""The layer model: configuration, validation, shapes, weights, digest."""
