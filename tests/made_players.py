"""Scripted players of clicks, each with one failure, for the tests of the report that takes answers apart. They look
the target up in `Scripted.data`, as no model can."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from agents import Agent
from segenv import annotator, codec, metrics
from segenv.data import Dataset
from segenv.types import Click, Stop, object_of


class Scripted(Agent):
    """Clicks as the annotator does, and stops when the mask is good: nothing fails."""

    spec = "scripted"
    data: ClassVar[Dataset | None] = None

    def _answer(self, item, rng):
        assert self.data is not None
        self.target = object_of(self.data.by_id(item.task_id).target)
        click = annotator.next_click(self.target, item.mask, item.clicks)
        done = click is None or metrics.iou(self.target, item.mask) >= 0.9
        return self.done(item) if done else self.click(item, click)

    def click(self, item, click: Click) -> str:
        return self.codec.format(click, item)

    def done(self, item) -> str:
        return self.codec.format(Stop(), item)


class WrongFrame(Scripted):
    """Writes pixels where thousandths were declared."""

    def click(self, item, click):
        return codec.make("pixels").format(click, item)


class SwappedAxes(Scripted):
    """Writes the row first."""

    def click(self, item, click):
        return codec.make("grid1000-yx").format(click, item)


class WrongObject(Scripted):
    """Means what is not asked for."""

    def click(self, item, click):
        wrong = annotator.next_click(~self.target, item.mask, item.clicks)
        return self.codec.format(wrong or click, item)


class WrongSign(Scripted):
    """Takes away what is to be added, and the other way round."""

    def click(self, item, click):
        return self.codec.format(replace(click, positive=not click.positive), item)


class NeverStops(Scripted):
    """Clicks on when the mask is good."""

    def done(self, item):
        middle = annotator.next_click(self.target, np.zeros_like(self.target))
        return self.codec.format(middle, item)


class StopsAtOnce(Scripted):
    """Does not click at all."""

    def click(self, item, click):
        return self.done(item)


class ThinksTooLong(Scripted):
    """Never comes to an answer."""

    def click(self, item, click):
        return f"<think>The object may be at {click.x}, {click.y}, or it may not, so let me look again"


FAILURES = {  # the stage and a part of the name of the line that is each one's own
    Scripted: None,
    ThinksTooLong: ("format", "Replies cut"),
    WrongFrame: ("frame", "read as pixels"),
    SwappedAxes: ("frame", "axes exchanged"),
    WrongObject: ("object", "First click on the object"),
    WrongSign: ("sign", "right sign"),
    StopsAtOnce: ("stop", "Stops that leave a gain"),
    NeverStops: ("stop", "nothing left to gain"),
}
