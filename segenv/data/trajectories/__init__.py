"""Recorded trajectories in SegAgent's JSON: read, written and exported."""
