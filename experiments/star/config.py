"""The settings of a StaR run. Defaults are for the embedded pair on two cores; the paper publishes no thresholds."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from agents.backends.server import ServerOptions
from experiments.common import config
from experiments.common.config import Executor, InFolder, OutFolder, RunError, TrainerOptions
from experiments.common.splits import HEADLINE
from search.on_ray import RayOptions
from search.star import Rules
from segenv.ranges import MOST_SEED, Count, CountOrNone, Gain, NotNegative, Positive, Processes, Seed

RESUMABLE = frozenset(
    {"executor", "workers", "report_episodes", "dry_run", "follow_links", "ray", "serve", "server", "launch"}
)
S_0_STEPS = 600  # for an agent that has not learned from the annotator before


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

    REMOVED: ClassVar[dict[str, Any]] = {  # options of earlier versions that made no measured difference
        "stop_on_plateau": False,
        "go_on_from": "policy",
        "zero_gain": "correct",
        "no_gain": "stop",
        "dedup": "rows",
        "per_task_cap": 0,
    }

    data: str = "synthetic:train"
    """training tasks; without --eval-data, a hash of the images' names sets 30 % of them apart for evaluation"""
    eval_data: str | None = None
    """held-out tasks; for synthetic data synthetic:val, and in an ablation from:6000:synthetic:test, as the rules of a
    round were chosen on synthetic:val"""
    tool: str = "sam"
    """segmentation tool that turns clicks into masks"""
    agent: str = "mllm"
    """the policy to improve: mllm, mllm:NAME_OR_PATH"""
    codec: str | None = None
    """text format of actions; by default the agent's own"""
    policy_server: str | None = None
    """openai:{folder}@BASE_URL: the policies play through the server at that address, each under the name of the folder
    of its weights, instead of in this process"""
    serve: str | None = None
    """command that serves the weights in {folder} at that address; it is started before a policy plays, and ended
    before a training. Without it, serve each policy when the run asks for it, and resume"""
    server: ServerOptions = field(default_factory=ServerOptions)
    launch: str | None = None
    """what starts a training in several processes, such as "accelerate launch --num_processes 8"; by default none do"""
    variant: Literal["star+", "star", "control", "demonstrations"] = "star+"
    """filter each action and correct it; whole trajectories; D_0 alone, the control for what more training does; or D_0
    and demonstrations on new tasks, of as many of the annotator's actions as star+ asks for"""
    rounds: Count = 1
    """rounds of rollout, filter and training"""
    start_from: Literal["base", "previous"] = "base"
    """weights that S_n is trained from: always S_0 as in the paper, so that errors of a round are not built upon, or
    S_{n-1}"""
    max_steps: Count = 7
    """actions an episode may take"""
    limit: Count = 400
    """training tasks that the annotator plays"""
    expert: Literal["trajectory", "judged"] = "trajectory"
    """D_0 has the annotator's clicks that gain, and stops from --stop-iou on; judged: also stops from --spent-iou on
    where none of the annotator's later clicks gains"""
    rollout_tasks: Count = 400
    """training tasks that the policy plays in each round"""
    samples: Count = 2
    """rollouts of each of those tasks: more show more of the policy's mistakes in the same scenes"""
    temperature: NotNegative = 1.0
    """of those rollouts; evaluation is greedy"""
    eval_limit: Count | None = None
    """held-out tasks; 400, and in an ablation, whose differences are small, 800"""
    sft_steps: CountOrNone | None = None
    """optimiser steps from the agent to S_0; by default 600, but 0 (S_0 is the agent) for the embedded model on
    synthetic data, on which the embedded model was trained"""
    round_steps: Count = 200
    """optimiser steps to each S_n"""
    batch_rows: Count = 32
    """examples an optimiser step"""
    learning_rate: Positive = 1e-3
    """from the agent to S_0"""
    round_learning_rate: Positive = 1.5e-4
    """from S_0 to S_n: low, as S_0 has seen far more scenes than a round shows and forgets them at higher rates"""
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    min_gain: Gain = Rules.min_gain
    """an action is good if it raises the IoU by more than this: less is within what the next click may lose again"""
    stop_iou: NotNegative = Rules.stop_iou
    """from this IoU on the action to learn is to stop"""
    keep_iou: NotNegative = Rules.keep_iou
    """final IoU that a whole trajectory must reach (variant star)"""
    spent_iou: NotNegative = Rules.saturation_iou
    """from this IoU on, and below --stop-iou, the action to learn where the annotator's click does not gain is to stop:
    the tool is saturated"""
    seed: Seed = 0
    out: OutFolder | None = None
    """folder of a new run; by default runs/star-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume, with the settings in that folder"""
    dry_run: bool = False
    """load everything, print what would be done, and write nothing"""
    ablation: bool = False
    """one table of S_0, its controls, star, star+ and continue, for --ablation-seeds seeds from --seed on"""
    ablation_seeds: Count = 3
    ablation_rounds: Literal[1, 2] = 2
    """rounds of star+ in an ablation; with 1, continue is left out, which differs in the second only"""
    executor: Executor | None = None
    """runs episodes, serial by default, or the runs of an ablation, process by default where there is no GPU; no
    number depends on the executor"""
    workers: Processes = 2
    """of the executor; an ablation trains so many policies at once"""
    batch_size: Count = 32
    """episodes that advance together; a learned model's last bits may depend on it"""
    threads: Processes = 1
    """threads of each process; sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count these"""
    follow_links: bool = False
    """follow links in the data's folder to files outside it"""
    report_episodes: CountOrNone = 12
    """held-out episodes that report.html shows before and after"""
    ray: RayOptions = field(default_factory=RayOptions)

    @property
    def rules(self) -> Rules:
        """The thresholds as the filters take them."""
        return Rules(self.min_gain, self.stop_iou, self.keep_iou, self.spent_iou)

    @property
    def start_steps(self) -> int:
        """Optimiser steps from the agent to S_0."""
        if self.sft_steps is not None:
            return self.sft_steps
        from agents.mllm import checkpoint

        learned = self.agent == "mllm" and self.data.startswith("synthetic") and checkpoint(self.agent) is not None
        return 0 if learned else S_0_STEPS


def with_defaults(args: Args) -> Args:
    """Fill in the settings that depend on the data and on whether it is an ablation; a resumed run has its own."""
    if args.resume is not None:
        return args
    import torch

    alone = not args.ablation or torch.cuda.is_available()  # a GPU is filled by one training
    defaults: dict[str, Any] = {"executor": "serial" if alone else "process"}
    defaults["eval_limit"] = 800 if args.ablation else 400
    if args.data.startswith("synthetic"):
        defaults["eval_data"] = HEADLINE if args.ablation else "synthetic:val"
    return replace(args, **{name: value for name, value in defaults.items() if getattr(args, name) is None})


def check(args: Args) -> None:
    """Raise RunError where a run cannot have these settings."""
    config.check(args)
    last = args.seed + args.ablation_seeds - 1 if args.ablation else args.seed
    if last > MOST_SEED:
        raise RunError(f"--seed is {args.seed}, and --ablation-seeds lead to {last}; expected {MOST_SEED} at most")
    if args.variant == "demonstrations" and args.rounds > 1:
        raise RunError(f"--variant demonstrations has one round; got --rounds {args.rounds}")
    if args.policy_server is None and args.serve is not None:
        raise RunError("--serve needs --policy-server: openai:{folder}@BASE_URL of the server that it starts")
    if args.policy_server is not None and (args.ablation or args.executor not in (None, "serial")):
        raise RunError("--policy-server is asked many things at a time as it is: leave out --executor and --ablation")
    if args.resume is None and args.out is None:
        raise RunError("a run needs a folder: give out, or resume")


def stages(variant: str, n: int) -> list[str]:
    """Name the stages of round n in order."""
    first = {"control": [], "demonstrations": ["rollout", "expert"]}.get(variant, ["rollout", "filter"])
    if n == 0:
        first = ["expert"]
    return [*first, "train", "evaluate"]
