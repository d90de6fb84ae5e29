"""StaR and StaR+ on one page (SegAgent, arXiv 2503.08625, Alg. 1).

    D_0 = the annotator's trajectories on training tasks        S_0 = finetune(agent, D_0)
    for n = 1, 2, …:
        D_n = filter(rollouts of S_{n-1} on training tasks)     S_n = finetune(S_0, D_0 ∪ D_n)
        evaluate(S_n) on held-out tasks

StaR+ corrects each bad action; StaR keeps whole trajectories, and learns from D_n alone. Two controls learn from D_0
alone, and from D_0 and as many of the annotator's actions on new tasks as StaR+ asks for. `search.star.Rules` has the
thresholds, which the paper does not publish. `Run` has folders, tasks and stages.
"""

import shlex
import subprocess
from typing import Any

from experiments.common.config import RunError
from experiments.star import metrics
from experiments.star.config import Args, stages
from experiments.star.stages import Run
from search import star
from segenv.seeds import seed_of


class Star(Run):
    """Alg. 1, a method for each stage of round n."""

    def train(self) -> dict[str, Any]:
        """Run all rounds; returns the content of metrics.json."""
        for n in range(self.args.rounds + 1):
            self.train_round(n)
        return self.write_results()

    def train_round(self, n: int) -> None:
        """Make S_n, and evaluate S_n."""
        work = {"expert": self.demonstrate, "rollout": self.rollout, "filter": self.filter_rollouts}
        work |= {"train": self.finetune, "evaluate": self.evaluate}
        for name in stages(self.args.variant, n):
            self.stage(n, name, work[name])

    def demonstrate(self, n: int) -> None:
        """D_0: the annotator plays the training tasks through the tool. D_1 of demonstrations: it plays new tasks,
        until it has acted as often as the rollouts asked it to."""
        args, name = self.args, f"round{n}/expert"
        counts: dict[str, Any] = {}
        player = self.player(self.train_data, "annotator")
        if n == 0:
            self.play(name, player, self.train_indices)
            played = list(self.episodes(name))
        else:
            wanted = star.annotator_queries(self.episodes(f"round{n}/rollout"))
            played = self.play_actions(name, player, self.new_indices(wanted), wanted)
            counts = {"queries": sum(len(each.steps) for each in played), "queries_wanted": wanted}
        filtered = args.expert == "judged"
        examples = [row for each in played for row in star.demonstration_examples(each, args.rules, filtered)]
        self.write_examples(n, examples, counts)

    def play_greedily(self, n: int) -> None:
        """Play training tasks greedily with S_n, to choose on them what is not to be chosen on held-out ones."""
        player = self.policy_player(self.train_data, n)
        self.play(f"round{n}/greedy", player, self.train_indices[: self.args.rollout_tasks])

    def rollout(self, n: int) -> None:
        """Sample episodes of S_{n-1} on training tasks. Where an action is bad, the annotator's is tried in the same
        state; the episode continues from the policy's own."""
        args, ids = self.args, self.train_data.ids
        shuffled = sorted(self.train_indices, key=lambda index: seed_of(args.seed, "rollout", n, ids[index]))
        options = {"samples": args.samples, "temperature": args.temperature, "round_index": n, "rules": args.rules}
        player = self.policy_player(self.train_data, n - 1, **options)
        self.play(f"round{n}/rollout", player, sorted(shuffled[: args.rollout_tasks]))

    def filter_rollouts(self, n: int) -> None:
        """D_n: keep what raised the IoU, and correct the rest (StaR+), or keep whole trajectories (StaR)."""
        rules, load, episodes = self.args.rules, self.train_data.by_id, list(self.episodes(f"round{n}/rollout"))
        if self.args.variant == "star":
            examples = [row for each in episodes for row in star.star_examples(each, rules)]
        else:
            examples = [row for each in episodes for row in star.star_plus_examples(each, load(each.task), rules)]
        counts = metrics.acceptance(examples, episodes, self.train_data.images_of)
        counts["queries"] = 0 if self.args.variant == "star" else star.annotator_queries(episodes)
        self.write_examples(n, examples, counts)

    def finetune(self, n: int) -> None:
        """S_0 from the agent and D_0, if at all; S_n from S_0 or S_{n-1}: here, or in processes of `args.launch`."""
        if n == 0 and not self.args.start_steps:
            return  # S_0 is the agent
        if self.server is not None:
            self.server.close()  # its memory is needed
        self.launch(n) if self.args.launch else self.train_policy(n)

    def launch(self, n: int) -> None:
        """Train S_n in processes of its own; RunError where these fail."""
        words = [*shlex.split(self.args.launch or ""), "-m", "experiments.star.finetune", str(self.folder.path), str(n)]
        try:
            done = subprocess.run(words, check=False).returncode
        except OSError as error:
            raise RunError(
                f"--launch is {self.args.launch!r}, which cannot be run ({error.strerror or error})"
            ) from error
        if done or not self.weights(n).exists():
            raise RunError(f"the training ended with status {done}: {shlex.join(words)}; go on with --resume")

    def train_policy(self, n: int) -> None:
        """Train S_n from S_0, or from S_{n-1} if `args.start_from` says so, and S_0 from the agent and D_0."""
        from agents.training.sft import finetune

        args = self.args
        examples = self.read_examples(n) if n else []
        if n == 0 or args.variant != "star":
            examples = self.read_examples(0) + examples  # the control has no D_n
        start = None if n == 0 else n - 1 if args.start_from == "previous" else 0
        policy, declare = self.trainable(start)
        data, examples = self.usable(f"round{n}/train", policy, star.unique_examples(examples))
        if not examples:
            raise RunError(
                f"round {n} has nothing to learn from: no rollout passed the filter; lower --keep-iou or --min-gain"
            )
        conversations = star.Conversations(examples, policy, data.by_id, args.max_steps)
        finetune(self.checkpoint(start), conversations, self.weights(n), self.sft_options(n), declare)

    def evaluate(self, n: int) -> None:
        """Play the held-out tasks greedily with S_n; metrics of stops need the annotator's action beside bad ones."""
        player = self.policy_player(self.eval_data, n, rules=self.args.rules)
        self.play(f"round{n}/evaluate", player, self.eval_indices)


def run(args: Args) -> dict[str, Any]:
    """Train in the folder of `args`, resuming after the last stage done; returns the content of metrics.json."""
    with Star.open(args) as this:
        return this.train()


def begin(args: Args) -> None:
    """Run round 0 alone: D_0, S_0, its evaluation, and its greedy play of training tasks. `run` resumes after them."""
    with Star.open(args) as this:
        this.train_round(0)
        this.stage(0, "greedy", this.play_greedily)
