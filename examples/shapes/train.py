"""Trains the shapes model from nothing: autoencoder, then denoiser and text encoder together, then one diffusers directory.

    python examples/shapes/train.py --work DIR [--out DIR] [--seed 0]

Each stage saves checkpoints in DIR and goes on from the last one when started again. Batches depend on the seed and the
step alone, so an interrupted run sees the same data as one that was not. Progress is printed, one line every 50 steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from judge import judge
from pictures import SIDE, WORDS, caption, draw, every_picture, random_picture

TOKENS = 32  # longest prompt, start and end included
WIDTH = 128  # of the text encoder, and so of the cross-attention


# ---------------------------------------------------------------- the parts


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-level BPE with a merge path for each word we know; any other text falls apart into bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(hidden))]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.setdefault((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),  # three halvings: 64 x 64 pixels become 8 x 8 latents
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def new_denoiser() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Betas that end in almost pure noise: with Stable Diffusion's own the last step still shows the mean colour, and a
    model trained so cannot paint a plain black or white picture."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,  # plays no part in trailing spacing; diffusers warns of any other value
    )


# ---------------------------------------------------------------- the data


def pictures(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """`count` pictures as uint8 [count, 3, SIDE, SIDE], and a caption for each."""
    rng = random.Random(seed)
    pixels = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    captions = []
    for i in range(count):
        picture = random_picture(rng)
        pixels[i] = np.asarray(draw(picture, rng))
        captions.append(caption(picture, rng))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), captions


def normalised(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


# ---------------------------------------------------------------- the loop that both stages share


def train(
    name: str,
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    peak_rate: float,
    checkpoint: Path,
    seed: int,
    each_thousand: Callable[[nn.Module], str] | None = None,
) -> nn.Module:
    """Runs AdamW for `steps` with warm-up and cosine decay; returns the exponential moving average of `module`."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=peak_rate, weight_decay=0.01, betas=(0.9, 0.99))
    average = copy.deepcopy(module).requires_grad_(False)
    done, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        done, seconds = state["done"], state["seconds"]
        print(f"{name}: going on from step {done}", flush=True)
    begin, smooth = time.monotonic() - seconds, math.nan
    for step in range(done, steps):
        rate = peak_rate * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        blend(average, module, min(0.999, (step + 1) / (step + 10)))
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            print(f"{name}: step {step + 1}/{steps} loss {smooth:.4f} {time.monotonic() - begin:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save(checkpoint, module, average, optimiser, step + 1, time.monotonic() - begin)
        if each_thousand and (step + 1) % 1000 == 0:
            print(f"{name}: step {step + 1} {each_thousand(average)}", flush=True)
    return average


@torch.no_grad()
def blend(average: nn.Module, module: nn.Module, keep: float) -> None:
    for old, new in zip(average.parameters(), module.parameters(), strict=True):
        old.lerp_(new, 1 - keep)


def save(
    path: Path, module: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, done: int, seconds: float
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "module": module.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "done": done,
            "seconds": seconds,
        },
        partial,
    )
    partial.rename(path)


# ---------------------------------------------------------------- the stages


def train_autoencoder(pixels: Tensor, *, steps: int, batch: int, work: Path, seed: int) -> AutoencoderKL:
    """L1 on the pixels and a light KL term, which keeps the latents smooth enough for the denoiser's small errors."""
    vae = new_autoencoder()

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pixels), (batch,), generator=generator)
        images = normalised(pixels[rows])
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(generator=generator)).sample
        return (decoded - images).abs().mean() + 3e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    average = train("autoencoder", vae, loss_of, steps=steps, peak_rate=3e-3, checkpoint=work / "autoencoder.pt", seed=seed)
    average.register_to_config(scaling_factor=float(1 / encode(average, pixels[:1024]).std()))
    return average


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Mean latents, [len(pixels), 4, SIDE / 8, SIDE / 8], unscaled."""
    return torch.cat([vae.encode(normalised(part)).latent_dist.mean for part in pixels.split(256)])


class Denoiser(nn.Module):
    """What learns together in the second stage."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet


def train_denoiser(
    vae: AutoencoderKL, pixels: Tensor, captions: list[str], *, steps: int, batch: int, work: Path, seed: int
) -> StableDiffusionPipeline:
    tokenizer = new_tokenizer(work / "tokenizer")
    model = Denoiser(new_text_encoder(tokenizer), new_denoiser())
    scheduler = new_scheduler()
    latents = encode(vae, pixels) * vae.config.scaling_factor
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (batch,), generator=generator)
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=generator)
        # More of the late steps, which draw the outline, than of the early ones, which choose the colours.
        share = torch.rand(batch, generator=generator) ** 1.6
        timesteps = (share * scheduler.config.num_train_timesteps).long()
        noisy = scheduler.add_noise(clean, noise, timesteps)
        words = model.text_encoder(ids[rows]).last_hidden_state
        predicted = model.unet(noisy, timesteps, words).sample
        return nn.functional.mse_loss(predicted, scheduler.get_velocity(clean, noise, timesteps))

    def pipeline(average: nn.Module) -> StableDiffusionPipeline:
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=average.text_encoder,
            tokenizer=tokenizer,
            unet=average.unet,
            scheduler=new_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def score(average: nn.Module) -> str:
        return json.dumps(measure(pipeline(average), every_picture()[::7], steps=20))

    average = train(
        "denoiser",
        model,
        loss_of,
        steps=steps,
        peak_rate=1.2e-3,
        checkpoint=work / "denoiser.pt",
        seed=seed,
        each_thousand=score,
    )
    return pipeline(average)


# ---------------------------------------------------------------- the result


def measure(pipe: StableDiffusionPipeline, wanted: list, *, steps: int = 50) -> dict[str, float]:
    """Share of pictures whose background, colour, shape and size are right; picture i is drawn with seed i."""
    right = {"background": 0, "colour": 0, "shape": 0, "size": 0}
    for first, group in batches(wanted, 16):
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(group))]
        images = pipe([p.prompt for p in group], generator=generators, num_inference_steps=steps).images
        for picture, image in zip(group, images, strict=True):
            for part, agrees in judge(image).agrees(picture).items():
                right[part] += agrees
    return {"pictures": len(wanted)} | {part: round(count / len(wanted), 4) for part, count in right.items()}


def batches(items: list, size: int) -> Iterator[tuple[int, list]]:
    for first in range(0, len(items), size):
        yield first, items[first : first + size]


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints go")
    parser.add_argument(
        "--out", type=Path, default=here / "model", help="where the diffusers directory goes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=24_000, help="how many are drawn (default: %(default)s)")
    parser.add_argument("--autoencoder-steps", type=int, default=2_000)
    parser.add_argument("--denoiser-steps", type=int, default=7_000)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    pixels, captions = pictures(args.pictures, args.seed)
    vae = train_autoencoder(pixels, steps=args.autoencoder_steps, batch=32, work=args.work, seed=args.seed)
    pipe = train_denoiser(vae, pixels, captions, steps=args.denoiser_steps, batch=64, work=args.work, seed=args.seed)
    pipe.to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    print(json.dumps(measure(StableDiffusionPipeline.from_pretrained(args.out, dtype=torch.float32), every_picture())))


if __name__ == "__main__":
    main()
