"""Tree searches, one function over states each."""
