import gc

import pytest

from predictor.__main__ import Process


class Loaded:
    """Of a service, what a process loads; and of a read-ahead, what it stops."""

    ready = True

    def __init__(self) -> None:
        self.collecting: dict[str, bool] = {}
        self.stopped = False

    def load(self, _on_fault: object, _phases: object) -> None:
        self.collecting["load"] = gc.isenabled()

    def compile(self) -> None:
        self.collecting["compile"] = gc.isenabled()

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def starting():
    """The collector as it is while a process starts."""
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("starting")
def test_once_loaded_the_collector_is_back_for_what_is_new_and_nothing_is_read_ahead():
    loaded = Loaded()
    Process(loaded, loaded)._load()
    assert loaded.collecting == {"load": False, "compile": True}
    assert gc.isenabled() and gc.get_freeze_count()
    assert loaded.stopped
