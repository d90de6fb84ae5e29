"""OpenEnv's own server and client play the episodes of `SegMDP`."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openenv")

import uvicorn
from made_replies import TEXTS, played
from made_tools import BrokenTool
from openenv.core import GenericEnvClient

from segenv.adapters import chat, openenv_server
from segenv.tools.disc import DiscTool
from segenv.types import Task


@contextmanager
def served(tool: DiscTool, tasks: list[Task]) -> Iterator[str]:
    """The address of a server on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(openenv_server.create(tool, tasks), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def test_three_episodes_have_the_rewards_of_the_decision_process(tasks: list[Task]) -> None:
    game = chat.make(DiscTool(6), tasks)
    with served(DiscTool(6), tasks) as address:
        for index, task in enumerate(tasks):
            with GenericEnvClient(base_url=address).sync() as client:
                seen, (states, rewards) = client.reset(index=index), played(game, index)
                for k, text in enumerate(TEXTS):
                    shown = Image.open(io.BytesIO(base64.b64decode(seen.observation["picture"])))
                    assert np.array_equal(np.asarray(shown), np.asarray(game.picture(states[k])))
                    assert seen.observation["prompt"] == game.prompt(states[k])
                    seen = client.step({"text": text})
                    assert (seen.reward, seen.done) == (rewards[k], k == 3)
                told = client.state()
                assert (told["task_id"], told["iou"], told["step_count"]) == (task.id, game.iou(states[-1]), 4)


def test_a_broken_tool_is_an_error_of_the_client(tasks: list[Task]) -> None:
    with served(BrokenTool(6), tasks) as address, GenericEnvClient(base_url=address).sync() as client:
        client.reset(index=0)
        with pytest.raises(Exception, match="the tool is gone"):
            client.step({"text": TEXTS[0]})
        with pytest.raises(Exception, match="no task 7"):
            client.reset(index=7)
