"""Speed of the fast paths as ratios within one run."""
