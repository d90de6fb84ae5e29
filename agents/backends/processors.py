"""Processors of multimodal checkpoints, for programs that send pictures and never videos."""

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from agents.backends.base import Size
from segenv.checkpoints import is_local


class Sizes:
    """A part of backends that have a checkpoint's own `processor`: sizes of images as it tells them."""

    processor: Any
    sent: Callable[[np.ndarray], np.ndarray]

    @cached_property
    def _taken(self) -> set[Size]:
        """Sizes that the processor takes."""
        return set()

    @cached_property
    def _seen(self) -> dict[Size, Size]:
        """Sizes that the processor makes, by the image's."""
        return {}

    @property
    def crop(self) -> tuple[int, int] | None:
        """Height and width of the middle to which the processor cuts images; None where it leaves them whole."""
        pictures = self.processor.image_processor
        if not getattr(pictures, "do_center_crop", False):
            return None
        return int(pictures.crop_size["height"]), int(pictures.crop_size["width"])

    def check_size(self, width: int, height: int) -> None:
        """Raise the processor's own error where it takes no image of `width` x `height` pixels, after `sent`."""
        if (width, height) not in self._taken:
            picture = self.sent(np.zeros((height, width, 3), np.uint8))
            self.processor.image_processor([Image.fromarray(picture)], return_tensors="pt")
            self._taken.add((width, height))

    def seen_size(self, width: int, height: int) -> Size:
        """Width and height, in pixels, at which the model sees an image of `width` x `height`: after `sent`, and what
        the checkpoint's own processor makes of that. Raises ValueError where the processor does not tell."""
        if (width, height) not in self._seen:
            picture = self.sent(np.zeros((height, width, 3), np.uint8))
            if (seen := self.frame_of(picture.shape[1], picture.shape[0])) is None:
                raise ValueError(
                    f"{type(self.processor.image_processor).__name__} does not tell the size at which the model "
                    "sees an image, in whose pixels this codec counts; name a codec of normalised coordinates"
                )
            self._seen[width, height] = seen
        return self._seen[width, height]

    def frame_of(self, width: int, height: int) -> Size | None:
        """Width and height, in pixels, at which the model sees a picture that is sent at `width` x `height`, or None
        where the processor does not tell."""
        picture = Image.fromarray(np.zeros((height, width, 3), np.uint8))
        made = self.processor.image_processor([picture], return_tensors="np")
        if "image_grid_thw" not in made:
            return None
        _, rows, columns = np.asarray(made["image_grid_thw"])[0].tolist()
        patch = self.processor.image_processor.patch_size
        return columns * patch, rows * patch


class _Pictures:
    """A mixin that takes the part for videos away from a family's processor."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The names of a processor's parts."""
        return [name for name in super().get_attributes() if name != "video_processor"]  # type: ignore[misc]


def without_videos(family: Any) -> Any:
    """The processor class of a family without its part for videos, the only one that cannot do without torchvision."""
    return type(family.__name__, (_Pictures, family), {})


def processor_of(source: str | Path, config: Any, trust_remote_code: bool = False) -> Any:
    """The processor of the checkpoint `source`, whose configuration is `config`.

    Qwen-VL, InternVL and LLaVA-OneVision also read videos, and transformers cannot make that part of their processors
    where torchvision is absent. There it is left out; its settings are kept, and saved with the processor.
    """
    local = is_local(source)
    family: Any = PROCESSOR_MAPPING.get(type(config), None)
    if family is None or is_torchvision_available() or "video_processor" not in family.get_attributes():
        return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, local_files_only=local)
    from transformers.video_processing_utils import VideoProcessorMixin  # not in the first releases of 5

    processor = without_videos(family).from_pretrained(source, local_files_only=local)
    with suppress(OSError):  # there are none
        processor.video_processor = VideoProcessorMixin.get_video_processor_dict(source, local_files_only=local)[0]
    return processor
