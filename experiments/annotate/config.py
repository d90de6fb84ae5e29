"""Settings of an annotation run."""

from dataclasses import dataclass
from typing import Annotated, Literal

from experiments.common.config import InFolder, OutFolder
from segenv.data.images import MAX_PIXELS
from segenv.ranges import Count, CountOrNone, NotNegative, Processes, Range, Seed, Share

CAPTION = (
    "The object under the semi-transparent green layer is: {phrase}. Describe it in one short phrase that tells it "
    "apart from everything else in the image. Answer with that phrase, and nothing else."
)


OUTPUT = frozenset(  # settings that change only the outputs
    {
        *("tolerance", "max_vertices", "max_tokens", "tokenizer", "codec", "queries", "prompt", "wording"),
        *("several", "negatives", "show", "seed", "dry_run", "follow_links"),
    }
)


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

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
    box_threshold: Share = 0.35
    """least score of a box; detectors of the OWL family want less, about 0.1"""
    text_threshold: Share = 0.25
    """least mean score of a phrase's tokens, for detectors that score tokens (GroundingDINO)"""
    nms: Share = 0.7
    """of two detections of a phrase whose boxes overlap by more than this IoU, the better one stays; 1 keeps all"""
    max_objects: Count = 100
    """of an image: the detections with the best scores"""
    tool: str = "sam"
    """what makes masks of boxes: sam, sam:NAME_OR_PATH, segment-anything:TYPE@FILE, grabcut"""
    min_area: Count = 1
    """pixels; objects with a smaller mask are dropped"""
    min_part: CountOrNone = 0
    """pixels; smaller parts of a mask are removed, and smaller holes filled"""
    min_mask_score: Share = 0.0
    """the tool's own estimate of a mask's IoU below which it is dropped"""
    caption: str | None = None
    """a language model that describes each object: mllm:NAME_OR_PATH"""
    caption_prompt: str = CAPTION
    """what it is asked, beside the image with the object painted green; {phrase} stands for the phrase"""
    tolerance: NotNegative = 1.0
    """pixels by which a polygon may leave its mask; 0 is exact"""
    max_vertices: Annotated[int, Range(4)] | None = None
    """vertices that the polygons of an object may have"""
    max_tokens: Count | None = None
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
    """of several wordings of a question: the first always, or a random one"""
    several: Literal["skip", "union"] = "skip"
    """a text that names several objects of an image: no question about it, or one that all of them answer"""
    negatives: bool = False
    """ask for phrases that were not found, too, to be answered by nothing; they are only as true as the detector"""
    format: Literal["trl", "llama-factory"] = "trl"
    """layout of the conversations"""
    max_pixels: Count = MAX_PIXELS
    """images with more are skipped, before anything is decoded"""
    follow_links: bool = False
    """follow links in the folder to files outside it"""
    limit: Count | None = None
    """use the first N images only"""
    seed: Seed = 0
    """of the wordings"""
    out: OutFolder | None = None
    """folder of a new run; by default runs/annotate-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume; its settings hold"""
    threads: Processes = 1
    """threads of the process; sums of floats may depend on it"""
    show: CountOrNone = 200
    """images on the contact sheets and in report.html, sampled by name"""
    dry_run: bool = False
    """say what would be done, and load what it takes, but write nothing"""
