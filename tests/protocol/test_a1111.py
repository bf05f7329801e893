"""Golden bodies of AUTOMATIC1111's API, and what its clients really send."""

import base64
import json

import numpy as np
import pytest

from predictor import a1111, images
from predictor.errors import Cancelled, GenerationFailed, InvalidRequest
from predictor.images import EncodedImage
from predictor.request import Answer, Limits, Params, parse

SECRET = "zebra"  # in every prompt: no message may hold it
SCHEDULERS = (
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "PNDMScheduler",
)
LIMITS = Limits(
    supported=frozenset(
        {"width", "height", "num_inference_steps", "guidance_scale", "negative_prompt", "num_images_per_prompt"}
    ),
    width=64,
    height=64,
    multiple=8,
    min_side=16,
    max_side=256,
    max_pixels=256 * 256,
    num_inference_steps=25,
    max_steps=150,
    guidance_scale=7.5,
    max_guidance=50.0,
    max_images=4,
    schedulers=SCHEDULERS,
    max_prompt_chars=4000,
    max_cost=64.0,
)

# What the clients send where their users have changed nothing: webuiapi 0.9.17, SillyTavern and Open WebUI of 2024 and 2026.
WEBUIAPI = {
    **{"enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0},
    **{"hr_resize_y": 0, "hr_checkpoint_name": None, "hr_sampler_name": None, "hr_scheduler": None, "hr_prompt": ""},
    **{"hr_negative_prompt": "", "denoising_strength": 0.7, "firstphase_width": 0, "firstphase_height": 0},
    **{"prompt": SECRET, "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0},
    **{"seed_resize_from_w": 0, "batch_size": 1, "n_iter": 1, "steps": 20, "cfg_scale": 7.0, "width": 512, "height": 512},
    **{"restore_faces": False, "tiling": False, "do_not_save_samples": False, "do_not_save_grid": False},
    **{"negative_prompt": "", "eta": 1.0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings": {}},
    **{"override_settings_restore_afterwards": True, "sampler_name": "Euler a", "scheduler": "automatic"},
    **{"sampler_index": "Euler a", "script_name": None, "script_args": [], "send_images": True, "save_images": False},
    "alwayson_scripts": {},
}
SILLY_TAVERN = {
    **{"url": "http://localhost:7860", "auth": "me:password", "prompt": SECRET, "negative_prompt": "dots"},
    **{"sampler_name": "DDIM", "scheduler": "automatic", "steps": 20, "cfg_scale": 7, "width": 512, "height": 512},
    **{"restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2, "denoising_strength": 0.7},
    **{"hr_second_pass_steps": 0, "override_settings": {"CLIP_stop_at_last_layers": 1}, "clip_skip": 1},
    **{"override_settings_restore_afterwards": True, "save_images": True, "send_images": True},
    **{"do_not_save_grid": False, "do_not_save_samples": False},
}
OPEN_WEBUI = {"prompt": SECRET, "batch_size": 2, "width": 512, "height": 512, "steps": 50}


def decode(limits: Limits = LIMITS, **message: object):
    return a1111.decode(json.dumps({"prompt": SECRET} | message).encode(), limits=limits, name="shapes")


# ---------------------------------------------------------------- requests


def test_a_request_in_its_own_names():
    request = decode(
        negative_prompt="dots", steps=20, cfg_scale=3.5, width=64, height=128, seed=7, sampler_name="Euler a", batch_size=2
    )
    assert request.prompt == SECRET
    assert request.parameters == {
        "negative_prompt": "dots",
        "num_inference_steps": 20,
        "guidance_scale": 3.5,
        "width": 64,
        "height": 128,
        "seed": 7,
        "num_images_per_prompt": 2,
        "scheduler": "EulerAncestralDiscreteScheduler",
    }


def test_what_is_not_given_is_the_models_own():
    nothing = {"negative_prompt": "", "seed": -1, "sampler_name": None, "steps": None, "batch_size": 1, "n_iter": 1}
    for request in (decode(), decode(**nothing)):
        assert request.parameters == {}
        params = parse(request, LIMITS)
        assert (params.width, params.height, params.num_inference_steps, params.guidance_scale) == (64, 64, 25, 7.5)


@pytest.mark.parametrize(
    ("message", "parameters"),
    [
        (
            WEBUIAPI,
            {
                **{"num_inference_steps": 20, "guidance_scale": 7.0, "width": 512, "height": 512},
                "scheduler": "EulerAncestralDiscreteScheduler",
            },
        ),
        (
            SILLY_TAVERN,
            {
                **{"negative_prompt": "dots", "num_inference_steps": 20, "guidance_scale": 7, "width": 512, "height": 512},
                "scheduler": "DDIMScheduler",
            },
        ),
        (OPEN_WEBUI, {"num_inference_steps": 50, "width": 512, "height": 512, "num_images_per_prompt": 2}),
    ],
)
def test_what_clients_send_unasked_is_accepted(message, parameters):
    assert decode(**message).parameters == parameters


def test_iterations_and_batches_multiply():
    assert decode(batch_size=2, n_iter=2).parameters == {"num_images_per_prompt": 4}
    with pytest.raises(InvalidRequest, match=r"^batch_size \* n_iter must be a whole number from 1 to 4, not 6"):
        parse(decode(batch_size=2, n_iter=3), LIMITS)


def test_a_model_without_guidance_takes_a_scale_of_one_for_none():
    turbo = Limits(**vars(LIMITS) | {"supported": frozenset({"num_inference_steps"})})
    assert decode(turbo, cfg_scale=1, negative_prompt="").parameters == {}
    assert decode(turbo, cfg_scale=7).parameters == {"guidance_scale": 7}
    assert decode(cfg_scale=1).parameters == {"guidance_scale": 1}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "", "prompt must be a string of 1 to 4000 characters"),
        ("steps", 0, "steps must be a whole number from 1 to 150, not 0"),
        ("cfg_scale", "7", 'cfg_scale must be a number from 0 to 50, not "7"'),
        ("width", 63, "width must be a multiple of 8 from 16 to 256, not 63"),
        ("height", 512, "height must be a multiple of 8 from 16 to 256, not 512"),
        ("seed", -2, "seed must be a whole number from 0 to"),
        ("negative_prompt", [SECRET], "negative_prompt must be a string"),
    ],
)
def test_bad_values_are_told_in_the_callers_names(field, value, message):
    with pytest.raises(InvalidRequest) as refused:
        parse(decode(**{field: value}), LIMITS)
    assert refused.value.message.startswith(message)
    assert refused.value.field == field
    assert SECRET not in refused.value.message


@pytest.mark.parametrize(
    "nothing",
    [
        {"enable_hr": None, "hr_scale": 4, "hr_prompt": "x", "denoising_strength": 0.3},
        {"subseed": 12, "subseed_strength": 0},
        {"seed_resize_from_h": -1, "seed_resize_from_w": 0},
        {"tiling": None, "restore_faces": None, "styles": None, "script_name": "", "alwayson_scripts": None},
        {"script_args": ["of no script"], "refiner_checkpoint": "None", "refiner_switch_at": 0.8},
        {"eta": None, "s_churn": None, "s_noise": 1.003, "s_min_uncond": 0},
        {"scheduler": None, "sampler_name": "", "send_images": None},
        {"scheduler": "Automatic", "sampler_name": "Automatic", "force_task_id": "task(1)"},
        {"override_settings": None},
        {"override_settings": {"sd_model_checkpoint": "shapes", "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1}},
        {"override_settings": {"sd_model_checkpoint": None, "sd_vae": "None"}},
        {"no_such_field": None, "another": "", "a_third": [], "a_fourth": False},
    ],
)
def test_what_asks_for_nothing_is_accepted(nothing):
    assert decode(**nothing).parameters == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("enable_hr", True, "enable_hr must be false, not true"),
        ("restore_faces", True, "restore_faces must be false, not true"),
        ("tiling", True, "tiling must be false, not true"),
        ("styles", [SECRET], "styles must be [], not an array with something in it"),
        ("script_name", "X/Y/Z plot", 'script_name must be null, not "X/Y/Z plot"'),
        ("alwayson_scripts", {"ADetailer": {}}, "alwayson_scripts must be {}, not an object with something in it"),
        ("refiner_checkpoint", "xl", 'refiner_checkpoint must be "None", not "xl"'),
        ("subseed_strength", 0.5, "subseed_strength must be 0, not 0.5"),
        ("seed_resize_from_h", 512, "seed_resize_from_h must be -1, not 512"),
        ("firstphase_width", 512, "firstphase_width must be 0, not 512"),
        ("s_churn", 1.5, "s_churn must be 0, not 1.5"),
        ("s_min_uncond", 1, "s_min_uncond must be 0, not 1"),
        ("clip_skip", 2, "clip_skip must be 1, not 2"),
        ("send_images", False, "send_images must be true, not false"),
        ("scheduler", "Karras", 'scheduler must be "Automatic", not "Karras"'),
        ("batch_size", 0, "batch_size must be a whole number of at least 1, not 0"),
        ("n_iter", "2", 'n_iter must be a whole number of at least 1, not "2"'),
        ("n_iter", True, "n_iter must be a whole number of at least 1, not true"),
        ("override_settings", [1], "override_settings must be an object"),
        ("sampler_name", "x" * 50, 'not "' + "x" * 38 + "…"),
        ("init_images", [SECRET], 'body has no field "init_images"; allowed: batch_size, cfg_scale, height,'),
        ("infotext", SECRET, 'body has no field "infotext"; allowed: '),
        ("x" * 50, 1, f'body has no field "{"x" * 40}"'),
        ("prompt", f"{SECRET} <lora:dots:0.8>", "prompt must not ask for <lora:…>"),
    ],
)
def test_what_is_not_offered_is_refused_and_told(field, value, message):
    with pytest.raises(InvalidRequest) as refused:
        decode(**{field: value})
    assert message in refused.value.message
    assert refused.value.field == field[:40]
    assert SECRET not in refused.value.message


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("sd_model_checkpoint", "other", 'sd_model_checkpoint must be "shapes", not "other"'),
        ("CLIP_stop_at_last_layers", 2, "CLIP_stop_at_last_layers must be 1, not 2"),
        ("sd_vae", "a.pt", 'sd_vae must be "Automatic", not "a.pt"'),
        ("samples_format", "webp", 'samples_format must be "png", not "webp"'),
        ("x" * 50, 0.5, f"{'x' * 40} cannot be set here; known: sd_model_checkpoint, sd_vae,"),
    ],
)
def test_settings_are_as_they_are(option, value, message):
    with pytest.raises(InvalidRequest) as refused:
        decode(override_settings={option: value})
    assert refused.value.message.startswith("override_settings." + message)
    with pytest.raises(InvalidRequest) as refused:
        a1111.check_options(json.dumps({option: value}).encode(), "shapes")
    assert refused.value.message.startswith(message)
    assert refused.value.field == option[:40]


@pytest.mark.parametrize("body", [b"prompt=a", b"[]", b'{"prompt": "\xff"}'])
def test_bodies_that_are_no_json_object_are_refused(body):
    with pytest.raises(InvalidRequest, match="body must be"):
        a1111.decode(body, limits=LIMITS, name="shapes")
    with pytest.raises(InvalidRequest, match="body must be"):
        a1111.check_options(body, "shapes")


# ---------------------------------------------------------------- samplers


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("DDIM", "DDIMScheduler"),
        ("DDIMScheduler", "DDIMScheduler"),
        ("DPM++ 2M", "DPMSolverMultistepScheduler"),
        ("Euler", "EulerDiscreteScheduler"),
        ("PLMS", "PNDMScheduler"),
        ("DEISMultistepScheduler", "DEISMultistepScheduler"),
    ],
)
def test_samplers_go_by_both_names(asked, found):
    assert decode(sampler_name=asked).parameters == {"scheduler": found}
    assert decode(sampler_index=asked).parameters == {"scheduler": found}
    assert decode(sampler_name=asked, sampler_index="Heun").parameters == {"scheduler": found}


def test_a_flow_matching_model_has_an_euler_of_its_own():
    flow = Limits(**vars(LIMITS) | {"schedulers": ("FlowMatchEulerDiscreteScheduler",)})
    assert decode(flow, sampler_name="Euler").parameters == {"scheduler": "FlowMatchEulerDiscreteScheduler"}
    with pytest.raises(InvalidRequest, match='^sampler_name must be one of Automatic, Euler, not "Euler a"'):
        decode(flow, sampler_name="Euler a")


@pytest.mark.parametrize(
    "asked", ["DPM++ 2M Karras", "DPM++ 2M SDE", "UniPC", "UniPCMultistepScheduler", "euler a", ["DDIM"], 3]
)
def test_samplers_that_are_not_offered_are_answered_with_the_list(asked):
    allowed = "Automatic, Euler a, Euler, DPM\\+\\+ 2M, DDIM, PLMS, DEISMultistepScheduler"
    with pytest.raises(InvalidRequest, match=f"^sampler_name must be one of {allowed}, not "):
        decode(sampler_name=asked)
    with pytest.raises(InvalidRequest, match="^sampler_index must be one of "):
        decode(sampler_index=asked)


@pytest.mark.parametrize(
    ("sampler", "accepted", "refused"),
    [("Euler a", 1.0, 0), ("EulerAncestralDiscreteScheduler", 1, 0.5), ("DDIM", 0, 1.0)],
)
def test_eta_is_that_of_the_sampler(sampler, accepted, refused):
    assert decode(sampler_name=sampler, eta=accepted).parameters == decode(sampler_name=sampler).parameters
    with pytest.raises(InvalidRequest, match=f"^eta must be {int(accepted)} or null with {sampler}, not {refused}"):
        decode(sampler_name=sampler, eta=refused)


def test_eta_is_nothing_to_a_sampler_that_has_none():
    assert decode(sampler_name="Euler", eta=0.3).parameters == {"scheduler": "EulerDiscreteScheduler"}
    assert decode(eta=0.3).parameters == {}


def test_every_sampler_that_is_listed_can_be_asked_for():
    listed = a1111.samplers(SCHEDULERS)
    assert listed[:2] == [
        {"name": "Automatic", "aliases": [], "options": {}},
        {"name": "Euler a", "aliases": ["EulerAncestralDiscreteScheduler"], "options": {}},
    ]
    assert listed[-1] == {"name": "DEISMultistepScheduler", "aliases": [], "options": {}}
    asked = [decode(sampler_name=each["name"]).parameters.get("scheduler") for each in listed]
    assert asked[0] is None
    assert sorted(asked[1:]) == sorted(SCHEDULERS)


# ---------------------------------------------------------------- answers


def png(shade: int) -> EncodedImage:
    return images.encode(np.full((8, 16, 3), shade, np.uint8), "png", {"seed": shade})


def answer(**fields) -> Answer:
    params = Params(
        **{"prompt": "a käse", "negative_prompt": "dots", "width": 16, "height": 8, "num_inference_steps": 20, "seed": 7}
        | {"num_images_per_prompt": 2, "guidance_scale": 7.0, "scheduler": "EulerAncestralDiscreteScheduler"}
        | fields
    )
    pictures = tuple(png(i) for i in range(params.num_images_per_prompt))
    return Answer(params, pictures, {"queue": 0.001, "denoise": 1.5})


LAST_LINES = [
    "Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 7, Size: 16x8, Model: shapes",
    "Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 8, Size: 16x8, Model: shapes",
]
INFOTEXTS = [f"a käse\nNegative prompt: dots\n{line}" for line in LAST_LINES]


def test_an_answer_golden():
    body = {"prompt": "a käse", "negative_prompt": "dots", "steps": 20, "seed": -1, "batch_size": 2}
    reply = a1111.encode(answer(), json.dumps(body).encode(), "shapes")
    assert reply.media_type == "application/json"
    assert reply.headers == {"server-timing": "queue;dur=1.0, denoise;dur=1500.0"}
    told = json.loads(reply.body)
    assert list(told) == ["images", "parameters", "info"]
    assert told["parameters"] == body
    assert [base64.b64decode(image) for image in told["images"]] == [png(0).data, png(1).data]  # what is signed stays as it is
    assert json.loads(told["info"]) == {
        "prompt": "a käse",
        "all_prompts": ["a käse", "a käse"],
        "negative_prompt": "dots",
        "all_negative_prompts": ["dots", "dots"],
        "seed": 7,
        "all_seeds": [7, 8],
        "subseed": -1,
        "all_subseeds": [-1, -1],
        "subseed_strength": 0,
        "width": 16,
        "height": 8,
        "sampler_name": "Euler a",
        "cfg_scale": 7.0,
        "steps": 20,
        "batch_size": 2,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": "shapes",
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": INFOTEXTS,
        "styles": [],
        "job_timestamp": "0",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
    }


@pytest.mark.parametrize(("embed_prompt", "texts"), [(True, INFOTEXTS), (False, LAST_LINES)])
def test_each_file_is_to_say_how_it_was_made(embed_prompt, texts):
    told = answer()
    made = [
        a1111.inscription(told.params, i, image, model_name="shapes", embed_prompt=embed_prompt)
        for i, image in enumerate(told.images)
    ]
    assert made == [("parameters", text) for text in texts]


def test_the_text_form_leaves_out_what_there_is_not_and_quotes_what_would_break_it():
    plain = answer(negative_prompt=None, guidance_scale=None, scheduler=None, num_images_per_prompt=1, prompt="🧀")
    _, text = a1111.inscription(plain.params, 0, plain.images[0], model_name="a, b", embed_prompt=True)
    assert text == '🧀\nSteps: 20, Sampler: Automatic, Seed: 7, Size: 16x8, Model: "a, b"'
    info = json.loads(json.loads(a1111.encode(plain, b'{"prompt": "a"}', "a, b").body)["info"])
    assert info["infotexts"] == [text]
    assert (info["sampler_name"], info["cfg_scale"], info["negative_prompt"]) == ("Automatic", None, "")


def test_a_password_meant_for_another_is_not_repeated():
    reply = a1111.encode(answer(), json.dumps(SILLY_TAVERN).encode(), "shapes")
    repeated = json.loads(reply.body)["parameters"]
    assert repeated == {name: value for name, value in SILLY_TAVERN.items() if name not in ("url", "auth")}
    assert b"password" not in reply.body


def test_truncation_and_flags_are_told():
    told = Answer(**vars(answer()) | {"dropped_tokens": 3, "flagged": (True, False)})
    info = json.loads(json.loads(a1111.encode(told, b"{}", "m").body)["info"])
    assert (info["truncated"], info["dropped_tokens"], info["safety_flagged"]) == (True, 3, [True, False])


# ---------------------------------------------------------------- beside


def test_errors_golden():
    assert a1111.error(InvalidRequest("steps must be 1"), "id-1") == {
        "error": "HTTPException",
        "detail": "steps must be 1",
        "body": "",
        "errors": "400: steps must be 1",
    }
    assert a1111.error(Cancelled("interrupted"), "id-1")["errors"] == "499: interrupted"
    assert a1111.error(GenerationFailed("internal error"), "id-1")["detail"] == "internal error (request id id-1)"


def test_progress_golden():
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "txt2img",
        "job_count": 1,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 5,
        "sampling_steps": 20,
    }
    preview = EncodedImage(b"png", "png", 8, 8)
    assert a1111.progress("running", 5, 20, 3.5, preview) == {
        "progress": 0.25,
        "eta_relative": 3.5,
        "state": state,
        "current_image": "cG5n",
        "textinfo": "running",
    }
    assert a1111.progress(None, 0, 0, 0.0, None) == {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": state | {"job": "", "job_count": 0, "sampling_step": 0, "sampling_steps": 0},
        "current_image": None,
        "textinfo": None,
    }


@pytest.mark.parametrize(("step", "of", "share"), [(0, 20, 0.01), (0, 0, 0.01), (20, 20, 1.0), (21, 20, 1.0)])
def test_progress_is_nothing_only_where_nothing_is_to_be_done(step, of, share):
    assert a1111.progress("queued", step, of, 1.0, None)["progress"] == share


def test_what_front_ends_look_up_golden():
    assert a1111.models("shapes", "org/name", "c0ffee") == [
        {
            "title": "shapes",
            "model_name": "shapes",
            "hash": None,
            "sha256": None,
            "filename": "org/name@c0ffee",
            "config": None,
        }
    ]
    assert a1111.schedulers() == [
        {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}
    ]
    assert a1111.options("shapes") == {
        "sd_model_checkpoint": "shapes",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "eta_noise_seed_delta": 0,
        "samples_format": "png",
        "return_grid": False,
    }


def test_a_noise_schedule_that_is_listed_can_be_asked_for():
    [schedule] = a1111.schedulers()
    assert decode(scheduler=schedule["name"]).parameters == decode(scheduler=schedule["label"]).parameters == {}


def test_options_can_be_sent_back_as_they_were_read():
    """As Open WebUI does when its users choose a model."""
    [model] = a1111.models("shapes", "org/name", "c0ffee")
    read = a1111.options("shapes")
    assert model["title"] == read["sd_model_checkpoint"]
    a1111.check_options(json.dumps(read).encode(), "shapes")
    with pytest.raises(InvalidRequest, match='^sd_model_checkpoint must be "shapes", not "other"'):
        a1111.check_options(json.dumps(read | {"sd_model_checkpoint": "other"}).encode(), "shapes")
