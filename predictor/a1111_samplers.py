"""Samplers under the names that AUTOMATIC1111 gave them. Pure.

A name stands here where a diffusers class does the same, configured as the model configures it. Names that choose a noise
schedule too ("DPM++ 2M Karras"), or another algorithm of the same class ("DPM++ 2M SDE"), are none of that.

Source: AUTOMATIC1111's lists of samplers (modules/sd_samplers_*.py), and the table of huggingface.co/docs/diffusers,
api/schedulers/overview.
"""

from __future__ import annotations

from collections.abc import Collection

OWN = "Automatic"  # whatever the model comes with

# The second class is of models that are trained with flow matching; no model offers both.
_CLASSES = {
    "Euler a": ("EulerAncestralDiscreteScheduler",),
    "Euler": ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    "LMS": ("LMSDiscreteScheduler",),
    "Heun": ("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    "DPM2": ("KDPM2DiscreteScheduler",),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler",),
    "DPM++ 2M": ("DPMSolverMultistepScheduler",),
    "DPM++ SDE": ("DPMSolverSDEScheduler",),
    "LCM": ("LCMScheduler", "FlowMatchLCMScheduler"),
    "DDIM": ("DDIMScheduler",),
    "PLMS": ("PNDMScheduler",),
    "UniPC": ("UniPCMultistepScheduler",),
}
_NAMES = {each: name for name, classes in _CLASSES.items() for each in classes}

# How much noise these put back at each step, as a share of what they may: AUTOMATIC1111's `eta`, which diffusers does not ask
# for. No other sampler has one.
ETAS = {
    "EulerAncestralDiscreteScheduler": 1,
    "KDPM2AncestralDiscreteScheduler": 1,
    "DPMSolverSDEScheduler": 1,
    "DDIMScheduler": 0,
}


def offered(schedulers: Collection[str]) -> dict[str, str]:
    """Class by name, in AUTOMATIC1111's order; classes that it has no name for stand last, under their own."""
    named = {_NAMES[each]: each for each in _NAMES if each in schedulers}
    return named | {each: each for each in schedulers if each not in _NAMES}


def name_of(scheduler: str | None) -> str:
    """None: the model's own."""
    return OWN if scheduler is None else _NAMES.get(scheduler, scheduler)
