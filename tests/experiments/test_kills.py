"""Ten SIGKILLs of each command at random moments: resumed, it has the results of a run that was left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.budget import AXES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")]
ROOT = Path(__file__).parents[2]
KILLS, TRIES = 10, 30
EVALUATE = "evaluate --data synthetic:val#easy --tool disc --agent annotator:depth --max-steps 5 --batch-size 4"
EASY = "--data synthetic:train#easy --eval-data synthetic:val#easy"
COMMANDS = {
    "evaluate": f"{EVALUATE} --limit 150",
    "evaluate-process": f"{EVALUATE} --limit 150 --executor process --workers 2",
    "evaluate-ray": f"{EVALUATE} --limit 100 --executor ray --workers 2",
    "tree_search": "tree_search --data synthetic:val#easy --tool disc --limit 3 --depths 2 --values oracle --steps 1 2 "
    "--batch-size 1",
    "tree_search-process": "tree_search --data synthetic:val#easy --tool disc --limit 3 --depths 2 --values oracle "
    "--steps 1 2 --batch-size 1 --executor process",
    "star": f"star {EASY} --tool disc --agent mllm:untrained --rounds 1 --limit 6 --rollout-tasks 4 --samples 1 "
    "--eval-limit 3 --max-steps 2 --sft-steps 4 --round-steps 4 --batch-rows 4 --trainer.no-bf16",
    "gspo": f"gspo {EASY} --agent mllm:tiny-polygon --limit 8 --eval-limit 2 --probe 2 --probe-steps 4 --panel 1 "
    "--steps 8 --prompts 2 --group 2 --updates 2 --save-steps 2",
    "sft": "sft --tool disc --look-steps 12 --easy-steps 0 --click-steps 0 --state-steps 6 --cooldown 5 --lessons 1 "
    "--probe 1 --measure-every 100 --save-every 2 --workers 0 --image-size 64 --width 32 --text-layers 1 "
    "--vision-layers 1",
    "prm": f"prm {EASY} --tool disc --limit 4 --eval-limit 2 --rows 16 --steps 4 --batch-rows 4 --replies 2 "
    "--max-steps 2 --batch-size 1",
    "annotate": "annotate --images IMAGES --boxes IMAGES.csv --tool disc --show 4",
    "trajectories": "trajectories generate --data synthetic:val#easy --tool disc --limit 150 --batch-size 4",
    "trajectories-process": "trajectories generate --data synthetic:val#easy --tool disc --limit 150 --batch-size 4 "
    "--executor process",
}


def start(words, out, resume):
    command = [sys.executable, "-W", "ignore", "-m", f"experiments.{words[0]}", *words[1:]]
    if resume:
        count = 2 if words[0] == "trajectories" else 1
        command = [*command[:4], *[f"experiments.{words[0]}", *words[1:count]], "--resume", str(out)]
    else:
        command += ["--out", str(out)]
    with open(f"{out}.log", "w", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


PROBABILITIES = ("prior", "log_probability")


def said(out):
    return Path(f"{out}.log").read_text("utf-8", "replace")[-1500:]


def wait_for_folder(process, out):
    while not (out / "config.yaml").exists() and process.poll() is None:
        time.sleep(0.02)


def steady(value):
    """The value without times and names of the folder, and without the last bits of a model's probabilities: with
    several workers those depend on which replies one of them had already, and so on what was batched."""
    if isinstance(value, dict):
        if "trace" in value:  # of a search, whose costs hold seconds
            place = AXES.index("seconds")
            value = {**value, "trace": [row[:place] + row[place + 1 :] for row in value["trace"]]}
        if "plan" in value:  # of a training, whose base is hashed with the seconds of its own training
            value = {**value, "plan": {**value["plan"], "base": None}}
        value = {key: float(f"{one:.4g}") if key in PROBABILITIES and one else one for key, one in value.items()}
        away = ("second", "time", "started", "command", "resume", "file", "out", "_at")
        return {key: steady(one) for key, one in value.items() if not any(word in key for word in away)}
    return [steady(one) for one in value] if isinstance(value, list) else value


def results(out):
    """Records, numbers and weights of a run, by file."""
    from safetensors.numpy import load_file

    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if path.suffix == ".jsonl":
            lines = path.read_text("utf-8").splitlines()
            found[name] = sorted(json.dumps(steady(json.loads(line)), sort_keys=True) for line in lines)
            if name == "replies.jsonl":  # kept ones, of which two workers may each have made the same
                found[name] = sorted(set(found[name]))
        elif path.suffix == ".json" and path.name != "manifest.json":
            found[name] = steady(json.loads(path.read_text("utf-8").replace(str(out), "OUT")))
        elif path.suffix == ".safetensors":
            found[name] = {key: value.tobytes() for key, value in load_file(path).items()}
        elif path.suffix == ".png" and path.parent.name in ("images", "sheets"):
            found[name] = path.read_bytes()
    return found


def differences(one, two):
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def make_images(root):
    root.mkdir()
    lines, random_ = ["image,phrase,x0,y0,x1,y1,score"], np.random.default_rng(0)
    for k in range(80):
        Image.fromarray(random_.integers(0, 255, (120, 160, 3), np.uint8)).save(root / f"{k}.png")
        lines.append(f"{k}.png,disc,20,20,90,90,0.9")
    Path(f"{root}.csv").write_text("\n".join(lines), "utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_ten_kills_change_nothing(tmp_path, name):
    if name == "evaluate-ray":
        pytest.importorskip("ray")
    make_images(tmp_path / "images")
    words = COMMANDS[name].replace("IMAGES", str(tmp_path / "images")).split()
    whole, cut, chance = tmp_path / "whole", tmp_path / "cut", random.Random(name)
    process = start(words, whole, False)
    wait_for_folder(process, whole)
    began = time.monotonic()
    assert process.wait() == 0, said(whole)
    length, expected = time.monotonic() - began, results(whole)
    assert len(expected) > 1
    kills = ended = 0
    for _ in range(TRIES):
        if kills >= KILLS:
            break
        process = start(words, cut, (cut / "config.yaml").exists())
        wait_for_folder(process, cut)
        try:
            process.wait(chance.uniform(0, length))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0, said(cut)
        assert not differences(expected, results(cut)), f"after {kills} kills"
        ended += 1
        shutil.rmtree(cut)
    process = start(words, cut, (cut / "config.yaml").exists())
    assert process.wait() == 0, said(cut)
    assert not differences(expected, results(cut)), f"after {kills} kills"
    assert kills >= KILLS
    print(f"{name}: {kills} kills, {ended + 1} runs ended, equal; {length:.1f} s alone")
