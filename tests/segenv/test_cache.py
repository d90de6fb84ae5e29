"""The cache of encodings: within its bound, the same from memory and disk, and safe for several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segenv.tools.cache import EncodingCache

FLOAT = np.dtype(np.float32)
encodings = st.dictionaries(
    st.sampled_from(["embedding", "level0", "size"]),
    arrays(
        st.sampled_from([FLOAT, np.dtype(np.uint8), np.dtype(np.int64)]),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
    ),
    min_size=1,
)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Equal names, shapes, dtypes and values."""
    return list(one) == list(other) and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k], equal_nan=one[k].dtype.kind == "f")
        for k in one
    )


@given(encodings)
def test_memory_keeps_an_encoding_as_it_is(encoding):
    cache = EncodingCache()
    assert same(cache.put("key", encoding), encoding)
    assert same(cache.get("key"), encoding)
    assert cache.get("another") is None
    assert (cache.hits, cache.misses) == (1, 1)


@given(encoding=encodings)
def test_a_later_run_reads_what_an_earlier_one_put(encoding, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with np.errstate(over="raise"):
        put = EncodingCache(directory=folder).put("key", encoding)
    assert same(put, EncodingCache(directory=folder).get("key"))
    for name, array in encoding.items():
        if array.dtype == FLOAT:
            assert put[name].dtype == np.float16
            inside = np.abs(array) < 60_000
            np.testing.assert_allclose(put[name][inside], array[inside], rtol=1e-3, atol=1e-7)
            assert np.isfinite(put[name][~np.isnan(array)]).all(), "values beyond float16 are clipped, not infinite"
        else:
            np.testing.assert_array_equal(put[name], array)


@given(st.integers(0, 100), st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40)), max_size=30))
def test_memory_stays_within_its_bound_and_the_least_recently_used_goes_first(bound, puts):
    cache, model = EncodingCache(max_bytes=bound), {}
    for key, size in puts:
        cache.put(key, {"x": np.zeros(size, np.uint8)})
        if size <= bound:  # the reference: a dict in order of use
            model.pop(key, None)
            model[key] = size
            while sum(model.values()) > bound:
                del model[next(iter(model))]
        assert cache.nbytes == sum(model.values()) <= bound
    assert {key for key in "abcdef" if cache.get(key) is not None} == set(model)


def test_reading_an_encoding_keeps_it():
    cache = EncodingCache(max_bytes=20)
    for key in "ab":
        cache.put(key, {"x": np.zeros(10, np.uint8)})
    cache.get("a")
    cache.put("c", {"x": np.zeros(10, np.uint8)})
    assert cache.get("b") is None and cache.get("a") is not None


def test_what_the_cache_returns_is_read_only(tmp_path):
    for cache in (EncodingCache(), EncodingCache(directory=tmp_path)):
        for encoding in (cache.put("key", {"x": np.zeros(3, np.float32)}), cache.get("key")):
            with pytest.raises(ValueError, match="read-only"):
                encoding["x"][0] = 1


def test_precision_is_said():
    assert EncodingCache().precision == "exact"


def test_memory_and_disk_give_the_same_values(tmp_path):
    """What a tool answers may not depend on what happens to be in memory."""
    cache = EncodingCache(directory=tmp_path)
    assert cache.precision == "float16"
    put = cache.put("key", {"x": np.array([1 / 3], np.float32)})
    from_memory = cache.get("key")
    cache.clear()
    assert same(put, from_memory) and same(put, cache.get("key"))


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"not an array", None])
def test_a_damaged_file_is_a_miss_and_is_written_again(tmp_path, damage):
    encoding = {"x": np.arange(1000, dtype=np.int64)}
    EncodingCache(directory=tmp_path).put("key", encoding)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:500] if damage is None else damage)
    cache = EncodingCache(directory=tmp_path)
    assert cache.get("key") is None
    cache.put("key", encoding)
    assert same(EncodingCache(directory=tmp_path).get("key"), encoding)


def test_disk_stays_within_its_bound_and_forgets_what_was_not_used(tmp_path):
    cache = EncodingCache(max_bytes=0, directory=tmp_path, max_disk_bytes=10_000)
    for i in range(30):
        cache.put(str(i), {"x": np.full(900, i % 250, np.uint8)})
        assert cache.get("0") is not None, "used all the time"
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 12_000  # headers come on top of the arrays
    assert cache.get("1") is None and cache.get("29") is not None


PROCESS = """
import sys
import numpy as np
from segenv.tools.cache import EncodingCache
cache = EncodingCache(max_bytes=0, directory=sys.argv[1], max_disk_bytes=200_000)
for turn in range(3):
    for i in range(20):
        expected = np.full(3_000, i, np.float32)
        found = cache.get(f"image {i}") or cache.put(f"image {i}", {"x": expected})
        assert np.array_equal(found["x"], expected), i
"""


def test_several_processes_share_a_directory(tmp_path):
    """Reading, writing and removing at once, nobody sees half a file and nothing is left behind."""
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert all(file.suffix == ".npy" for file in tmp_path.iterdir())
