"""Specs are read alike by all registries, and a wrong one is explained."""

from __future__ import annotations

import pytest

from segenv import specs, tools

DEFAULTS = {"k": 3, "share": 0.5, "value": "prm", "device": None}


def test_options_have_the_types_of_their_defaults() -> None:
    read = specs.options_of("search", "greedy: k = 2 ,share=1,value=prm:a/b", DEFAULTS)
    assert read == {"k": 2, "share": 1.0, "value": "prm:a/b"} and isinstance(read["share"], float)
    assert specs.options_of("search", "greedy", DEFAULTS) == specs.options_of("search", "greedy:", DEFAULTS) == {}
    kinds = [specs.options_of("x", f"x:device={text}", DEFAULTS)["device"] for text in ("0", "0.5", "cpu")]
    assert kinds == [0, 0.5, "cpu"]


def test_what_stands_before_the_options_is_the_argument() -> None:
    for argument in ("a/b,C=d/e", "/x,=1", "a@b:c", "k"):
        assert specs.options_of("tool", f"x:{argument},k=2", DEFAULTS, "path") == {"path": argument, "k": 2}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("greedy:k=2.5", "search 'greedy:k=2.5': k is '2.5'; expected a whole number"),
        ("greedy:k=inf", "k is 'inf'; expected a whole number"),
        ("greedy:share=x", "share is 'x'; expected a number"),
        ("greedy:shar=1", "'shar=1' is no option of greedy; expected KEY=VALUE of k, share, .*mean 'share'"),
        ("greedy:3", "'3' is no option of greedy"),
    ],
)
def test_a_wrong_option_is_explained(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        specs.options_of("search", spec, DEFAULTS)


def test_a_name_that_is_nearly_right_is_offered() -> None:
    assert specs.name_of("tool", "sam:facebook/sam:x", ["sam", "disc"]) == ("sam", "facebook/sam:x")
    with pytest.raises(ValueError, match=r"unknown tool 'dsic:1'; expected one of sam, disc \(did you mean 'disc'\?\)"):
        specs.name_of("tool", "dsic:1", ["sam", "disc"])


def test_an_option_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="tool 'disc:radius=4,radius=5': radius is given twice"):
        tools.make("disc:radius=4,radius=5")
