"""A task for Inspect (https://inspect.aisi.org.uk), whose models then play episodes of clicks:

inspect eval segenv/adapters/inspect_task.py --model openai/gpt-4o -T data=synthetic:test -T limit=50
"""

from segenv import render
from segenv.adapters import chat
from segenv.mdp import SegState

try:
    from inspect_ai import Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ChatMessage, ChatMessageUser, ContentImage, ContentText
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import Generate, Solver, TaskState, solver
except ImportError as missing:
    raise ImportError("this adapter needs inspect-ai 0.3.200 or newer: pip install 'segenv[inspect]'") from missing

INDEX, RESULT = "index", "segenv"  # of a task in the data; of an episode's record in a sample's store


@task
def clicks(
    tool: str = "sam",
    data: str = "synthetic:test",
    codec: str = "segagent",
    reward: str = "iou_gain",
    max_steps: int = 7,
    start: str | None = None,
    limit: int | None = None,
) -> Task:
    """Segment what the instruction names, one click at a time; the score is the IoU of the last mask."""
    return make(chat.make(tool, data, codec, reward, max_steps, start), limit)


def make(game: chat.Chat, limit: int | None = None) -> Task:
    """The task of the first `limit` episodes of a chat, or of all."""
    number = len(game.data) if limit is None else min(limit, len(game.data))
    samples = []
    for index in range(number):
        instruction, name = game.data[index].instruction, game.data[index].id
        samples.append(Sample(input=instruction or "the main object", id=name, metadata={INDEX: index}))
    return Task(dataset=MemoryDataset(samples, name="segenv"), solver=play(game), scorer=last_iou())


@solver
def play(game: chat.Chat) -> Solver:
    """Play an episode, each step of which is a conversation of its own. A broken tool is an error of the sample, which
    Inspect does not score."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        episode = chat.LiveEpisode(game, game.start(state.metadata[INDEX]))
        while not episode.done:
            state.messages = messages(game, episode.state)
            state = await generate(state)
            cut = "length" if state.output.stop_reason in ("max_tokens", "model_length") else None
            episode.answer(state.output.completion, cut)
        state.store.set(RESULT, episode.record())
        return state

    return solve


def messages(game: chat.Chat, state: SegState) -> list[ChatMessage]:
    """The conversation of a state in Inspect's types."""
    picture = ContentImage(image=render.data_url(game.picture(state)))
    return [ChatMessageUser(content=[picture, ContentText(text=game.prompt(state))])]


@scorer(metrics=[mean(), stderr()])
def last_iou() -> Scorer:
    """The IoU of the last mask with the target; best IoU, steps and rewards stand in the score's metadata."""

    async def score(state: TaskState, target: Target) -> Score:
        record = state.store.get(RESULT)
        return Score(value=record["iou"], metadata=record)

    return score
