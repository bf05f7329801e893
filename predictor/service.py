"""The life of the one model that this process serves, and what every protocol's door calls: loading → ready → draining."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from predictor import images, telemetry
from predictor.engine import Engine
from predictor.errors import Cancelled, InvalidRequest, NotServing
from predictor.job import Job, Result
from predictor.model import TextToImage, load
from predictor.request import Answer, GenerateRequest, Params, check_cost, parse
from predictor.settings import Settings
from predictor.warmup import warm_up

Gone = Callable[[], Coroutine[Any, Any, object]]

_LOADING_RETRY = 5  # seconds


class Service:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.name
        self._phase = "starting"  # what it tells those who find it not ready
        self._draining = False
        self._model: TextToImage | None = None
        self._engine: Engine | None = None
        self._answering: set[asyncio.Task[Any]] = set()
        self._work: set[asyncio.Task[Any]] = set()
        # Tokenizers are not for two threads at once, and not for the event loop: thousands of characters take their time.
        self._reader = ThreadPoolExecutor(1, "reader")

    @property
    def ready(self) -> bool:
        return self._engine is not None and self._engine.alive and not self._draining

    def check_ready(self) -> None:
        """Raises NotServing, with the reason."""
        if not self.ready:
            reason = "draining" if self._draining else self._phase if self._engine is None else "its device does not answer"
            raise NotServing(f"model {self.name} is not ready: {reason}", retry_after=_LOADING_RETRY)

    @property
    def alive(self) -> bool:
        """Answered from the engine's heartbeat: a web loop that answers proves nothing about the device."""
        return self._engine is None or self._engine.alive

    def load(self) -> None:
        """Blocks until first pictures have been made. Raises StartupErrors."""
        begin = time.monotonic()
        model = load(self.settings, self._enter)
        self._enter("making warm-up pictures")
        model, shares = warm_up(model, self.settings.max_rows)
        settings = self.settings
        engine = Engine(
            model,
            max_rows=settings.max_rows if shares else 1,
            max_queue=settings.max_queue,
            hang_after=settings.hang_after,
        )
        engine.start()
        self._model, self._engine = model, engine
        if not self._draining:
            seconds = round(time.monotonic() - begin, 2)
            self._enter("ready", commit=model.snapshot.commit, shares_forwards=shares, seconds=seconds)

    def _enter(self, phase: str, **fields: object) -> None:
        self._phase = phase
        telemetry.event(phase, model=self.name, **fields)

    async def generate(self, requests: Sequence[GenerateRequest], *, request_id: str, gone: Gone) -> list[Answer]:
        """An answer for each request, in order, or a ServingError for all of them. `gone` returns when the caller is no longer
        there: then the work stops and Cancelled is raised."""
        self.check_ready()
        assert self._model and self._engine
        model, engine = self._model, self._engine
        params = [parse(request, model.limits) for request in requests]
        check_cost(params, model.limits)
        engine.check_room(sum(each.num_images_per_prompt for each in params))
        loop, pairs = asyncio.get_running_loop(), list(zip(requests, params, strict=True))
        dropped = await loop.run_in_executor(self._reader, lambda: [self._read(model, *pair) for pair in pairs])
        jobs = engine.submit(params, timeout=self.settings.timeout, request_id=request_id)
        self._let_a_drain_wait()
        try:
            return await self._unless_gone(self._answers(model, jobs, dropped), gone)
        finally:
            for job in jobs:
                if not job.future.done():
                    engine.cancel(job)

    def _let_a_drain_wait(self) -> None:
        """For the task of this request, which ends when its answer is on the wire."""
        task = asyncio.current_task()
        assert task
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _read(self, model: TextToImage, request: GenerateRequest, params: Params) -> int:
        """Tokens that no encoder reads. Raises InvalidRequest."""
        model.check_steps(params, request.where)
        dropped = sum(model.dropped_tokens(text) for text in (params.prompt, params.negative_prompt) if text)
        if dropped and self.settings.refuse_truncation:
            raise InvalidRequest(f"{request.where}prompt is {dropped} tokens longer than this model's text encoder reads")
        return dropped

    async def _unless_gone(self, answers: Coroutine[Any, Any, list[Answer]], gone: Gone) -> list[Answer]:
        work, watch = asyncio.create_task(answers), asyncio.create_task(gone())
        self._work.add(work)
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Cancelled("the caller went away")
            if work.cancelled():  # by a drain whose time is up
                raise NotServing("this replica was shut down before the picture was finished", retry_after=1)
            return work.result()
        finally:
            self._work.discard(work)
            work.cancel()
            watch.cancel()

    async def _answers(self, model: TextToImage, jobs: list[Job], dropped: list[int]) -> list[Answer]:
        results = await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        finished = zip((job.params for job in jobs), results, dropped, strict=True)
        return await asyncio.gather(*(self._answer(model, *each) for each in finished))

    async def _answer(self, model: TextToImage, params: Params, result: Result, dropped: int) -> Answer:
        begin = time.monotonic()
        pictures = await asyncio.gather(
            *(
                asyncio.to_thread(images.encode, image, params.output_format, self._provenance(model, params, seed, image.size))
                for image, seed in zip(result.output.images, params.seeds, strict=True)
            )
        )
        flagged: Iterable[bool] | None = getattr(result.output, "nsfw_content_detected", None)
        seconds = {**result.seconds, "encode": time.monotonic() - begin}
        return Answer(params, tuple(pictures), seconds, dropped, tuple(map(bool, flagged)) if flagged is not None else None)

    def _provenance(self, model: TextToImage, params: Params, seed: int, size: tuple[int, int]) -> Mapping[str, object]:
        """What to send to get the image again, alone."""
        kept = {name: value for name, value in vars(params).items() if value is not None}
        if not self.settings.embed_prompt:
            kept = images.without_prompts(kept)
        asked = kept | {"seed": seed, "width": size[0], "height": size[1], "num_images_per_prompt": 1}
        return {"model": model.snapshot.repo, "commit": model.snapshot.commit, "pipeline": model.snapshot.pipeline} | asked

    async def drain(self, hurry: asyncio.Future[None]) -> None:
        """Takes no more work and waits for what is accepted to be answered, until `grace_period` is over or `hurry` is done;
        what is then unfinished is answered with 503."""
        self._draining = True
        telemetry.event("draining", model=self.name, requests=len(self._answering))
        if self._engine is None:
            return
        self._engine.close(NotServing("this replica is shutting down", retry_after=1))
        end = time.monotonic() + self.settings.grace_period
        while self._answering and not hurry.done() and (left := end - time.monotonic()) > 0:
            await asyncio.wait({*self._answering, hurry}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if self._answering:
            telemetry.event("grace period over", unfinished=len(self._answering))
        for work in self._work:
            work.cancel()
        self._engine.stop(NotServing("this replica has shut down", retry_after=1))
