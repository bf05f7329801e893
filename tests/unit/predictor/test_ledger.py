"""What is known of a request by its id, on a loop of its own."""

import asyncio
from types import SimpleNamespace

import pytest

from fakes import Clock
from predictor.errors import Cancelled, DeadlineExceeded, UnknownRequest
from predictor.job import Progress
from predictor.ledger import Ledger, News


def job(stage: str = "queue", step: int = 0, steps: int = 10) -> SimpleNamespace:
    return SimpleNamespace(stage=stage, step=step, steps=steps, remaining=1.5)


def on_a_loop(scenario):
    asyncio.run(scenario())


def test_an_entry_tells_where_its_jobs_stand():
    async def scenario():
        first, second = job(), job()
        entry = Ledger().open("r", [first, second], News())
        assert entry.told() == {"id": "r", "state": "queued", "step": 0, "of": 20}
        first.stage, first.step = "denoise", 4
        assert entry.told() == {"id": "r", "state": "running", "step": 4, "of": 20}
        assert entry.remaining == 3.0

    on_a_loop(scenario)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, {"state": "done"}),
        (Cancelled("gone"), {"state": "cancelled", "status": 499, "error": "gone"}),
        (DeadlineExceeded("late"), {"state": "failed", "status": 504, "error": "late"}),
    ],
)
def test_what_is_over_says_how_it_ended_and_lets_the_pictures_go(error, told):
    async def scenario():
        ledger = Ledger()
        entry = ledger.open("r", [job("decode", 7)], News())
        ledger.end(entry, error)
        assert ledger.find("r") is entry
        assert entry.told() == {"id": "r", "step": 7, "of": 10} | told
        assert entry.jobs == () and entry.over.is_set()

    on_a_loop(scenario)


def test_what_is_over_is_forgotten_after_ten_minutes_and_beyond_a_thousand():
    async def scenario():
        clock = Clock()
        ledger = Ledger(clock)
        for i in range(1001):
            ledger.end(ledger.open(f"r{i}", [job()], News()), None)
        with pytest.raises(UnknownRequest, match="no request of this id was accepted here in the last 10 minutes"):
            ledger.find("r0")
        assert ledger.find("r1").state == "done"
        running = ledger.open("running", [job()], News())
        clock.now += 601
        with pytest.raises(UnknownRequest):
            ledger.find("r1000")
        assert ledger.find("running") is running

    on_a_loop(scenario)


def test_an_id_that_comes_twice_means_the_newer():
    async def scenario():
        ledger = Ledger()
        first = ledger.open("r", [job()], News())
        second = ledger.open("r", [job()], News())
        ledger.end(first, Cancelled("gone"))
        assert ledger.find("r") is second
        ledger.end(second, None)
        assert ledger.find("r").state == "done"

    on_a_loop(scenario)


def test_a_caller_finds_its_own_the_oldest_first():
    async def scenario():
        ledger = Ledger()
        mine = [ledger.open(name, [job()], News(), caller="me") for name in ("a", "b")]
        ledger.open("c", [job()], News(), caller="you")
        ledger.open("d", [job()], News())
        assert ledger.under_way("me") == mine
        ledger.end(mine[0], None)
        assert ledger.under_way("me") == mine[1:]

    on_a_loop(scenario)


def test_who_reads_slowly_gets_the_newest_step_and_every_preview():
    async def scenario():
        news = News()
        for step in range(1, 6):
            news.tell(Progress(step, 5, f"preview {step}" if step % 2 == 0 else None))
        await news.arrival()
        assert news.take() == [Progress(2, 5, "preview 2"), Progress(4, 5, "preview 4"), Progress(5, 5)]
        assert news.preview == "preview 4"
        waiting = asyncio.create_task(news.arrival())
        await asyncio.sleep(0)
        assert not waiting.done()
        news.tell(Progress(5, 5))
        await waiting

    on_a_loop(scenario)


def test_news_for_a_loop_that_has_ended_are_dropped():
    async def scenario():
        return News()

    news = asyncio.run(scenario())
    news.tell(Progress(1, 2))
    assert news.take() == []
