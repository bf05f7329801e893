import subprocess
import sys

import pytest

from predictor import telemetry
from predictor.readahead import ReadAhead, largest_first


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, dict]]:
    seen: list[tuple[str, dict]] = []
    monkeypatch.setattr(telemetry, "event", lambda message, **fields: seen.append((message, fields)))
    return seen


def finished(root, model_id="toy/model", revision="main", stopped=False) -> None:
    read_ahead = ReadAhead(root, model_id, revision)
    if stopped:
        read_ahead.stop()
    read_ahead.start()
    read_ahead._thread.join()


def test_every_byte_is_read(toy_volume, events):
    finished(toy_volume)
    [(message, fields)] = events
    snapshot = next((toy_volume / "toy/model/snapshots").iterdir())
    assert message == "read ahead"
    assert fields["bytes"] == sum(file.stat().st_size for file in snapshot.rglob("*") if file.is_file())


def test_once_told_to_stop_it_reads_no_more(toy_volume, events):
    finished(toy_volume, stopped=True)
    assert events[0][1]["bytes"] == 0


@pytest.mark.filterwarnings("error")  # pytest's, for an exception in a thread
@pytest.mark.parametrize(("model_id", "revision"), [("nobody/nothing", "main"), ("toy/model", "nowhere")])
def test_what_is_not_there_is_left_to_the_loader_to_say(toy_volume, events, model_id, revision):
    finished(toy_volume, model_id, revision)
    assert events == []


def test_the_largest_component_comes_first_and_its_shards_by_name(tmp_path):
    sizes = {"model_index.json": 9, "unet/b": 1, "unet/a": 20, "unet/c": 30, "text_encoder/x": 40, "text_encoder/z/y": 1}
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    order = [file.relative_to(tmp_path).as_posix() for file in largest_first(tmp_path)]
    assert order == ["unet/a", "unet/b", "unet/c", "text_encoder/x", "text_encoder/z/y", "model_index.json"]


def test_it_begins_before_any_heavy_import():
    code = "import sys, predictor.__main__; print(sorted({'torch', 'numpy', 'kserve', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
