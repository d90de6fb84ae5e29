"""Trainers of policies: SFT and GSPO on TRL, and the examples that the tiny model learns from."""
