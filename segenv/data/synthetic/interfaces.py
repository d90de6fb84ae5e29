"""Graphical interfaces: windows and phone screens with buttons, icons, fields, check boxes, sliders and switches, and
sentences that pick out one of these.

An interface is a function of its random stream alone. Sentences speak of the text on a part or beside it, of symbols,
colours, states and places with a margin: what might be taken for the topmost is never called so.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from segenv.data.synthetic.drawing import Colour, Drawing, Scene, Thing, round_arc, text_width
from segenv.data.synthetic.shapes import COLOURS

VERSION = 1  # raise it when an interface's pixels or sentences would change
NOUNS = ("button", "icon", "field", "checkbox", "slider", "switch")
SIZES = ((256, 256), (192, 256), (256, 192), (240, 320))  # [H, W]
TITLES = ("Settings", "Profile", "Sign in", "Player", "Order", "Search", "Account", "New file", "Options", "Print")
TEXTS = {
    "button": ("OK", "Cancel", "Save", "Delete", "Apply", "Next", "Send", "Log in", "Help", "Buy", "Reset", "Open"),
    "field": ("Name", "Email", "City", "Phone", "Street", "Title", "Date", "Code", "Country", "Price"),
    "checkbox": ("News", "Updates", "Sync", "Remember me", "I agree", "Show grid", "Autosave", "Hide menu"),
    "slider": ("Volume", "Zoom", "Speed", "Light", "Contrast", "Size", "Bass"),
    "switch": ("Wi-Fi", "Bluetooth", "Dark mode", "Alarm", "Location", "Mute", "Flash"),
}
ACCENTS = ("red", "orange", "cyan", "blue", "purple", "pink")
_MARGIN = 0.08  # of a side: how far ahead the outermost must be
_TEXT = 8  # pixels of a capital
_STAR = [(np.cos(a) * r, np.sin(a) * r) for a, r in zip(np.pi * (np.arange(10) / 5 - 0.5), [1, 0.42] * 5, strict=True)]
# Strokes (open) and areas (closed) of each symbol, in units of its tile's radius; x to the right, y down.
SYMBOLS: dict[str, tuple[list, list]] = {
    "close": ([[(-0.45, -0.45), (0.45, 0.45)], [(-0.45, 0.45), (0.45, -0.45)]], []),
    "menu": ([[(-0.5, y), (0.5, y)] for y in (-0.38, 0.0, 0.38)], []),
    "plus": ([[(-0.55, 0), (0.55, 0)], [(0, -0.55), (0, 0.55)]], []),
    "search": ([round_arc((-0.12, -0.12), 0.38, 0, 1), [(0.16, 0.16), (0.6, 0.6)]], []),
    "back": ([[(0.55, 0), (-0.5, 0)], [(-0.1, -0.42), (-0.52, 0), (-0.1, 0.42)]], []),
    "download": ([[(0, -0.6), (0, 0.2)], [(-0.34, -0.1), (0, 0.24), (0.34, -0.1)], [(-0.5, 0.58), (0.5, 0.58)]], []),
    "mail": (
        [[(-0.55, -0.38), (0.55, -0.38), (0.55, 0.42), (-0.55, 0.42), (-0.55, -0.38), (0, 0.1), (0.55, -0.38)]],
        [],
    ),
    "play": ([], [[(-0.32, -0.5), (0.55, 0), (-0.32, 0.5)]]),
    "pause": ([], [[(x, -0.45), (x + 0.24, -0.45), (x + 0.24, 0.45), (x, 0.45)] for x in (-0.4, 0.14)]),
    "home": ([], [[(0, -0.6), (0.62, 0), (0.42, 0), (0.42, 0.52), (-0.42, 0.52), (-0.42, 0), (-0.62, 0)]]),
    "star": ([], [[(0.65 * x, 0.65 * y) for x, y in _STAR]]),
    "heart": ([], [[*round_arc((-0.27, -0.18), 0.3, 0.42, 1), *round_arc((0.27, -0.18), 0.3, 0.5, 1.08), (0, 0.58)]]),
    "user": ([], [round_arc((0, -0.25), 0.26, 0, 1), [*round_arc((0, 0.55), 0.48, 0.5, 1)]]),
}


class Interface:
    """An interface in the making: its drawing, the random stream, its colours, and the box of its window."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.things = rng, list[Thing]()
        dark = rng.random() < 0.3
        self.ground = np.full(3, rng.uniform(28, 60) if dark else rng.uniform(225, 255)) + rng.normal(0, 3, 3)
        self.ink = np.full(3, rng.uniform(200, 245) if dark else rng.uniform(20, 70))
        self.faint: Colour = 0.72 * self.ground + 0.28 * self.ink
        self.inset: Colour = self.ground * 0.75 if dark else np.minimum(self.ground + 30, 255)
        self.accent = str(rng.choice(ACCENTS))
        self.unused = {noun: [str(text) for text in rng.permutation(texts)] for noun, texts in TEXTS.items()}
        self.unused["icon"] = [str(name) for name in rng.permutation(list(SYMBOLS))]
        self.drawing = Drawing(SIZES[rng.integers(len(SIZES))], rng.uniform(40, 220, 3))
        height, width = self.drawing.size
        gap = 0.0 if rng.random() < 0.5 else rng.uniform(6, 14)  # a window on a desktop, or the whole screen
        self.left, self.top, self.right, self.bottom = gap, gap, width - gap, height - gap
        self.drawing.box(self.left, self.top, self.right, self.bottom, self.ground, radius=6 if gap else 0)

    def hue(self, word: str) -> np.ndarray:
        """A hue of the colour `word`."""
        return np.asarray(COLOURS[word]) * self.rng.uniform(0.9, 1.05)

    def add(self, shape: str, x: float, y: float, label: str, colour: str = "", state: str = "") -> int:
        """Add a thing around (x, y); returns its number."""
        self.things.append(Thing(colour, shape, 0, (x, y), label, state))
        return len(self.things)

    def icon(self, x: float, y: float, radius: float, colour: str) -> None:
        """Draw a coloured tile with a symbol that is on no other."""
        name, hue = self.unused["icon"].pop(), self.hue(colour)
        number = self.add("icon", x, y, name, colour)
        if self.rng.random() < 0.5:
            self.drawing.disc(x, y, radius, hue, number)
        else:
            self.drawing.box(x - radius, y - radius, x + radius, y + radius, hue, number, radius * 0.4)
        ink = (255, 255, 255) if hue.mean() < 150 else (25, 25, 30)
        strokes, areas = SYMBOLS[name]
        for points in strokes:
            self.drawing.line([(x + radius * u, y + radius * v) for u, v in points], ink, 2 if radius < 14 else 3)
        for points in areas:
            self.drawing.fill([(x + radius * u, y + radius * v) for u, v in points], ink)

    def button(self, x: float, y: float, width: float, height: float, label: str, colour: str) -> None:
        """Draw a button centred at (x, y): filled in a colour, or plain where that is empty."""
        number, round_by = self.add("button", x, y, label, colour), self.rng.choice([2, 5, height / 2])
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        self.drawing.box(*box, self.hue(colour) if colour else self.faint, number, round_by)
        if not colour:
            self.drawing.box(box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1, self.inset, number, round_by)
        dark = bool(colour) and np.mean(COLOURS[colour]) < 150
        ink = (255, 255, 255) if dark else ((25, 25, 30) if colour else self.ink)
        self.drawing.text(label, x, y, _TEXT, ink, 0.5)

    def field(self, y: float, label: str) -> None:
        """Draw a text field with its label at the left."""
        x0, x1 = self.left + 70, self.right - 12
        self.drawing.text(label, self.left + 12, y, _TEXT, self.ink)
        filled = self.rng.random() < 0.4
        number = self.add("field", (x0 + x1) / 2, y, label, state="filled" if filled else "empty")
        self.drawing.box(x0, y - 10, x1, y + 10, self.faint, number, 3)
        self.drawing.box(x0 + 1, y - 9, x1 - 1, y + 9, self.inset, number, 3)
        if filled:
            self.drawing.line([(x0 + 7, y), (x0 + 7 + self.rng.uniform(0.3, 0.8) * (x1 - x0 - 14), y)], self.faint, 3)

    def checkbox(self, y: float, label: str) -> None:
        """Draw a check box, with its text at the right."""
        x, on = self.left + 21, self.rng.random() < 0.5
        number = self.add("checkbox", x, y, label, state="checked" if on else "unchecked")
        self.drawing.box(x - 8, y - 8, x + 8, y + 8, self.hue(self.accent) if on else self.ink, number, 3)
        if on:
            self.drawing.line([(x - 4, y), (x - 1, y + 3), (x + 4, y - 4)], (255, 255, 255), 2)
        else:
            self.drawing.box(x - 6, y - 6, x + 6, y + 6, self.inset, number, 2)
        self.drawing.text(label, x + 15, y, _TEXT, self.ink)

    def slider(self, y: float, label: str) -> None:
        """Draw a slider with its label at the left."""
        x0, x1, value = self.left + 82, self.right - 20, self.rng.uniform(0.1, 0.9)
        self.drawing.text(label, self.left + 12, y, _TEXT, self.ink)
        number, x = self.add("slider", (x0 + x1) / 2, y, label), x0 + value * (x1 - x0)
        self.drawing.box(x0, y - 2, x1, y + 2, self.faint, number, 2)
        self.drawing.box(x0, y - 2, x, y + 2, self.hue(self.accent), number, 2)
        self.drawing.disc(x, y, 7, self.hue(self.accent), number)

    def switch(self, y: float, label: str) -> None:
        """Draw a switch at the right, with its label at the left."""
        x, on = self.right - 30, self.rng.random() < 0.5
        self.drawing.text(label, self.left + 12, y, _TEXT, self.ink)
        number = self.add("switch", x, y, label, state="on" if on else "off")
        self.drawing.box(x - 15, y - 8, x + 15, y + 8, self.hue(self.accent) if on else self.faint, number, 8)
        self.drawing.disc(x + 7 if on else x - 7, y, 6, (250, 250, 250), number)


def draw(rng: np.random.Generator) -> Scene:
    """Draw an interface from the random stream `rng`."""
    page = Interface(rng)
    top, bottom = _header(page), _footer(page)
    _body(page, top, bottom)
    height, width = page.drawing.size
    return page.drawing.scene(page.things, "interfaces", partial(_candidates, height, width), rng)


def _colours(page: Interface, count: int) -> list[str]:
    """The accent, for all or with others."""
    if page.rng.random() < 0.4:
        return [page.accent] * count
    return [str(word) for word in page.rng.permutation(ACCENTS)[:count]]


def _header(page: Interface) -> float:
    """Draw the bar at the top, with its title and up to three icons; returns where it ends."""
    rng, end = page.rng, page.top + 30
    page.drawing.box(page.left, page.top, page.right, end, page.faint, radius=6 if page.top else 0)
    page.drawing.box(page.left, page.top + 10, page.right, end, page.faint)
    back, right = rng.random() < 0.4, int(rng.integers(0, 3))
    words, y = _colours(page, 3), page.top + 15
    if back:
        page.icon(page.left + 17, y, 10, words[0])
    for k in range(right):
        page.icon(page.right - 17 - 26 * k, y, 10, words[1 + k])
    page.drawing.text(str(rng.choice(TITLES)), page.left + (36 if back else 12), y, 9, page.ink)
    return end


def _footer(page: Interface) -> float:
    """Draw buttons or a row of icons at the bottom; returns where they begin."""
    rng, y = page.rng, page.bottom - 20
    if rng.random() < 0.35:
        count = int(rng.integers(3, 6))
        words, step = _colours(page, count), (page.right - page.left) / count
        for k in range(count):
            page.icon(page.left + (k + 0.5) * step, y, 13, words[k])
        return y - 20
    x = page.right - 10
    for k in range(int(rng.integers(1, 4))):
        label = page.unused["button"].pop()
        width = text_width(label, _TEXT) + float(rng.uniform(16, 26))
        if x - width < page.left + 6:
            break
        colour = page.accent if k == 0 else str(rng.choice(["", "", *ACCENTS]))
        page.button(x - width / 2, y, width, float(rng.uniform(20, 25)), label, colour)
        x -= width + 9
    return y - 18


def _body(page: Interface, top: float, bottom: float) -> None:
    """Draw rows of fields, check boxes, sliders and switches, or a grid of icons or buttons, between two heights."""
    rng = page.rng
    if rng.random() < 0.25:
        return _grid(page, top, bottom)
    count = int((bottom - top) // 28)
    kinds = sorted(rng.choice(["field", "checkbox", "slider", "switch"], int(rng.integers(2, count + 1))))
    if rng.random() < 0.5:
        kinds = [str(kind) for kind in rng.permutation(kinds)]
    step = min(34.0, (bottom - top) / len(kinds))
    for k, kind in enumerate(kinds):
        draw_row: Callable[[float, str], None] = getattr(page, kind)
        draw_row(top + (k + 0.5) * step, page.unused[kind].pop())
    return None


def _grid(page: Interface, top: float, bottom: float) -> None:
    """Draw a grid of large icons, or of buttons."""
    rng, buttons = page.rng, page.rng.random() < 0.5
    rows, columns = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    wide, high = (page.right - page.left) / columns, (bottom - top) / rows
    for k in range(min(rows * columns, len(page.unused["button" if buttons else "icon"]))):
        x, y = page.left + (k % columns + 0.5) * wide, top + (k // columns + 0.5) * high
        colour = str(rng.choice(ACCENTS))
        if buttons:
            page.button(x, y, 0.85 * wide, min(36, 0.7 * high), page.unused["button"].pop(), colour)
        else:
            page.icon(x, y, min(0.36 * high, 0.36 * wide, 24), colour)


def _candidates(
    height: int, width: int, thing: Thing, things: Sequence[Thing]
) -> Iterator[tuple[str, Callable[[Thing], bool]]]:
    """Sentences about a thing: its kind with what is written on it, its colour, its state or its place."""
    noun = thing.shape
    like = [other for other in things if other.shape == noun]
    yield f"the {thing.label} {noun}", lambda other: (other.shape, other.label) == (noun, thing.label)
    if thing.colour:
        yield f"the {thing.colour} {noun}", lambda other: (other.shape, other.colour) == (noun, thing.colour)
    if thing.state in ("checked", "unchecked", "empty"):
        yield f"the {thing.state} {noun}", lambda other: (other.shape, other.state) == (noun, thing.state)
    if thing.state in ("on", "off"):
        yield f"the {noun} that is {thing.state}", lambda other: (other.shape, other.state) == (noun, thing.state)
    if len(like) == 1:
        yield f"the {noun}", lambda other: other.shape == noun
    else:
        sides = (("leftmost", 0, 1), ("rightmost", 0, -1), ("topmost", 1, 1), ("bottommost", 1, -1))
        for word, axis, sign in sides:
            limit = min(sign * other.centre[axis] for other in like) + _MARGIN * (width, height)[axis]
            yield f"the {word} {noun}", _before(noun, axis, sign, limit)
    x, y = thing.centre[0] / width, thing.centre[1] / height
    if max(x, 1 - x) > 0.7 and max(y, 1 - y) > 0.7:  # in a corner
        where = f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"

        def near(other: Thing) -> bool:
            u, v = other.centre[0] / width, other.centre[1] / height
            return other.shape == noun and abs(u - x) < 0.45 and abs(v - y) < 0.45

        yield f"the {noun} at the {where}", near
        words = " ".join(word for word in (thing.colour, thing.label, noun) if word)
        named = (noun, thing.colour, thing.label)
        yield f"the {words} at the {where}", lambda other: (other.shape, other.colour, other.label) == named


def _before(noun: str, axis: int, sign: int, limit: float) -> Callable[[Thing], bool]:
    """Whether a thing is of a kind and, along an axis, before a limit."""
    return lambda other: other.shape == noun and sign * other.centre[axis] < limit
