"""Segmentation as a decision process that any agent can play.

Importing segenv registers its environments with Gymnasium, by name alone: what they need is imported when one is made.
"""

from gymnasium.envs.registration import register as _register

__version__ = "0.1.0"

for _name, _module in {
    "HLMAT": "hlmat",
    "HLMATGrid": "numeric",
    "HLMATPoint": "numeric",
    "Refine": "refine",
    "Filter": "filter",
    "Polygon": "polygon",
}.items():
    # No max_episode_steps: the click budget is part of the state, and ends an episode as terminated.
    _register(
        id=f"segenv/{_name}-v0",
        entry_point=f"segenv.envs.{_module}:{_name}Env",
        vector_entry_point=f"segenv.envs.vector:{_name}VectorEnv",
    )
