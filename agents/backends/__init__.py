"""Backends that run the models of `mllm` agents."""
