r"""Serve a checkpoint with `transformers serve`, the embedded tiny models included: their vision tower is registered
first. Flags are those of `transformers serve`.

    python -m agents.backends.serve agents/weights/tiny-mllm --dtype float32 --port 8000
    python -m experiments.evaluate --agent openai:agents/weights/tiny-mllm@http://localhost:8000/v1#256x256 \
        --prompt instruction

The server answers for the name that it was given alone, and images are sent at the model's size.
Needs the extra `serve` beside `openai`.
"""

import sys

from agents.tiny import vision_tower  # noqa: F401  # its import makes the embedded model's tower known to the Auto classes


def main() -> None:
    """Run `transformers serve` with the flags of the command line."""
    from transformers.cli.transformers import app

    sys.argv = [sys.argv[0], "serve", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
