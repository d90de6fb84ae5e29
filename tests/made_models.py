"""Tiny random checkpoints of families of multimodal models that people fine-tune, as folders that transformers' Auto
classes load. Classes, special tokens and the form of a conversation are each family's own; sizes and words are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from agents import tiny
from agents.backends import processors

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
SIGHT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}

QWEN_TURNS = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
QWEN_SYSTEM = """{% if messages[0].role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}"""
INTERN_TURNS = QWEN_TURNS.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>{{ '\\n' }}")
# A turn of the assistant opens with a space before its line break, unlike the prompt that asks for one.
ONEVISION_TURNS = """{% for message in messages %}<|im_start|>{{ message.role }} \
{% for part in message.content if part.type == 'image' %}<image>{% endfor %}\
{% for part in message.content if part.type == 'text' %}{{ '\\n' + part.text }}{% endfor %}<|im_end|>\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# No special token stands around turns, and none ends the assistant's.
VICUNA_TURNS = """{% for message in messages %}{{ message.role.upper() }}: \
{% for part in message.content if part.type == 'image' %}<image>
{% endfor %}{% for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def pairs(learned: dict[str, Any]) -> Any:
    """The merges of a BPE model read from JSON, as tokenizers take them."""
    return [tuple(pair) for pair in learned["merges"]]


def byte_level(special: list[str], **named: str) -> PreTrainedTokenizerBase:
    """A tokenizer of Qwen's kind, which InternVL and LLaVA-OneVision have too: no start token, each digit by itself."""
    learned = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    words = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=pairs(learned),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
    )
    words.add_tokens(["<|im_start|>", *special], special_tokens=True)
    return words


def sentence_pieces() -> PreTrainedTokenizerBase:
    """A tokenizer of Llama's kind: a start token, spaces as parts of words, unknown characters as bytes."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(True)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([*tiny.WORDS, *tiny.SENTENCES, "USER ASSISTANT"], trainer)
    learned = json.loads(bpe.to_str())["model"]
    words = LlamaTokenizer(
        vocab=learned["vocab"],
        merges=pairs(learned),
        pad_token="<pad>",
        add_bos_token=True,
    )
    words.add_tokens(["<image>"], special_tokens=True)
    return words


def without_videos(family: type, *parts: Any, **named: Any) -> Any:
    """A processor of `family`, with no more of its part for videos than a checkpoint tells of it."""
    processor = processors.without_videos(family)(*parts, **named)
    kind = family.__name__.replace("2_5_VL", "2VL").replace("Processor", "VideoProcessor")
    processor.video_processor = {"video_processor_type": kind}
    return processor


def qwen_pictures(patch: int) -> transformers.Qwen2VLImageProcessorPil:
    """Pictures of any size as 4 to 16,384 tokens, each of 2 x 2 patches of `patch` pixels: Qwen2.5-VL's own limits."""
    limits = {"shortest_edge": 4 * (2 * patch) ** 2, "longest_edge": 16_384 * (2 * patch) ** 2}
    return transformers.Qwen2VLImageProcessorPil(patch_size=patch, size=limits)


def qwen(family: str, patch: int, vision: dict[str, Any], chat_template: str) -> tuple[Any, Any]:
    """Qwen2.5-VL (the `family` Qwen2_5_VL) or Qwen3-VL (Qwen3VL)."""
    words = byte_level(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    config = getattr(transformers, f"{family}Config")(
        text_config={**TEXT, **ids(words), "rope_parameters": MROPE},
        vision_config={**SIGHT, "patch_size": patch, "out_hidden_size": TEXT["hidden_size"], **vision},
        image_token_id=place(words, "<|image_pad|>"),
        video_token_id=place(words, "<|video_pad|>"),
        vision_start_token_id=place(words, "<|vision_start|>"),
        vision_end_token_id=place(words, "<|vision_end|>"),
    )
    processor = without_videos(
        getattr(transformers, f"{family}Processor"), qwen_pictures(patch), words, chat_template=chat_template
    )
    return getattr(transformers, f"{family}ForConditionalGeneration")(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "num_heads": 2, "fullatt_block_indexes": [1], "window_size": 56}
    return qwen("Qwen2_5_VL", 14, vision, QWEN_SYSTEM + QWEN_TURNS)


def qwen3_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "num_heads": 2, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    return qwen("Qwen3VL", 16, vision, QWEN_TURNS)


def internvl() -> tuple[Any, Any]:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = byte_level(list(named.values()), **named, video_token="<video>")
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT, **ids(words)},
        vision_config={**SIGHT, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=place(words, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    square = {"height": 56, "width": 56}
    pictures = transformers.GotOcr2ImageProcessorPil(size=square, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = without_videos(
        transformers.InternVLProcessor, pictures, words, image_seq_length=4, chat_template=INTERN_TURNS
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    words = byte_level(["<image>", "<video>"])
    grids = [[56 * rows, 56 * columns] for rows in range(1, 4) for columns in range(1, 4)]
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT, **ids(words)},
        vision_config={"model_type": "siglip_vision_model", **SIGHT, "image_size": 56, "patch_size": 14},
        image_token_index=place(words, "<image>"),
        video_token_index=place(words, "<video>"),
        image_grid_pinpoints=grids,
    )
    square = {"height": 56, "width": 56}
    pictures = transformers.LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=grids)
    processor = without_videos(
        transformers.LlavaOnevisionProcessor, pictures, words, num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=ONEVISION_TURNS,
    )  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def llava() -> tuple[Any, Any]:
    words = sentence_pieces()
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT, **ids(words)},
        vision_config={"model_type": "clip_vision_model", **SIGHT, "image_size": 56, "patch_size": 14},
        image_token_index=place(words, "<image>"),
        image_seq_length=16,
    )
    pictures = transformers.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = transformers.LlavaProcessor(
        pictures, words, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=VICUNA_TURNS,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config), processor


FAMILIES = {
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "internvl": internvl,
    "llava-onevision": llava_onevision,
    "llava-1.5": llava,
}


def place(words: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token that the tokenizer has."""
    return words.get_vocab()[token]


def ids(words: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a text model's configuration says of its tokenizer."""
    return {
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def save(family: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of `family`, a name in `FAMILIES`, whose weights depend on `seed` alone. Like published ones,
    it suggests sampling and a penalty, and ends at more than one token."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[family]()
    words = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=[words.eos_token_id, words.pad_token_id],
        pad_token_id=words.pad_token_id,
        do_sample=True,
        temperature=0.7,
        repetition_penalty=1.05,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # as they begin, models of this width answer every picture with the same words
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_detector(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a random zero-shot object detection checkpoint, "grounding-dino" or "owlvit", that reads images of about 64
    pixels, and text a letter or digit a token."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789")
    torch.manual_seed(seed)
    if family == "grounding-dino":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "-"]
        words: Any = [*special, *letters, *(f"##{letter}" for letter in letters)]
        sight = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 4}
        text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        parts: dict[str, Any] = {"encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2}
        parts |= {"decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "num_queries": 12}
        config: Any = transformers.GroundingDinoConfig(
            backbone_config={"model_type": "swin", "out_indices": [2, 3, 4], **sight},
            text_config={"model_type": "bert", "num_attention_heads": 2, **text},
            d_model=32,
            **parts,
        )
        pictures: Any = transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
        words = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
        processor: Any = transformers.GroundingDinoProcessor(pictures, words)
        model: Any = transformers.GroundingDinoForObjectDetection(config)
    else:
        listed = ["<|endoftext|>", "<|startoftext|>", "!", *letters, *(f"{letter}</w>" for letter in letters)]
        vocab = {word: i for i, word in enumerate(listed)}
        words = transformers.CLIPTokenizer(vocab=vocab, merges=[], pad_token="!", model_max_length=16)
        side = {"height": 64, "width": 64}
        pictures = transformers.OwlViTImageProcessorPil(size=side, crop_size=side)
        processor = transformers.OwlViTProcessor(pictures, words)
        sizes = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        ends = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 2}
        config = transformers.OwlViTConfig(
            text_config={"vocab_size": len(listed), "hidden_size": 16, "max_position_embeddings": 16, **ends, **sizes},
            vision_config={"hidden_size": 32, "image_size": 64, "patch_size": 16, **sizes},
            projection_dim=16,
        )
        model = transformers.OwlViTForObjectDetection(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
