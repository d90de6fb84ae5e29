"""Procedural scenes, the same for the same index."""
