"""Statements of a reply: points, boxes, and the words that end an episode, however a model writes them.

One reader serves every codec, because models fall back on other families' ways of writing: words (`Positive point: (1,
2)`), tags (`<box>…`, `<point …>`, `<loc0001>…`), keys of JSON objects and arguments of tool calls. What the numbers
mean is the codec's to say, never the syntax's; a sign is taken from where it is written and never guessed.

Three kinds count only where nothing better is stated: a word within a sentence (I choose `Finish`), a sentence that
denies the object, and numbers that stand alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from segenv.codec.objects import statements_of_objects
from segenv.codec.values import Statement, numbered, values

_FILL = r"[\s*`_\"'$\\]*"  # white space, emphasis, quotes and the like
_SIGNED = re.compile(
    rf"(?<![a-z])(?P<sign>positive|negative|foreground|background)[\s*`_-]*"
    rf"(?P<point>(?:points?|clicks?|prompts?|coordinates?)(?![a-z])"
    rf"(?:\s?#?[0-9]{{1,2}}(?=[\s*`]*:)|\s\([^()\n0-9]{{1,60}}\)(?=[\s*`]*:))?)?{_FILL}(?:(?:at|is)\b{_FILL})?"
    rf"(?:(?:-\s[\s*`_]*)?(?:the\s)?(?:coordinates?|location|position|pixel)\b{_FILL})?(?P<colon>[:=]|-+>?)?"
)
_POINT = re.compile(rf"(?<![a-z])(?:point|click|coordinate|coord|location)s?(?![a-z]){_FILL}(?:(?:at|is|on)\b{_FILL})?"
                    r"(?P<colon>[:=]|->)?")  # fmt: skip
_BOX = re.compile(
    rf"(?<![a-z])(?:b|bounding[\s_-]*)?box(?:es)?(?![a-z]){_FILL}(?:coordinates?\s)?(?:(?:at|is|are)\b{_FILL})?(?P<colon>[:=]|->)?"
)
_TAG = re.compile(
    r"<(?P<box>box|bbox|\|box_start\||\|det\||\|begin_of_box\|)>|<(?P<point>point|\|point_start\|)>"
    r"|<(?:points?|tracks)(?P<open>\s)(?P<attributes>[^<>\n]*)(?P<closed>>)?|(?P<bins>(?:<loc_?[0-9]{1,5}>\s*)+)(?P<more><)?"
)
_ATTRIBUTE = re.compile(r"([a-z_]+?)([0-9]*)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'<>]+))")
_CLOSING = re.compile(r"([^<>\n]{0,300})</points?>")
_LABEL = re.compile(r"[^<>\n;]{0,60};")  # behind the box that it names

_ITEM = r"\n\s*(?:[-*]|[0-9]{1,2}[.)])"
_LABELLED = re.compile(
    r"[\s*`}\]-]{0,20}\n[\s*`-]{0,10}(?:label|sign|type|polarity)[\s*`]*:[\s*`\"']*(positive|negative)\b"
)
_LISTED = re.compile(rf"\s*{_ITEM}\s*(?=[(\[])")
_PAIR = re.compile(rf"\s*(?:,|;|and\b|or\b|{_ITEM})\s*[(\[]\s*[-+.0-9e]{{1,20}}\s*,\s*[-+.0-9e]{{1,20}}\s*[)\]]")
_CALL = re.compile(r"(?<![a-z_])(?:[a-z]{1,12}_)?(?:point|click)(?:_[a-z]{1,12})?\(([^()\n]{0,200})\)")
_ARGUMENT = re.compile(r"(?:[a-z_]{1,20}\s*=\s*)?[\"']?\b(positive|negative)\b[\"']?\s*,?")

_CORNERS = re.compile(
    r"(?:top|upper)[\s_-]?left(?:\scorner)?[\s:=*`]*[(\[]([^()\[\]\n]{1,40})[)\]][\s,;*`-]*(?:and\s)?(?:the\s)?"
    r"(?:bottom|lower)[\s_-]?right(?:\scorner)?[\s:=*`]*[(\[]([^()\[\]\n]{1,40})[)\]]"
)
_EITHER = re.compile(r"(?<![a-z])(positive|negative)\s*(?:/|or|and)\s*\Z")
_KEY = re.compile(r"[\"']\s*:")

_STOPS, _UNDOES = r"(?:finish(?:ed)?|terminate[d]?|stop|done|submit)", r"undo"
_END = r"(?:\(\s*\))?[ \t*`_\"'.!)\]}$]*(?=[\r\n<]|\Z)"
_WHY = r"[*`_]*(?:\s*[(;,]|\s+-+\s|\s+(?:because|since|as)\b)"  # finish, because …
_CHOICE = r"(?:choose|select|pick|action|answer|reply|respond)(?:\s+(?:is|with|to|now|would\s+be))?\s+"
_WORD = re.compile(
    rf"(?<![a-z_])(?=[dfnstu])(?:(?P<stop>{_STOPS}{_END}|(?:finish|terminate){_WHY})|(?P<undo>{_UNDOES}{_END})"
    r"|(?P<absent>(?:the\s|there\s(?:is|are)\s)?no\s(?:such\s|matching\s|target\s)?(?:object|target|match|instance)(?:e?s)?"
    rf"(?:\s(?:was|were|is|are))?(?:\s(?:found|detected|present|visible|there))?(?:\sin\s(?:the|this)\s[a-z]{{3,7}})?{_END}))"
)
_MENTION = re.compile(
    rf"(?=[`*\"'acprs])(?:(?<![`*\"'])[`*\"']+|{_CHOICE}[`*\"']*)(?:(?P<stop>finish(?:ed)?|terminate)|(?P<undo>undo))(?![a-z])(?P<quote>[`*\"'.!]*)"
)
SHORT = 8  # words behind "the image does not show", at most
_DENIAL = re.compile(
    r"(?<![a-z])(?=[tiawdcps])(?:there(?:\s(?:is|are|was|were)|'s)\s(?:no\b|not\s(?:any|an?)\b|none\b)(?P<what>[^.!?\n]{0,120})"
    r"|\b(?:is|are|was|were)(?:\snot|n't)\s(?:in\s(?:the|this)\s(?:image|picture|photo|scene)\b"
    r"|(?:present|visible|shown|depicted|there)(?=\s(?:in|on|within|anywhere)\b|\s*[.!\n]|\s*\Z))"
    r"|\bdo(?:es)?(?:\snot|n't)\s(?:appear|exist)\b(?!\sto)"
    r"|\b(?P<view>image|picture|photo|scene)\sdoes(?:\snot|n't)\s(?:contain|show|include|depict|have)\b|\b(?:can(?:\snot|not|'t)|could(?:\snot|n't))\s(?:find|see|locate|detect)\b"
    r"(?!\s(?:(?:the|any|an|your)\s)?(?:image|picture)))"
)
_PARTLY = re.compile(  # the image does not show the whole dog
    r"\b(?:whole|entire|full|all|parts?|portions?|regions?|areas?|more|else|anything|other|left|outside|beyond|enough)\b|'s\b"
)
_IN_VIEW = re.compile(r"\b(?:image|picture|photo|scene|frame)\b|^\s*$|^none\b")
_OURS = re.compile(r"\b(?:mask|layer|green|overlay|click|point|action|need|reason)")
_RIGHT = re.compile(r"\b(?:errors?|mistakes?|flaws?|wrong|uncovered|remain|remaining|further|improve|improvements?)\b")
_SENTENCE = re.compile(r"[.!;,]\s[\s*`_]*\Z")
_NEGATED = re.compile(r"(?:\bnot|n't|\bnever|\bbefore|\bcannot)\b[^.!?\n]*\Z")
_OPENS = re.compile(r"(?:\A|[\r\n:>0-9])[ \t*`_\"'$\\(\[{-]*\Z|[\r\n](?:[ \t*`_\"'#>-]|[0-9]{1,3}[.)])*\Z")
_BEFORE = re.compile(r"(?<![a-z])(positive|negative)[\s*`_-]*(?:point|click)?[\s*`_:([{]*\Z")
_HEAD = re.compile(
    r"box|point|positive|negative|click|coord|<loc|finish|terminate|stop|undo|done|[\"'](?:[xy]|row|col)"
)
_UNSAID = re.compile(r"[,{]\s*[\"']?[a-z_]{1,20}[\"']?\s*:\s*(?:[\"'][^\"'\n]{0,60})?\Z")  # a pair that breaks off
_EMPTY = re.compile(r"\s*\[\s*\]")
_NUMBERS = re.compile(r"[0-9]+")
TAIL, HEADS, NUMBERS, ALONE = 10_240, 200, 800, 400
_BACK = 64  # characters before a statement that are looked at


def find(text: str, asked: str = "") -> list[Statement]:
    """The statements of a `lowered` text in their order, without those that stand within others. Where a `box` is
    `asked`, two corners alone are one."""
    found = sorted(
        (*_tags(text), *statements_of_objects(text), *_calls(text), *_signed(text), *_plain(text), *_words(text)),
        key=lambda one: (one.start, -one.end),
    )
    kept: list[Statement] = []
    for one in found:
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
        elif kept[-1].weak and not one.weak:
            kept[-1] = one
    kept = [_with_sign(text, one) for one in kept]
    if kept and kept[-1].kind == "point" and not kept[-1].sign and _UNSAID.search(text, kept[-1].end):
        kept[-1] = replace(kept[-1], kind="broken", end=len(text), why="breaks off")
    strong = [one for one in kept if not one.weak]
    if not strong and {"stop", "undo"} <= {one.kind for one in kept}:
        return []  # both are only spoken of
    return strong or kept or list(_alone(text, asked))


def _with_sign(text: str, one: Statement) -> Statement:
    """A point with the sign right before it, as in `Negative <point>1 2</point>`, or on the next line as its label."""
    if one.kind != "point" or one.sign:
        return one
    if before := _BEFORE.search(text[max(0, one.start - _BACK) : one.start]):
        return replace(one, sign=before[1], start=one.start - len(before[0]))
    label = _LABELLED.match(text, one.end)
    return replace(one, sign=label[1], end=label.end()) if label else one


def tail(text: str) -> str:
    """The end of a text that is searched for statements: at most so many characters, numbers, and words that may begin
    one, that any text is read within milliseconds."""
    text = text[-TAIL:]
    for pattern, most in ((_HEAD, HEADS), (_NUMBERS, NUMBERS)):
        places = [found.start() for found in pattern.finditer(text)]
        text = text[places[-most] :] if len(places) > most else text
    return text


def opens(text: str, place: int) -> bool:
    """Whether a word at `place` opens its line, or follows a colon, a number or a tag."""
    before = text[max(0, place - _BACK) : place]
    return bool(_OPENS.search("\n" + before if place <= _BACK else before))


def _signed(text: str) -> Iterator[Statement]:
    """`Positive point: (1, 2)`, also without `point` where brackets follow."""
    for head in _SIGNED.finditer(text):
        if not head["point"] and head["sign"] not in ("positive", "negative"):
            continue
        listed = _LISTED.match(text, text.rfind("\n", head.start(), head.end()) if head["colon"] != ":" else head.end())
        found = values(text, listed.end() if listed else head.end(), 2)
        sign = "positive" if head["sign"] in ("positive", "foreground") else "negative"
        if not found.numbers and _EMPTY.match(text, head.end()):
            continue  # the key of an empty list
        if (other := _EITHER.search(text[max(0, head.start() - _BACK) : head.start()])) and other[1] != sign:
            sign = "both"
        plain = not found.bracketed and not (found.numbers and (found.named or (head["point"] and head["colon"])))
        if plain and not (head["point"] and head["colon"]):
            continue
        if not head["point"] and not found.fits(2):
            continue
        if not found.fits(2) and found.state != "cut" and not head["colon"]:
            continue  # a positive point (on the handle)
        yield _repeated(text, numbered("point", head.start(), found, 2, sign))


def _repeated(text: str, one: Statement) -> Statement:
    """A statement with the further points behind it: `Positive points: (1, 2), (3, 4)`."""
    while one.kind == "point" and (other := _PAIR.match(text, one.end)):
        one = replace(one, end=other.end(), more=one.more + 1)
    return one


def _calls(text: str) -> Iterator[Statement]:
    """`add_point(x=1, y=2, label="negative")`."""
    for call in _CALL.finditer(text):
        signs = set(_ARGUMENT.findall(call[1]))
        found = values(f"({_ARGUMENT.sub('', call[1]).strip(' ,')})", 0, 2)
        if signs and found.fits(2):
            sign = signs.pop() if len(signs) == 1 else "both"
            yield Statement("point", call.start(), call.end(), found, sign)


def _sign_of_line(text: str, start: int, end: int) -> str:
    """The sign that the line around a point names, or the next one as its label; `both` where it names both."""
    first, last = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    line = text[max(first, start - 200) : min(last if last >= 0 else len(text), end + 200)]
    signs = {sign for sign in ("positive", "negative") if sign in line}
    if not signs and (label := _LABELLED.match(text, end)):
        return label[1]
    return "both" if len(signs) == 2 else "".join(signs)


def _plain(text: str) -> Iterator[Statement]:
    """`Point: (1, 2)`, `Box: (1, 2, 3, 4)` and `Top-left: (1, 2), bottom-right: (3, 4)`; within a sentence they count
    where nothing else does."""
    for corners in _CORNERS.finditer(text):
        found = values(f"({corners[1]}, {corners[2]})", 0, 4)
        if found.fits(4):
            yield replace(numbered("box", corners.start(), found, 4), end=corners.end(), weak=True)
    for pattern, kind, want in ((_BOX, "box", 4), (_POINT, "point", 2)):
        for head in pattern.finditer(text):
            if _KEY.search(head[0]) and text[head.start() - 1 : head.start()] in ("'", '"'):
                continue  # the key of an object
            found = values(text, head.end(), want)
            if found.bracketed or (found.numbers and (found.named or head["colon"])):
                one = numbered(kind, head.start(), found, want)
                weak = not head["colon"] if kind == "box" else not opens(text, head.start())
                if one.kind == "point":
                    one = replace(one, sign=_sign_of_line(text, one.start, one.end))
                if one.kind != "broken" or (head["colon"] and not weak):
                    yield replace(one, weak=weak)


def _tags(text: str) -> Iterator[Statement]:
    for tag in _TAG.finditer(text):
        if tag["attributes"] is not None:
            yield _attributes(text, tag)
        elif tag["bins"]:
            yield _bins(text, tag)
        else:
            want = 4 if tag["box"] else 2
            found = values(text, tag.end(), want)
            if tag["box"] == "|begin_of_box|":  # around any answer
                point = values(text, tag.end(), 2)
                if not found.numbers:
                    continue
                if point.fits(2) and point.bracketed and text[point.end :].lstrip().startswith("<"):
                    want, found = 2, point
            elif found.state == "whole" and not found.bracketed and not text[found.end :].lstrip().startswith("<"):
                found = replace(found, state="bad" if text[found.end :].strip() else "cut")
            yield numbered("point" if want == 2 else "box", tag.start(), found, want)


def _bins(text: str, tag: re.Match[str]) -> Statement:
    """`<loc0001><loc0002><loc0003><loc0004>`, a box."""
    bins = re.findall(r"[0-9]+", tag["bins"])
    state = "cut" if tag["more"] and ">" not in text[tag.end() :] else "whole"
    found = values(f"({', '.join(bins)})", 0, 4)
    label = _LABEL.match(text, tag.end("bins"))
    found = replace(
        found,
        end=label.end() if label else tag.end("bins"),
        state=state if len(bins) != 4 or state == "cut" else found.state,
    )
    return numbered("box", tag.start(), replace(found, groups=(4,) * (len(bins) // 4) if not len(bins) % 4 else ()), 4)


def _attributes(text: str, tag: re.Match[str]) -> Statement:
    """`<point x="1" y="2" alt="…">`, `<points x1="1" y1="2" x2=…>` and `<points coords="1 1 615 404 2 …">`."""
    if not tag["closed"]:
        why = "is not closed" if text[tag.end() :].strip() else "breaks off"
        return Statement("broken", tag.start(), tag.end(), why=why)
    given: dict[str, dict[str, str]] = {}
    for name, number, *texts in _ATTRIBUTE.findall(tag["attributes"]):
        given.setdefault(name, {})[number] = "".join(texts)
    closing = _CLOSING.match(text, tag.end())
    label, end = (closing[1], closing.end()) if closing else ("", tag.end())
    words = f"{next(iter(given.get('alt', {}).values()), '')} {label}"
    signs = {sign for sign in ("positive", "negative") if re.search(rf"\b{sign}\b", words)}
    sign = "both" if len(signs) == 2 else "".join(signs)
    pairs: list[tuple[str, str]] = [
        (x, given["y"][number]) for number, x in given.get("x", {}).items() if number in given.get("y", {})
    ]
    for group in re.split(r"[;\t]", next(iter(given.get("coords", {}).values()), "")):
        parts = group.replace(",", " ").split()  # number of the image, then id, x, y of each point
        pairs += list(zip(parts[2::3], parts[3::3], strict=False)) if len(parts) % 3 == 1 else []
    if not pairs:
        return Statement("broken", tag.start(), end, why="holds no point")
    named = "x={}, y={}"
    found = values(f"({named.format(*pairs[0])})", 0, 2)
    one = numbered("point", tag.start(), replace(found, end=end), 2, sign)
    return replace(one, more=len(pairs) - 1)


def _words(text: str) -> Iterator[Statement]:
    """Stop, undo and absent: alone in a line as statements; within a sentence as weak ones."""
    for word in _WORD.finditer(text):
        if opens(text, word.start()):
            yield Statement(str(word.lastgroup), word.start(), word.end())
        elif _SENTENCE.search(text[max(0, word.start() - _BACK) : word.start()]):
            yield Statement(str(word.lastgroup), word.start(), word.end(), weak=True)
    for word in _MENTION.finditer(text):
        kind = "stop" if word["stop"] else "undo"
        if not _NEGATED.search(text[max(0, word.start() - _BACK) : word.start()]):
            yield Statement(kind, word.start(), word.end(), weak=True)
    for word in _DENIAL.finditer(text):
        what = word["what"]
        seen = what is None or (_IN_VIEW.search(what) or word[0].rstrip().endswith("none"))
        before = re.split(r"[.!?\n]", text[max(0, word.start() - _BACK) : word.start()])[-1]
        after = re.split(r"[.!?\n]", text[word.end() : word.end() + _BACK])[0]
        if word["view"] and (_OURS.search(after) or _PARTLY.search(after) or len(after.split()) > SHORT):
            continue
        if seen and not _OURS.search(before + word[0]) and not _RIGHT.search(word[0] + after):
            yield Statement("absent", word.start(), word.end(), weak=True)


_CORE = re.compile(
    r"<[^<>\n]{0,40}>|```[a-z]*|current[\s*`_]+iou[\s*`_:]*[0-9.]+%?|^\s*(?:(?:final\s)?answer|output|action)\s*:"
)
_NAMED = re.compile(r"[a-z?][a-z? ',.-]{0,120}(?=\[\[|\([0-9.]{1,9}, ?[0-9.]{1,9}\), ?\()")  # the label of a box
_BEHIND = re.compile(r"[\s*`:,-]*\(?(positive|negative)(?:\s(?:point|click))?[\s*`.)]*\Z")


def _alone(text: str, asked: str) -> Iterator[Statement]:
    """Numbers that are the whole reply, or its last line: a point or a box; an empty list, which is no object."""
    core = _CORE.sub(lambda match: " " * len(match[0]), text)
    lines = core.rstrip().rsplit("\n", 1)
    for line in dict.fromkeys((core, lines[-1])):
        if len(line.strip()) > ALONE:
            continue
        start = len(text) - len(line) if line is core else core.rstrip().rfind("\n") + 1
        bare = line.strip(" \t\r\n*`_\"'$.")
        label = _NAMED.match(bare)
        bare = bare[label.end() :] if label else bare
        if re.fullmatch(r"\[\s*(?:\[\s*\])?\s*\]", bare):
            yield Statement("absent", start, len(text))
            return
        two_corners = bool(label) or asked == "box"
        found, four = values(bare, 0, 2), values(bare, 0, 4)
        if four.fits(4) and ((four.named and not four.bracketed) or two_corners):
            found = four
        if not (found.bracketed or (found.numbers and found.named)):
            continue
        found = found if found.groups[:1] == (2,) else four
        sign = _BEHIND.match(bare, found.end)
        rest = "" if sign else bare[found.end :].strip(" \n)]}.,;*`")
        if rest or len(set(found.groups)) > 1 or (found.groups == (2, 2) and not two_corners):
            continue
        for kind, want in (("box", 4), ("point", 2)) if two_corners else (("point", 2), ("box", 4)):
            if found.fits(want) and (kind == "box" or not label) and (kind == "point" or not sign):
                yield numbered(kind, start, found, want, sign[1] if sign else "")
                return


def last_block(text: str, found: Iterable[Statement]) -> list[Statement]:
    """The statements that end a text: those with nothing of their own between them, and items of one list of lines."""
    block: list[Statement] = []
    for one in found:
        if block and not _joined(text, block[-1], one):
            block = []
        block.append(one)
    return block


_NOTHING = re.compile(
    r"\"[^\"\n]{0,120}\"|'[^'\n]{0,60}'|<(\|?)(?:ref|object_ref_start)\1>[^<]{0,120}<[^<>\n]{0,40}>|<[^<>\n]{0,40}>"
    r"|\b(?:json|and|then|next|true|false|null|none|current\s+iou|step|action)\b"
)
_REMARK = re.compile(r"\s*(?:[-(#,;:]|/{2}|(?:on|at|to|for|in|inside|of|near)\b)[^\n]*\Z")


def _joined(text: str, first: Statement, second: Statement) -> bool:
    """Whether two neighbouring statements stand in one block."""
    between = text[first.end : second.start]
    if len(between) > 600:
        return False
    if _neutral(between):
        return True
    line, newline, rest = between.partition("\n")
    return bool(newline and _REMARK.match(line) and _neutral(rest) and opens(text, first.start))


def _neutral(between: str) -> bool:
    """Whether a text says nothing: signs, numbers, quoted words and tags."""
    return not re.search(r"[a-z?]", _NOTHING.sub(" ", between))
