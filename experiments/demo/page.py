"""The page of the demo, in gradio: every event hands a session to `Demo`, and shows the one that comes back.

The page loads nothing of another host: no fonts, no scripts, no analytics. Uploads and exports lie in a folder that
goes with the process.
"""

import os
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from experiments.common import html
from experiments.common.config import RunError
from experiments.common.run_folder import hidden
from experiments.demo import exports
from experiments.demo.config import LOOPBACK, USER, Args, password
from experiments.demo.session import Demo, Session
from segenv.types import SegenvError

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read where gradio is imported
try:
    import gradio as gr
    from starlette.datastructures import MutableHeaders
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as missing:
    raise ImportError("the page needs gradio: pip install 'segenv[demo]'") from missing

POSITIVE, NEGATIVE, BOX = "positive", "negative", "box: two corners"
KEPT = 3600  # seconds that files and sessions stay which nobody asks for
OWN = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # those of the machine
CSS = "#scene img { width: 100%; max-height: 66vh; object-fit: contain; cursor: crosshair; }"


def build(demo: Demo, size: int) -> gr.Blocks:
    """The page; `size` is the longer side of its picture in pixels."""
    last = len(demo.dataset) - 1
    with gr.Blocks(title="segenv demo", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        session = gr.State(None, time_to_live=KEPT)
        with gr.Row():
            with gr.Column(scale=5):
                scene = gr.Image(
                    type="numpy", format="png", interactive=False, buttons=[], show_label=False, elem_id="scene"
                )
                told = gr.HTML(elem_id="told", padding=False)
            with gr.Column(scale=3):
                number = gr.Number(0, label=f"task of {hidden(demo.dataset.spec)}, 0 to {last}", precision=0)
                with gr.Row():
                    opened = gr.Button("Open the task", elem_id="open")
                    upload = gr.UploadButton("Open an image", file_types=["image"], elem_id="upload")
                text = gr.Textbox(label="what to segment", placeholder="the main object", elem_id="instruction")
                mode = gr.Radio(
                    [POSITIVE, NEGATIVE, BOX], value=POSITIVE, label="meaning of a click on the image", elem_id="mode"
                )
                with gr.Row():
                    undo, reset = gr.Button("Undo", elem_id="undo"), gr.Button("Reset", elem_id="reset")
                with gr.Row():
                    ask = gr.Button(f"{demo.agent_name}: next step", elem_id="ask")
                    play = gr.Button(f"{demo.agent_name}: to the end", elem_id="play")
                outline = gr.Checkbox(False, label="show the target's outline, where it is known", elem_id="outline")
                export = gr.Button("Export", variant="primary", elem_id="export")
                files = gr.File(
                    label="exported files", file_count="multiple", interactive=False, visible=False, elem_id="files"
                )

    view = View(demo, size)
    now, shown = [session, text, outline], [session, scene, told, text, files]
    tool: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "tool", "api_visibility": "private"}
    with blocks:
        for start in (blocks.load, opened.click):
            start(view.open_task, [*now, number], shown, **tool)
        upload.upload(view.open_image, [*now, upload], shown, **tool)
        scene.select(view.click, [*now, mode], shown, **tool)
        undo.click(view.undo, now, shown, **tool)
        reset.click(view.reset, now, shown, **tool)
        ask.click(view.ask, now, shown, **tool)
        play.click(view.play, now, shown, **tool)
        outline.change(view.redraw, now, shown, **tool)
        export.click(view.export, now, shown, **tool)
    return blocks


class View:
    """Handlers of the page's events: each takes session, instruction and whether to show the target, and yields the
    session with picture, table, instruction and exported files. What fails is told, and the session stays."""

    def __init__(self, demo: Demo, size: int) -> None:
        self.demo, self.size = demo, size

    def open_task(self, session: Any, text: str, outline: bool, index: float) -> Iterator[tuple]:
        yield from self._open(session, outline, lambda: self.demo.open_task(-1 if index is None else int(index)))

    def open_image(self, session: Any, text: str, outline: bool, path: str) -> Iterator[tuple]:
        yield from self._open(session, outline, lambda: self.demo.open_image(Path(path), Path(path).name))

    def click(self, session: Any, text: str, outline: bool, mode: str, event: gr.SelectData) -> Iterator[tuple]:
        def act(session: Session) -> Iterator[Session]:
            x, y = exports.pixel_at(session, self.size, *event.index)
            if mode == BOX:
                yield self.demo.corner(session, x, y)
            else:
                yield self.demo.click(session, x, y, mode == POSITIVE)

        yield from self._act(session, text, outline, act)

    def undo(self, session: Any, text: str, outline: bool) -> Iterator[tuple]:
        yield from self._act(session, text, outline, lambda session: [session.undo()])

    def reset(self, session: Any, text: str, outline: bool) -> Iterator[tuple]:
        yield from self._act(session, text, outline, lambda session: [session.reset()])

    def ask(self, session: Any, text: str, outline: bool) -> Iterator[tuple]:
        yield from self._act(session, text, outline, lambda session: [self.demo.ask(session)])

    def play(self, session: Any, text: str, outline: bool) -> Iterator[tuple]:
        yield from self._act(session, text, outline, self.demo.play)

    def redraw(self, session: Any, text: str, outline: bool) -> Iterator[tuple]:
        yield from self._act(session, text, outline, lambda session: [session])

    def export(self, session: Any, text: str, outline: bool) -> Iterator[tuple]:
        files: list[str] = []

        def act(session: Session) -> Iterator[Session]:
            folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
            files.extend(map(str, exports.write(session, folder)))
            yield session

        yield from self._act(session, text, outline, act, files)

    def _open(self, session: Session | None, outline: bool, begin: Callable[[], Session]) -> Iterator[tuple]:
        try:
            session = begin()
        except Exception as error:
            yield self._shown(session, outline, _told(error))
        else:
            yield self._shown(session, outline, text=session.task.instruction)

    def _act(
        self,
        session: Session | None,
        text: str,
        outline: bool,
        act: Callable[[Session], Iterable[Session]],
        files: list[str] | None = None,
    ) -> Iterator[tuple]:
        """Show each session that `act` leads to, under the instruction that stands on the page."""
        try:
            if session is None:
                raise RunError("nothing is open, or it was left too long; open a task or an image")
            for following in act(self.demo.instruct(session, text)):
                session = self.demo.instruct(following, text)
                yield self._shown(session, outline, files=files)
        except Exception as error:
            yield self._shown(session, outline, _told(error))

    def _shown(
        self,
        session: Session | None,
        outline: bool,
        error: str = "",
        text: str | None = None,
        files: list[str] | None = None,
    ) -> tuple:
        drawn = None if session is None else exports.picture(session, self.size, outline)
        told = html.rendered(
            "demo.html",
            error=error,
            moments=() if session is None else session.moments,
            corner=session is not None and session.corner is not None,
            value=self.demo.value and self.demo.value.name,
            max_steps=self.demo.mdp.max_steps,
        )
        exported = gr.update(value=files, visible=files is not None)
        return session, drawn, told, gr.skip() if text is None else text, exported


def _told(error: Exception) -> str:
    """An error for the page, without places on this machine; what is none of ours is also written to the terminal."""
    if isinstance(error, SegenvError):
        return hidden(str(error))
    traceback.print_exception(error)
    return hidden(f"{type(error).__name__}: {error}")


class OwnSources:
    """Middleware that forbids the browser to load anything of another host."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = OWN
            await send(message)

        await self.app(scope, receive, sent)


def launch(blocks: gr.Blocks, args: Args) -> str:
    """Answer at the address that `args` say, and return it; RunError where it is taken."""
    public = args.share or args.host not in LOOPBACK
    host = f"[{args.host}]" if ":" in args.host else args.host
    names = [] if public else [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])]
    try:
        _, url, shared = blocks.launch(
            server_name=host,
            server_port=args.port or _free_port(args.host),
            share=args.share,
            auth=(USER, key) if (key := password()) else None,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            enable_monitoring=False,
            max_file_size=8 * args.max_pixels + (1 << 20),  # of the largest image, in colours of 16 bits
            state_session_capacity=64,
            footer_links=[],
            theme=gr.themes.Default(**FONTS),
            css=CSS,
            app_kwargs={"middleware": [*names, Middleware(OwnSources)]},
        )
    except OSError as error:
        raise RunError(f"cannot answer at {args.host}:{args.port} ({error}); name another --port") from error
    if args.share and not shared:
        raise RunError("gradio made no public address; is its tunnel reachable? leave --share out to answer here alone")
    return shared or url


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.bind((host, 0))
        return listening.getsockname()[1]


def serve(demo: Demo, args: Args) -> None:
    """Show the page until the process is ended."""
    with tempfile.TemporaryDirectory(prefix="segenv-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        with closing(build(demo, args.size)) as blocks:
            print(f"open {launch(blocks, args)}", flush=True)
            threading.Event().wait()
