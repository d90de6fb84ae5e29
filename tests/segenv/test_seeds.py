"""Seeds follow from what an item is."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segenv.seeds import seed_of

PARTS = st.lists(st.one_of(st.integers(), st.text(), st.booleans(), st.none(), st.floats(allow_nan=False)), max_size=5)


@given(PARTS, PARTS)
def test_different_items_get_different_seeds_and_equal_items_the_same(first, second):
    assert 0 <= seed_of(*first) < 2**63
    same = repr(first) == repr(second)  # 0 == False and 0 == 0.0 are different parts, as 1 and "1" are
    assert (seed_of(*first) == seed_of(*second)) == same


def test_the_seed_is_the_same_in_another_process_and_year():
    assert seed_of(0, "GrabCut__106024", 0, 0, 3) == 6914153764990896133
    code = "from segenv.seeds import seed_of; print(seed_of(7, 'täsk', 0.5))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(printed) == seed_of(7, "täsk", 0.5)


def test_parts_that_json_cannot_hold_are_refused_by_name():
    with pytest.raises(TypeError, match="int64.*item"):
        seed_of("a", np.int64(3))
