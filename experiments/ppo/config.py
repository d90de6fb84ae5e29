"""Settings of PPO."""

from dataclasses import dataclass
from typing import Annotated, Literal

from experiments.common.config import Different, InFolder, OutFolder, Seeds
from segenv.ranges import Count, CountOrNone, NotNegative, Positive, Processes, Share

RESUMABLE = frozenset({"checkpoint_every"})  # settings that change no result
Algorithm = Literal["MaskablePPO", "PPO"]


@dataclass(frozen=True)
class Args:
    """Flags of the command line."""

    task: Literal["repair", "name", "paint"] = "repair"
    """of rl-v1: repair a distorted mask; segment from an empty mask what the instruction names; paint the one object
    with an analytic tool that costs nothing"""
    algorithms: Annotated[tuple[Algorithm, ...], Different()] = ("MaskablePPO", "PPO")
    """of Stable-Baselines3"""
    seeds: Seeds = (0,)
    """one training each: of fresh weights, order and chance"""
    demonstrations: CountOrNone = 2048
    """states that the annotator on the grid labels; 0 starts from fresh weights"""
    noise: Share = 0.3
    """of the demonstrations' steps, at random in place of the annotator's"""
    clone_epochs: Count = 8
    """passes over the demonstrations"""
    clone_rate: Positive = 3e-3
    """learning rate of cloning"""
    steps: Count = 4096
    """steps of each training, rounded up to whole updates"""
    num_envs: Count = 8
    """environments in the batch"""
    n_steps: Count = 32
    """steps of each environment in an update"""
    batch_size: Count = 128
    """states of a step of the optimiser"""
    epochs: Count = 4
    """passes over an update's steps"""
    rate: Positive = 5e-4
    """learning rate of PPO"""
    entropy: NotNegative = 0.01
    """weight of the entropy"""
    clip: Positive = 0.2
    """range of the clipped ratio"""
    discount: Share = 1.0
    """of rewards"""
    pool: Count = 256
    """training tasks, kept with their encodings"""
    val_tasks: Count = 32
    """tasks of the curve"""
    test_tasks: CountOrNone = 0
    """tasks of the final figures; 0: as many as the suite says, and fewer are no figures of rl-v1"""
    measure_every: Count = 4
    """updates between the points of the curve"""
    checkpoint_every: Count = 4
    """updates between checkpoints"""
    threads: Processes = 1
    """of PyTorch; sums of floats may depend on it"""
    out: OutFolder | None = None
    """folder of a new run; by default runs/ppo-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume; its settings hold"""
