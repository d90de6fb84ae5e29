"""The thread in which a service calls its tool, and the requests that wait for it."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from segenv.tools.base import SegTool
from segenv.types import Prediction, Prompt, ToolError


@dataclass(eq=False)
class Job:
    """Images to encode and, one for each of them, prompts to answer; without prompts, images to encode alone."""

    images: Sequence[np.ndarray]
    hashes: Sequence[str]
    prompts: Sequence[Prompt] = ()
    future: "asyncio.Future[list[Prediction]]" = field(default_factory=lambda: asyncio.Future())


class Batches:
    """Answers jobs in one thread, in the order of their coming.

    With `batch_size` 1 the tool is called for each job by itself, so that a client's results do not depend on the
    others. Above 1, jobs that come within `window` seconds are answered together, until they have so many images; the
    last bits of a learned model then depend on who asks at the same time. A job that fails fails alone.
    """

    def __init__(self, tool: SegTool, batch_size: int, window: float) -> None:
        self.tool, self.batch_size, self.window = tool, batch_size, window
        self.calls = self.jobs = 0  # of the tool, and for how many jobs
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "tool")

    async def answer(self, job: Job) -> list[Prediction]:
        """The predictions of a job."""
        self._queue.put_nowait(job)
        return await job.future

    async def run(self) -> None:
        """Work, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                jobs = await self._next()
                found: list[list[Prediction] | Exception]
                try:
                    found = await loop.run_in_executor(self._thread, self._work, jobs)
                except Exception as error:
                    found = [error] * len(jobs)
                for job, result in zip(jobs, found, strict=True):
                    if job.future.done():  # its client went away
                        continue
                    if isinstance(result, ToolError):
                        job.future.set_exception(result)
                    elif isinstance(result, Exception):  # a future takes no StopIteration
                        reason = f"{self.tool.spec}: {type(result).__name__}: {result}"
                        job.future.set_exception(ToolError(reason))
                    else:
                        job.future.set_result(result)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> list[Job]:
        jobs = [await self._queue.get()]
        count, end = len(jobs[0].images), asyncio.get_running_loop().time() + self.window
        while count < self.batch_size:
            if self._queue.empty():
                left = end - asyncio.get_running_loop().time()
                with suppress(asyncio.TimeoutError):
                    jobs.append(await asyncio.wait_for(self._queue.get(), max(left, 0)))
                    count += len(jobs[-1].images)
                    continue
                break
            jobs.append(self._queue.get_nowait())
            count += len(jobs[-1].images)
        return jobs

    def _work(self, jobs: Sequence[Job]) -> list[list[Prediction] | Exception]:
        self.calls, self.jobs = self.calls + 1, self.jobs + len(jobs)
        try:
            return list(self._together(jobs))
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        return [result for job in jobs for result in self._work([job])]

    def _together(self, jobs: Sequence[Job]) -> list[list[Prediction]]:
        images = [image for job in jobs for image in job.images]
        encodings = self.tool.encode(images, [digest for job in jobs for digest in job.hashes])
        asked, prompts, place = [], list[Prompt](), 0
        for job in jobs:
            asked += encodings[place : place + len(job.prompts)]
            prompts += job.prompts
            place += len(job.images)
        answers = iter(self.tool.predict(asked, prompts) if prompts else ())
        return [[next(answers) for _ in job.prompts] for job in jobs]
