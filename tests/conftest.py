"""What every test shares: one thread, no network, and small things to segment."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read by numpy, torch and Hugging Face when they are imported, and inherited by every process that a test starts.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
    }
)

import cv2
import gymnasium as gym
import hypothesis
import numpy as np
import pytest

import segenv  # noqa: F401  # registers the environments
from segenv.types import Task

cv2.setNumThreads(1)
# A deadline measures the machine, not the code; in CI the examples are the same every time.
hypothesis.settings.register_profile("segenv", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("segenv")


def disc_task(height: int, width: int, x: int, y: int, radius: int, name: str = "disc") -> Task:
    """A bright disc on noise: the target is every pixel within `radius` px of (x, y)."""
    rows, columns = np.ogrid[:height, :width]
    target = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    image = np.random.default_rng([height, width, x, y]).integers(0, 96, (height, width, 3), dtype=np.uint8)
    image[target] += 128
    return Task(name, image, target, "the bright disc")


def star_ring(rng: np.random.Generator, size: float, radius: float, vertices: int = 200, roughness: float = 0.1):
    """A hole-free outline, float64 [vertices, 2]."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    radii = radius * (1 + 0.3 * np.sin(3 * angles) + roughness * rng.uniform(-1, 1, vertices))
    return rng.uniform(0.4, 0.6, 2) * size + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)


def same_rings(first, second) -> bool:
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def task() -> Task:
    """48 x 64 pixels with a disc of radius 12 px around (40, 20)."""
    return disc_task(48, 64, 40, 20, 12)


@pytest.fixture
def tasks() -> list[Task]:
    """Three tasks of different sizes; in the last one, a ring around the object is ignored."""
    last = disc_task(32, 32, 16, 16, 9, "ignored")
    core = disc_task(32, 32, 16, 16, 6).target
    target = np.where(core, 255, np.where(last.target, 128, 0)).astype(np.uint8)
    return [
        disc_task(48, 64, 40, 20, 12, "wide"),
        disc_task(70, 33, 10, 50, 8, "tall"),
        Task(last.id, last.image, target, last.instruction),
    ]


@pytest.fixture
def make_env(tasks: list[Task]) -> Iterator[Callable[..., gym.Env]]:
    """gym.make with the disc tool and the three small tasks, and any warning an error."""
    made = []

    def make_env(name: str, **options: Any) -> gym.Env:
        made.append(gym.make(name, **{"tool": "disc:radius=6", "data": tasks, **options}))
        return made[-1]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield make_env
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real photos at {folder}: this test needs them")
    return folder


@pytest.fixture(scope="session")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small randomly initialised GroundingDINO on disk."""
    import made_models

    return made_models.save_detector("grounding-dino", tmp_path_factory.mktemp("grounding-dino"))
