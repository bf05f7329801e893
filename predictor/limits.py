"""What can be asked of a pipeline, read off its own signature and configuration. No model family is named."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from predictor.errors import ModelNotLoadable
from predictor.rendezvous import DENOISERS, decoders
from predictor.request import Limits, Params
from predictor.settings import Settings

_NATIVE_SIDE = 1024  # pixels, for a pipeline whose configuration does not tell


def signature(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(pipe.__call__).parameters


def read(pipe: Any, samplers: Mapping[str, Any], settings: Settings) -> Limits:
    """Raises ModelNotLoadable for a pipeline that takes no prompt."""
    taken = signature(pipe)
    if "prompt" not in taken:
        raise ModelNotLoadable(f"{type(pipe).__name__} takes no prompt: it is no text-to-image pipeline")
    denoiser = _denoiser_config(pipe)
    supported = frozenset(taken) & frozenset(Params.__dataclass_fields__) - _without_effect(taken, denoiser)
    defaults = {name: parameter.default for name, parameter in taken.items()}
    multiple = _multiple(pipe)
    width, height = (max(side // multiple, 1) * multiple for side in _native_size(pipe))
    # Ideogram's scale is None beside a schedule of as many as its default steps; its first stands for all.
    guidance = defaults.get("guidance_scale") or (defaults.get("guidance_schedule") or [None])[0]
    guidance = guidance if settings.default_guidance is None else settings.default_guidance
    steps = settings.default_steps or int(defaults.get("num_inference_steps", 1))
    # A table of positions of so many latents a side: larger pictures cannot be made.
    reach = denoiser.get("pos_embed_max_size") or math.inf
    return Limits(
        supported=supported,
        width=width,
        height=height,
        multiple=multiple,
        min_side=max(min(width, height) // 4 // multiple, 1) * multiple,
        max_side=int(min(4 * max(width, height), reach * multiple)),
        max_pixels=settings.max_pixels or 4 * width * height,
        num_inference_steps=min(steps, settings.max_steps),
        max_steps=settings.max_steps,
        guidance_scale=min(float(guidance), settings.max_guidance)
        if "guidance_scale" in supported and isinstance(guidance, int | float)
        else None,
        max_guidance=settings.max_guidance,
        max_images=settings.max_images,
        schedulers=tuple(samplers),
        max_prompt_chars=settings.max_prompt_chars,
        max_cost=settings.max_cost,
    )


def _without_effect(taken: Mapping[str, inspect.Parameter], denoiser: Mapping[str, Any]) -> frozenset[str]:
    """Arguments that a pipeline takes and does not use: better refused than obeyed in name only."""
    idle = set()
    scale = taken.get("true_cfg_scale")
    if scale and denoiser.get("guidance_embeds") is False:  # FLUX.1-schnell: distilled without guidance
        idle.add("guidance_scale")
    if scale and scale.default <= 1:  # FLUX.1: counts only beside a larger scale, which this API does not have
        idle.add("negative_prompt")
    return frozenset(idle)


def _denoiser_config(pipe: Any) -> Mapping[str, Any]:
    denoiser = next((getattr(pipe, name) for name in DENOISERS if getattr(pipe, name, None) is not None), None)
    return getattr(denoiser, "config", {})


def _native_size(pipe: Any) -> tuple[int, int]:
    """Width and height in pixels that the model was made for."""
    width, height = (getattr(signature(pipe).get(name), "default", None) for name in ("width", "height"))
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    sample = getattr(pipe, "default_sample_size", None) or _denoiser_config(pipe).get("sample_size")
    if sample is None:
        return _NATIVE_SIDE, _NATIVE_SIDE
    height, width = sample if isinstance(sample, list | tuple) else (sample, sample)
    # Of a pipeline that registers it in its configuration, as PRX does, or has no decoder, it is in pixels.
    in_pixels = "default_sample_size" in getattr(pipe, "config", {}) or not decoders(pipe)
    factor = 1 if in_pixels else getattr(pipe, "vae_scale_factor", 8)
    return int(width) * factor, int(height) * factor


def _multiple(pipe: Any) -> int:
    """Pixels that one token or latent of the denoiser stands for: sides must be a multiple. Where latents are packed two by
    two the image processor's factor has it; where the transformer cuts patches, its configuration."""
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    packed = getattr(getattr(pipe, "image_processor", None), "config", {}).get("vae_scale_factor") or factor
    patch = _denoiser_config(pipe).get("patch_size")
    patch = patch[-1] if isinstance(patch, list | tuple) else patch
    return int(packed) if packed != factor or not isinstance(patch, int) else factor * patch
