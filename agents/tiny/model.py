"""A tiny LLaVA-style multimodal model that needs no download: configuration, tokenizer, processor and weights are all
built here.

A convolutional vision tower (`agents.tiny.vision_tower`) and Qwen2 text, two million parameters together. Any image is
stretched to a square of `image_size` pixels, so that normalised coordinates keep their meaning. Every digit, bracket
and comma is one token. The chat template puts the text before the image whatever the order of the contents: the image's
tokens then depend on the instruction.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from agents.tiny import vision_tower

PAD, END, USER, ASSISTANT, IMAGE = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<image>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# The words of prompts and replies: each becomes one token. Other text falls back on pieces, at worst on bytes.
VOCABULARY = """
red orange yellow green blue purple violet pink brown black white gray grey cyan magenta teal olive navy maroon golden
beige dark light bright pale deep coloured colored circle disc disk ellipse oval ring donut square rectangle box
triangle diamond star polygon pentagon hexagon octagon cross plus crescent moon heart blob bar stick line curve arc
arrow leaf tube snake flower gear fork comb ladder letter tree bottle cup frame grid wedge sun striped stripes dotted
dots spotted checkered chequered plain noisy smooth textured texture gradient pattern hollow filled solid small
smaller smallest large larger largest big bigger biggest tiny huge medium thin thinnest thick thickest long longest
short shortest wide wider tall narrow round pointed left right top bottom upper lower center centre middle corner edge
side leftmost rightmost topmost bottommost highest lowest above below beside near nearest far farthest closest between
behind inside outside over under next front back first second third last the a an of in on at to with that is are and
or not no by from as has have hole holes part parts it its this which than only same object objects thing shape shapes
image picture photo person animal background foreground most all every one two three other another Positive Negative
point points click Click Current IOU Box mask Mask stop Stop finish Finish Finished done Done positive negative semi
transparent optimize refine segment segmentation annotator annotation skilled highly please Please your task given
current instruction based pixel wise manner add remove region area target accurate reply format coordinates coordinate
row column You you should will can need must make action actions either where want output answer following
"""
WORDS = VOCABULARY.split()

SENTENCES = [
    "Current IOU: 74\nPositive point: (175, 483)",
    "Current IOU: 0 Negative point: (5, 62)",
    "Positive point: (0.175, 0.483)",
    "Current IOU: 100\nFinish",
    "Current IOU: 8\nUndo",
    "Finish",
    "Undo",
    '{"point_2d": [12, 34], "label": "positive"}',
    "<ref>object</ref><box>(12,34),(56,78)</box>",
    "[[[0.125, 0.5], [0.25, 0.75], [0.5, 0.5]]]",
    "the large red circle on the left",
]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on this module's words, every time equal."""
    bpe = Tokenizer(models.BPE())
    pieces = Regex(r"\d|[\[\](){}<>,.:;|]|\n| ?[A-Za-z]+|[^\sA-Za-z\d]|\s")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than the words need: merging ends when each is one token
        min_frequency=1,
        special_tokens=[PAD, END, USER, ASSISTANT, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([" " + word for word in sorted(WORDS)] + SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        clean_up_tokenization_spaces=False,
    )


def build(
    seed: int = 0, image_size: int = 128, width: int = 128, vision_layers: int = 2, text_layers: int = 4, heads: int = 4
) -> tuple[transformers.LlavaForConditionalGeneration, transformers.LlavaProcessor]:
    """An untrained model, whose weights depend on `seed` and the sizes alone, and its processor.

    `image_size` is in pixels, a multiple of the vision tower's patches of 16. The configuration's `segenv` entry
    declares how to prompt the model: the instruction alone, images sent as squares of `image_size`.
    """
    words = tokenizer()
    vision = vision_tower.VisionTowerConfig(image_size=image_size, hidden_size=width, layers=vision_layers, heads=heads)
    if image_size % vision.patch_size:
        raise ValueError(f"image_size is {image_size}; expected a multiple of {vision.patch_size}")
    text = transformers.Qwen2Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=text_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.get_vocab()[IMAGE],
        image_seq_length=(image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    config.segenv = {"codec": "segagent", "prompt": "instruction", "image_size": [image_size, image_size]}
    model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
    )
    initialise(model, seed)
    square = {"height": image_size, "width": image_size}
    pictures = transformers.CLIPImageProcessorPil(
        size=square, crop_size=square, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = transformers.LlavaProcessor(
        image_processor=pictures,
        tokenizer=words,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
    return model.eval(), processor


@torch.no_grad()
def extend(
    model: transformers.LlavaForConditionalGeneration, processor: transformers.LlavaProcessor, texts: Sequence[str]
) -> None:
    """Give the model one token for each of `texts`, in place; its embedding starts as the mean of its pieces'."""
    words: Any = processor.tokenizer
    pieces = [words(text, add_special_tokens=False)["input_ids"] for text in texts]
    words.add_tokens([AddedToken(text, normalized=False) for text in texts])
    model.resize_token_embeddings(len(words), mean_resizing=False)
    table: Any = model.get_input_embeddings().weight
    for text, old in zip(texts, pieces, strict=True):
        table[words.convert_tokens_to_ids(text)] = table[old].mean(0)


@torch.no_grad()
def refine(
    model: transformers.LlavaForConditionalGeneration, processor: transformers.LlavaProcessor
) -> tuple[transformers.LlavaForConditionalGeneration, transformers.LlavaProcessor]:
    """The model and the processor with twice as many image tokens a side, all weights kept: the last stage that halved
    the resolution no longer does, and sees as far as before (so its features at every other place are what they were);
    positions are interpolated."""
    old: Any = model.config.vision_config
    last = max((k for k, stride in enumerate(old.strides) if stride == 2), default=None)
    if last is None:
        raise ValueError(f"a vision tower of strides {old.strides} has no stage that halves the resolution")
    config: Any = copy.deepcopy(model.config)
    config.vision_config.strides[last] = 1
    config.image_seq_length = 4 * config.image_seq_length
    processor = copy.deepcopy(processor)
    processor.patch_size = config.vision_config.patch_size
    return _replaced(config, model), processor


@torch.no_grad()
def resize(
    model: transformers.LlavaForConditionalGeneration, processor: transformers.LlavaProcessor, side: int
) -> tuple[transformers.LlavaForConditionalGeneration, transformers.LlavaProcessor]:
    """The model and the processor for pictures of `side` pixels, with patches as large as before, and so more or fewer
    image tokens; all weights are kept, positions are interpolated."""
    config: Any = copy.deepcopy(model.config)
    patch = config.vision_config.patch_size
    if side <= 0 or side % patch:
        raise ValueError(f"side is {side}; expected a multiple of the patches' {patch} pixels")
    config.vision_config.image_size = side
    config.image_seq_length = (side // patch) ** 2
    processor = _sized(config, processor, side)
    return _replaced(config, model), processor


def _sized(config: Any, processor: transformers.LlavaProcessor, side: int) -> transformers.LlavaProcessor:
    """A processor of pictures of `side` pixels, whose size the configuration then declares."""
    config.segenv = {**config.segenv, "image_size": [side, side]}
    processor = copy.deepcopy(processor)
    pictures: Any = processor.image_processor
    pictures.size = pictures.crop_size = {"height": side, "width": side}
    return processor


def _replaced(
    config: Any, model: transformers.LlavaForConditionalGeneration
) -> transformers.LlavaForConditionalGeneration:
    """The model with the vision tower of another configuration: its weights, and its positions interpolated."""
    new, weights = transformers.LlavaForConditionalGeneration(config), model.state_dict()
    [place] = [name for name in weights if name.endswith("vision_tower.positions")]
    side, width = round(len(weights[place]) ** 0.5), weights[place].shape[1]
    grid, sides = weights[place].T.reshape(1, width, side, side), (round(config.image_seq_length**0.5),) * 2
    grid = torch.nn.functional.interpolate(grid, sides, mode="bilinear", align_corners=False)
    return _loaded(new, weights | {place: grid.reshape(width, -1).T}, model)


@torch.no_grad()
def enlarge(
    model: transformers.LlavaForConditionalGeneration, processor: transformers.LlavaProcessor, seed: int = 0
) -> tuple[transformers.LlavaForConditionalGeneration, transformers.LlavaProcessor]:
    """The model and the processor for pictures of twice the side, with as many tokens: a convolution before the first
    stage halves the resolution once more. Six of its channels begin as the means of 2 x 2 pixels, so that outputs stay
    what they were; nothing reads the other ten yet."""
    config: Any = copy.deepcopy(model.config)
    tower = config.vision_config
    if tower.norm:
        raise ValueError("expected a vision tower whose batch norms are folded, as a trained checkpoint's are")
    side, channels = 2 * tower.image_size, 16
    tower.image_size = side
    tower.channels, tower.blocks = [channels, *tower.channels], [0, *tower.blocks]
    tower.strides, tower.kernels = [2, *tower.strides], [5, *tower.kernels]
    processor = _sized(config, processor, side)
    larger = transformers.LlavaForConditionalGeneration(config)

    first = torch.empty(channels, 3, 5, 5).normal_(0.0, 0.16, generator=torch.Generator().manual_seed(seed))
    first[:6] = 0
    for colour in range(3):  # and its negative, as ReLU lets only one of them through
        first[colour, colour, 2:4, 2:4], first[3 + colour, colour, 2:4, 2:4] = 0.25, -0.25
    weights = {}
    for name, value in model.state_dict().items():
        before, mark, stage = name.partition("vision_tower.stages.")
        number, _, rest = stage.partition(".")
        weights[f"{before}{mark}{int(number) + 1}.{rest}" if mark else name] = value
        if (number, rest) == ("0", "0.conv.weight"):
            unread = value.new_zeros(len(value), channels - 6, *value.shape[2:])
            weights[f"{before}{mark}1.{rest}"] = torch.cat([value, -value, unread], dim=1)
            weights[name], weights[name.replace("weight", "bias")] = first, torch.zeros(channels)
    processor.patch_size = tower.patch_size
    return _loaded(larger, weights, model), processor


@torch.no_grad()
def deepen(
    model: transformers.LlavaForConditionalGeneration, layers: int, seed: int = 0
) -> transformers.LlavaForConditionalGeneration:
    """The model with `layers` layers in its language model: new ones come last, and add nothing yet, so that outputs
    stay what they were. Where a reply reads places off the image's tokens, one layer behind them is too few."""
    config: Any = copy.deepcopy(model.config)
    before, text = config.text_config.num_hidden_layers, config.text_config
    if layers < before:
        raise ValueError(f"layers is {layers}; the model has {before} already")
    text.num_hidden_layers = layers
    text.layer_types = text.layer_types[:1] * layers
    deeper = transformers.LlavaForConditionalGeneration(config)
    initialise(deeper, seed)
    for layer in deeper.model.language_model.layers[before:]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    return _loaded(deeper, deeper.state_dict() | model.state_dict(), model)


@torch.no_grad()
def stretch(
    model: transformers.LlavaForConditionalGeneration, theta: float
) -> transformers.LlavaForConditionalGeneration:
    """The model with rotary positions of base `theta` (RoPE, Su et al. 2021), all weights kept. The larger it is, the
    more pairs of a head's numbers hardly turn over an image's tokens, so that a reply can find one of these by what it
    holds, wherever it is. Outputs change, and take some hundred steps of training to come back."""
    config: Any = copy.deepcopy(model.config)
    if not theta > 1:
        raise ValueError(f"theta is {theta:g}; expected more than 1 (models of this size begin with 10000)")
    config.text_config.rope_parameters["rope_theta"] = float(theta)
    return _loaded(transformers.LlavaForConditionalGeneration(config), model.state_dict(), model)


def _loaded(
    new: transformers.LlavaForConditionalGeneration,
    weights: Mapping[str, torch.Tensor],
    model: transformers.LlavaForConditionalGeneration,
) -> transformers.LlavaForConditionalGeneration:
    """The new model with these weights, which ends its replies as `model` does."""
    new.load_state_dict(weights)
    new.generation_config = model.generation_config
    return new.eval()


@torch.no_grad()
def initialise(model: transformers.LlavaForConditionalGeneration, seed: int, std: float = 0.05) -> None:
    """Set fresh weights in the order of their names, equal under every version of the libraries: the vision tower's
    own, and in the rest normal with `std` (twice and more the usual .02, which a model of this width needs to leave its
    plateau), norms at one, biases at zero."""
    generator = torch.Generator().manual_seed(seed)
    tower = model.model.vision_tower
    vision_tower.initialise(tower, generator)
    done = {id(parameter) for parameter in tower.parameters()}
    for name, parameter in sorted(model.named_parameters()):
        if id(parameter) in done:
            continue
        if parameter.ndim > 1:
            parameter.normal_(0.0, std, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def save(path: Path | str, seed: int = 0, **sizes: Any) -> Path:
    """Build a model, and write it (safetensors) and its processor into the folder `path`; equal files every time."""
    model, processor = build(seed, **sizes)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return Path(path)
