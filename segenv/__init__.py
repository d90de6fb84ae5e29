"""Segmentation as a decision process that any agent can play.

Importing segenv registers its environments with Gymnasium, by name alone: what they need is imported when one is made.
"""

from gymnasium.envs.registration import register as _register

__version__ = "0.1.0"

for _id, _entry_point in {
    "segenv/HLMAT-v0": "segenv.envs.hlmat:HLMATEnv",
    "segenv/HLMATGrid-v0": "segenv.envs.numeric:HLMATGridEnv",
    "segenv/HLMATPoint-v0": "segenv.envs.numeric:HLMATPointEnv",
    "segenv/Refine-v0": "segenv.envs.refine:RefineEnv",
    "segenv/Filter-v0": "segenv.envs.filter:FilterEnv",
    "segenv/Polygon-v0": "segenv.envs.polygon:PolygonEnv",
}.items():
    # No max_episode_steps: the click budget is part of the state, and ends an episode as terminated.
    _register(id=_id, entry_point=_entry_point)
