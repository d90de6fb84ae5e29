"""The numbers of tree searches as tables: for a terminal, a page, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from experiments.common import tables as common_tables
from experiments.tree_search.metrics import COSTS, labelled
from search.budget import AXES

HEADERS: tuple[str, ...] = (
    "search",
    "value",
    "K",
    "depth",
    "budget",
    "mIoU",
    "interval",
    "to K = 1",
    "interval",
    "to last mask",
)
HEADERS += ("interval", "best in tree", "regret to oracle", "interval", "place", *COSTS.values())


def table(numbers: Mapping) -> list[list[str]]:
    """The rows of the comparison as text, under `HEADERS`: the oracle's last, as they compete with none."""
    rows = sorted(numbers["conditions"], key=lambda row: (row["privileged"], row["depth"], row["budget"], row["value"]))
    return [
        [
            row["algorithm"],
            labelled(row["value"]),
            str(row["k"]),
            str(row["depth"]),
            row["budget"],
            f"{row['miou']:.4f}",
            _between(row["interval"], ".4f"),
            *_signed(row["gain"]),
            *_signed(row["over_last"]),
            f"{row['in_tree']:.4f}",
            *_signed(row["regret"]),
            "" if row["place"] is None else f"{row['place'][0]} of {row['place'][1]}",
            *(f"{row['spent'][axis]:.{2 if axis == 'seconds' else 1}f}" for axis in AXES),
        ]
        for row in rows
    ]


STEP_HEADERS = (
    "steps",
    "K",
    "value",
    "last mask",
    "interval",
    "best-valued so far",
    "interval",
    "to last mask",
    "interval",
    "to K = 1",
    "interval",
)


def steps_table(numbers: Mapping) -> list[list[str]]:
    """Greedy search by number of steps, under `STEP_HEADERS`."""
    rows = []
    for row in sorted(
        numbers["steps"], key=lambda row: (row["value"] == "oracle", row["k"], row["value"], row["step"])
    ):
        cells = [str(row["step"]), str(row["k"]), labelled(row["value"]), f"{row['last']:.4f}"]
        cells.append(_between(row["last_interval"], ".4f"))
        if "chosen" in row:
            cells += [f"{row['chosen']:.4f}", _between(row["chosen_interval"], ".4f"), *_signed(row["gain"])]
            cells += _signed(row.get("over_one"))
        rows.append(cells + [""] * (len(STEP_HEADERS) - len(cells)))
    return rows


def _between(interval: Sequence[float], form: str) -> str:
    return f"{interval[0]:{form}} – {interval[1]:{form}}"


def _signed(difference: Sequence[float] | None) -> list[str]:
    return ["", ""] if difference is None else [f"{difference[0]:+.4f}", _between(difference[1:], "+.4f")]


def text(numbers: Mapping) -> str:
    """The tables and findings for a terminal."""
    parts = [f"{numbers['tasks']} tasks, each searched under {len(numbers['conditions'])} conditions"]
    parts.append(common_tables.columns([HEADERS, *table(numbers)], right=False))
    if numbers["steps"]:
        parts.append(
            "greedy search by steps\n" + common_tables.columns([STEP_HEADERS, *steps_table(numbers)], right=False)
        )
    return "\n\n".join([*parts, "\n".join(numbers["findings"])]).rstrip()


def markdown(numbers: Mapping) -> str:
    """The tables and findings in Markdown."""
    tables = [(HEADERS, table(numbers)), (STEP_HEADERS, steps_table(numbers))]
    blocks = [common_tables.markdown(headers, rows).rstrip() for headers, rows in tables if rows]
    blocks.append("\n".join(f"- {finding}" for finding in numbers["findings"]))
    return "\n\n".join(filter(None, blocks)) + "\n"


def comma_separated(numbers: Mapping) -> str:
    """The comparison as CSV: numbers with all their digits, one row a condition."""
    buffer = io.StringIO()
    names = ["search", "algorithm", "k", "depth", "value", "budget", "privileged", "miou", "miou_low", "miou_high"]
    pairs = ("gain", "over_last", "regret")
    names += [f"{key}{end}" for key in pairs for end in ("", "_low", "_high")]
    names += ["in_tree", "place", "steps", "deepest", "nodes", *AXES]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in numbers["conditions"]:
        cells = {key: row[key] for key in names if key in row and key not in (*pairs, "place")}
        cells |= {"miou_low": row["interval"][0], "miou_high": row["interval"][1], **row["spent"]}
        for key in pairs:
            given = row[key] or ["", "", ""]
            cells |= dict(zip((key, f"{key}_low", f"{key}_high"), given, strict=True))
        writer.writerow(cells | {"place": row["place"][0] if row["place"] else ""})
    return buffer.getvalue()
