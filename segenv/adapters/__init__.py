"""Adapters to other frameworks, each importing its framework only when it is used."""
