"""The service with a real toy model, in one process and without HTTP."""

import asyncio
import io
import shutil

import pytest
from PIL import Image

import toys
from predictor.answers import Previews
from predictor.errors import (
    AlreadyOver,
    Cancelled,
    InvalidRequest,
    ModelNotFound,
    ModelNotLoadable,
    NotServing,
    UnknownRequest,
)
from predictor.images import provenance
from predictor.request import GenerateRequest, Step
from predictor.service import Service
from predictor.settings import Settings


def new_service(volume, **settings) -> Service:
    given = {"model_id": "toy/model", "root": volume, "device": "cpu", "default_steps": 2, "max_cost": 1e6}
    return Service(Settings(**given | settings))


@pytest.fixture(scope="module")
def service(toy_volume):
    service = new_service(toy_volume)
    service.load()
    return service


async def generate(service: Service, *requests, gone=None, **parameters):
    requests = requests or (GenerateRequest("a cat", parameters),)
    return await service.generate(requests, request_id="r", gone=gone or asyncio.Event().wait)


async def accepted(service: Service, work: asyncio.Task) -> None:
    """Lets the loop run until a request has reached the engine."""
    while not service._loaded.engine.open_jobs and not work.done():  # noqa: ASYNC110  a few turns of the loop, no time
        await asyncio.sleep(0)
    assert not work.done(), work.result()


def test_not_ready_says_where_it_stands(toy_volume):
    service = new_service(toy_volume)
    assert not service.ready and service.alive
    with pytest.raises(NotServing, match="model model is not ready: starting") as refused:
        asyncio.run(generate(service))
    assert refused.value.retry_after


def test_an_answer_holds_the_picture_and_how_it_was_made(service):
    [answer] = asyncio.run(generate(service, seed=5, output_format="webp"))
    assert list(answer.seconds) == ["queue", "text", "denoise", "decode", "encode"]
    assert answer.seeds == (5,)
    made = provenance(answer.images[0].data)
    assert (made["prompt"], made["seed"], made["commit"]) == ("a cat", 5, toys.COMMIT)


def test_prompts_can_be_kept_out_of_pictures(toy_volume):
    service = new_service(toy_volume, embed_prompt=False)
    service.load()
    [answer] = asyncio.run(generate(service, negative_prompt="a dog"))
    assert not {"prompt", "negative_prompt"} & set(provenance(answer.images[0].data))
    assert b"a cat" not in answer.images[0].data


def test_several_requests_are_answered_in_order_and_accepted_together(service):
    two = [GenerateRequest("a", {"seed": 1, "width": 16}), GenerateRequest("b", {"seed": 2})]
    answers = asyncio.run(generate(service, *two))
    assert [Image.open(io.BytesIO(answer.images[0].data)).width for answer in answers] == [16, 32]


def test_what_cannot_be_done_in_time_is_refused_before_it_is_begun(toy_volume):
    hasty = new_service(toy_volume, timeout=1.0)
    hasty.load()
    with pytest.raises(InvalidRequest, match="even alone, and no request may take more than 1 s"):
        asyncio.run(generate(hasty, *[GenerateRequest("a", {"num_images_per_prompt": 4, "num_inference_steps": 150})] * 9))
    assert len(hasty._loaded.engine.open_jobs) == 0


def test_one_bad_request_refuses_the_call(service):
    with pytest.raises(InvalidRequest, match=r"^instances\[1\].prompt"):
        asyncio.run(generate(service, GenerateRequest("a", {}), GenerateRequest(7, {}, "instances[1].")))


def test_the_cost_of_a_call_is_bounded(toy_volume):
    service = new_service(toy_volume, max_cost=2.0)
    service.load()
    with pytest.raises(InvalidRequest, match="at most 2 times a default picture"):
        asyncio.run(generate(service, *[GenerateRequest("a", {})] * 3))


def test_truncation_is_counted_or_refused(service, toy_volume):
    long = "abcdefghijklmnopqrst"
    [answer] = asyncio.run(generate(service, GenerateRequest(long, {"negative_prompt": long})))
    assert answer.dropped_tokens == 12
    strict = new_service(toy_volume, refuse_truncation=True)
    strict.load()
    with pytest.raises(InvalidRequest, match="prompt is 6 tokens longer"):
        asyncio.run(generate(strict, GenerateRequest(long, {})))


def test_a_caller_who_goes_away_frees_the_queue(service):
    async def scenario():
        gone = asyncio.Event()
        work = asyncio.create_task(generate(service, gone=gone.wait, num_inference_steps=150, num_images_per_prompt=4))
        await accepted(service, work)
        [job] = service._loaded.engine.open_jobs
        gone.set()
        with pytest.raises(Cancelled):
            await work
        with pytest.raises(Cancelled):
            await asyncio.wrap_future(job.future)

    asyncio.run(scenario())
    assert not service._loaded.engine.open_jobs


def test_draining_finishes_what_was_accepted(toy_volume):
    async def scenario():
        work = asyncio.create_task(generate(service, num_inference_steps=20))
        await accepted(service, work)
        drain = asyncio.create_task(service.drain(asyncio.get_running_loop().create_future()))
        [answer] = await work
        assert answer.images
        await drain
        with pytest.raises(NotServing, match="draining"):
            await generate(service)

    service = new_service(toy_volume)
    service.load()
    asyncio.run(scenario())


def test_hurry_ends_the_drain(toy_volume):
    async def scenario():
        work = asyncio.create_task(generate(service, num_inference_steps=150, num_images_per_prompt=4))
        await accepted(service, work)
        hurry = asyncio.get_running_loop().create_future()
        hurry.set_result(None)
        await service.drain(hurry)
        with pytest.raises(NotServing, match="before the picture was finished"):
            await work

    service = new_service(toy_volume)
    service.load()
    asyncio.run(scenario())


def test_what_cannot_be_loaded_is_raised(toy_volume, tmp_path):
    with pytest.raises(ModelNotFound):
        new_service(tmp_path).load()
    volume = shutil.copytree(toy_volume, tmp_path / "volume")
    tokenizer = volume / "toy/model/snapshots" / toys.COMMIT / "tokenizer/tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text().replace('"model_max_length": 16', '"model_max_length": 99'))
    toys.write_manifest(tokenizer.parent.parent, "toy/model")
    with pytest.raises(ModelNotLoadable, match="loaded but failed on a warm-up picture"):
        new_service(volume).load()


@pytest.mark.parametrize("limits", [{"max_steps": 1, "default_steps": 1}, {"max_pixels": 100}, {"max_prompt_chars": 3}])
def test_tight_limits_do_not_get_in_the_way_of_loading(toy_volume, limits):
    service = new_service(toy_volume, **limits)
    service.load()
    assert service.ready


def test_sigterm_while_loading_keeps_it_from_becoming_ready(toy_volume):
    service = new_service(toy_volume)

    async def drain():
        await service.drain(asyncio.get_running_loop().create_future())

    asyncio.run(drain())
    service.load()
    assert not service.ready
    with pytest.raises(NotServing, match="draining"):
        service.check_ready()


def test_a_broken_device_is_not_ready(toy_volume):
    service = new_service(toy_volume)
    service.load()
    service._loaded.engine._device.broken = True
    assert not service.ready and not service.alive
    with pytest.raises(NotServing, match="its device does not answer"):
        service.check_ready()


# ---------------------------------------------------------------- streams, and requests by their id


async def stream(service: Service, request_id: str = "r", previews: Previews = Previews(2), **parameters):  # noqa: B008
    return [
        each async for each in service.stream(GenerateRequest("a cat", parameters), request_id=request_id, previews=previews)
    ]


def test_a_stream_tells_steps_previews_and_the_answer_that_generate_gives(service):
    *steps, answer = asyncio.run(stream(service, seed=5, num_inference_steps=9))
    assert steps[0] == Step("queued", 0, 9)
    assert [each.step for each in steps] == sorted(each.step for each in steps)
    shown = [each for each in steps if each.preview]
    assert [each.step for each in shown] == [2, 5]
    [alone] = asyncio.run(generate(service, seed=5, num_inference_steps=9))
    assert answer.images == alone.images


def test_previews_can_be_as_large_as_the_picture(service):
    wanted = Previews(1, "webp", full_size=True)
    told = asyncio.run(stream(service, previews=wanted, width=24, num_inference_steps=9))
    [preview] = [each.preview for each in told[:-1] if each.preview]
    assert (preview.format, preview.width, preview.height) == ("webp", 24, 32)


def test_a_stream_that_is_closed_stops_the_work(service):
    async def scenario():
        told = service.stream(GenerateRequest("a", {"num_inference_steps": 150}), request_id="left", previews=Previews(0))
        await anext(told)
        [job] = service._loaded.engine.open_jobs
        await told.aclose()
        with pytest.raises(Cancelled):
            await asyncio.wrap_future(job.future)
        assert service.find("left").state == "cancelled"

    asyncio.run(scenario())


def test_a_quiet_stream_repeats_itself(service, monkeypatch):
    """Lest a proxy closes the connection of somebody who waits in the queue."""
    monkeypatch.setattr("predictor.service._QUIET", 0.0)

    async def scenario():
        told = service.stream(GenerateRequest("a", {"num_inference_steps": 150}), request_id="r", previews=Previews(0))
        first = [await anext(told) for _ in range(3)]
        await told.aclose()
        return first

    assert all(isinstance(each, Step) for each in asyncio.run(scenario()))


def test_a_drain_whose_time_is_up_ends_streams_too(toy_volume):
    async def scenario():
        told = service.stream(GenerateRequest("a", {"num_inference_steps": 150}), request_id="r", previews=Previews(0))
        await anext(told)
        hurry = asyncio.get_running_loop().create_future()
        hurry.set_result(None)
        await service.drain(hurry)
        with pytest.raises(NotServing):
            async for _ in told:
                pass
        assert service.find("r").state == "failed"

    service = new_service(toy_volume)
    service.load()
    asyncio.run(scenario())


def test_whoever_knows_the_id_can_follow_and_cancel(service):
    async def scenario():
        work = asyncio.create_task(generate(service, num_inference_steps=150))
        await accepted(service, work)
        entry = service.find("r")
        assert entry.told()["of"] == 150
        assert await service.cancel("r") is entry
        assert entry.state == "cancelled"
        with pytest.raises(Cancelled, match="cancelled by the caller"):
            await work
        with pytest.raises(AlreadyOver, match="this request is over: cancelled"):
            await service.cancel("r")
        with pytest.raises(UnknownRequest):
            service.find("nobody's")

    asyncio.run(scenario())


def test_a_caller_without_ids_cancels_its_own_only(service):
    async def ask(caller: str):
        requests = [GenerateRequest("a", {"num_inference_steps": 100})]
        return await service.generate(
            requests, request_id=caller, gone=asyncio.Event().wait, caller=caller, previews=Previews(9, "png")
        )

    async def scenario():
        mine, yours = asyncio.create_task(ask("me")), asyncio.create_task(ask("you"))
        await accepted(service, mine)
        while not (entry := service.under_way("me")) or not entry.news.preview:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await service.newest_preview(entry)).format == "png"
        await service.cancel_all("me")
        with pytest.raises(Cancelled):
            await mine
        assert service.under_way("me") is None
        assert await yours

    asyncio.run(scenario())


def test_the_model_is_not_known_before_it_is_loaded(toy_volume):
    with pytest.raises(NotServing, match="starting"):
        _ = new_service(toy_volume).limits
