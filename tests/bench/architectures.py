"""Full-size pipelines with random weights, made on the device in seconds: what a GPU's time is spent on without a download.

Configurations are the published ones; tokenizers are the tests' own, reading as many tokens as the real ones. Pictures are
noise, and every number that is not about meaning is as it would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

import toys

_CLIP_TOKENS = 77
_T5_TOKENS = 512


@dataclass(frozen=True)
class Architecture:
    name: str
    build: Callable[
        [Path, Any], Any
    ]  # a pipeline in the default dtype, on the default device, from tokenizers' folder and sampler
    sampler: Callable[[], Any]
    toy: Callable[[Path], Any]
    steps: int  # num_inference_steps that people use
    gigabytes: float  # of device memory that it takes in 16 bits, with room for 16 rows
    share: float  # of the script's time


def build(architecture: Architecture, folder: Path, device: torch.device, dtype: torch.dtype, *, toy: bool) -> Any:
    if toy:
        return architecture.toy(folder).to(device, dtype)
    sampler = architecture.sampler()  # its tables stay on the CPU, as they do when it is loaded
    with _made_on(device, dtype):
        pipe = architecture.build(folder, sampler)
    pipe.to(device)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype).requires_grad_(False).eval()
    return pipe


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New tensors are made there: weights drawn by a CPU would take minutes."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


# ---------------------------------------------------------------- parts


def _clip_tokenizer(folder: Path) -> Any:
    tokenizer = toys.clip_tokenizer(folder)
    tokenizer.model_max_length = _CLIP_TOKENS
    return tokenizer


def _t5_tokenizer() -> Any:
    tokenizer = toys.t5_tokenizer()
    tokenizer.model_max_length = _T5_TOKENS
    return tokenizer


def _clip_l(kind: type = transformers.CLIPTextModel) -> Any:
    return kind(
        transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
        )
    )


def _clip_g() -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )
    return transformers.CLIPTextModelWithProjection(config)


def _t5_xxl() -> Any:
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return transformers.T5EncoderModel(config)


def _autoencoder(latent_channels: int, **settings: Any) -> Any:
    """Eight pixels a latent."""
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=latent_channels,
        **settings,
    )


# ---------------------------------------------------------------- pipelines


def _sd15(folder: Path, sampler: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=_autoencoder(4, sample_size=512),
        text_encoder=_clip_l(),
        tokenizer=_clip_tokenizer(folder),
        unet=diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=sampler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(folder: Path, sampler: Any) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    tokenizer = _clip_tokenizer(folder)
    return diffusers.StableDiffusionXLPipeline(
        vae=_autoencoder(4, sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        text_encoder=_clip_l(),
        text_encoder_2=_clip_g(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=sampler,
        add_watermarker=False,
    )


def _sd3(folder: Path, sampler: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        caption_projection_dim=1536,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )
    tokenizer = _clip_tokenizer(folder)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=sampler,
        vae=_autoencoder(
            16, sample_size=1024, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=_clip_l(transformers.CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        text_encoder_2=_clip_g(),
        tokenizer_2=tokenizer,
        text_encoder_3=_t5_xxl(),
        tokenizer_3=_t5_tokenizer(),
    )


def _flux(folder: Path, sampler: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    return diffusers.FluxPipeline(
        scheduler=sampler,
        vae=_autoencoder(
            16, sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=_clip_l(),
        tokenizer=_clip_tokenizer(folder),
        text_encoder_2=_t5_xxl(),
        tokenizer_2=_t5_tokenizer(),
        transformer=transformer,
    )


_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _pndm() -> Any:
    return diffusers.PNDMScheduler(skip_prk_steps=True, **_NOISE)


def _euler() -> Any:
    return diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **_NOISE)


def _flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def _flow_by_size() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )


ARCHITECTURES = (
    Architecture("sd15", _sd15, _pndm, toys.stable_diffusion, steps=50, gigabytes=12, share=1.0),
    Architecture("sdxl", _sdxl, _euler, toys.stable_diffusion_xl, steps=30, gigabytes=30, share=1.6),
    Architecture("sd3", _sd3, _flow, toys.stable_diffusion_3, steps=28, gigabytes=40, share=1.1),
    Architecture("flux", _flux, _flow_by_size, toys.flux, steps=28, gigabytes=60, share=1.3),
)
