"""Serve a segmentation tool over HTTP: many agents, in any number of processes, share one model and its GPU.

    python -m experiments.serve_tool --tool sam --port 8400
    python -m experiments.evaluate --tool http://127.0.0.1:8400 --executor process --limit 100 --out runs/served

Masks, logits and scores equal those of the tool itself. The service answers this machine alone. To answer others, give
--host and set SEGENV_TOOL_TOKEN, for the service and for its clients, to one long random text. What is sent is not
encrypted: between machines that others can listen to, use an SSH tunnel or a proxy with TLS (--tool http:https://HOST).
"""

import os
import socket
import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from experiments.common import cli
from experiments.common.config import RunError
from segenv import tools
from segenv.ranges import Count, NotNegative, Processes, Range
from segenv.tools.service import wire


@dataclass(frozen=True)
class Args:
    """Flags of the command line."""

    tool: str = "sam"
    """which tool: sam, sam:NAME_OR_PATH, segment-anything:TYPE@FILE, grabcut, disc"""
    host: str = "127.0.0.1"
    """address to answer at; any but a loopback address needs a token"""
    port: Annotated[int, Range(0, 65535)] = 8400
    """0 takes one that is free"""
    max_pixels: Count = 50_000_000
    """pixels of an image; larger ones are refused before they are read"""
    memory: Count = 1024
    """MiB of images, masks and logits that are kept; as much again may be under way in requests"""
    batch_size: Count = 1
    """images of several requests that are worked on together, which pays on a GPU; above 1 the last bits of a learned
    model may depend on who asks at the same time"""
    window: NotNegative = 2.0
    """milliseconds in which requests are collected for a batch"""
    threads: Processes = 1
    """threads of the tool; sums of floats may depend on it"""


def show(args: Args) -> None:
    """Serve until the process is ended."""
    with cli.setting_up("the service"):
        import uvicorn

        from search.executors import set_threads
        from segenv.tools.service.server import Limits, make_app

        limits = Limits(args.max_pixels, args.memory << 20, args.batch_size, args.window / 1000, args.threads)
        tool = tools.make(args.tool)
        app = make_app(tool, limits, os.environ.get(wire.TOKEN, "").strip() or None, args.host)
    set_threads(args.threads)
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((args.host, args.port))
        except OSError as error:
            raise RunError(
                f"cannot answer at {args.host}:{args.port} ({error.strerror}); name another --port"
            ) from error
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"serving {tool.spec} at http://{host}:{listening.getsockname()[1]}", flush=True)
        settings = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=1024, backlog=1024)
        uvicorn.Server(settings).run(sockets=[listening])


main = partial(cli.main, "serve_tool", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
