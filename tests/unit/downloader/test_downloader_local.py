import hashlib
from pathlib import Path

import pytest

from downloader.errors import NotFound, PlanRefused
from downloader.local import Local
from standin_hub import tiny_pipeline


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "source")


def lay_out(directory: Path) -> Path:
    for name, content in tiny_pipeline(weights=100).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def test_the_commit_is_made_of_the_planned_content(directory: Path, tmp_path: Path) -> None:
    local = Local(directory, None)
    commit = local.resolve()
    lines = "".join(f"{file.path} {file.sha256}\n" for file in local.plan(commit).files)
    assert commit == hashlib.sha256(lines.encode()).hexdigest()[:40]
    twin = lay_out(tmp_path / "twin")
    (twin / "README.md").write_text("something else")
    assert Local(twin, None).resolve() == commit
    (twin / "unet/config.json").write_text('{"changed": true}')
    assert Local(twin, None).resolve() != commit
    assert Local(directory, "fp16").resolve() != commit


def test_code_and_pickles_never_get_in(directory: Path) -> None:
    files = [file.path for file in Local(directory, None).plan("c").files]
    assert len(files) == 10
    assert not [path for path in files if path.endswith((".py", ".bin", ".md", ".png"))]


def test_fetch_copies_and_discard_removes(directory: Path, tmp_path: Path) -> None:
    local, staging = Local(directory, None), tmp_path / "staging"
    file = local.plan("c").files[-1]
    local.fetch("c", file, staging)
    assert (staging / file.path).read_bytes() == (directory / file.path).read_bytes()
    local.discard(file, staging)
    assert not (staging / file.path).exists()


@pytest.mark.parametrize("name", ["unet/config.json", "model_index.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_symlink_out_of_the_directory_is_refused(directory: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (directory / name).rename(outside)
    (directory / name).symlink_to(outside)
    with pytest.raises(PlanRefused, match=rf"{name} is a symlink that leaves .*cp -rL"):
        Local(directory, None).resolve()


def test_a_component_that_is_a_symlink_out_is_refused(directory: Path, tmp_path: Path) -> None:
    (directory / "unet").rename(tmp_path / "elsewhere")
    (directory / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanRefused, match="symlink that leaves"):
        Local(directory, None).resolve()


def test_a_symlink_inside_is_followed_and_a_dangling_one_ignored(directory: Path, tmp_path: Path) -> None:
    commit = Local(directory, None).resolve()
    (directory / "unet/config.json").rename(directory / "kept.json")
    (directory / "unet/config.json").symlink_to("../kept.json")
    (directory / "unet/extra.json").symlink_to("nowhere")
    assert Local(directory, None).resolve() == commit


@pytest.mark.parametrize("name", ["absent", "file"])
def test_no_such_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFound, match="is not a directory"):
        Local(tmp_path / name, None).resolve()
