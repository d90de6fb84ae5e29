"""A file is there whole or not at all, and its hash stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from segenv.files import content_hash, file_hash, folder_hash, json_hash, replacing, write_atomic


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "list.json"
    write_atomic(path, "é")
    with pytest.raises(KeyError), replacing(path, "ascii") as file:
        file.write("half")
        raise KeyError
    assert path.read_bytes() == "é".encode() and list(path.parent.iterdir()) == [path]


def test_hashes_are_those_of_earlier_runs(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert content_hash(b"ab", b"c") == file_hash(tmp_path / "a") == "cf4ab791c62b8d2b2109c90275287816"
    assert content_hash(b"abc", size=8) == "d8bb14d833d59559"
    assert json_hash(["a", 1]) != json_hash(["a1"]) and len(json_hash([])) == 32
    assert folder_hash(tmp_path) == content_hash(b"a 3\nabc")
    assert file_hash(tmp_path) is None
