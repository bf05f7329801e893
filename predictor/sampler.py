"""The samplers that a model offers, and the private copy of one that each request gets. (diffusers calls them schedulers.)

The copy keeps its timesteps on the CPU, whatever the pipeline asks for: samplers look at them with Python's eyes, which for
a value on the device means waiting for it at every step. And it tells of each step, with the picture expected of it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_STEP_INPUTS = ("model_output", "timestep", "sample")  # of every sampler's step()

# Told after each step: which, of how many, and a function that estimates the latents at the end, as the step's input has them.
OnStep = Callable[[int, int, Callable[[], Tensor]], None]


def offered(own: Any) -> dict[str, Any]:
    """The diffusers schedulers that can stand in for the model's own: those it calls compatible, and that really step."""
    samplers = {type(own).__name__: own}
    latent = torch.zeros(1, 4, 8, 8)
    # A model that predicts the variance beside the noise needs a sampler that knows what to do with it.
    learned = str(getattr(own.config, "variance_type", None)).startswith("learned")
    output = torch.cat([latent, latent], 1) if learned else latent
    for kind in own.compatibles:
        if kind.__name__ in samplers:
            continue
        try:
            sampler = kind.from_config(own.config)
            probe = copy.deepcopy(sampler)
            probe.set_timesteps(4)
            probe.step(output, probe.timesteps[0], latent)
        except (ImportError, TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError, IndexError):
            continue
        if hasattr(sampler, "alphas_cumprod") != hasattr(own, "alphas_cumprod"):
            continue  # noise on another scale than the model was trained with: it starts, and paints rubbish
        samplers[kind.__name__] = sampler
    return dict(sorted(samplers.items()))


@functools.lru_cache(maxsize=4096)  # some samplers take 30 ms to say
def takes_steps(sampler: Any, steps: int) -> bool:
    """Whether it can make so many. PNDM needs four. None can make more than the levels of noise that it was trained with
    (`alphas_cumprod`): DDIM says so, others find a timestep twice, and run over the end or divide by nothing."""
    if steps > len(getattr(sampler, "alphas_cumprod", range(steps))):
        return False
    probe = copy.deepcopy(sampler)
    try:
        probe.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError):
        return False
    first, second = (*probe.timesteps[:2], None)[:2]
    return not (hasattr(probe, "index_for_timestep") and first == second)


def private(sampler: Any, on_step: OnStep | None = None) -> Any:
    """A copy for one request."""
    own = copy.deepcopy(sampler)
    set_timesteps, step = own.set_timesteps, own.step
    timesteps_takes, step_takes = inspect.signature(set_timesteps), inspect.signature(step)
    done = 0

    # Pipelines look at both signatures to see what they may pass.
    @functools.wraps(set_timesteps)
    def on_the_cpu(*args: Any, **kwargs: Any) -> Any:
        given = timesteps_takes.bind(*args, **kwargs)
        if "device" in timesteps_takes.parameters:
            given.arguments["device"] = "cpu"
        return set_timesteps(*given.args, **given.kwargs)

    @functools.wraps(step)
    def told(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        stepped = step(*args, **kwargs)
        done += 1
        if on_step:
            output, timestep, sample = (step_takes.bind(*args, **kwargs).arguments[name] for name in _STEP_INPUTS)
            on_step(done, len(own.timesteps), lambda: expected(own, output, timestep, sample))
        return stepped

    own.set_timesteps, own.step = on_the_cpu, told
    return own


def release(own: Any) -> None:
    """Cuts the circle of a private copy and what it tells, which would keep a request and its pictures until the collector
    comes by."""
    vars(own).pop("set_timesteps", None)
    vars(own).pop("step", None)


def expected(sampler: Any, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """The latents without noise, x0, that the step which `sampler` has just made was aiming at.

    sample = alpha x0 + sigma noise. What the denoiser predicts is the noise (epsilon), x0 itself (sample), alpha noise - sigma
    x0 (v_prediction, Salimans and Ho 2022), or noise - x0 with alpha = 1 - sigma (flow matching, Lipman et al. 2022). A sampler
    whose initial noise is not of deviation 1 works on sample / alpha (Karras et al. 2022).
    """
    output = output[:, : sample.shape[1]]  # beside it some models predict the variance
    kind = getattr(sampler.config, "prediction_type", None)
    index = getattr(sampler, "step_index", None) or 0
    sigma: Any = sampler.sigmas[index - 1] if index and hasattr(sampler, "sigmas") else None
    clean: Tensor = sample
    if hasattr(sampler, "sigmas_interpol") and not hasattr(sampler, "sigmas_up") and sampler.sample is None:
        sigma = sampler.sigmas_interpol[index - 1]  # the second half of a step, which began between two levels
    if hasattr(sampler, "precondition_outputs"):
        clean = sampler.precondition_outputs(sample, output, sigma)
    elif kind == "trigflow":  # alpha, sigma = cos t, sin t (Lu and Song 2024)
        angle = sampler.timesteps[index - 1]
        clean = angle.cos() * sample - angle.sin() * output
    elif sigma is not None and kind in (None, "flow_prediction"):
        clean = sample - sigma * output
    elif sigma is not None and sampler.init_noise_sigma != 1:
        alpha = 1 / (1 + sigma**2) ** 0.5
        clean = _clean(kind, output, sample * alpha, alpha, sigma * alpha)
    elif hasattr(sampler, "alphas_cumprod"):
        product = sampler.alphas_cumprod[int(timestep)]
        clean = _clean(kind, output, sample, product**0.5, (1 - product) ** 0.5)
    return clean


def _clean(kind: str | None, output: Tensor, sample: Tensor, alpha: Any, sigma: Any) -> Tensor:
    clean: Tensor = (sample - sigma * output) / alpha
    if kind == "v_prediction":
        clean = alpha * sample - sigma * output
    return output if kind == "sample" else clean
