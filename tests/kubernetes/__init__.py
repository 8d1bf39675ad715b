"""The manifests tried on a cluster: docs/containers.md says how, and what came of it."""
