"""Playing the segmentation process: batched rollouts, and search over the states they branch from."""
