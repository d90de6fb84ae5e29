"""Pickles of plain data: read as Python reads them, and nothing that they name is imported, made or run."""

from __future__ import annotations

import copyreg
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_fields import REFERENCES, python2_pickle

from segenv.data.base import DataError
from segenv.data.unpickle import MAX_BYTES, PickleError, loads, read_pickle

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=30,
)


@given(st.integers(0, 5), plain)
def test_plain_values_are_read_as_they_were_written(protocol: int, value: Any) -> None:
    assert repr(loads(pickle.dumps(value, protocol))) == repr(value)


def test_texts_of_python_2_and_tuples() -> None:
    assert loads(python2_pickle(REFERENCES)) == REFERENCES
    assert loads(rb"S'caf\xc3\xa9 \'a\' \\ \n'" + b"\np0\n.") == "café 'a' \\ \n"
    assert loads(b"U\x05caf\xc3\xa9.") == loads(b"T\x05\0\0\0caf\xc3\xa9.") == "café"
    for protocol in range(6):
        assert loads(pickle.dumps([(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], protocol)) == [
            *([], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4])
        ]


class Called:
    """Its pickle calls `touch` with a path when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Stateful:
    def __setstate__(self, state: Any) -> None:
        raise AssertionError("a state was set")


def test_the_usual_attack_works_on_python_and_not_here(tmp_path: Path) -> None:
    for protocol in range(6):
        for wrap in (lambda one: one, lambda one: [{"ref_id": 1, "sentences": [one]}]):
            attack = pickle.dumps(wrap(Called(tmp_path / "made")), protocol)
            pickle.loads(attack)
            assert (tmp_path / "made").exists(), "the attack is one"
            (tmp_path / "made").unlink()
            with pytest.raises(PickleError, match="GLOBAL, which imports a name"):
                loads(attack)
            assert not (tmp_path / "made").exists()


TOUCH = b"\x8c\x05posix\x8c\x06system"
CALLS = {
    "GLOBAL": b"cposix\nsystem\n(S'touch {}'\ntR.",
    "GLOBAL of a harmless name": b"cbuiltins\nlist\n.",
    "STACK_GLOBAL": b"\x80\x04" + TOUCH + b"\x93\x8c\x07touch {}\x85R.",
    "INST": b"(S'touch {}'\niposix\nsystem\n.",
    "OBJ": b"(cposix\nsystem\nS'touch {}'\no.",
    "REDUCE": b"]]R.",
    "NEWOBJ": b"])\x81.",
    "NEWOBJ_EX": b"\x80\x04])}\x92.",
    "BUILD": b"}}b.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Ptouch {}\n.",
    "BINPERSID": b"S'touch {}'\nQ.",
}


@pytest.mark.parametrize("name", CALLS)
def test_operations_that_make_or_run_something_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(PickleError, match=rf"byte \d+ is ({name.split()[0]}|GLOBAL), which"):
        loads(CALLS[name].replace(b"{}", str(tmp_path / "made").encode()))
    assert not (tmp_path / "made").exists()


def test_extensions_and_states_are_refused_though_this_process_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    copyreg.add_extension(__name__, "Stateful", 240)
    try:
        attack = pickle.dumps(Stateful(), 2)
        assert b"\x82\xf0" in attack
        with pytest.raises(PickleError, match="EXT1"):
            loads(attack)
    finally:
        copyreg.remove_extension(__name__, "Stateful", 240)


@pytest.mark.parametrize("content", [pickle.dumps(b"bytes", 4), pickle.dumps({1, 2}, 4), pickle.dumps(2 + 1j, 4)])
def test_other_objects_are_refused(content: bytes) -> None:
    with pytest.raises(PickleError, match="byte"):
        loads(content)


def _wide(levels: int) -> bytes:
    """Lists of a hundred times the list before: 100 ** levels values in a few kilobytes."""
    parts = [b"(lp0\n" + b"Na" * 100]
    for k in range(1, levels):
        parts.append(b"(lp%d\n" % k + b"g%d\na" % (k - 1) * 100)
    return b"(" + b"".join(parts) + b"l."


def _chained(chains: int) -> bytes:
    """A list of chains of lists, each with the chain before at its end, so that none of them is long by itself."""
    parts = [b"(]p0\n"]
    for k in range(1, chains):
        parts.append(b"]" * 9 + b"g%d\n" % (k - 1) + b"a" * 9 + b"p%d\n" % k)
    return b"".join(parts) + b"l."


BOMBS = {
    "a list in itself": b"(lp0\ng0\na.",
    "a dictionary in itself": b"(dp0\nS'a'\ng0\ns.",
    "lists in lists": b"]" * 20_000 + b"a" * 19_999 + b".",
    "tuples in tuples": b")" + b"\x85" * 20_000 + b".",
    "wide lists, each in the next": _wide(8),
    "chains of lists, each in the next": _chained(300),
    "a memo far off": b"]r\xff\xff\xff\xff0.",
    "a memo beyond": b"]p99999999999999999999\n.",
    "an unknown memo": b"g7\n.",
    "a text of 4 GB": b"X\xff\xff\xff\xffabc.",
    "a text without end": b"S'abc",
    "a long text in decimal": b"I" + b"9" * 1_000_000 + b"\n.",
    "a number of 2,000 bits": b"\x8a\xfa" + b"\x7f" * 250 + b".",
    "a long number of 2 GB": b"\x8b\xff\xff\xff\x7f.",
    "a buffer": b"\x80\x05\x97.",
    "marks": b"(" * 50_000 + b".",
    "marks closed": b"(l" * 10 + b".",
    "too few values": b"a.",
    "a text as a list": b"S'a'\nNa.",
    "a list as a dictionary": b"]S'a'\nNs.",
    "a number as a name": b"}I1\nNs.",
    "a name twice": b"}S'a'\nNsS'a'\nNs.",
    "half a pair": b"(S'a'\nd.",
    "nothing": b"",
    "no end": b"](",
    "two values": b"]].",
    "a number that is none": b"Iseven\n.",
    "no quotes": b"Sabc\n.",
    "no UTF-8": b"U\x02\xff\xfe.",
    "an unknown operation": b"\xfe.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(name: str) -> None:
    content = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(PickleError, match="byte|deep|values"):
            loads(content)
        assert tracemalloc.get_traced_memory()[1] < 64 * len(content) + 10_000_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: python2_pickle(REFERENCES[:1])[:-20] + tail))
def test_any_bytes_are_plain_data_or_refused(content: bytes) -> None:
    try:
        loads(content)
    except PickleError as error:
        assert "byte" in str(error) or "deep" in str(error)


@given(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_plain_data_or_refused(protocol: int, changes: list[tuple[int, int]]) -> None:
    content = bytearray(pickle.dumps(REFERENCES, protocol) if protocol else python2_pickle(REFERENCES))
    for place, byte in changes:
        content[place % len(content)] = byte
    try:
        loads(bytes(content))
    except PickleError as error:
        assert len(str(error)) < 400


def test_a_shared_list_is_read_where_a_reader_can_walk_it() -> None:
    tokens = ["the", "cat"]
    assert loads(pickle.dumps([tokens, tokens], 2)) == [tokens, tokens]


def test_a_file_is_refused_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "large.p", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match=f"{MAX_BYTES + 1:,} bytes; expected references"):
        read_pickle(tmp_path / "large.p", "references")
    (tmp_path / "small.p").write_bytes(b"cposix\nsystem\n.")
    with pytest.raises(DataError, match="small.p is no pickle of plain data .byte 0 is GLOBAL.*expected references"):
        read_pickle(tmp_path / "small.p", "references")
    with pytest.raises(DataError, match="none.p cannot be read"):
        read_pickle(tmp_path / "none.p", "references")
