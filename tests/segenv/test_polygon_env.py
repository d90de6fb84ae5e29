"""`segenv/Polygon-v0`: one reply is an episode, in every pair of kinds; and episodes of outlines are recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence

from agents.base import Agent
from search.episode import Episode, action_from_json, action_to_json, clicks_of
from search.rollout import rollout
from segenv import codec, data, queries, render, rewards
from segenv.envs.polygon import Words
from segenv.geometry import polygons_to_mask
from segenv.mdp import SegMDP
from segenv.metrics import iou
from segenv.tools.disc import DiscTool
from segenv.types import Box, Click, Invalid, Polygons, Stop, Task, Undo, object_of

ID = "segenv/Polygon-v0"
PAIRS = [pytest.param(*pair, id="-".join(pair)) for pair in queries.PAIRS]


@pytest.fixture
def make(tasks: list[Task]) -> Callable[..., Any]:
    return lambda **options: gym.make(ID, **{"data": tasks, **options})


def test_check_env_has_nothing_to_say(make: Callable[..., Any]) -> None:
    check_env(make(render_mode="rgb_array").unwrapped, skip_render_check=False)


@pytest.mark.parametrize(("given", "asked"), PAIRS)
def test_the_right_reply_to_each_question_has_the_whole_reward(
    given: str, asked: str, make: Callable[..., Any], tasks: list[Task]
) -> None:
    env = make(given=given, asked=asked, codec="simpleseg:contour=edges", varied=True)
    for task in tasks[:2]:
        seen, info = env.reset(seed=3, options={"task": task})
        core = env.unwrapped
        assert env.observation_space.contains(seen) and seen["prompt"] == core.query.prompt
        assert seen["instruction"] == (task.instruction if given == "text" else "")
        np.testing.assert_array_equal(seen["image"], core.query.picture)
        after, reward, terminated, truncated, info = env.step(queries.reply(core.query, core.codec))
        kind: type = {"mask": Polygons, "box": Box, "point": Click, "text": Words}[asked]
        assert isinstance(info["parsed"], kind) and info["valid"] and (terminated, truncated) == (True, False)
        assert reward == pytest.approx(sum(info["rewards"].values())) and 1.15 < reward < 1.2001
        assert after["prompt"] == seen["prompt"] and after["steps_left"] == 0
        if asked == "mask":
            outlines: Any = info["parsed"]
            drawn = polygons_to_mask(outlines.rings, task.height, task.width, outlines.union)
            np.testing.assert_array_equal(after["mask"], drawn)
            np.testing.assert_array_equal(after["image"], render.overlay(task.image, drawn))
            assert info["iou"] == info["rewards"]["iou"] == iou(task.target, drawn)
        else:
            np.testing.assert_array_equal(after["mask"], seen["mask"])
        with pytest.raises(ResetNeeded, match=r"ended at step 1; call reset\(\)"):
            env.step("[]")


@pytest.mark.parametrize("text", ["", "no idea", "[2000,1]", "[000,000,999,999]", "[500,500]"])
def test_what_is_no_mask_is_data_and_earns_nothing(text: str, make: Callable[..., Any]) -> None:
    env = make()
    env.reset(seed=0)
    seen, reward, terminated, _, info = env.step(text)
    assert terminated and reward == 0 and isinstance(info["parsed"], Invalid) and not info["valid"]
    assert seen["error"] == info["parsed"].reason != "" and not seen["mask"].any()
    with pytest.raises(InvalidAction, match="action is int; expected a text for codec rings"):
        env.reset()
        env.step(3)


def test_a_task_without_its_object_is_answered_by_nothing(make: Callable[..., Any], task: Task) -> None:
    absent = replace(task, target=np.zeros_like(task.target))
    env = make()
    for text, reward in (("Vertices: 0\n[]", 1.2), ("[[[0,0],[0,500],[500,500]]]", 0.1), ("I would rather not say", 0)):
        env.reset(options={"task": absent})
        assert env.step(text)[1] == pytest.approx(reward)
    with pytest.raises(ValueError, match="task disc has no object, and so no box"):
        make(given="box").reset(options={"task": absent})


def test_swapping_the_target_changes_no_observation(make: Callable[..., Any], task: Task) -> None:
    """Where a text is given. A point, a box and a mask are parts of the target, which the question gives away."""
    other = replace(task, target=~task.target, meta={"secret": 1})
    for asked in ("mask", "box", "point"):
        one, two = make(asked=asked), make(asked=asked)
        for text in ("[[[0,0],[0,500],[500,500]]]", "[100,100,900,900]", "[1,1]", "?"):
            first, second = (env.reset(options={"task": item}) for env, item in ((one, task), (two, other)))
            assert data_equivalence(first[0], second[0], exact=True)
            assert data_equivalence(one.step(text)[0], two.step(text)[0], exact=True)
    for given in ("point", "box", "mask"):
        env = make(given=given, asked="text")
        first, second = (env.reset(options={"task": item}) for item in (task, other))
        assert not data_equivalence(first[0], second[0], exact=True), given


def test_it_is_made_from_specs_that_survive_json() -> None:
    env = gym.make(f"segenv:{ID}", data="synthetic:val", codec="simpleseg", reward="iou+chamfer", given="box")
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))  # type: ignore[union-attr]
    assert data_equivalence(env.reset(seed=3), again.reset(seed=3), exact=True)


def test_a_seed_gives_the_same_questions_and_phrasings_vary(make: Callable[..., Any]) -> None:
    one, two = make(given="point", varied=True), make(given="point", varied=True)
    prompts = set()
    for seed in (5, *[None] * 20):
        first, second = one.reset(seed=seed), two.reset(seed=seed)
        assert data_equivalence(first, second, exact=True)
        prompts.add(first[0]["prompt"])
    assert len(prompts) > 6
    short = make(given="box", asked="point", style="instruction").reset(seed=0)[0]["prompt"]
    assert short.startswith("point the object in box [")


def test_a_reward_of_ones_own(make: Callable[..., Any], task: Task) -> None:
    env = make(reward=lambda task, before, action, after, terminal: 7.0 * terminal)
    env.reset(options={"task": task})
    _, reward, _, _, info = env.step("[]")
    assert reward == 7 and info["rewards"] == {"reward": 7.0}


def test_what_it_refuses(make: Callable[..., Any]) -> None:
    for options, message in (
        ({"codec": "segagent"}, "codec 'segagent' draws no polygons"),
        ({"reward": "iou_gain"}, "is not understood at 'iou_gain'"),
        ({"given": "mask"}, "given 'mask', asked 'mask'"),
        ({"style": "loud"}, "style 'loud'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)


# -------------------------------------------------------------------------------------------------- outlines as actions


class Draughtsman(Agent):
    """Knows the answers, and draws them."""

    spec = "draughtsman"

    def __init__(self, tasks: list[Task]) -> None:
        super().__init__(codec.make("rings"))
        self.known = {task.id: task for task in tasks}

    def _act(self, observations: Any, seeds: Any) -> list[str]:
        asked = [self.known[seen.task_id] for seen in observations]
        return [self.codec.reply(object_of(task.target), task, 200) for task in asked]  # type: ignore[attr-defined]


def test_episodes_of_outlines_are_recorded_and_read_back(tasks: list[Task]) -> None:
    mdp = SegMDP(DiscTool(), max_steps=1, reward_name="final")
    for task, episode in zip(tasks, rollout(mdp, Draughtsman(tasks), tasks), strict=True):
        again = Episode.from_json(json.loads(json.dumps(episode.to_json())))
        assert again == episode and episode.final_iou > 0.9 and not clicks_of(episode.steps)
        drawn = action_from_json(again.steps[0].action)
        assert isinstance(drawn, Polygons)
        np.testing.assert_array_equal(polygons_to_mask(drawn.rings, task.height, task.width), episode.mask(1))
        scored = rewards.polygon("iou").of(drawn, task)["iou"]
        assert scored == episode.final_iou == episode.steps[0].reward


@pytest.mark.parametrize("rings", [(), ([[0, 0], [0, 0.1], [1 / 3, 7]],), ([], [[1, 2]])])
def test_outlines_survive_json(rings: tuple) -> None:
    for drawn in (Polygons(rings), Polygons(rings, union=True, truncated=True)):
        assert action_from_json(json.loads(json.dumps(action_to_json(drawn)))) == drawn


def test_outlines_replace_the_mask_of_any_state_and_can_be_undone(task: Task) -> None:
    """As by a model that draws where clicks were expected: the tool is not asked, and clicks go on from there."""
    mdp = SegMDP(DiscTool(radius=6), max_steps=9)
    square = Polygons((np.array([[10, 10], [10, 30], [40, 30], [40, 10]]),))
    clicked = mdp.transition([mdp.initial(task)], [Click(40, 20)])[0]
    drawn = mdp.transition([clicked], [square])[0]
    assert drawn.mask.sum() == 600 and drawn.logits is None and drawn.step == 2
    assert drawn.clicks == clicked.clicks and not mdp.terminal(drawn)
    [back] = mdp.transition([drawn], [Undo()])
    np.testing.assert_array_equal(back.mask, clicked.mask)
    [on] = mdp.transition([drawn], [Click(60, 40)])
    assert on.mask.sum() > 0 and np.isnan(drawn.score) and mdp.terminal(mdp.transition([on], [Stop()])[0])
    env = gym.make("segenv/HLMAT-v0", tool="disc", data=[task], codec="rings", max_steps=3)
    env.reset()
    seen, reward, *_ = env.step("[[[000,000],[000,999],[999,999],[999,000]]]")
    assert seen["mask"].all() and reward == pytest.approx(task.target.mean())


def test_the_environment_runs_on_tasks_that_ask_for_what_is_not_there() -> None:
    env = gym.make(ID, data=data.make("absent:synthetic:val#easy"))
    for seed in range(2):
        _, info = env.reset(seed=seed)
        assert info["instruction"] and env.step("[]")[1] == pytest.approx(1.2)
