"""Requests over HTTP, on their own schedule (open loop) or each caller after its own last answer (closed loop)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from bench.workload import Asked

_TIMEOUT = 600  # seconds: longer than any queue here, so that a slow answer is measured and not lost
NO_ANSWER = 0


@dataclass(frozen=True)
class Sample:
    """One request and what became of it. Times in seconds since the load began."""

    asked: Asked
    planned: float  # when it should have been sent: a client that is late must not make the server look fast
    finished: float
    status: int
    picture: bytes

    @property
    def good(self) -> bool:
        return self.status == 200

    @property
    def latency(self) -> float:
        return self.finished - self.planned


class Client:
    """A load on one server: the clock begins when it is entered."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits, trust_env=False)

    async def __aenter__(self) -> Client:
        await self._http.__aenter__()
        await self._http.get("/livez")  # the first use of a connection is not what is measured
        self._begin = time.perf_counter()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    def now(self) -> float:
        return time.perf_counter() - self._begin

    async def ask(self, asked: Asked, planned: float) -> Sample:
        try:
            answer = await self._http.post("/v1/models/shapes:predict", json=asked.body)
        except httpx.HTTPError:
            return Sample(asked, planned, self.now(), NO_ANSWER, b"")
        return Sample(asked, planned, self.now(), answer.status_code, answer.content)


async def open_loop(url: str, requests: Sequence[Asked], times: Sequence[float]) -> list[Sample]:
    """Each at its time, whether or not those before it have been answered."""
    async with Client(url) as client:

        async def ask_at(asked: Asked, planned: float) -> Sample:
            await asyncio.sleep(planned - client.now())
            return await client.ask(asked, planned)

        return await asyncio.gather(*map(ask_at, requests, times))


async def closed_loop(url: str, requests: Sequence[Asked], callers: int) -> list[Sample]:
    """`callers` at a time, each asking again as soon as it is answered. In the order of `requests`."""
    samples: dict[int, Sample] = {}
    todo = iter(enumerate(requests))
    async with Client(url) as client:

        async def keep_asking() -> None:
            for i, asked in todo:
                samples[i] = await client.ask(asked, client.now())

        await asyncio.gather(*(keep_asking() for _ in range(callers)))
    return [samples[i] for i in range(len(requests))]
