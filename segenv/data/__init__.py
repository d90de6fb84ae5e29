"""Datasets: `make(spec)` gives a lazy sequence of `segenv.types.Task`."""

import re
from pathlib import Path

from segenv import specs
from segenv.data.base import DataError, Dataset
from segenv.data.images import MAX_PIXELS

__all__ = ["SPECS", "DataError", "Dataset", "make"]

SPECS = {
    "synthetic": "synthetic[:train|val|test][#easy|medium|hard|single|charts|interfaces]",
    "index": "index:DIR or index:DIR#SUBSET (a folder with index.json)",
    "folder": "folder:DIR (images/ and masks/ with equal stems)",
    "coco": "coco:ANNOTATIONS.json@IMAGES",
    "lvis": "lvis:ANNOTATIONS.json@IMAGES (IMAGES may hold train2017/ and val2017/)",
    "refcoco": "refcoco:ROOT/DATASET/SPLITBY/SPLIT, such as refcoco:ROOT/refcoco+/unc/val, or with @IMAGES behind it",
    "grefcoco": "grefcoco:ROOT/SPLIT, such as grefcoco:ROOT/val, or with @IMAGES behind it",
    "ref-l4": "ref-l4:DIR/val, ref-l4:DIR/test or ref-l4:DIR/all (boxes)",
    "reasonseg": "reasonseg:DIR/SPLIT, or reasonseg:DIR/SPLIT#all for every text of each image",
    "dis": "dis:DIR or dis:DIR,threshold=128 (im/ and gt/ with soft edges: DIS5K, ThinObject5K, HRSOD)",
    "hq44k": "hq44k:ROOT or hq44k:ROOT,threshold=0 (DIS5K/ and thin_object_detection/ of HQSeg-44K: its validation)",
    "sa1b": "sa1b:DIR (sa_*.jpg and sa_*.json)",
    "grabcut": "grabcut:DIR (data_GT/ and boundary_GT/)",
    "berkeley": "berkeley:DIR (images/ and masks/)",
    "davis": "davis:DIR (img/ and gt/)",
    "from": "from:N:DATA (any of these, from its task of index N on: from:6000:synthetic:test)",
    "no-target": "no-target:DATA or no-target:SHARE:DATA (any of these; a share of its tasks, whose object is absent)",
    "absent": "absent:DATA, the older name of no-target:DATA",
    "trajectories": "trajectories:FILE.json or trajectories:FILE.json@IMAGES (SegAgent's recorded clicks)",
}


def make(
    spec: str | Dataset = "synthetic",
    skip_bad: bool = False,
    max_pixels: int = MAX_PIXELS,
    follow_links: bool = False,
) -> Dataset:
    """The dataset that `spec` names (see `SPECS`); a dataset is returned as it is.

    A bad item raises `BadItem` when it is read; with `skip_bad`, iteration goes on and `Dataset.skipped` counts it.
    Images of more than `max_pixels` are bad, and are not decoded; so are those that are named from a folder and lie
    elsewhere, behind a link, without `follow_links`. Raises `DataError` for an unknown spec and for data that cannot be
    read as a whole.
    """
    if isinstance(spec, Dataset):
        return spec
    data = _make(spec, skip_bad, max_pixels, follow_links)
    data.follow_links = follow_links
    return data


def _make(spec: str, skip_bad: bool, max_pixels: int, follow_links: bool) -> Dataset:
    whole = spec.replace("#", ":#", 1) if spec.startswith("synthetic#") else spec
    kind, rest = specs.name_of("data", whole, SPECS, "one of: " + "; ".join(SPECS.values()), DataError)
    if kind != "synthetic" and not rest:
        raise DataError(f"data {spec!r} names no files; expected {SPECS[kind]}")
    match kind:
        case "synthetic":
            return _synthetic(spec, rest, skip_bad)
        case "no-target" | "absent":
            from segenv.data.no_target import NoTarget

            share, colon, whole = rest.partition(":")
            if colon and re.fullmatch(r"0?\.[0-9]+|1(\.0*)?", share):
                return NoTarget(make(whole, skip_bad, max_pixels, follow_links), float(share))
            return NoTarget(make(rest, skip_bad, max_pixels, follow_links))
        case "from":
            from segenv.data.base import later

            start, colon, whole = rest.partition(":")
            if not colon or not re.fullmatch(r"[0-9]{1,15}", start):
                raise DataError(f"data {spec!r}: {start!r} is no index; expected {SPECS['from']}")
            return later(make(whole, skip_bad, max_pixels, follow_links), int(start), spec)
        case _:
            return _read(kind, rest, spec, skip_bad, max_pixels, follow_links)


def _read(kind: str, rest: str, spec: str, skip_bad: bool, max_pixels: int, follow_links: bool) -> Dataset:
    """A dataset of `kind` from files that `rest`, the part of the spec behind the kind, names."""
    match kind:
        case "index":
            from segenv.data.folder import Index

            directory, subset = _split_subset(rest)
            return Index(directory, subset, skip_bad, max_pixels, follow_links)
        case "folder":
            from segenv.data.folder import Folder

            return Folder(rest, skip_bad, max_pixels)
        case "coco" | "lvis":
            from segenv.data.coco import Coco

            return Coco(*_split_images(rest, spec), skip_bad, max_pixels, kind)
        case "refcoco" | "grefcoco":
            from segenv.data import refer

            return getattr(refer, kind)(rest, skip_bad, max_pixels)
        case "reasonseg":
            from segenv.data import parquet, reasonseg

            if tables := parquet.tables_of(rest):
                return parquet.ReasonSegTable(rest, tables, skip_bad, max_pixels)
            return reasonseg.ReasonSeg(*_split_subset(rest), skip_bad, max_pixels)
        case "ref-l4":
            from segenv.data.parquet import RefL4

            return RefL4(rest, skip_bad, max_pixels)
        case "dis":
            from segenv.data.soft_masks import SoftMasks

            return SoftMasks(spec, skip_bad, max_pixels)
        case "hq44k":
            from segenv.data.soft_masks import HqSeg44k

            return HqSeg44k(spec, skip_bad, max_pixels)
        case "sa1b":
            from segenv.data.sa1b import Sa1b

            return Sa1b(rest, skip_bad, max_pixels)
        case "trajectories":
            from segenv.data.trajectories.dataset import Trajectories

            if "@" not in rest or Path(rest).expanduser().is_file():
                return Trajectories(rest, None, skip_bad, max_pixels)
            return Trajectories(*_split_images(rest, spec), skip_bad, max_pixels)
        case _:
            from segenv.data import click_benchmarks

            return click_benchmarks.BENCHMARKS[kind](rest, skip_bad, max_pixels)


def _synthetic(spec: str, rest: str, skip_bad: bool) -> Dataset:
    from segenv.data.synthetic.scenes import Synthetic

    split, _, difficulty = rest.partition("#")
    try:
        data = Synthetic(split, difficulty or None) if split else Synthetic(difficulty=difficulty or None)
    except ValueError as error:
        raise DataError(f"data {spec!r}: {error}; expected {SPECS['synthetic']}") from error
    data.skip_bad = skip_bad
    return data


def _split_subset(rest: str) -> tuple[str, str | None]:
    """DIR and SUBSET of DIR#SUBSET. A folder whose own name has a # in it is taken as such."""
    directory, _, subset = rest.rpartition("#")
    if not directory or Path(rest).expanduser().is_dir():
        return rest, None
    return directory, subset


def _split_images(rest: str, spec: str) -> tuple[str, str]:
    """FILE.json and IMAGES of FILE.json@IMAGES, split at the first @ that follows an existing file."""
    ats = [i for i, character in enumerate(rest) if character == "@" and rest[:i] and rest[i + 1 :]]
    if not ats:
        raise DataError(f"data {spec!r} lacks a part; expected {SPECS[spec.partition(':')[0]]}")
    at = next((i for i in ats if Path(rest[:i]).expanduser().is_file()), ats[0])
    return rest[:at], rest[at + 1 :]
