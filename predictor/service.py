"""The life of the one model that this process serves, and what every protocol's door calls: loading → ready → draining."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from predictor import images, metrics, telemetry
from predictor.compiler import compiled
from predictor.engine import Engine, Policy
from predictor.errors import Cancelled, InvalidRequest, NotServing
from predictor.images import EncodedImage
from predictor.job import Job, Result
from predictor.model import TextToImage, load
from predictor.phases import Phases
from predictor.pixels import Pixels
from predictor.rendezvous import Call, Rendezvous, resized
from predictor.request import Answer, GenerateRequest, Params, check_cost, parse
from predictor.settings import Settings
from predictor.warmup import Findings, warm_up

Gone = Callable[[], Coroutine[Any, Any, object]]

_LOADING_RETRY = 5  # seconds
# By the first word of what is told about it.
_PHASES = {"looking": "read", "reading": "read", "moving": "to_device", "making": "warm_up"}
_REPRODUCIBLE_ROWS = 8  # of every forward: what is measured differs from one start to the next


class Service:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.name
        self._phase = "starting"  # what it tells those who find it not ready
        self._draining = False
        self._model: TextToImage | None = None
        self._engine: Engine | None = None
        self._call: Call | None = None  # of the denoiser, an example
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

    def load(self, on_fault: Callable[[], None] = lambda: None, phases: Phases | None = None) -> None:
        """Blocks until first pictures have been made. Raises StartupErrors. `on_fault` is called, in a thread of its own, when
        this process can no longer serve. `phases`: those of the start, of which the last has not ended."""
        phases, settings = phases or Phases("imports"), self.settings

        def enter(what: str) -> None:
            phases.begin(_PHASES[what.partition(" ")[0]])
            self._enter(what)

        model = load(settings, enter)
        enter("making warm-up pictures")
        found = warm_up(model, settings.max_rows or (_REPRODUCIBLE_ROWS if settings.reproducible else None))
        self._model, self._engine = found.model, Engine(found.model, _policy(settings, found), on_fault=on_fault)
        self._engine.start()
        phases.begin("ready")
        for phase, seconds in phases.seconds.items():
            metrics.start_seconds.labels(phase).set(seconds)
        metrics.mode.labels("shared" if found.shares else "turns", found.reason).set(1)
        if not self._draining:
            self._enter(
                "ready",
                commit=model.snapshot.commit,
                shares_forwards=found.shares,
                row_limit=found.row_limit,
                reason=found.reason,
                forward_ms={rows: round(1000 * seconds, 2) for rows, seconds in found.curve.measured.items()},
                seconds={phase: round(seconds, 2) for phase, seconds in phases.seconds.items()},
            )
        self._call = found.call if settings.compile else None

    def compile(self) -> None:
        """What `--compile` asks for, once loaded. Blocks for minutes, while the engine serves with the module as it is."""
        if not (self.settings.compile and self._call and self._model and self._engine):
            return
        begin = time.monotonic()
        try:
            examples = [resized(self._call, rows).arguments for rows in (1, 2, self._call.rows)]
            twin = compiled(Rendezvous(self._model.pipe).denoiser, examples)
            self._engine.replace_denoiser(twin)
        except Exception as error:  # noqa: BLE001  a compiler has no end of ways to fail, and nothing depends on it
            telemetry.failure("not compiled: serving as before", model=self.name, **telemetry.described(error))
        else:
            self._call = None
            telemetry.event("compiled", model=self.name, seconds=round(time.monotonic() - begin, 2))

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
        engine.check_room(params, timeout=self.settings.timeout)
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
                asyncio.to_thread(self._encode, model, params, result.output.images, i)
                for i in range(params.num_images_per_prompt)
            )
        )
        flagged: Iterable[bool] | None = getattr(result.output, "nsfw_content_detected", None)
        seconds = {**result.seconds, "encode": time.monotonic() - begin}
        return Answer(params, tuple(pictures), seconds, dropped, tuple(map(bool, flagged)) if flagged is not None else None)

    def _encode(self, model: TextToImage, params: Params, pixels: Pixels, i: int) -> EncodedImage:
        """Waits for the picture to come from the device."""
        picture = pixels[i]
        return images.encode(picture, params.output_format, self._provenance(model, params, params.seeds[i], picture.shape))

    def _provenance(self, model: TextToImage, params: Params, seed: int, shape: Sequence[int]) -> Mapping[str, object]:
        """What to send to get the image again, alone. `shape`: [height, width, …]."""
        kept = {name: value for name, value in vars(params).items() if value is not None}
        if not self.settings.embed_prompt:
            kept = images.without_prompts(kept)
        asked = kept | {"seed": seed, "width": shape[1], "height": shape[0], "num_images_per_prompt": 1}
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


def _policy(settings: Settings, found: Findings) -> Policy:
    return Policy(
        curve=found.curve,
        row_limit=found.row_limit,
        first_come=settings.order == "first-come",
        fixed_rows=settings.reproducible,
        max_seconds=settings.max_queue_seconds,
        hang_after=settings.hang_after,
    )
