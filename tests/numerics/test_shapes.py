"""The embedded model, judged by plain geometry on its pixels. The whole set is measured by train.py; here a sample."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from judge import judge
from pictures import every_picture
from serving import REPOSITORY
from train import measure, new_autoencoder, new_denoiser, new_text_encoder, new_tokenizer

SHAPES = REPOSITORY / "examples/shapes"


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained(SHAPES / "model", dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_draws_what_it_is_told(pipe):
    share = measure(pipe, every_picture()[::7])
    assert share["pictures"] == 24
    assert share["background"] >= 0.95
    assert share["colour"] >= 0.95
    assert share["shape"] >= 0.9


def test_a_negative_prompt_keeps_away_what_it_names(pipe):
    def colours(**negative) -> list[str | None]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(24)]
        prompts = ["a large circle on a white background"] * len(generators)
        negative = {name: [text] * len(generators) for name, text in negative.items()}
        images = pipe(prompts, generator=generators, num_inference_steps=20, guidance_scale=4.0, **negative).images
        return [judge(image).colour for image in images]

    free = colours()
    favourite = max(set(free), key=free.count)
    assert colours(negative_prompt=f"{favourite}").count(favourite) < free.count(favourite) / 2


def test_the_model_is_small_and_holds_nothing_to_run():
    files = [file for file in (SHAPES / "model").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 15_000_000
    assert {file.suffix for file in files} <= {".json", ".txt", ".safetensors"}


def test_the_script_trains_what_is_shipped(pipe, tmp_path):
    tokenizer = new_tokenizer(tmp_path)
    fresh = {"unet": new_denoiser(), "vae": new_autoencoder(), "text_encoder": new_text_encoder(tokenizer)}
    for name, module in fresh.items():
        shapes = {key: value.shape for key, value in getattr(pipe, name).state_dict().items()}
        assert shapes == {key: value.shape for key, value in module.state_dict().items()}
    prompt = "a small orange triangle on a black background, zebra"
    assert tokenizer(prompt).input_ids == pipe.tokenizer(prompt).input_ids


def test_known_words_are_one_token_each(pipe):
    assert len(pipe.tokenizer("an orange square on a purple background").input_ids) == 7 + 2


def test_the_card_has_numbers_where_it_promises_them():
    card = Path(SHAPES / "README.md").read_text()
    for part in ("background", "colour", "shape", "size"):
        assert re.search(rf"\| {part} +\| +\d", card), part
