"""Where an `mllm` agent's model runs."""
