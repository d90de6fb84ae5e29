"""Charts: bars, pies and lines with axes and legends, and sentences that pick out one bar, slice or line.

A chart is a function of its random stream alone. Sentences speak of colours, of labels and legends, of order, and of
size with a margin: what might be taken for the tallest is never called so.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from segenv.data.synthetic.drawing import Colour, Drawing, Scene, Thing, round_arc, text_width
from segenv.data.synthetic.shapes import COLOURS

VERSION = 1  # raise it when a chart's pixels or sentences would change
NOUNS = ("bar", "slice", "line")
SIZES = ((256, 256), (192, 256), (240, 320))  # [H, W]
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
PERIODS = (
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul"),
    ("2018", "2019", "2020", "2021", "2022", "2023", "2024"),
    ("A", "B", "C", "D", "E", "F", "G"),
)
NAMES = (
    ("Tea", "Milk", "Juice", "Water", "Soda", "Cocoa"),
    ("Cats", "Dogs", "Birds", "Fish", "Cows", "Goats"),
    ("Rent", "Food", "Travel", "Books", "Sport", "Power"),
    ("North", "South", "East", "West", "Centre", "Coast"),
)
TITLES = ("Sales", "Budget", "Visitors", "Votes", "Results", "Income", "Rainfall", "Orders", "Users")
_MARGIN = 0.07  # of the axis: how far ahead the tallest must be
_TEXT = 7  # pixels of a capital


class Chart:
    """A chart in the making: its drawing, the random stream, the colours of its ground and text, and the plot's box."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        dark = rng.random() < 0.25
        self.paper = np.full(3, rng.uniform(22, 50) if dark else rng.uniform(235, 255)) + rng.normal(0, 3, 3)
        self.ink = np.full(3, rng.uniform(190, 240) if dark else rng.uniform(20, 90))
        self.faint: Colour = 0.8 * self.paper + 0.2 * self.ink
        self.drawing = Drawing(SIZES[rng.integers(len(SIZES))], self.paper)
        height, width = self.drawing.size
        self.left, self.top, self.right, self.bottom = 12.0, 12.0, width - 12.0, height - 12.0
        if rng.random() < 0.6:
            self.drawing.text(str(rng.choice(TITLES)), width / 2, 14, 9, self.ink, 0.5)
            self.top += 16
        self.things: list[Thing] = []

    def add(self, **what) -> int:
        """Add a thing; returns its number."""
        self.things.append(Thing(area=0, centre=(0.0, 0.0), **what))
        return len(self.things)

    def colours(self, count: int) -> list[str]:
        """Words for so many unlike colours, each unlike the paper."""
        fit = [word for word, value in COLOURS.items() if np.abs(np.subtract(value, self.paper)).max() > 60]
        return [str(word) for word in self.rng.permutation(fit)[:count]]

    def paint(self, word: str) -> np.ndarray:
        """A hue of the colour `word`."""
        return np.asarray(COLOURS[word]) * self.rng.uniform(0.92, 1.05)

    def legend(self, entries: Sequence[tuple[str, Colour]]) -> None:
        """Draw a legend at the right, and take its place off the plot."""
        wide = max(text_width(text, _TEXT) for text, _ in entries) + 18
        x, y = self.right - wide, (self.top + self.bottom) / 2 - 8 * (len(entries) - 1)
        for text, colour in entries:
            self.drawing.box(x, y - 4, x + 9, y + 5, colour)
            self.drawing.text(text, x + 13, y, _TEXT, self.ink)
            y += 16
        self.right = x - 10

    def axes(self, upright: bool = True) -> None:
        """Draw axes with numbers and, often, a grid; `upright` where values rise to the top."""
        step, most = int(self.rng.choice([1, 5, 10, 20, 50])), 4
        beside = text_width(str(most * step), _TEXT) + 4
        self.left, self.bottom = self.left + (beside if upright else 40), self.bottom - 14
        grid = self.rng.random() < 0.7
        for k in range(most + 1):
            x, y = self.point(k / most, upright)
            if upright:
                self.drawing.text(str(k * step), self.left - 3, y, _TEXT, self.ink, 1.0)
            else:
                self.drawing.text(str(k * step), x, self.bottom + 9, _TEXT, self.ink, 0.5)
            if grid and k:
                ends = [(self.left, y), (self.right, y)] if upright else [(x, self.top), (x, self.bottom)]
                self.drawing.line(ends, self.faint, 1)
        self.drawing.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], self.ink, 1)

    def point(self, value: float, upright: bool = True) -> tuple[float, float]:
        """The place of a value (0..1) on its axis."""
        x = self.left if upright else self.left + value * (self.right - self.left)
        return x, self.bottom - value * (self.bottom - self.top) if upright else self.bottom

    def bar(self, start: float, end: float, value: float, upright: bool, colour: Colour, number: int) -> None:
        """Draw a bar over the part `start` to `end` of the axis of labels."""
        if upright:
            x0, x1 = (self.left + part * (self.right - self.left) for part in (start, end))
            self.drawing.box(x0, self.point(value)[1], x1, self.bottom, colour, number)
        else:
            y0, y1 = (self.top + part * (self.bottom - self.top) for part in (start, end))
            self.drawing.box(self.left + 1, y0, self.point(value, False)[0], y1, colour, number)

    def label(self, place: float, text: str, upright: bool) -> None:
        """Write a label at a part (0..1) of the axis of labels."""
        if upright:
            self.drawing.text(text, self.left + place * (self.right - self.left), self.bottom + 9, _TEXT, self.ink, 0.5)
        else:
            self.drawing.text(text, self.left - 4, self.top + place * (self.bottom - self.top), _TEXT, self.ink, 1.0)


Fits = tuple[str, Callable[[Thing], bool]]


def draw(rng: np.random.Generator) -> Scene:
    """Draw a chart of any kind from the random stream `rng`."""
    kinds = (_bars, _bars, _grouped_bars, _pie, _pie, _lines)
    chart = Chart(rng)
    candidates = kinds[rng.integers(len(kinds))](chart)
    return chart.drawing.scene(chart.things, "charts", candidates, rng)


def _bars(chart: Chart) -> Callable[[Thing, Sequence[Thing]], Iterator[Fits]]:
    """Draw bars of one series, upright or lying."""
    rng, upright = chart.rng, chart.rng.random() < 0.65
    chart.axes(upright)
    labels = (PERIODS + NAMES)[rng.integers(len(PERIODS + NAMES))]
    count = int(rng.integers(3, (5 if labels in NAMES and upright else len(labels)) + 1))
    words = chart.colours(count) if rng.random() < 0.5 else chart.colours(1) * count
    thick = rng.uniform(0.5, 0.85)
    hue = chart.paint(words[0])
    for k, (label, word) in enumerate(zip(labels, words, strict=False)):
        value, middle = rng.uniform(0.15, 0.98), (k + 0.5) / count
        colour = hue if word == words[0] else chart.paint(word)
        number = chart.add(colour=word, shape="bar", label=label, value=value, place=k)
        chart.bar(middle - thick / 2 / count, middle + thick / 2 / count, value, upright, colour, number)
        chart.label(middle, label, upright)
    long, first, last = ("tallest", "left", "right") if upright else ("longest", "top", "bottom")

    def candidates(thing: Thing, things: Sequence[Thing]) -> Iterator[Fits]:
        yield f"the {thing.colour} bar", lambda other: other.colour == thing.colour
        yield f"the bar labeled {thing.label}", lambda other: other.label == thing.label
        for side, place in ((first, thing.place), (last, count - 1 - thing.place)):
            if place < 3:
                yield f"the {ORDINALS[place]} bar from the {side}", lambda other: other.place == thing.place
        yield from _by_value("bar", (long, "shortest"), things)

    return candidates


def _grouped_bars(chart: Chart) -> Callable[[Thing, Sequence[Thing]], Iterator[Fits]]:
    """Draw groups of two or three bars, with a legend."""
    rng = chart.rng
    series, groups = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    words, names, labels = chart.colours(series), rng.choice(NAMES), PERIODS[rng.integers(len(PERIODS))]
    hues = [chart.paint(word) for word in words]
    chart.legend([(str(name), hue) for name, hue in zip(names, hues, strict=False)])
    chart.axes()
    thick = 0.8 / groups / series
    for group in range(groups):
        for k, word in enumerate(words):
            value, start = rng.uniform(0.15, 0.98), (group + 0.1) / groups + k * thick
            number = chart.add(colour=word, shape="bar", label=labels[group], value=value, place=group)
            chart.bar(start, start + thick, value, True, hues[k], number)
        chart.label((group + 0.5) / groups, labels[group], True)

    def candidates(thing: Thing, things: Sequence[Thing]) -> Iterator[Fits]:
        name = names[words.index(thing.colour)]
        same = [other for other in things if other.colour == thing.colour]
        for text in (f"the {thing.colour} bar at {thing.label}", f"the bar of {name} at {thing.label}"):
            yield text, lambda other: (other.colour, other.label) == (thing.colour, thing.label)
        yield from _by_value("bar", ("tallest", "shortest"), things)
        for text, fits in _by_value(f"{thing.colour} bar", ("tallest", "shortest"), same):
            yield text, _both(lambda other: other.colour == thing.colour, fits)

    return candidates


def _pie(chart: Chart) -> Callable[[Thing, Sequence[Thing]], Iterator[Fits]]:
    """Draw a pie or a ring of slices, often with a legend."""
    rng, count = chart.rng, int(chart.rng.integers(3, 7))
    words, names = chart.colours(count), rng.choice(NAMES)
    hues, told = [chart.paint(word) for word in words], rng.random() < 0.7
    if told:
        chart.legend([(str(name), hue) for name, hue in zip(names, hues, strict=False)])
    x, y = (chart.left + chart.right) / 2, (chart.top + chart.bottom) / 2
    radius = min(chart.right - chart.left, chart.bottom - chart.top) / 2 * rng.uniform(0.85, 1)
    shares = rng.uniform(0.25, 1, count)
    shares, start = shares / shares.sum(), rng.random()
    for k, (word, hue, share) in enumerate(zip(words, hues, shares, strict=True)):
        number = chart.add(colour=word, shape="slice", label=str(names[k]), value=float(share), place=k)
        chart.drawing.fill([(x, y), *round_arc((x, y), radius, start, start + share)], hue, number)
        start += share
    if rng.random() < 0.6:  # gaps
        for end in start + np.cumsum(shares):
            chart.drawing.line([(x, y), round_arc((x, y), radius + 1, end, end)[0]], chart.paper, 2, 0)
    if rng.random() < 0.4:
        chart.drawing.disc(x, y, radius * rng.uniform(0.4, 0.65), chart.paper, 0)

    def candidates(thing: Thing, things: Sequence[Thing]) -> Iterator[Fits]:
        yield f"the {thing.colour} slice", lambda other: other.colour == thing.colour
        if told:
            yield f"the slice of {thing.label}", lambda other: other.label == thing.label
        yield from _by_value("slice", ("largest", "smallest"), things, 0.35 * _MARGIN)

    return candidates


def _lines(chart: Chart) -> Callable[[Thing, Sequence[Thing]], Iterator[Fits]]:
    """Draw two to four lines over time, with a legend."""
    rng, count = chart.rng, int(chart.rng.integers(2, 5))
    words, names, labels = chart.colours(count), rng.choice(NAMES), PERIODS[rng.integers(len(PERIODS))]
    hues = [chart.paint(word) for word in words]
    chart.legend([(str(name), hue) for name, hue in zip(names, hues, strict=False)])
    chart.axes()
    for k, label in enumerate(labels[::2]):
        chart.label(0.04 + 0.92 * k / 3, label, True)
    width, dots = int(rng.integers(3, 6)), rng.random() < 0.4
    for k, (word, hue) in enumerate(zip(words, hues, strict=True)):
        values = np.clip(rng.uniform(0.15, 0.85) + np.cumsum(rng.normal(0, 0.11, 7)), 0.04, 0.98)
        state = "dashed" if rng.random() < 0.25 else "solid"
        number = chart.add(colour=word, shape="line", label=str(names[k]), state=state, value=values[-1], place=k)
        x = chart.left + (0.04 + 0.92 * np.arange(7) / 6) * (chart.right - chart.left)
        points = np.stack([x, chart.bottom - values * (chart.bottom - chart.top)], 1)
        for dash in _dashes(points) if state == "dashed" else [points]:
            chart.drawing.line(dash, hue, width, number)
        for left, top in points if dots else ():
            chart.drawing.disc(left, top, width, hue, number)

    def candidates(thing: Thing, things: Sequence[Thing]) -> Iterator[Fits]:
        yield f"the {thing.colour} line", lambda other: other.colour == thing.colour
        yield f"the line of {thing.label}", lambda other: other.label == thing.label
        if thing.state == "dashed":
            yield "the dashed line", lambda other: other.state == "dashed"
        values = [other.value for other in things]
        yield "the line that ends highest", lambda other: other.value > max(values) - _MARGIN
        yield "the line that ends lowest", lambda other: other.value < min(values) + _MARGIN

    return candidates


def _by_value(noun: str, words: tuple[str, str], things: Sequence[Thing], margin: float = _MARGIN) -> Iterator[Fits]:
    """Sentences about the most, the second most and the least of `things`; those within the margin fit, too."""
    values = sorted((other.value for other in things), reverse=True)
    yield f"the {words[0]} {noun}", lambda other: other.value > values[0] - margin
    yield f"the {words[1]} {noun}", lambda other: other.value < values[-1] + margin
    if len(values) > 2:
        yield f"the second {words[0]} {noun}", lambda other: abs(other.value - values[1]) < margin


def _both(one: Callable[[Thing], bool], other: Callable[[Thing], bool]) -> Callable[[Thing], bool]:
    return lambda thing: one(thing) and other(thing)


def _dashes(points: np.ndarray, period: float = 14.0) -> list[np.ndarray]:
    """The parts [2, 2] of a line, [N, 2], that a dashed one shows."""
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    starts = np.arange(0, lengths[-1], period)
    along = np.stack([starts, np.minimum(starts + 0.6 * period, lengths[-1])], 1)
    return list(np.stack([np.interp(along, lengths, points[:, axis]) for axis in (0, 1)], 2))
