"""The replies of a scripted model in an episode, and the episode that they make, for the tests of adapters."""

from __future__ import annotations

from segenv.adapters.chat import Chat
from segenv.mdp import SegState

TEXTS = ("Positive point: (500, 500)", "I would rather not", "Negative point: (10, 10)", "Finish")


def played(game: Chat, index: int) -> tuple[list[SegState], list[float]]:
    """The states of the episode of a task, the last one included, and the rewards."""
    states, rewards, done = [game.start(index)], [], False
    for text in TEXTS:
        assert not done
        state, reward, done = game.advance(states[-1], text)
        states.append(state)
        rewards.append(reward)
    assert done
    return states, rewards
