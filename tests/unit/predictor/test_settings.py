import os
from pathlib import Path

import pytest

from predictor.settings import Settings, keep_compiled, new_parser, read

MODEL = ["--model-id", "org/Name"]


def refused(capsys, argv: list[str], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SystemExit) as ended:
        read(argv, environ or {})
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_those_of_the_dataclass():
    settings, rest = read(MODEL, {})
    assert settings == Settings(model_id="org/Name")
    assert rest == []


def test_flag_wins_over_environment_wins_over_default():
    environ = {"PREDICTOR_MAX_ROWS": "8", "PREDICTOR_MAX_QUEUE_SECONDS": "9"}
    settings, _ = read([*MODEL, "--max-rows", "4"], environ)
    assert (settings.max_rows, settings.max_queue_seconds, settings.max_steps) == (4, 9, 150)


def test_everything_can_be_set():
    environ = {"PREDICTOR_MODEL_ID": "a/b", "PREDICTOR_REFUSE_TRUNCATION": "TRUE", "PREDICTOR_ROOT": "/x"}
    settings, _ = read(["--embed-prompt=false", "--timeout", "1.5", "--device", "cuda:1", "--revision", "refs/pr/1"], environ)
    assert settings == Settings(
        model_id="a/b",
        root=Path("/x"),
        refuse_truncation=True,
        embed_prompt=False,
        timeout=1.5,
        device="cuda:1",
        revision="refs/pr/1",
    )


def test_kserve_flags_are_left_alone_and_its_model_name_is_ours():
    settings, rest = read([*MODEL, "--http_port", "9", "--model_name", "x"], {"INFERENCE_SERVICE_NAME": "y"})
    assert rest == ["--http_port", "9", "--model_name", "x"]
    assert settings.name == "x"


def test_the_name_is_that_of_the_inference_service_or_of_the_model():
    assert read(MODEL, {"INFERENCE_SERVICE_NAME": "y"})[0].name == "y"
    assert read(MODEL, {})[0].name == "name"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "--model-id (or PREDICTOR_MODEL_ID) is missing"),
        (["--model-id", "name"], "--model-id must be org/name, not 'name'"),
        (["--model-id", "../name"], "--model-id must be org/name"),
        (["--model-id", "org/.."], "--model-id must be org/name"),
        ([*MODEL, "--revision", "../main"], "--revision must be a ref or commit"),
        ([*MODEL, "--max-rows", "0"], "--max-rows must be a whole number of at least 1, not '0'"),
        ([*MODEL, "--order", "last"], "--order must be shortest or first-come, not 'last'"),
        ([*MODEL, "--max-rows", "4.5"], "--max-rows must be a whole number"),
        ([*MODEL, "--timeout", "nan"], "--timeout must be a number of at least 1"),
        ([*MODEL, "--embed-prompt", "yes"], "--embed-prompt must be true or false, not 'yes'"),
        ([*MODEL, "--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N"),
        ([*MODEL, "--default-steps", "99", "--max-steps", "20"], "--default-steps must be at most --max-steps, which is 20"),
        ([*MODEL, "--default-guidance", "51"], "--default-guidance must be at most --max-guidance, which is 50"),
        ([*MODEL, "--dtype", "int8"], "--dtype must be auto, float32, bfloat16 or float16"),
    ],
)
def test_what_does_not_parse_is_named_with_what_is_allowed(argv, text, capsys):
    assert text in refused(capsys, argv)


def test_a_bad_variable_is_named_as_such(capsys):
    assert "PREDICTOR_MAX_ROWS must be a whole number" in refused(capsys, MODEL, {"PREDICTOR_MAX_ROWS": "x"})


def test_an_unknown_variable_is_refused_but_not_what_kubernetes_makes_of_a_service(capsys):
    assert "PREDICTOR_MAXROWS is not known" in refused(capsys, MODEL, {"PREDICTOR_MAXROWS": "4"})
    links = {"PREDICTOR_PORT": "tcp://1.2.3.4:80", "PREDICTOR_SERVICE_HOST": "1.2.3.4", "PREDICTOR_PORT_80_TCP_PROTO": "tcp"}
    assert read(MODEL, links)[0].model_id == "org/Name"


def test_help_tells_every_default():
    text = " ".join(new_parser().format_help().split())
    for expected in ("--max-rows", "(default: 16)", "PREDICTOR_MAX_ROWS", "--http_port", "(default: /mnt/models)"):
        assert expected in text


def test_what_is_compiled_is_kept_where_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_compiled(read(MODEL, {})[0])
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    keep_compiled(read([*MODEL, "--compile-cache", str(tmp_path)], {})[0])
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_signing_takes_a_certificate_and_a_key(capsys):
    settings, _ = read([*MODEL, "--c2pa-key", "/c/tls.key"], {"PREDICTOR_C2PA_CERTIFICATE": "/c/tls.crt"})
    assert (settings.c2pa_certificate, settings.c2pa_key) == (Path("/c/tls.crt"), Path("/c/tls.key"))
    message = "predictor: --c2pa-key without --c2pa-certificate: signing takes both\n"
    assert refused(capsys, [*MODEL, "--c2pa-key", "k"]) == message
    assert "--c2pa-certificate without --c2pa-key" in refused(capsys, MODEL, {"PREDICTOR_C2PA_CERTIFICATE": "c"})


def test_compiling_would_change_what_is_to_be_reproducible(capsys):
    text = refused(capsys, [*MODEL, "--compile=true", "--reproducible=true"])
    assert "--compile and --reproducible exclude each other" in text
