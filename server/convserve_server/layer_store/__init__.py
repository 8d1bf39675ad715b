"""Stored layers: in memory, in a folder, under names."""
