"""Runs compared on the tasks that all of them played; see `experiments.compare.__main__`."""
