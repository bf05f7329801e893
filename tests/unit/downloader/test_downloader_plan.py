"""The planner on the file lists of real repositories, and on hostile ones.

The lists have the real paths and, for every weight, the size as the Hub shows it; sizes of small files are approximate.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from downloader.errors import PlanRefused
from downloader.plan import LARGEST_INDEX, File, Plan, make_plan

LISTS = Path(__file__).parents[2] / "fixtures" / "hub"


def plan_of(name: str, variant: str | None = None) -> Plan:
    fixture = json.loads((LISTS / f"{name}.json").read_text())
    read = {"model_index.json": fixture["model_index"], **fixture["indices"]}
    listing = [File(path, size, sha256="0" * 64) for path, size in fixture["files"].items()]
    return make_plan(listing, lambda file: json.dumps(read.get(file.path, {})).encode(), variant)


def weights_of(plan: Plan) -> list[str]:
    return [file.path for file in plan.files if file.path.endswith(".safetensors")]


def test_sd15_takes_one_file_a_component_and_the_safety_checker() -> None:
    plan = plan_of("sd15", "fp16")
    assert plan.pipeline == "StableDiffusionPipeline"
    assert weights_of(plan) == [
        "safety_checker/model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert "feature_extractor/preprocessor_config.json" in [file.path for file in plan.files]
    assert round(plan.size / 1e9, 2) == 2.74
    assert weights_of(plan_of("sd15"))[2] == "unet/diffusion_pytorch_model.safetensors"


def test_sdxl_fp16_is_7_of_75_gigabytes() -> None:
    fixture = json.loads((LISTS / "sdxl.json").read_text())
    assert 74e9 < sum(fixture["files"].values()) < 78e9
    plan = plan_of("sdxl", "fp16")
    assert round(plan.size / 1e9, 2) == 6.94
    assert len(weights_of(plan)) == 4
    assert not [file.path for file in plan.files if file.path.startswith(("vae_", "sd_xl"))]


def test_sd3_takes_fp16_shards_and_falls_back_where_there_are_none() -> None:
    plan = plan_of("sd3", "fp16")
    assert weights_of(plan) == [
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder_3/model.fp16-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    paths = [file.path for file in plan.files]
    assert "text_encoder_3/model.safetensors.index.fp16.json" in paths
    assert "text_encoder_3/model.safetensors.index.json" not in paths
    assert "tokenizer_3/spiece.model" in paths


def test_flux_takes_the_shards_and_leaves_the_single_checkpoint() -> None:
    plan = plan_of("flux")
    assert [path for path in weights_of(plan) if path.startswith("transformer/")] == [
        f"transformer/diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    assert "flux1-dev.safetensors" not in weights_of(plan)
    assert round(plan.size / 1e9, 1) == 33.7


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_no_plan_holds_code_pickles_pictures_or_prose(name: str) -> None:
    suffixes = {Path(file.path).suffix for file in plan_of(name).files}
    assert suffixes <= {".json", ".txt", ".model", ".safetensors"}


Content = dict[str, object]
UNET = {"unet": ["diffusers", "UNet2DConditionModel"]}


def tiny(index: Content | None = None, **files: object) -> Content:
    """A repository of one component; `None` for a file removes it. `__` in a name stands for `/`."""
    base: Content = {
        "model_index.json": {"_class_name": "StableDiffusionPipeline", **(UNET if index is None else index)},
        "unet/config.json": {},
        "unet/diffusion_pytorch_model.safetensors": "weights",
    }
    named = {name.replace("__", "/"): value for name, value in files.items()}
    return {path: value for path, value in {**base, **named}.items() if value is not None}


def make(repository: Content, variant: str | None = None) -> Plan:
    encoded = {path: value if isinstance(value, bytes) else json.dumps(value).encode() for path, value in repository.items()}
    return make_plan([File(path, len(value)) for path, value in encoded.items()], lambda file: encoded[file.path], variant)


SHARDED: Content = {
    "unet/diffusion_pytorch_model.safetensors": None,
    "unet/diffusion_pytorch_model.safetensors.index.json": {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}},
    "unet/x-1.safetensors": "a",
    "unet/x-2.safetensors": "b",
}


def sharded(**changes: object) -> Content:
    return tiny(**{**SHARDED, **{f"unet/{name}.safetensors.index.json": value for name, value in changes.items()}})


def test_single_file_wins_over_shards() -> None:
    both = sharded()
    both["unet/diffusion_pytorch_model.safetensors"] = "single"
    assert weights_of(make(both)) == ["unet/diffusion_pytorch_model.safetensors"]
    assert "unet/diffusion_pytorch_model.safetensors.index.json" not in [file.path for file in make(both).files]


@pytest.mark.parametrize(
    "index", ["diffusion_pytorch_model.safetensors.index.fp16.json", "diffusion_pytorch_model.safetensors.fp16.index.json"]
)
@pytest.mark.parametrize("shard", ["m.fp16-00001-of-00001.safetensors", "m-00001-of-00001.fp16.safetensors"])
def test_both_spellings_of_variant_index_and_shard(index: str, shard: str) -> None:
    repository = tiny(**{f"unet/{index}": {"weight_map": {"a": shard}}, f"unet/{shard}": "a"})
    assert [file.path for file in make(repository, "fp16").files][1:] == sorted(
        ["unet/config.json", f"unet/{index}", f"unet/{shard}"]
    )


@pytest.mark.parametrize(
    ("shard", "says"),
    [
        ("../../etc/passwd", "plain .safetensors name"),
        ("/etc/x.safetensors", "plain .safetensors name"),
        ("..\\x.safetensors", "plain .safetensors name"),
        ("sub/x.safetensors", "plain .safetensors name"),
        ("x.bin", "plain .safetensors name"),
        (7, "plain .safetensors name"),
        ("absent.safetensors", "does not have"),
    ],
)
def test_hostile_index_is_refused(shard: object, says: str) -> None:
    with pytest.raises(PlanRefused, match=says):
        make(sharded(diffusion_pytorch_model={"weight_map": {"a": shard}}))


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["x-1.safetensors"]}, [], b"{", b"[" * 100_000])
def test_malformed_index_is_refused(index: object) -> None:
    with pytest.raises(PlanRefused):
        make(sharded(diffusion_pytorch_model=index))


def test_index_of_absurd_size_is_not_even_read() -> None:
    def read(file: File) -> bytes:
        raise AssertionError("read")

    with pytest.raises(PlanRefused, match="at most"):
        make_plan([File("model_index.json", LARGEST_INDEX + 1)], read)


REFUSALS: list[tuple[Callable[[], Content], str]] = [
    (lambda: tiny(**{"model_index.json": None}), "not a diffusers pipeline"),
    (lambda: tiny(**{"model_index.json": b"\xff"}), "not JSON"),
    (lambda: tiny(index={}), "names no components"),
    (lambda: tiny(index={**UNET, "_class_name": ["pipeline", "Mine"]}), "custom code"),
    (lambda: tiny(index={**UNET, "_class_name": None}), "custom code"),
    (lambda: tiny(index={"unet": ["my_unet", "MyUNet"]}), "custom code: component unet is MyUNet of 'my_unet'"),
    (lambda: tiny(index={"../unet": ["diffusers", "UNet2DConditionModel"]}), "a name is letters"),
    (lambda: tiny(index={"vae": ["diffusers", "AutoencoderKL"]}), "vae .* has no files"),
    (lambda: tiny(**{"unet/config.json": {"auto_map": {"AutoModel": "modeling.My"}}}), "custom code: .*auto_map"),
    (lambda: tiny(**{"unet/config.json": {"text_config": {"_attn_implementation": "org/kernel"}}}), "custom code"),
    (lambda: tiny(**{"unet/config.json": None}), "no config.json"),
    (
        lambda: tiny(
            index={**UNET, "tokenizer": ["transformers", "CLIPTokenizer"]},
            **{"tokenizer/tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tok.My", None]}}},
        ),
        "custom code: tokenizer/tokenizer_config.json",
    ),
    (
        lambda: tiny(**{"unet/diffusion_pytorch_model.safetensors": None, "unet/diffusion_pytorch_model.bin": b"p"}),
        "no safetensors, only diffusion_pytorch_model.bin",
    ),
    (lambda: tiny(**{"unet/diffusion_pytorch_model.safetensors": None}), "no weights at all"),
]


@pytest.mark.parametrize(("repository", "says"), REFUSALS)
def test_refusals_say_why(repository: Callable[[], Content], says: str) -> None:
    with pytest.raises(PlanRefused, match=says):
        make(repository())


def test_variant_that_no_component_has_is_refused() -> None:
    with pytest.raises(PlanRefused, match="variant 'bf16'"):
        make(tiny(), "bf16")


def test_null_components_and_settings_are_no_components() -> None:
    index: Content = {**UNET, "safety_checker": [None, None], "feature_extractor": [None, "X"], "sizes": [1, 2], "x": True}
    assert len(make(tiny(index=index)).files) == 3


def test_code_and_foreign_formats_beside_a_component_stay_out() -> None:
    junk = {f"unet/{name}": "x" for name in ("m.py", "a.md", "b.png", "c.xml", "d.onnx_data", ".hidden.json", "run.sh", "e.so")}
    assert len(make(tiny(**junk)).files) == 3


def test_deeper_directories_stay_out() -> None:
    assert len(make(tiny(**{"unet/../evil.json": "x", "unet/deep/config.json": "x"})).files) == 3
