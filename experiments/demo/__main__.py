"""Click on an image in the browser, and let an agent click: a page that shows masks and values, and exports them.

    python -m experiments.demo
    python -m experiments.demo --agent mllm:NAME_OR_PATH --codec qwen2.5-vl --tool sam:NAME_OR_PATH --port 0

Open a task of --data or your own image, click, draw a box, undo, and let the agent take the next step or play to the
end. The page answers this machine alone. To answer others, set SEGENV_DEMO_PASSWORD and give --host, or --share for a
public address of gradio's; the user's name is segenv. Without --share nothing is downloaded or sent.
"""

import sys
from functools import partial

from experiments.common import cli
from experiments.demo.config import Args


def show(args: Args) -> None:
    """Show the page until the process is ended."""
    args.check_access()
    with cli.setting_up("the demo"):
        from experiments.demo import page
        from experiments.demo.session import Demo
        from search.executors import Player, Setup

        setup = Setup(
            args.data, args.tool, args.agent, args.codec, args.max_steps, seed=args.seed, threads=args.threads
        )
        demo = Demo(Player(setup), args.value, args.max_pixels)
    page.serve(demo, args)


main = partial(cli.main, "demo", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
