"""What trainers get of recorded clicks: each state as a picture, the prompt, and the reply to learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments import trajectories as command
from experiments.trajectories import Export, Generate, generate, run_export
from segenv import codec, data, render
from segenv.data.trajectories.export import conversations
from segenv.mdp import SegMDP
from segenv.tools.disc import DiscTool


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    args = Generate("synthetic:val", "disc", starts=("empty", "box"), samples=2, rule="all", max_clicks=3, limit=4)
    about = generate(replace(args, out=str(tmp_path / "run")))
    return f"trajectories:{about['file']}"


def test_exported_conversations_load_with_datasets_and_show_each_state(recorded: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "trl"
    about = run_export(Export(recorded, out, codec="qwen3-vl"))
    (tmp_path / "elsewhere").mkdir()
    moved = out.rename(tmp_path / "elsewhere" / "trl")
    loaded = datasets.load_dataset(str(moved), split="train", cache_dir=str(tmp_path / "cache"))
    speaks, k = codec.make("qwen3-vl"), 0
    assert set(loaded.column_names) == {"messages", "images"}
    for task in data.make(recorded):
        trajectory = task.meta["trajectory"]
        for lesson in trajectory.lessons():
            question, answer = loaded[k]["messages"]
            (picture,) = loaded[k]["images"]
            expected = render.overlay(task.image, trajectory.decode(lesson.mask))
            assert np.array_equal(np.asarray(picture), expected)
            assert (question["role"], question["content"]) == ("user", speaks.prompt(task))
            assert answer["role"] == "assistant" and answer["content"].startswith("Current IOU: ")
            assert speaks.parse(answer["content"], task) == lesson.action
            assert speaks.stated_iou(answer["content"]) == round(100 * lesson.iou) / 100
            k += 1
    assert k == len(loaded) == about["conversations"]


def test_llama_factory_finds_its_list_turns_and_pictures(recorded: str, tmp_path: Path) -> None:
    out = tmp_path / "lf"
    out.mkdir()
    (out / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    about = run_export(Export(recorded, out, "llama-factory", prompt="instruction"))
    listed = json.loads((out / "dataset_info.json").read_text())
    assert listed["mine"] == {"file_name": "mine.json"} and listed["segenv"]["formatting"] == "sharegpt"
    columns = listed["segenv"]["columns"]
    records = [json.loads(line) for line in (out / listed["segenv"]["file_name"]).read_text().splitlines()]
    assert len(records) == about["conversations"] > 5
    for record in records:
        human, gpt = record[columns["messages"]]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].count("<image>") == len(record[columns["images"]]) == 1
        assert (out / record["images"][0]).is_file()
    asked = {f"<image>{task.instruction}" for task in data.make("synthetic:val")[:4]}
    assert {record["conversations"][0]["value"] for record in records} == asked


def test_an_export_said_again_keeps_its_pictures(recorded: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_export(Export(recorded, out))
    whole = (out / "metadata.jsonl").read_bytes()
    pictures = sorted((out / "images").iterdir())
    times = {path: path.stat().st_mtime_ns for path in pictures}
    assert 0 < len(pictures) < len(whole.splitlines()), "a state that several conversations show is drawn once"
    (out / "metadata.jsonl").unlink()  # as after a kill: the list comes last
    pictures[0].unlink()
    run_export(Export(recorded, out))
    assert (out / "metadata.jsonl").read_bytes() == whole and sorted((out / "images").iterdir()) == pictures
    assert all(path.stat().st_mtime_ns == times[path] for path in pictures[1:])


def test_media_placeholders_in_a_caption_reach_no_trainer(recorded: str) -> None:
    task = replace(data.make(recorded)[0], instruction="the <image> of <video>")
    (first, *_) = conversations([task], codec.make("segagent"), "instruction")
    assert first.prompt == "the   of  "


def test_an_exported_picture_is_what_the_agent_sees(recorded: str) -> None:
    pytest.importorskip("transformers")
    import agents

    agent: Any = agents.make("mllm:untrained")
    mdp = SegMDP(DiscTool(6))
    for talk in conversations(data.make(recorded)[:3], agent.codec, agent.prompt_style):
        seen = mdp.observation(mdp.initial(replace(talk.task, initial_mask=talk.mask)))
        assert np.array_equal(agent.backend.sent(talk.picture), agent.picture(seen))
        assert talk.prompt == agent.prompt(seen)


def test_the_command_says_what_is_wrong(recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert command.main(["export", "--data", "synthetic:val", *out]) == 1
    assert "holds no clicks; expected trajectories:FILE.json" in capsys.readouterr().err
    assert command.main(["export", "--data", recorded, "--codec", "morse", *out]) == 1
    assert "unknown codec 'morse'" in capsys.readouterr().err
    assert command.main(["export", "--data", recorded, "--limit", "2", *out]) == 0
    assert json.loads(capsys.readouterr().out)["conversations"] > 0
    with pytest.raises(SystemExit):
        command.main([])
    assert "{generate,convert,export}" in capsys.readouterr().err.replace(" ", "")
    assert Image.open(next((tmp_path / "out" / "images").iterdir())).mode == "RGB"
