"""A start with a real toy model, and what may be compiled after it."""

import asyncio
import copy

import pytest

import toys
from predictor import loading
from predictor.errors import ModelNotFound, SigningUnavailable
from predictor.phases import Phases
from predictor.request import GenerateRequest
from predictor.service import Service
from predictor.settings import Settings


def settings(volume, **given) -> Settings:
    return Settings(**{"model_id": "toy/model", "root": volume, "device": "cpu", "default_steps": 2, "max_cost": 1e6} | given)


def new_service(volume, **given) -> Service:
    return Service(settings(volume, **given))


async def generate(service: Service):
    requests = [GenerateRequest("a cat", {})]
    return await service.generate(requests, request_id="r", gone=asyncio.Event().wait)


def test_what_begins_is_told_and_timed_and_the_engine_runs(toy_volume):
    told, phases = [], Phases("imports")
    loaded = loading.load(settings(toy_volume, max_rows=6), told.append, phases, lambda: None)
    assert [each.partition(" ")[0] for each in told] == ["looking", "reading", "moving", "making"]
    assert [*phases.seconds] == ["imports", "read", "to_device", "warm_up"]
    assert loaded.engine.alive
    assert (loaded.told["commit"], loaded.told["shares_forwards"], loaded.told["row_limit"]) == (toys.COMMIT, True, 6)
    assert loaded.signer is None


def test_a_key_that_cannot_sign_ends_it_before_anything_is_read(toy_volume, tmp_path):
    for name in ("certificate", "key"):
        (tmp_path / name).write_text("no PEM")
    told = []
    given = settings(toy_volume, c2pa_certificate=tmp_path / "certificate", c2pa_key=tmp_path / "key")
    with pytest.raises(SigningUnavailable):
        loading.load(given, told.append, Phases("imports"), lambda: None)
    assert told == []


def test_a_model_that_is_not_there_is_raised(tmp_path):
    with pytest.raises(ModelNotFound):
        loading.load(settings(tmp_path), lambda _: None, Phases("imports"), lambda: None)


def test_once_compiled_the_twin_serves(toy_volume, monkeypatch):
    given, served = [], []

    def twin(module, examples):
        given.extend(len(example["sample"]) for example in examples)
        own = copy.deepcopy(module)
        own.register_forward_pre_hook(lambda *_: served.append(1))
        return own

    monkeypatch.setattr("predictor.loading.compiled", twin)
    service = new_service(toy_volume, compile=True)
    service.load()
    service.compile()
    assert {1, 2} <= set(given)
    [answer] = asyncio.run(generate(service))
    assert answer.images and len(served) == 2


def test_what_cannot_be_compiled_serves_as_before(toy_volume, monkeypatch, caplog):
    monkeypatch.setattr("predictor.loading.compiled", lambda *_: 1 / 0)
    service = new_service(toy_volume, compile=True)
    service.load()
    service.compile()
    assert "not compiled: serving as before" in caplog.text
    [answer] = asyncio.run(generate(service))
    assert answer.images


def test_nothing_is_compiled_unasked(toy_volume, monkeypatch):
    monkeypatch.setattr("predictor.loading.compiled", lambda *_: pytest.fail("compiled"))
    service = new_service(toy_volume)
    service.load()
    service.compile()
