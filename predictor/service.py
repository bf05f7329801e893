"""The life of the one model that this process serves, and what every protocol's door calls: loading → ready → draining."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from predictor import images, telemetry
from predictor.engine import Engine, Job, Result
from predictor.errors import Cancelled, GenerationFailed, InvalidRequest, ModelNotLoadable, NotServing
from predictor.model import TextToImage, load
from predictor.request import Answer, GenerateRequest, Params, check_cost, parse
from predictor.settings import Settings

Gone = Callable[[], Coroutine[Any, Any, object]]

_WARM_UP = "a picture"
_LOADING_RETRY = 5  # seconds


class Service:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.name
        self.phase = "starting"  # for people: why it is not ready
        self._model: TextToImage | None = None
        self._engine: Engine | None = None

    @property
    def ready(self) -> bool:
        return self.phase == "ready"

    @property
    def alive(self) -> bool:
        """Answered from the engine's heartbeat: a web loop that answers proves nothing about the device."""
        return self._engine is None or self._engine.alive

    def load(self) -> None:
        """Blocks until a first picture has been made. Raises StartupErrors."""
        begin = time.monotonic()
        model = load(self.settings, self._enter)
        settings = self.settings
        engine = Engine(model, max_rows=settings.max_rows, max_queue=settings.max_queue, hang_after=settings.hang_after)
        engine.start()
        self._enter("making a warm-up picture")
        # Few steps, yet two: the second is the first that finds a sampler with a history.
        steps = next((few for few in (2, 4) if model.takes_steps(None, few)), 2)
        params = parse(GenerateRequest(_WARM_UP, {"num_inference_steps": steps, "seed": 0}), model.limits)
        [job] = engine.submit([params], timeout=settings.timeout, request_id="warm-up")
        try:
            if not getattr(job.future.result().output, "images", None):
                raise ModelNotLoadable(f"{model.snapshot.pipeline} returned no images: it is no text-to-image pipeline")
        except GenerationFailed as error:
            raise ModelNotLoadable(
                f"{model.snapshot.pipeline} loaded but failed on a warm-up picture; the log line before this says where"
            ) from error
        self._model, self._engine = model, engine
        if self.phase != "draining":
            self._enter("ready", commit=model.snapshot.commit, seconds=round(time.monotonic() - begin, 2))

    def _enter(self, phase: str, **fields: object) -> None:
        self.phase = phase
        telemetry.event(phase, model=self.name, **fields)

    async def generate(self, requests: Sequence[GenerateRequest], *, request_id: str, gone: Gone) -> list[Answer]:
        """An answer for each request, in order, or a ServingError for all of them. `gone` returns when the caller is no longer
        there: then the work stops and Cancelled is raised."""
        if not self.ready or self._model is None or self._engine is None:
            raise NotServing(f"model {self.name} is not ready: {self.phase}", retry_after=_LOADING_RETRY)
        model, engine = self._model, self._engine
        params = [parse(request, model.limits) for request in requests]
        check_cost(params, model.limits)
        for request, each in zip(requests, params, strict=True):
            model.check_steps(each, request.where)
        dropped = [self._dropped(model, request, each) for request, each in zip(requests, params, strict=True)]
        jobs = engine.submit(params, timeout=self.settings.timeout, request_id=request_id)
        results = await self._results(engine, jobs, gone)
        return await asyncio.gather(*(self._answer(model, *each) for each in zip(params, results, dropped, strict=True)))

    def _dropped(self, model: TextToImage, request: GenerateRequest, params: Params) -> int:
        dropped = sum(model.dropped_tokens(text) for text in (params.prompt, params.negative_prompt) if text)
        if dropped and self.settings.refuse_truncation:
            raise InvalidRequest(f"{request.where}prompt is {dropped} tokens longer than this model's text encoder reads")
        return dropped

    async def _results(self, engine: Engine, jobs: list[Job], gone: Gone) -> list[Result]:
        work = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        watch = asyncio.create_task(gone())
        try:
            await _first_of(work, watch)
            if not work.done():
                raise Cancelled("the caller went away")
            return list(work.result())
        finally:
            watch.cancel()
            work.cancel()
            for job in jobs:
                if not job.future.done():
                    engine.cancel(job)

    async def _answer(self, model: TextToImage, params: Params, result: Result, dropped: int) -> Answer:
        begin = time.monotonic()
        pictures = await asyncio.gather(
            *(
                asyncio.to_thread(images.encode, image, params.output_format, self._provenance(model, params, seed))
                for image, seed in zip(result.output.images, params.seeds, strict=True)
            )
        )
        flagged: Iterable[bool] | None = getattr(result.output, "nsfw_content_detected", None)
        seconds = {**result.seconds, "encode": time.monotonic() - begin}
        return Answer(params, tuple(pictures), seconds, dropped, tuple(map(bool, flagged)) if flagged is not None else None)

    def _provenance(self, model: TextToImage, params: Params, seed: int) -> Mapping[str, object]:
        """What to send to get the image again, alone."""
        kept = {name: value for name, value in vars(params).items() if value is not None}
        if not self.settings.embed_prompt:
            kept = {name: value for name, value in kept.items() if not name.endswith("prompt")}
        asked = kept | {"seed": seed, "num_images_per_prompt": 1}
        return {"model": model.snapshot.repo, "commit": model.snapshot.commit, "pipeline": model.snapshot.pipeline} | asked

    async def drain(self, hurry: asyncio.Future[None]) -> None:
        """Takes no more work and waits for what is accepted, until `grace_period` is over or `hurry` is done; what is then
        unfinished is answered with 503."""
        self._enter("draining", open=len(self._engine.open_jobs) if self._engine else 0)
        if self._engine is None:
            return
        reason = NotServing("this replica is shutting down", retry_after=1)
        self._engine.close(reason)
        accepted = asyncio.gather(*map(_ended, self._engine.open_jobs))
        await _first_of(accepted, hurry, seconds=self.settings.grace_period)
        accepted.cancel()
        if unfinished := len(self._engine.open_jobs):
            telemetry.event("grace period over", unfinished=unfinished)
        self._engine.stop(NotServing("this replica was shut down before the picture was finished", retry_after=1))


async def _first_of(*futures: asyncio.Future[Any], seconds: float | None = None) -> None:
    await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


async def _ended(job: Job) -> None:
    await asyncio.wait({asyncio.wrap_future(job.future)})
