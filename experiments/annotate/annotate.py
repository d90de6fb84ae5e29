"""Annotate all images of a folder, and write the files."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.annotate import inputs, outputs, report
from experiments.annotate.config import OUTPUT, Args
from experiments.annotate.inputs import Inputs
from experiments.annotate.outputs import PolygonWriter, QueryOptions, Record
from experiments.annotate.pipeline import Annotator
from experiments.common import cli
from experiments.common.config import RunError, check, plain
from experiments.common.run_folder import RunFolder, hide_home, manifest
from segenv import codec
from segenv.checkpoints import check_words, is_local, reading
from segenv.codec.polygons import DIALECTS, PolygonCodec
from segenv.data.trajectories.export import export
from segenv.types import BadItem


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Annotate as `args` say, into their folder, and return the content of metrics.json."""
    queries, writer, source = prepare(args)
    out = args.resume or args.out
    if out is not None and Path(out).resolve().is_relative_to(source.root.resolve()):
        raise RunError(
            f"--out {out} lies in the folder of the images, {source.root}; its own pictures would be among them"
        )
    annotator = None if args.resume and RunFolder(args.resume).done("annotate") else Annotator(args)
    if annotator is not None:
        annotator.check(source)
    with cli.open_run(args, OUTPUT) as folder:
        if annotator is not None:
            settings = {k: v for k, v in plain(args).items() if k not in OUTPUT | {"out", "resume", "images"}}
            hashes = {"data": source.fingerprint, **annotator.fingerprints}
            folder.keep_manifest(manifest(args.seed, settings, hashes))
            _annotate_all(folder, source, annotator, quiet)
            folder.finish("annotate")
        return _write_results(folder, args, source, queries, writer)


def prepare(args: Args) -> tuple[QueryOptions, PolygonWriter, Inputs]:
    """Check the settings and read the inputs; RunError says what is wrong."""
    if not args.images:
        raise RunError("no images; give the folder that they lie in with --images DIR")
    check(args)
    if args.codec not in DIALECTS:
        raise RunError(f"codec {args.codec!r} writes no polygons; expected one of {', '.join(DIALECTS)}")
    dialect, pairs = codec.make(args.codec), outputs.pairs_of(args.queries)
    assert isinstance(dialect, PolygonCodec)
    queries = QueryOptions(dialect, pairs, args.prompt, args.wording, args.several, args.negatives, args.seed)
    length = _token_counter(args.tokenizer) if args.max_tokens is not None else len
    writer = PolygonWriter(args.tolerance, args.max_vertices, args.max_tokens, length)
    return queries, writer, inputs.read_inputs(args.images, args.phrases, args.phrases_file, args.boxes, args.limit)


def _token_counter(name: str | None) -> Any:
    """Make a function that counts the tokens of a text."""
    from transformers import AutoTokenizer

    from agents.mllm import EMBEDDED

    source = name or EMBEDDED
    with reading(source, "tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=is_local(source))
        check_words(tokenizer)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _annotate_all(folder: RunFolder, source: Inputs, annotator: Annotator, quiet: bool) -> None:
    """Annotate the images that images.jsonl lacks: one record each, with the reason in place of a bad one's objects."""
    have = {record["image"] for record in folder.records("images.jsonl", report.read_image_record)}
    with (
        folder.appending("images.jsonl") as file,
        cli.progress(len(source.images), "image", len(have), quiet=quiet) as bar,
    ):
        counts: Counter[str] = Counter()
        for name in source.images:
            if name in have:
                continue
            try:
                record = annotator.annotate(name, source)
            except BadItem as error:
                record = {"image": name, "error": str(error)}
                bar.write(f"skipped: {error}", file=sys.stderr)
            file.add(record)
            counts["skipped" if "error" in record else "images"] += 1
            counts["objects"] += len(record.get("objects", ()))
            bar.set_postfix(objects=counts["objects"], skipped=counts["skipped"], refresh=False)
            bar.update()


def _write_results(
    folder: RunFolder, args: Args, source: Inputs, queries: QueryOptions, writer: PolygonWriter
) -> dict[str, Any]:
    """Write COCO JSON, conversations, pictures, and metrics.json, which is returned."""

    def records() -> Iterator[Record]:
        return (record for record in folder.records("images.jsonl", report.read_image_record) if "error" not in record)

    if next(records(), None) is None:
        skipped = [record["error"] for record in folder.records("images.jsonl", report.read_image_record)]
        raise RunError(f"all {len(skipped)} images were skipped, the first because: {skipped[0]}")
    about = folder.manifest()
    numbers = report.summarise(folder.records("images.jsonl", report.read_image_record))
    numbers |= {"unknown_images": source.unknown, "boxes_left_out": asdict(source.left_out)}
    rows = numbers["phrases"]
    phrases = list(dict.fromkeys([*source.every_phrase, *rows]))
    written = outputs.write_coco(folder / "annotations.json", records, phrases, writer, {"settings": about["protocol"]})
    counts: Counter[str] = Counter()
    pairs = outputs.conversations(records(), source.root, queries, writer, counts, args.max_pixels)
    numbers |= {"outlines": written, "conversations": export(pairs, folder / "sft", args.format)}
    numbers["left_out"] = {name: counts.pop(name, 0) for name in ("several", "no_room")}
    numbers["queries"] = dict(counts)
    settings = hide_home({key: value for key, value in plain(args).items() if key not in ("out", "resume", "dry_run")})
    folder.write_json("metrics.json", hide_home(numbers) | {"settings": settings})
    numbers = folder.load_json("metrics.json")
    lead = f"{'given boxes' if args.boxes else args.detector}, {args.tool}"
    page = {
        "title": f"Annotations of {numbers['images']} images",
        "lead": lead + (f", described by {args.caption}" if args.caption else ""),
        "rows": [{"phrase": phrase, **row} for phrase, row in rows.items()][:200],
        "more_rows": max(len(rows) - 200, 0),
        "facts": report.facts(numbers),
        "skipped": numbers["skipped"],
    }
    page |= {"settings": settings, "manifest": about}
    report.write(folder, records(), source.root, writer, args.show, args.max_pixels, **page)
    return numbers


def dry_run(args: Args) -> str:
    """Describe what a run would do; tool, detector and captioner are loaded to see that they can be."""
    queries, _, source = prepare(args)
    annotator = Annotator(args)
    annotator.check(source)
    boxes = f"boxes of {args.boxes}" if args.boxes else f"{args.detector} ({annotator.fingerprints['detector']})"
    idle = sum(not source.phrases_of(name) for name in source.images)
    lines = [
        f"{len(source.images)} images in {source.root}, into {args.resume or args.out}:",
        f"  boxes: {boxes}; {len(source.every_phrase)} phrases"
        + (f", and {idle} images with nothing to look for" * bool(idle)),
        f"  masks: {annotator.tool.spec}",
        f"  captions: {args.caption or 'none'}",
        f"  conversations: {', '.join('-'.join(pair) for pair in queries.pairs)} in {args.codec}",
    ]
    if source.unknown:
        lines.append(f"  not in the folder: {len(source.unknown)} named images, such as {source.unknown[0]!r}")
    if source.left_out.listed and (told := str(source.left_out)):
        lines.append(f"  {told}")
    if args.resume:
        lines.append(f"  done: {sum(1 for _ in RunFolder(args.resume).records('images.jsonl'))} images")
    return "\n".join([*lines, "nothing was written (--dry-run)"])
