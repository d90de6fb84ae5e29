"""The stages of PPO: controls, clones, trainings and test episodes."""

from pathlib import Path
from typing import Any

import torch

from agents import sb3_policy
from agents.sb3 import Sb3Agent
from experiments.common import cli
from experiments.common.config import check, choices
from experiments.common.run_folder import RunFolder, manifest
from experiments.common.suite import SUITE
from experiments.ppo import cloning, report
from experiments.ppo.config import RESUMABLE, Args
from experiments.ppo.tasks import Ground
from experiments.ppo.training import Training
from search.executors import set_threads
from segenv import codec
from segenv.files import json_hash

CLONE = "clone"  # in the tables and folders, before the name of an algorithm


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Train and measure as `args` say, in the folder `out` or `resume`, and return the content of metrics.json."""
    check(args)
    with cli.setting_up("the tasks"):
        set_threads(args.threads)
        ground = Ground(args)
        set_threads(args.threads)
    with cli.open_run(args, RESUMABLE) as folder:
        about = folder.keep_manifest(_manifest(args, ground), report.METRIC_DEFINITIONS)
        _levels(folder, ground, quiet)
        for seed in args.seeds:
            begin = _cloned(folder, args, ground, seed, quiet)
            for algorithm in args.algorithms:
                _trained(folder, args, ground, algorithm, seed, begin, quiet)
        numbers = report.write(folder, args, ground, about)
        folder.finish("ppo")
        return numbers


def _manifest(args: Args, ground: Ground) -> dict[str, Any]:
    protocol = {
        "suite": f"{SUITE}, task {args.task}"
        if len(ground.test) == ground.task.test_tasks
        else "none: other test tasks",
        **vars(ground.task),
        **choices(args, RESUMABLE),
        "test_tasks": len(ground.test),
        "starts": "of seed 0 and the task's id, as in experiments.evaluate",
        **report.METRIC_DEFINITIONS,
    }
    hashes: dict[str, str | None] = {
        "tool": ground.tool.fingerprint,
        "test": json_hash([task.id for task in ground.test]),
    }
    return manifest(args.seeds[0], protocol, hashes)


def _levels(folder: RunFolder, ground: Ground, quiet: bool) -> None:
    """Play the controls on validation and test tasks."""
    parts = {"val": ground.val, "test": ground.test}
    for name, tasks in parts.items():
        file = folder / f"levels-{name}.json"
        if not file.is_file():
            with cli.progress(4 * len(tasks), "episode", name=f"controls, {name}", quiet=quiet) as bar:
                folder.write_json(file.name, ground.levels(tasks, bar))


def _cloned(folder: RunFolder, args: Args, ground: Ground, seed: int, quiet: bool) -> dict[str, torch.Tensor]:
    """The weights that the trainings of a seed begin with; made once."""
    place = folder / f"seed{seed}" / CLONE
    if not args.demonstrations:
        return sb3_policy.weights_of(cloning.fresh(cloning.policy_config(ground, "PPO"), seed))
    if not folder.done(f"seed{seed}/{CLONE}"):
        shown = cloning.demonstrate(args, ground, seed, quiet)
        policy, losses = cloning.clone(args, ground, seed, shown, quiet)
        config = vars(cloning.policy_config(ground, "PPO"))
        sb3_policy.save(policy, place, **{name: value for name, value in config.items() if name != "spaces"})
        folder.write_json(f"seed{seed}/{CLONE}/losses.json", losses)
        folder.finish(f"seed{seed}/{CLONE}")
    policy, _ = sb3_policy.load(place)
    return sb3_policy.weights_of(policy)


def _trained(
    folder: RunFolder,
    args: Args,
    ground: Ground,
    algorithm: str,
    seed: int,
    begin: dict[str, torch.Tensor],
    quiet: bool,
) -> None:
    """Train one policy and play the test tasks, and with the weights that it began with too."""
    stage = f"seed{seed}/{algorithm}"
    if folder.done(stage):
        return
    place = folder / stage
    place.mkdir(parents=True, exist_ok=True)
    training = Training(args, ground, algorithm, seed, begin, place)
    training.run(folder, quiet)
    training.save(place / "policy")
    first = sb3_policy.build(training.config)
    sb3_policy.put_policy(first, begin, Path(sb3_policy.WEIGHTS))
    agents = {"begin": Sb3Agent.of(first, training.config, codec.make("pixels")), "end": training.agent()}
    folder.write_json(f"{stage}/test.json", {name: ground.play(agent, ground.test) for name, agent in agents.items()})
    folder.finish(stage)
