import json
import shutil
from pathlib import Path

import pytest

import toys
from predictor.errors import ModelNotFound, SnapshotRefused
from predictor.snapshot import find


@pytest.fixture
def volume(toy_volume, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(toy_volume, tmp_path / "volume")


@pytest.fixture
def path(volume) -> Path:
    return volume / "toy/model/snapshots" / toys.COMMIT


def refusal(volume: Path, revision: str = "main") -> str:
    with pytest.raises(SnapshotRefused) as refused:
        find(volume, "toy/model", revision)
    return str(refused.value)


def test_a_ref_and_a_commit_lead_to_the_same_snapshot(volume, path):
    found = find(volume, "toy/model", "main")
    assert (found.path, found.repo, found.commit, found.variant) == (path, "toy/model", toys.COMMIT, None)
    assert found.pipeline == "StableDiffusionPipeline"
    assert found.bytes == sum(
        file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"
    )
    assert find(volume, "toy/model", toys.COMMIT) == found


def test_a_variant_is_found_by_its_ref_and_by_the_commit_alone(volume, path):
    path.rename(path.with_name(path.name + "-fp16"))
    toys.write_manifest(path.with_name(path.name + "-fp16"), "toy/model", variant="fp16")
    (volume / "toy/model/refs/refs%2Fpr%2F1").write_text(path.name + "-fp16\n")
    assert find(volume, "toy/model", "refs/pr/1").variant == "fp16"
    assert find(volume, "toy/model", toys.COMMIT).variant == "fp16"


def test_what_is_not_there_is_said_with_what_is(volume):
    with pytest.raises(ModelNotFound, match="other/model is not on the volume .*; there: toy/model"):
        find(volume, "other/model", "main")
    with pytest.raises(ModelNotFound, match="revision v2 of .* is not on the volume; refs: main; snapshots: c0ffee"):
        find(volume, "toy/model", "v2")
    with pytest.raises(ModelNotFound, match="there: nothing"):
        find(volume / "nowhere", "toy/model", "main")


def test_a_missing_file_is_refused(volume, path):
    (path / "unet/config.json").unlink()
    assert "lacks unet/config.json" in refusal(volume)


def test_a_file_of_another_size_is_refused(volume, path):
    with (path / "vae/config.json").open("a") as file:
        file.write(" ")
    assert "vae/config.json has" in refusal(volume)


def test_a_file_that_the_manifest_does_not_list_is_refused(volume, path):
    (path / "unet/extra.json").write_text("{}")
    assert "holds unet/extra.json, which its manifest does not list" in refusal(volume)


@pytest.mark.parametrize("name", ["unet/model.py", "unet/pytorch_model.bin", "x.PT", "vae/a.ckpt", "a.so", "b.pkl"])
def test_code_and_pickles_are_refused_even_when_listed(volume, path, name):
    (path / name).write_bytes(b"")
    toys.write_manifest(path, "toy/model")
    assert "may hold code" in refusal(volume)


def test_a_link_is_refused(volume, path):
    target = volume / "elsewhere.json"
    (path / "unet/config.json").rename(target)
    (path / "unet/config.json").symlink_to(target)
    assert "is a symbolic link" in refusal(volume)


@pytest.mark.parametrize(
    "config",
    [{"auto_map": {"AutoModel": "x.Y"}}, {"_attn_implementation": "somebody/kernel"}, {"a": [{"auto_map": {}}]}, "not json"],
)
def test_configuration_that_names_code_is_refused(volume, path, config):
    (path / "text_encoder/config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    toys.write_manifest(path, "toy/model")
    assert "text_encoder/config.json" in refusal(volume)


def test_an_ordinary_attention_setting_is_fine(volume, path):
    config = json.loads((path / "text_encoder/config.json").read_text()) | {"_attn_implementation_autoset": True}
    (path / "text_encoder/config.json").write_text(json.dumps(config))
    toys.write_manifest(path, "toy/model")
    assert find(volume, "toy/model", "main")


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "repo": 1, "commit": "", "variant": null, "files": []}']
)
def test_a_manifest_of_another_shape_is_refused(volume, path, manifest):
    (path / "manifest.json").write_text(manifest)
    assert "cannot be read as a manifest" in refusal(volume)


def test_a_snapshot_without_a_manifest_is_refused(volume, path):
    (path / "manifest.json").unlink()
    assert "not put there by the downloader" in refusal(volume)


def test_a_manifest_that_leaves_its_directory_is_refused(volume, path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"].append({"path": "../../refs/main", "size": 41, "sha256": ""})
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "lies outside" in refusal(volume)


@pytest.mark.parametrize("ref", ["../../../etc", "", toys.COMMIT + "/unet"])
def test_a_ref_that_names_no_snapshot_is_refused(volume, ref):
    (volume / "toy/model/refs/main").write_text(ref)
    assert "does not hold a snapshot's name" in refusal(volume)


def test_a_ref_to_nothing_is_refused(volume):
    (volume / "toy/model/refs/main").write_text("f" * 40)
    assert "is not a directory" in refusal(volume)
