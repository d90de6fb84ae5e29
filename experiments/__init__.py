"""One runnable page per result: `python -m experiments.evaluate --help`."""
