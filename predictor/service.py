"""The life of the one model that this process serves, and what every protocol's door calls: loading → ready → draining."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from predictor import loading, metrics, telemetry, tracing
from predictor.answers import Answers, Inscription, Previews
from predictor.errors import AlreadyOver, Cancelled, GenerationFailed, InvalidRequest, NotServing, ServingError
from predictor.images import EncodedImage
from predictor.job import Job, Progress, Result, Watch
from predictor.ledger import Entry, Ledger, News
from predictor.loading import Loaded
from predictor.model import TextToImage
from predictor.phases import Phases
from predictor.request import Answer, GenerateRequest, Limits, Params, Step, check_cost, parse
from predictor.settings import Settings

Gone = Callable[[], Coroutine[Any, Any, object]]
Told = AsyncGenerator[Step | Answer, None]

_LOADING_RETRY = 5  # seconds
_QUIET = 10.0  # seconds after which a stream repeats itself: proxies close connections on which nothing happens
_PROMPT = 5.0  # seconds in which a cancelled request should be over: a step


@dataclass(frozen=True)
class _Accepted:
    """Requests of one call, with the tokens of each: of its prompt, and those that no encoder reads."""

    jobs: list[Job]
    tokens: list[tuple[int, int]]
    news: News
    answers: Answers


class Service:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.name
        self._phase = "starting"  # what it tells those who find it not ready
        self._draining = False
        self._loaded: Loaded | None = None
        self._ledger = Ledger()
        self._answering: set[asyncio.Task[Any]] = set()
        self._work: set[asyncio.Task[Any]] = set()
        # Tokenizers are not for two threads at once, and not for the event loop: thousands of characters take their time.
        self._reader = ThreadPoolExecutor(1, "reader")
        metrics.ready.set_function(lambda: self.ready)
        metrics.timeout_seconds.set(settings.timeout)
        metrics.accepted_work_limit_seconds.set(settings.max_queue_seconds)

    @property
    def ready(self) -> bool:
        return self._loaded is not None and self._loaded.engine.alive and not self._draining

    def check_ready(self) -> None:
        """Raises NotServing, with the reason."""
        if not self.ready:
            reason = "draining" if self._draining else "device" if self._loaded else "loading"
            told = {"draining": reason, "loading": self._phase, "device": "its device does not answer"}[reason]
            raise NotServing(f"model {self.name} is not ready: {told}", retry_after=_LOADING_RETRY, reason=reason)

    @property
    def alive(self) -> bool:
        """Answered from the engine's heartbeat: a web loop that answers proves nothing about the device."""
        return self._loaded is None or self._loaded.engine.alive

    def load(self, on_fault: Callable[[], None] = lambda: None, phases: Phases | None = None) -> None:
        """Blocks until first pictures have been made. Raises StartupErrors. `on_fault` is called, in a thread of its own, when
        this process can no longer serve. `phases`: those of the start, of which the last has not ended."""
        loaded = loading.load(self.settings, self._enter, phases or Phases("imports"), on_fault)
        self._loaded = loaded
        if not self._draining:
            self._enter("ready", **loaded.told)

    def compile(self) -> None:
        """What `--compile` asks for, once loaded. Blocks for minutes, while the engine serves with the module as it is."""
        if self.settings.compile and self._loaded:
            self._loaded.compile()

    def _enter(self, phase: str, **fields: object) -> None:
        self._phase = phase
        telemetry.event(phase, model=self.name, **fields)

    @property
    def model(self) -> TextToImage:
        """Raises NotServing while there is none."""
        if self._loaded is None:
            self.check_ready()
        assert self._loaded
        return self._loaded.model

    @property
    def limits(self) -> Limits:
        """Raises NotServing while they are not known."""
        return self.model.limits

    async def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        request_id: str,
        gone: Gone,
        caller: Hashable = None,
        previews: Previews | None = None,
        inscription: Inscription | None = None,
    ) -> list[Answer]:
        """An answer for each request, in order, or a ServingError for all of them. `gone` returns when the caller is no longer
        there: then the work stops and Cancelled is raised. `caller` and `previews` are for those who ask `under_way`."""
        accepted = await self._accept(requests, request_id, previews, inscription)
        with self._followed(accepted, request_id, caller):
            work, watch = self._begin(self._answers(accepted)), asyncio.create_task(gone())
            try:
                await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise Cancelled("the caller went away")
                return _outcome(work)
            finally:
                work.cancel()
                watch.cancel()

    async def stream(
        self, request: GenerateRequest, *, request_id: str, previews: Previews
    ) -> AsyncGenerator[Step | Answer, None]:
        """A step at once, or a ServingError where the request is refused; then steps as they are made, and the answer, or a
        ServingError. Closing it stops the work."""
        accepted = await self._accept([request], request_id, previews)
        [job] = accepted.jobs
        with self._followed(accepted, request_id, None) as entry:
            work = self._begin(self._answers(accepted))
            try:
                yield Step(entry.state, 0, job.steps)
                while not work.done():
                    arrival = asyncio.create_task(accepted.news.arrival())
                    await asyncio.wait((work, arrival), timeout=_QUIET, return_when=asyncio.FIRST_COMPLETED)
                    arrival.cancel()
                    for progress in accepted.news.take() or [Progress(job.step, job.steps)]:
                        yield await accepted.answers.step(entry.state, job.params, progress, previews)
                yield _outcome(work)[0]
            finally:
                work.cancel()

    async def cancel(self, request_id: str) -> Entry:
        """Returns when it is over, a step later or so. Raises UnknownRequest or AlreadyOver."""
        entry = self.find(request_id)
        if entry.over.is_set():
            raise AlreadyOver(f"this request is over: {entry.state}")
        await self._cancel([entry])
        return entry

    async def cancel_all(self, caller: Hashable) -> None:
        await self._cancel(self._ledger.under_way(caller))

    def find(self, request_id: str) -> Entry:
        """Raises UnknownRequest."""
        return self._ledger.find(request_id)

    def under_way(self, caller: Hashable) -> Entry | None:
        """The oldest request of a caller, where there is one."""
        return next(iter(self._ledger.under_way(caller)), None)

    async def newest_preview(self, entry: Entry) -> EncodedImage | None:
        """As PNG, where one has been made."""
        pixels = entry.news.preview
        return await Answers(self.model.snapshot, self.settings.embed_prompt).preview(pixels, "png") if pixels else None

    async def _cancel(self, entries: Iterable[Entry]) -> None:
        assert self._loaded
        entries = list(entries)
        for job in (job for entry in entries for job in entry.jobs):
            self._loaded.engine.cancel(job)
        with suppress(TimeoutError):
            async with asyncio.timeout(_PROMPT):
                await asyncio.gather(*(entry.over.wait() for entry in entries))

    async def _accept(
        self,
        requests: Sequence[GenerateRequest],
        request_id: str,
        previews: Previews | None,
        inscription: Inscription | None = None,
    ) -> _Accepted:
        self.check_ready()
        assert self._loaded
        model, engine = self._loaded.model, self._loaded.engine
        params = [parse(request, model.limits) for request in requests]
        check_cost(params, model.limits)
        engine.check_room(params, timeout=self.settings.timeout)
        loop, pairs = asyncio.get_running_loop(), list(zip(requests, params, strict=True))
        tokens = await loop.run_in_executor(self._reader, lambda: [self._read(model, *pair) for pair in pairs])
        news = News()
        watch = Watch(news.tell, previews.due) if previews else None
        jobs = engine.submit(params, timeout=self.settings.timeout, request_id=request_id, watch=watch)
        self._let_a_drain_wait()
        answers = Answers(model.snapshot, self.settings.embed_prompt, self._loaded.signer, inscription)
        return _Accepted(jobs, tokens, news, answers)

    @contextmanager
    def _followed(self, accepted: _Accepted, request_id: str, caller: Hashable) -> Iterator[Entry]:
        """Its way into the ledger and, whatever happens, out of the engine."""
        assert self._loaded
        entry = self._ledger.open(request_id, accepted.jobs, accepted.news, caller)
        over = tracing.follow(accepted.jobs, accepted.tokens, self.name)
        error: ServingError | None = Cancelled("the caller went away")
        try:
            yield entry
            error = None
        except Exception as failure:
            error = failure if isinstance(failure, ServingError) else GenerationFailed("internal error")
            raise
        finally:
            for job in accepted.jobs:
                if not job.future.done():
                    self._loaded.engine.cancel(job)
            _count(accepted.jobs, error)
            over(error)
            self._ledger.end(entry, error)

    def _let_a_drain_wait(self) -> None:
        """For the task of this request, which ends when its answer is on the wire."""
        task = asyncio.current_task()
        assert task
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _read(self, model: TextToImage, request: GenerateRequest, params: Params) -> tuple[int, int]:
        """Tokens of the prompt, and how many no encoder reads. Raises InvalidRequest."""
        model.check_steps(params, request.name_of("num_inference_steps"))
        tokens, dropped = model.tokens(params.prompt)
        dropped += model.tokens(params.negative_prompt)[1] if params.negative_prompt else 0
        if dropped and self.settings.refuse_truncation:
            name = request.name_of("prompt")
            raise InvalidRequest(f"{name} is {dropped} tokens longer than this model's text encoder reads", field=name)
        return tokens, dropped

    def _begin(self, answers: Coroutine[Any, Any, list[Answer]]) -> asyncio.Task[list[Answer]]:
        work = asyncio.create_task(answers)
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        work.add_done_callback(lambda work: work.cancelled() or work.exception())  # seen, should nobody be left to see it
        return work

    async def _answers(self, accepted: _Accepted) -> list[Answer]:
        results = await asyncio.gather(*(asyncio.wrap_future(job.future) for job in accepted.jobs))
        finished = zip(accepted.jobs, results, accepted.tokens, strict=True)
        answers = await asyncio.gather(*(_encoded(accepted.answers, *each) for each in finished))
        for answer in answers:
            metrics.made(len(answer.images), answer.seconds)
        return answers

    async def drain(self, hurry: asyncio.Future[None]) -> None:
        """Takes no more work and waits for what is accepted to be answered, until `grace_period` is over or `hurry` is done;
        what is then unfinished is answered with 503."""
        self._draining = True
        telemetry.event("draining", model=self.name, requests=len(self._answering))
        if self._loaded is None:
            return
        self._loaded.engine.close(NotServing("this replica is shutting down", retry_after=1, reason="draining"))
        end = time.monotonic() + self.settings.grace_period
        while self._answering and not hurry.done() and (left := end - time.monotonic()) > 0:
            await asyncio.wait({*self._answering, hurry}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if self._answering:
            telemetry.event("grace period over", unfinished=len(self._answering))
        for work in self._work:
            work.cancel()
        self._loaded.engine.stop(NotServing("this replica has shut down", retry_after=1, reason="draining"))


async def _encoded(answers: Answers, job: Job, result: Result, tokens: tuple[int, int]) -> Answer:
    job.enter("encode", time.monotonic())
    try:
        return await answers.answer(job.params, result, tokens)
    finally:
        job.enter("done", time.monotonic())


def _outcome(work: asyncio.Task[list[Answer]]) -> list[Answer]:
    if work.cancelled():  # by a drain whose time is up
        raise NotServing("this replica was shut down before the picture was finished", retry_after=1, reason="draining")
    return work.result()


def _count(jobs: Sequence[Job], error: ServingError | None) -> None:
    """When their call is over, finished or not."""
    now = time.monotonic()
    for job in jobs:
        metrics.queue_seconds.observe(job.seconds.get("queue", now - job.arrived))
        if isinstance(error, Cancelled) and job.stage != "done":
            metrics.cancelled.labels(job.stage).inc()
