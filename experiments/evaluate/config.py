"""Settings of an evaluation."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from agents.backends.server import BudgetOptions, ServerOptions
from experiments.common.config import Executor, InFolder, OutFolder
from search.on_ray import RayOptions
from segenv.ranges import Count, CountOrNone, NotNegative, Processes, Range, Seed, Share

# settings that change no result
RESUMABLE = frozenset({"executor", "workers", "report_episodes", "server", "budget", "sensitivity", "ray"})


@dataclass(frozen=True)
class FilterOptions:
    """Options of the task filter."""

    masks: Count = 4
    """masks of each task"""
    threshold: Share = 0.75
    """masks whose predicted IoU is at least this are kept"""


@dataclass(frozen=True)
class PolygonOptions:
    """Options of the tasks polygon, box and point."""

    given: Literal["text", "point", "box", "mask"] = "text"
    """prompt type: how the object is named"""
    asked: Literal["mask", "box", "point", "text"] = "mask"
    """output type: what the reply is to hold; of the tasks box and point, what they are named after"""
    temperature: NotNegative = 0.0
    """above 0, replies are also sampled at it"""
    samples: Count = 1
    """sampled replies to each task"""
    max_new_tokens: Count | None = None
    """tokens that a reply may have; by default what the checkpoint declares, else 512"""
    budget: Count = 128
    """the annotator's: units that its reply may have"""
    unit: Literal["tokens", "vertices", "characters"] = "tokens"
    """what its budget counts; tokens are those of the tiny model that writes polygons"""


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

    task: Literal["segment", "filter", "polygon", "box", "point"] = "segment"
    """filter: the agent predicts the IoU of masks, see experiments.evaluate.answers.filter; polygon, box and point: it
    answers with polygons, a box or a point in one reply, see experiments.evaluate.answers.polygons"""
    protocol: str | None = None
    """named protocol, which fixes all that its table is made under: refcoco-umd, refcoco-unc, reasonseg, grefcoco,
    ritm-davis, sam2-coco-500x5, segnext-hq44k, hlmat-synthetic-v1, rl-v1-repair, rl-v1-name, rl-v1-paint"""
    root: str | None = None
    """folder of the protocol's data, in place of --data"""
    data: str = "synthetic:val"
    """what to segment: synthetic[:SPLIT], index:DIR, folder:DIR, coco:ANNOTATIONS@IMAGES, …"""
    tool: str = "sam"
    """what makes masks of clicks: sam, sam:NAME_OR_PATH, segment-anything:TYPE@FILE, grabcut, disc,
    http://HOST:PORT"""
    agent: str = "annotator"
    """who clicks: annotator[:VARIANT], random, mllm, mllm:NAME_OR_PATH, openai:MODEL@BASE_URL, sb3:DIR,
    MODULE:CLASS"""
    codec: str | None = None
    """how the agent writes actions; by default its own"""
    prompt: str | None = None
    """of a model: codec (the whole prompt), short (one sentence), instruction (that alone), or a file in which
    {instruction} stands for it"""
    history: CountOrNone = 0
    """of a model: how many of its own clicks the prompt tells it"""
    sensitivity: bool = False
    """play the tasks again with three prompts and with a history of 0, 1 and 4, and compare, paired"""
    max_new_tokens: Count | None = None
    """tokens that a reply of a model may have, thinking included; by default what the checkpoint declares, else 64, and
    1,024 of a model behind a server"""
    temperature: NotNegative | None = None
    """of a model; by default 0, which is greedy"""
    top_p: Annotated[float, Range(most=1, above=0)] | None = None
    """sample a model's tokens from the likeliest that have this much probability together"""
    own_sampling: bool = False
    """sample as the checkpoint or the server does by itself"""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """setting of that name for the images of OpenAI's models"""
    image_format: Literal["png", "jpeg"] = "png"
    """in which images are sent to a server"""
    search: str = "none"
    """tree search on top of the agent: greedy:k=3,value=prm, best-of-n:…, beam:…, dvts:…, best-first:…, mcts:…"""
    start: str | None = None
    """initial masks: empty, box, points[:k=3], distort[:low=0.4,high=0.9] or given; by default the task's own, or an
    empty one"""
    max_steps: Count = 20
    """actions an episode may take"""
    limit: Count | None = None
    """use the first N tasks only, of those not excluded"""
    reference: bool | None = None
    """try the annotator's click in every state, too, to compare gains with: one more answer of the tool a step, on an
    encoding that it has; by default where the agent is another and there is no search"""
    exclude: str | None = None
    """file of tasks to leave out, such as those with wrong labels: an id a line, comments behind #"""
    shard: str | None = None
    """K/N: play the K-th of N parts of the tasks alone, on one of several machines; experiments.merge joins the runs"""
    seed: Seed = 0
    """of the agent's randomness"""
    out: OutFolder | None = None
    """folder of a new run; by default runs/evaluate-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume; its settings hold"""
    executor: Executor = "serial"
    """where episodes are played"""
    workers: Processes = 2
    """processes of the executors process and ray"""
    batch_size: Count = 8
    """episodes that advance together; a learned model's last bits may depend on it"""
    threads: Processes = 1
    """threads of each process; sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    follow_links: bool = False
    """follow links in the data's folder to files outside it"""
    report_episodes: CountOrNone | None = None
    """episodes that report.html shows, a third each the worst, the best and random; by default all, and 24
    masks of the task filter"""
    ray: RayOptions = field(default_factory=RayOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    budget: Annotated[BudgetOptions, tyro.conf.arg(name="")] = field(default_factory=BudgetOptions)
    filter: FilterOptions = field(default_factory=FilterOptions)
    polygon: PolygonOptions = field(default_factory=PolygonOptions)

    def preset(self) -> "Args":
        """Settings by default, but for those that the named protocol fixes; these settings where none is named."""
        from experiments.evaluate import protocols

        return protocols.preset(self)
