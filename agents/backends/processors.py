"""Processors of multimodal checkpoints, for programs that send pictures and never videos."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from segenv.checkpoints import is_local


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
