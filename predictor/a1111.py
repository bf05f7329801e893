"""AUTOMATIC1111's API for text to image: bodies to a request, answers to bodies, and what front ends look up first. Pure.

Front ends send dozens of fields with every request, most of them with a value that asks for nothing: those are accepted. What
asks for something that is not offered is refused, also where AUTOMATIC1111 would ignore the field: nothing that would change
the picture is dropped. What is not given is the model's own choice, not 512 x 512 in 50 steps. Prompts are read as the model's
pipeline reads them, so that (a word:1.2) has no more weight than its brackets.

Source: its modules/api/api.py and models.py, modules/processing.py (fields, info, text form of the settings), and what the
clients webuiapi, SillyTavern and Open WebUI send.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

import orjson

from predictor import a1111_samplers, wire
from predictor.errors import InvalidRequest, ServingError
from predictor.images import EncodedImage
from predictor.request import Answer, GenerateRequest, Limits, Params
from predictor.wire import Reply

# Ours by theirs, for those that need no more than another name.
_PARAMETERS = {
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
    "seed": "seed",
}
_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "num_images_per_prompt": "batch_size * n_iter",
    "scheduler": "sampler_name",
}
_SERVED = {"prompt", *_PARAMETERS, "batch_size", "n_iter", "sampler_name"}
# Looked at each in its own way.
_CHECKED = {"sampler_index", "scheduler", "eta", "override_settings", "send_images"}
# Whatever they hold, the picture is the same: about files that AUTOMATIC1111 would write, or without effect while another field
# asks for nothing. Those named hr_… are as well.
_WITHOUT_EFFECT = {
    *("save_images", "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "force_task_id"),
    *("denoising_strength", "subseed", "refiner_switch_at", "disable_extra_networks", "script_args"),
    *("s_tmin", "s_tmax", "s_noise"),
}
_OF_SILLY_TAVERN = {"url", "auth"}  # meant for itself: the password is nobody else's business
# What asks for nothing; so do null, false, 0 and whatever is empty.
_NOT_OFFERED: dict[str, object] = {
    "enable_hr": False,
    "restore_faces": False,
    "tiling": False,
    "styles": [],
    "script_name": None,
    "alwayson_scripts": {},
    "refiner_checkpoint": "None",
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "s_churn": 0,
    "s_min_uncond": 0,
    "clip_skip": 1,
}
_EXTRA_NETWORK = re.compile(r"<(lora|lyco|hypernet):")
_JOB = "txt2img"


def schema(fields: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """JSON Schema of a body: what asks for something. `fields`: as `request.schemas` has them."""
    own = {theirs: fields[ours] for theirs, ours in _PARAMETERS.items() if ours in fields}
    counts = {name: fields["num_images_per_prompt"] for name in ("batch_size", "n_iter") if "num_images_per_prompt" in fields}
    seed = {**fields["seed"], "minimum": -1}
    sampler = {"sampler_name": {"type": "string"}} if "scheduler" in fields else {}
    return {
        "type": "object",
        "required": ["prompt"],
        "properties": {"prompt": fields["prompt"], **own, "seed": seed, **counts, **sampler},
    }


def decode(body: bytes, *, limits: Limits, name: str) -> GenerateRequest:
    """`name`: of the model. Raises InvalidRequest."""
    message = wire.json_object(body)
    _check_fields(message)
    _check_settings(message.get("override_settings") or {}, name, "override_settings")
    prompt = message.get("prompt")
    if isinstance(prompt, str) and _EXTRA_NETWORK.search(prompt):
        raise InvalidRequest("prompt must not ask for <lora:…>, <lyco:…> or <hypernet:…>: none is offered", field="prompt")
    asked: dict[str, object] = {ours: message.get(theirs) for theirs, ours in _PARAMETERS.items()}
    if asked["seed"] == -1:
        asked["seed"] = None
    if not asked["negative_prompt"]:
        asked["negative_prompt"] = None  # sent along to models that have none
    if asked["guidance_scale"] == 1 and "guidance_scale" not in limits.supported:
        asked["guidance_scale"] = None  # the same: 1 is no guidance
    asked["num_images_per_prompt"] = _count(message)
    asked["scheduler"] = _sampler(message, limits.schedulers)
    parameters = {field: value for field, value in asked.items() if value is not None}
    return GenerateRequest(prompt, parameters, within="", names=_NAMES)


def inscription(params: Params, i: int, image: EncodedImage, *, model_name: str, embed_prompt: bool) -> tuple[str, str]:
    """Keyword and text of a chunk for picture `i`, a PNG: AUTOMATIC1111's own form of how it was made."""
    return "parameters", (_infotext if embed_prompt else _settings)(params, i, image, model_name)


def encode(answer: Answer, body: bytes, model_name: str) -> Reply:
    """`body`: of the request, which the answer repeats."""
    infotexts = [_infotext(answer.params, i, image, model_name) for i, image in enumerate(answer.images)]
    pictures = [wire.b64(image) for image in answer.images]
    asked = {field: value for field, value in wire.json_object(body).items() if field not in _OF_SILLY_TAVERN}
    info = orjson.dumps(_info(answer, infotexts, model_name, asked)).decode()
    reply = orjson.dumps({"images": pictures, "parameters": asked, "info": info})
    return Reply(reply, "application/json", {"server-timing": wire.timing([answer])})


def error(failure: ServingError, request_id: str) -> dict[str, object]:
    """As AUTOMATIC1111 tells whatever it raises on purpose."""
    message = wire.public(failure, request_id)
    return {"error": "HTTPException", "detail": message, "body": "", "errors": f"{failure.status}: {message}"}


def progress(state: str | None, step: int, of: int, eta: float, preview: EncodedImage | None) -> dict[str, object]:
    """`state`: "queued" or "running", None where nothing is to be done; `eta` in seconds."""
    busy = state is not None
    return {
        # 0 is for nothing to do: clients wait until they see it.
        "progress": min(max(step / of if of else 0.0, 0.01), 1.0) if busy else 0.0,
        "eta_relative": eta,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": _JOB if busy else "",
            "job_count": 1 if busy else 0,
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": of,
        },
        "current_image": wire.b64(preview) if preview else None,
        "textinfo": state,
    }


def samplers(schedulers: tuple[str, ...]) -> list[dict[str, object]]:
    own: dict[str, object] = {"name": a1111_samplers.OWN, "aliases": [], "options": {}}
    return [own] + [
        {"name": name, "aliases": [scheduler] if scheduler != name else [], "options": {}}
        for name, scheduler in a1111_samplers.offered(schedulers).items()
    ]


def schedulers() -> list[dict[str, object]]:
    """Noise schedules, as AUTOMATIC1111 means the word: the one that the model configures."""
    return [{"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}]


def models(name: str, repo: str, commit: str) -> list[dict[str, object]]:
    """No hashes: theirs are of one file, and find a model in public lists."""
    place = f"{repo}@{commit}"
    return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": place, "config": None}]


def options(name: str) -> dict[str, object]:
    """Those that say how pictures are made here."""
    return {
        "sd_model_checkpoint": name,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "eta_noise_seed_delta": 0,
        "samples_format": "png",
        "return_grid": False,
    }


def check_options(body: bytes, name: str) -> None:
    """Front ends set the model before they ask, and send back what they read. Raises InvalidRequest for what would change
    anything."""
    _check_settings(wire.json_object(body), name, "")


# ---------------------------------------------------------------- what is asked


def _check_fields(message: Mapping[str, object]) -> None:
    known = _SERVED | _CHECKED | _WITHOUT_EFFECT | _OF_SILLY_TAVERN
    for field, value in message.items():
        if field in known or field.startswith("hr_") or not value:
            continue
        if field not in _NOT_OFFERED:  # its value may be a prompt
            shown = orjson.dumps(field[:40]).decode()
            raise InvalidRequest(f"body has no field {shown}; allowed: {', '.join(sorted(_SERVED))}", field=field[:40])
        if value != _NOT_OFFERED[field]:
            _refuse(field, value, _shown(_NOT_OFFERED[field]))
    if message.get("send_images") is False:
        _refuse("send_images", False, "true")  # nothing is kept here where they could be found later
    noise_schedule = message.get("scheduler")
    if noise_schedule and noise_schedule not in ("Automatic", "automatic"):
        _refuse("scheduler", noise_schedule, '"Automatic"')


def _check_settings(settings: object, name: str, where: str) -> None:
    """Each must be as it is anyhow."""
    if not isinstance(settings, dict):
        raise InvalidRequest(f"{where} must be an object", field=where)
    present = options(name)
    for option, value in settings.items():
        field = f"{where}.{option[:40]}" if where else option[:40]
        if value in (None, "", "None"):  # nothing chosen
            continue
        if option not in present:
            raise InvalidRequest(f"{field} cannot be set here; known: {', '.join(present)}", field=field)
        if value != present[option]:
            _refuse(field, value, _shown(present[option]))


def _count(message: Mapping[str, object]) -> int | None:
    """Pictures; None for one, which needs no asking."""
    count = 1
    for field in ("batch_size", "n_iter"):
        value = message.get(field)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            _refuse(field, value, "a whole number of at least 1")
        count *= value
    return count if count > 1 else None


def _sampler(message: Mapping[str, object], schedulers: tuple[str, ...]) -> str | None:
    """The diffusers class; None: the model's own. Where none is named AUTOMATIC1111 takes Euler, on which `eta` has no effect:
    so here."""
    asked = message.get("sampler_name") or message.get("sampler_index")
    if not asked or asked == a1111_samplers.OWN:
        return None
    offered = a1111_samplers.offered(schedulers)
    found = asked if asked in schedulers else offered.get(asked) if isinstance(asked, str) else None
    if not isinstance(found, str):
        field = "sampler_name" if message.get("sampler_name") else "sampler_index"
        _refuse(field, asked, f"one of {', '.join([a1111_samplers.OWN, *offered])}")
    eta, fixed = message.get("eta"), a1111_samplers.ETAS.get(found)
    if eta is not None and fixed is not None and eta != fixed:
        _refuse("eta", eta, f"{fixed} or null with {asked}")
    return found


def _refuse(field: str, value: object, allowed: str) -> NoReturn:
    raise InvalidRequest(f"{field} must be {allowed}, not {_shown(value)}", field=field)


def _shown(value: object) -> str:
    if isinstance(value, list | dict) and value:
        return "an array with something in it" if isinstance(value, list) else "an object with something in it"
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:39] + "…"


# ---------------------------------------------------------------- what is told


def _infotext(params: Params, i: int, image: EncodedImage, model_name: str) -> str:
    negative = f"\nNegative prompt: {params.negative_prompt}" if params.negative_prompt else ""
    return f"{params.prompt}{negative}\n{_settings(params, i, image, model_name)}"


def _settings(params: Params, i: int, image: EncodedImage, model_name: str) -> str:
    """The last line of the text form: how picture `i` was made."""
    fields = {
        "Steps": params.num_inference_steps,
        "Sampler": a1111_samplers.name_of(params.scheduler),
        "CFG scale": params.guidance_scale,
        "Seed": params.seeds[i],
        "Size": f"{image.width}x{image.height}",
        "Model": model_name,
    }
    return ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None)


def _quoted(value: object) -> str:
    """What would end the value is in quotes."""
    text = str(value)
    return orjson.dumps(text).decode() if re.search("[,:\n]", text) else text


def _info(answer: Answer, infotexts: list[str], model_name: str, asked: Mapping[str, object]) -> dict[str, object]:
    params, count = answer.params, len(answer.images)
    negative = params.negative_prompt or ""
    info: dict[str, object] = {
        "prompt": params.prompt,
        "all_prompts": [params.prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": params.seed,
        "all_seeds": list(answer.seeds),
        "subseed": -1,  # none is drawn: it would count for nothing
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": answer.images[0].width,
        "height": answer.images[0].height,
        "sampler_name": a1111_samplers.name_of(params.scheduler),
        "cfg_scale": params.guidance_scale,
        "steps": params.num_inference_steps,
        "batch_size": asked.get("batch_size") or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model_name,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [],
        "job_timestamp": "0",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
    }
    if answer.dropped_tokens:
        info |= {"truncated": True, "dropped_tokens": answer.dropped_tokens}
    if answer.flagged is not None:
        info["safety_flagged"] = list(answer.flagged)
    return info
