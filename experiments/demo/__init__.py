"""An episode that a person and an agent play together, on a page in the browser."""
