"""The plugin `segenv-clicks` of verifiers, which finds plugins as modules without dots in their names."""

from segenv.adapters.verifiers_env import ClickEnv, ClickHarness, Clicks

__all__ = ["ClickEnv", "ClickHarness", "Clicks"]
