"""The suite `rl-v1`: tasks for reinforcement learning of clicks, each with data, tool and episodes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RlTask:
    """One task of the suite: data, tool and episodes, of which nothing may be changed under its name."""

    about: str
    start: str
    max_steps: int
    observe: str | None = None
    tool: str = "sam:refine=none"
    train: str = "synthetic:train#easy"
    val: str = "synthetic:val#easy"
    test: str = "from:6000:synthetic:test#easy"
    test_tasks: int = 200
    grid: int = 8
    size: int = 64


SUITE = "rl-v1"
TASKS = {
    "repair": RlTask("repair a distorted mask", "distort", 5),
    "name": RlTask("segment what the instruction names", "empty", 3, "instruction"),
    "paint": RlTask(
        "paint the one object with few large discs",
        start="empty",
        max_steps=4,
        tool="disc:radius=36",
        train="synthetic:train#single",
        val="synthetic:val#single",
        test="from:6000:synthetic:test#single",
        test_tasks=100,
        size=32,
    ),
}
