"""Annotate a folder of images: phrases or boxes in, COCO polygons and conversations to train on out.

    python -m experiments.annotate --images DIR --phrases cat "red collar" --tool sam:facebook/sam-vit-huge --out OUT
    python -m experiments.annotate --images DIR --boxes instances.json --out OUT

An open-vocabulary detector finds boxes, a tool (`--tool`, prompted by each box) makes masks, outlines are simplified,
and with `--caption` a language model describes each object. SimpleSeg's own data are made in this way (arXiv
2601.19228); its detector, thresholds and filters are not published, so they are options here.

The run's folder holds annotations.json (COCO; with `--data coco:OUT/annotations.json@DIR` it is data for every
command), sft/ (conversations), sheets/ (contact sheets) and report.html to check by, metrics.json, and images.jsonl:
what was found in each image, with exact masks. A run that was ended, however, goes on with `--resume OUT`. Settings of
outlines and conversations may be given anew then: neither detector nor tool is asked again.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from experiments import annotate_inputs, annotate_outputs, annotate_report
from experiments.annotate_images import Annotator
from experiments.annotate_inputs import Wanted
from experiments.annotate_outputs import Outlines, Questions, Record
from experiments.runs import RunError, RunFolder, hide_home, manifest, parse_args, plain
from segenv import codec
from segenv.codec.polygons import DIALECTS, PolygonCodec
from segenv.data.base import MAX_PIXELS
from segenv.data.export import export
from segenv.types import BadItem, SegenvError

CAPTION = (
    "The object under the semi-transparent green layer is: {phrase}. Describe it in one short phrase that tells it "
    "apart from everything else in the image. Answer with that phrase, and nothing else."
)
OUTPUT = frozenset(  # settings that only what is written depends on
    {
        *("tolerance", "max_vertices", "max_tokens", "tokenizer", "codec", "queries", "prompt", "wording"),
        *("several", "negatives", "show", "seed", "dry_run"),
    }
)


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in the README's tables."""

    images: str = ""
    """folder of the images, which may lie in folders of it"""
    phrases: tuple[str, ...] = ()
    """what to look for in every image"""
    phrases_file: str | None = None
    """what to look for, in every image (.txt, .json list) or in each (.csv with image,phrase; .json by image)"""
    boxes: str | None = None
    """boxes in place of a detector: .csv with image,x0,y0,x1,y1[,phrase][,score], .json by image, or COCO instances"""
    detector: str = "IDEA-Research/grounding-dino-tiny"
    """name or folder of any zero-shot object detection checkpoint"""
    box_threshold: float = 0.35
    """least score of a box; detectors of the OWL family want less, about 0.1"""
    text_threshold: float = 0.25
    """least mean score of a phrase's tokens, for detectors that score tokens (GroundingDINO)"""
    nms: float = 0.7
    """of two detections of a phrase whose boxes overlap by more than this IoU, the better one stays; 1 keeps all"""
    max_objects: int = 100
    """of an image: the detections with the best scores"""
    tool: str = "sam"
    """what makes masks of boxes: sam, sam:NAME_OR_PATH, segment-anything:TYPE@FILE, grabcut"""
    min_area: int = 1
    """pixels; objects with a smaller mask are dropped"""
    min_part: int = 0
    """pixels; smaller parts of a mask are removed, and smaller holes filled"""
    min_mask_score: float = 0.0
    """the tool's own estimate of a mask's IoU below which it is dropped"""
    caption: str | None = None
    """a language model that describes each object: mllm:NAME_OR_PATH"""
    caption_prompt: str = CAPTION
    """what it is asked, beside the image with the object painted green; {phrase} stands for the phrase"""
    tolerance: float = 1.0
    """pixels by which an outline may leave its mask; 0 is exact"""
    max_vertices: int | None = None
    """vertices that the outline of an object may have"""
    max_tokens: int | None = None
    """tokens that a reply may have"""
    tokenizer: str | None = None
    """whose tokens: name or folder; by default those of the embedded model"""
    codec: str = "rings"
    """how replies are written: rings, simpleseg, simpleseg:contour=edges"""
    queries: tuple[str, ...] = ("text-mask",)
    """what conversations give and ask: any two of text, point, box, mask"""
    prompt: Literal["codec", "instruction"] = "codec"
    """what is asked: with all that a model must know to answer, or as shortly as a small model needs it"""
    wording: Literal["first", "varied"] = "first"
    """of several wordings of a question: the first always, or drawn"""
    several: Literal["skip", "union"] = "skip"
    """a text that names several objects of an image: no question about it, or one that all of them answer"""
    negatives: bool = False
    """ask for phrases that were not found, too, to be answered by nothing; they are only as true as the detector"""
    format: Literal["trl", "llama-factory"] = "trl"
    """layout of the conversations"""
    max_pixels: int = MAX_PIXELS
    """images with more are skipped, before anything is decoded"""
    limit: int | None = None
    """use the first N images only"""
    seed: int = 0
    """of the wordings"""
    out: str | None = None
    """folder of a new run; by default runs/annotate-DATE"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold"""
    threads: int = 1
    """threads of the process; sums of floats may depend on it"""
    show: int = 200
    """images on the contact sheets and in report.html, drawn by name"""
    dry_run: bool = False
    """say what would be done, and load what it takes, but write nothing"""


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Annotate as `args` say, into their folder, and return what metrics.json holds."""
    questions, outlines, found = prepare(args)
    out = args.resume or args.out
    if out is None:
        raise RunError("a run needs a folder: give out, or resume")
    if Path(out).resolve().is_relative_to(found.root.resolve()):
        raise RunError(
            f"--out {out} lies in the folder of the images, {found.root}; its own pictures would be among them"
        )
    annotator = None if args.resume and RunFolder(out).done("annotate") else Annotator(args)
    if annotator is not None:
        annotator.check(found)
    with RunFolder.resume(out, args, OUTPUT) if args.resume else RunFolder.create(out, args) as folder:
        if annotator is not None:
            settings = {k: v for k, v in plain(args).items() if k not in OUTPUT | {"out", "resume", "images"}}
            hashes = {"data": found.fingerprint, **annotator.fingerprints}
            folder.keep_manifest(manifest(args.seed, settings, hashes))
            _annotate_all(folder, found, annotator, quiet)
            folder.finish("annotate")
        return _write_results(folder, args, found, questions, outlines)


def prepare(args: Args) -> tuple[Questions, Outlines, Wanted]:
    """Settings that hold, and inputs that can be read; RunError says what is wrong."""
    if not args.images:
        raise RunError("no images; give the folder that they lie in with --images DIR")
    least = {"max_objects": 1, "min_area": 1, "min_part": 0, "max_pixels": 1, "show": 0, "tolerance": 0, "threads": 1}
    least |= {"max_vertices": 4, "max_tokens": 1, "limit": 1}
    for name, limit in least.items():
        if (value := getattr(args, name)) is not None and not value >= limit:
            raise RunError(f"{name} is {value}; expected {limit} or more")
    for name in ("nms", "min_mask_score", "box_threshold", "text_threshold"):
        if not 0 <= getattr(args, name) <= 1:
            raise RunError(f"{name} is {getattr(args, name)}; expected a number in 0..1")
    if args.codec not in DIALECTS:
        raise RunError(f"codec {args.codec!r} writes no polygons; expected one of {', '.join(DIALECTS)}")
    speaks = codec.get(args.codec)
    assert isinstance(speaks, PolygonCodec)
    asked = annotate_outputs.pairs_of(args.queries)
    rest = (args.prompt, args.wording, args.several, args.negatives, args.seed)
    questions = Questions(speaks, asked, *rest)
    length = _token_counter(args.tokenizer) if args.max_tokens is not None else len
    outlines = Outlines(args.tolerance, args.max_vertices, args.max_tokens, length)
    found = annotate_inputs.wanted(args.images, args.phrases, args.phrases_file, args.boxes, args.limit)
    return questions, outlines, found


def _token_counter(name: str | None) -> Any:
    """A function that counts the tokens of a text."""
    from transformers import AutoTokenizer

    from agents.mllm import EMBEDDED

    try:
        words: Any = AutoTokenizer.from_pretrained(name or EMBEDDED)
    except (OSError, ValueError) as error:
        raise RunError(f"--tokenizer {name!r} cannot be loaded: {error}") from error
    return lambda text: len(words(text, add_special_tokens=False)["input_ids"])


def _annotate_all(folder: RunFolder, found: Wanted, annotator: Annotator, quiet: bool) -> None:
    """Annotate the images that images.jsonl lacks: one record each, with the reason in place of a bad one's objects."""
    have = {record["image"] for record in folder.records("images.jsonl")}
    interval = 0.2 if sys.stderr.isatty() else 10.0
    with (
        folder.appending("images.jsonl") as file,
        tqdm(total=len(found.images), initial=len(have), unit="image", disable=quiet, mininterval=interval) as bar,
    ):
        counts: Counter[str] = Counter()
        for name in found.images:
            if name in have:
                continue
            try:
                record = annotator.annotate(name, found)
            except BadItem as error:
                record = {"image": name, "error": str(error)}
                bar.write(f"skipped: {error}", file=sys.stderr)
            file.add(record)
            counts["skipped" if "error" in record else "images"] += 1
            counts["objects"] += len(record.get("objects", ()))
            bar.set_postfix(objects=counts["objects"], skipped=counts["skipped"], refresh=False)
            bar.update()


def _write_results(
    folder: RunFolder, args: Args, found: Wanted, questions: Questions, outlines: Outlines
) -> dict[str, Any]:
    """Write what the records make: COCO JSON, conversations, pictures, and metrics.json, which is returned."""

    def records() -> Iterator[Record]:
        """In the order of the images, as they were annotated in."""
        return (record for record in folder.records("images.jsonl") if "error" not in record)

    about = folder.read_json("manifest.json")
    numbers = annotate_report.summarise(folder.records("images.jsonl"))
    numbers["unknown_images"] = found.unknown
    rows = numbers["phrases"]
    phrases = list(dict.fromkeys([*found.every_phrase, *rows]))
    drawn = annotate_outputs.write_coco(
        folder / "annotations.json", records, phrases, outlines, {"settings": about["protocol"]}
    )
    counts: Counter[str] = Counter()
    made = annotate_outputs.conversations(records(), found.root, questions, outlines, counts, args.max_pixels)
    numbers |= {"outlines": drawn.summary, "conversations": export(made, folder / "sft", args.format)}
    numbers["left_out"] = {name: counts.pop(name, 0) for name in ("several", "no_room")}
    numbers["queries"] = dict(counts)
    settings = hide_home({key: value for key, value in plain(args).items() if key not in ("out", "resume", "dry_run")})
    folder.write_json("metrics.json", hide_home(numbers) | {"settings": settings})
    numbers = folder.read_json("metrics.json")
    annotate_report.write(
        folder,
        records(),
        found.root,
        outlines,
        args.show,
        args.max_pixels,
        title=f"Annotations of {numbers['images']} images",
        lead=f"{'given boxes' if args.boxes else args.detector}, {args.tool}"
        + (f", described by {args.caption}" if args.caption else ""),
        rows=[{"phrase": phrase, **row} for phrase, row in rows.items()][:200],
        more_rows=max(len(rows) - 200, 0),
        facts=annotate_report.facts(numbers),
        skipped=numbers["skipped"],
        settings=settings,
        manifest=about,
    )
    return numbers


def plan(args: Args) -> str:
    """What a run would do, for a dry run; tool, detector and captioner are loaded to see that they can be."""
    questions, _, found = prepare(args)
    annotator = Annotator(args)
    annotator.check(found)
    source = f"boxes of {args.boxes}" if args.boxes else f"{args.detector} ({annotator.fingerprints['detector']})"
    idle = sum(not found.asked(name) for name in found.images)
    lines = [
        f"{len(found.images)} images in {found.root}, into {args.resume or args.out}:",
        f"  boxes: {source}; {len(found.every_phrase)} phrases"
        + (f", and {idle} images with nothing to look for" * bool(idle)),
        f"  masks: {annotator.tool.spec}",
        f"  captions: {args.caption or 'none'}",
        f"  conversations: {', '.join('-'.join(pair) for pair in questions.pairs)} in {args.codec}",
    ]
    if found.unknown:
        lines.append(f"  not in the folder: {len(found.unknown)} named images, such as {found.unknown[0]!r}")
    if args.resume:
        lines.append(f"  done: {sum(1 for _ in RunFolder(args.resume).records('images.jsonl'))} images")
    return "\n".join([*lines, "nothing was written (--dry-run)"])


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            args = replace(args, out=time.strftime("runs/annotate-%Y%m%d-%H%M%S"))
        if args.dry_run:
            print(plan(args))
            return 0
        numbers = run(args)
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.annotate --resume {args.resume or args.out}",
            file=sys.stderr,
        )
        return 130
    for name, text in annotate_report.facts(numbers).items():
        print(f"{name:<14} {text}")
    print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
