"""A snapshot on the volume becomes a pipeline on a device, with what it can do read off the pipeline itself.

No model family is named here: defaults come from the signature of the pipeline's own `__call__` and from its configuration.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from predictor import limits, sampler, snapshot
from predictor.errors import DeviceUnavailable, InvalidRequest, ModelNotLoadable
from predictor.job import Job
from predictor.limits import signature
from predictor.pixels import Pixels
from predictor.preview import Preview
from predictor.request import Limits, Params
from predictor.settings import Settings
from predictor.snapshot import Snapshot

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STEPS_OF_ALL = 20  # so many every sampler can make, once it knows all that it needs to
_FOR_DEFAULT_STEPS = ("intermediate_timesteps",)  # arguments whose own defaults suit no other number


@dataclass(frozen=True)
class Tokenizer:
    """A component's private copy, and how many of its tokens the encoder behind it reads, start and end included."""

    encode: PreTrainedTokenizerBase
    reads: int

    def count(self, text: str) -> int:
        return len(self.encode(text).input_ids)


@dataclass(frozen=True)
class TextToImage:
    """A loaded pipeline. `generate` may run in one thread only, `tokens` in another: they share no tokenizer."""

    pipe: Any
    snapshot: Snapshot
    limits: Limits
    samplers: Mapping[str, Any]  # diffusers schedulers by class name, each copied for every request
    tokenizers: Mapping[str, Tokenizer]  # by component
    always: Mapping[str, Any]  # arguments that every call gets
    preview: Preview | None = None

    def generate(self, pipe: Any, params: Params, job: Job | None = None) -> Any:
        """Calls `pipe`, a private copy of the pipeline, and tells `job` of each step. What comes back has `images` as Pixels.

        Noise is drawn on the CPU, so that a seed means the same picture on every device, and by a generator for each image.
        """
        arguments = {name: value for name, value in vars(params).items() if name in self.limits.supported and value is not None}

        def on_step(step: int, of: int, expected: Callable[[], Tensor]) -> None:
            if job:
                job.report(step, of, lambda: self._preview(params, expected))

        own = self.samplers[params.scheduler] if params.scheduler else pipe.scheduler
        pipe.scheduler = sampler.private(own, on_step)
        generators = [torch.Generator().manual_seed(seed) for seed in params.seeds]
        try:
            output = pipe(**arguments, **self.always, **self._where_steps_differ(params), generator=generators)
        finally:
            sampler.release(pipe.scheduler)
        output.images = Pixels(output.images if hasattr(output, "images") else output[0])
        return output

    def _where_steps_differ(self, params: Params) -> dict[str, None]:
        """Nothing in place of what a pipeline knows by heart for its default number of steps and refuses at any other."""
        taken = signature(self.pipe)
        usual = taken.get("num_inference_steps")
        if not usual or usual.default == params.num_inference_steps:
            return {}
        return dict.fromkeys(name for name in _FOR_DEFAULT_STEPS if name in taken)

    def _preview(self, params: Params, expected: Callable[[], Tensor]) -> Pixels | None:
        """None of a sampler that computes in a way of its own: no picture fails for its preview."""
        if not self.preview:
            return None
        try:
            return Pixels(self.preview(expected(), (params.width or 1) / (params.height or 1)))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return None

    def decode_in_tiles(self, decode: Callable[[], Any]) -> Any:
        """Runs `decode` piece by piece where the autoencoder can: less memory, and faint differences at the seams."""
        vae: Any = getattr(self.pipe, "vae", None)
        if not hasattr(vae, "enable_tiling"):
            return decode()
        vae.enable_tiling()
        try:
            return decode()
        finally:
            vae.disable_tiling()

    @property
    def has_safety_checker(self) -> bool:
        return getattr(self.pipe, "safety_checker", None) is not None

    def relative_size(self, params: Params) -> float:
        """Pixels of one picture, in pictures of default size."""
        return self.limits.relative_size(params)

    def takes_steps(self, name: str | None, steps: int) -> bool:
        """Whether a sampler can make so many steps."""
        return sampler.takes_steps(self.samplers[name] if name else self.pipe.scheduler, steps)

    def check_steps(self, params: Params, field: str) -> None:
        """Raises InvalidRequest, blaming `field`. A sampler that needs to know the picture's size first (FLUX's) is taken on
        trust."""
        asked, steps = params.scheduler, params.num_inference_steps
        if not self.takes_steps(asked, steps) and self.takes_steps(asked, _STEPS_OF_ALL):
            name = asked or type(self.pipe.scheduler).__name__
            raise InvalidRequest(f"{field} must suit {name}, which cannot make {steps} steps", field=field)

    def tokens(self, text: str) -> tuple[int, int]:
        """How many `text` has, and how many of them no text encoder of this pipeline reads."""
        counts = [(tokenizer.count(text), tokenizer.reads) for tokenizer in self.tokenizers.values()]
        dropped = min((max(count - reads, 0) for count, reads in counts), default=0)
        return max((count for count, _ in counts), default=0), dropped


def load(settings: Settings, report: Callable[[str], None]) -> TextToImage:
    """Raises StartupErrors. `report` is told which phase begins."""
    # Below errors, both libraries quote what the encoder cut off a prompt.
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    report("looking at the volume")
    found = snapshot.find(settings.root, settings.model_id, settings.revision)
    device = _device(settings.device)
    dtype = _dtype(settings.dtype, device, found.variant)
    report(f"reading {found.bytes / 1e9:.2f} GB of weights")
    pipe = _read(found, dtype)
    report(f"moving the weights to {device}")
    try:
        pipe.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelNotLoadable(f"{found.bytes / 1e9:.2f} GB of weights do not fit into the memory of {device}") from error
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False)
    if dtype == torch.float16 and getattr(getattr(pipe, "vae", None), "config", {}).get("force_upcast"):
        _keep_in_float32(pipe.vae)
    if hasattr(getattr(pipe, "vae", None), "enable_slicing"):
        pipe.vae.enable_slicing()  # several pictures one by one: the memory of one, and each as if it were alone
    pipe.set_progress_bar_config(disable=True)
    samplers = sampler.offered(pipe.scheduler)
    # Rounded to a table of sizes, a picture would be another than was asked for, checked and promised; as PIL images, it
    # would have to be waited for in the thread that launches all other work.
    always = {"use_resolution_binning": False, "output_type": "pt"}
    # A language model that writes the prompt anew (LongCat, ERNIE) takes seconds, in which nobody's forward is made, and dice.
    always |= {"enable_prompt_rewrite": False, "use_pe": False}
    if not any(isinstance(part, VaeImageProcessor) for part in vars(pipe).values()):
        del always["output_type"]  # "pt" is then what the decoder gave, on whatever scale, and no safety checker has seen it
    if "guidance_scale" in signature(pipe):
        always["guidance_schedule"] = None  # the pipeline takes one of the two
    always = {name: value for name, value in always.items() if name in signature(pipe)}
    return TextToImage(pipe, found, limits.read(pipe, samplers, settings), samplers, _tokenizers(pipe), always)


def _device(wanted: str) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not (available and (device.index or 0) < torch.cuda.device_count()):
        raise DeviceUnavailable(f"--device {wanted}: this process sees {torch.cuda.device_count()} CUDA devices")
    return device


def _dtype(wanted: str, device: torch.device, variant: str | None) -> torch.dtype:
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if variant == "fp16" or not torch.cuda.is_bf16_supported() else torch.bfloat16


def _read(found: Snapshot, dtype: torch.dtype) -> Any:
    """Nothing but safetensors and configuration from the snapshot itself is read; nothing is fetched or executed."""
    # An encoder that a repository leaves out (SD3 without T5) has to be left out by name as well.
    index = json.loads((found.path / "model_index.json").read_bytes())
    left_out = {name: None for name, value in index.items() if value == [None, None]}
    try:
        return diffusers.DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            found.path, dtype=dtype, variant=found.variant, use_safetensors=True, local_files_only=True, **left_out
        )
    except (OSError, ValueError, TypeError, AttributeError, ImportError, KeyError, NameError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelNotLoadable(f"{found.pipeline} at {found.path} cannot be loaded: {reason}") from error


def _keep_in_float32(vae: Any) -> None:
    """A VAE that overflows in float16 is cast up and down by the pipeline inside each call, under every other request's
    feet. Cast it once, and let its decoder take the half-precision latents as they come."""
    vae.to(torch.float32)
    decode = vae.decode
    vae.decode = lambda latents, *args, **kwargs: decode(latents.float(), *args, **kwargs)


def _tokenizers(pipe: Any) -> dict[str, Tokenizer]:
    """What configuration and signature say of them; the warm-up picture corrects that where a pipeline has its own mind."""
    default = signature(pipe).get("max_sequence_length")
    asked = default.default if default and isinstance(default.default, int) else math.inf
    found = {}
    for name, component in pipe.components.items():
        component = component.tokenizer if isinstance(component, ProcessorMixin) else component
        if isinstance(component, PreTrainedTokenizerBase):
            reads = component.model_max_length
            reads = reads if isinstance(component, CLIPTokenizer) else min(reads, asked)
            if reads < 1_000_000:  # transformers' way of saying "no limit" is a number of 31 digits
                found[name] = Tokenizer(copy.deepcopy(component), int(reads))
    return found
