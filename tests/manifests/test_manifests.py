"""Every overlay, rendered as an operator would, against the schemas and against the programs it starts."""

import os
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from downloader import settings as downloader_settings
from downloader.errors import DownloadError, TransientError
from predictor import settings as predictor_settings

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
CRDS = ROOT.parent / "shared" / "crds"
KNATIVE = ["overlays/knative", "overlays/sd15-on-any-gpu"]
STANDARD = ["overlays/standard", "overlays/sdxl-on-l4"]
OVERLAYS = ["base", *KNATIVE, *STANDARD]
KSERVE_MOUNT = Path("/mnt/models")  # where KServe's webhook mounts a storageUri, read-only
KNATIVE_MAX_TIMEOUT = 600  # seconds; max-revision-timeout-seconds as Knative comes

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)

Document = dict[str, Any]


@cache
def render(folder: Path) -> list[Document]:
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def only(kind: str, overlay: str) -> Document:
    (found,) = [document for document in render(MANIFESTS / overlay) if document["kind"] == kind]
    return found


def merged(under: Any, over: Any) -> Any:
    """As KServe lays an InferenceService's container over its runtime's: maps by key, args one after the other."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    both = {key: merged(under[key], over[key]) if key in under else over[key] for key in over}
    return {**under, **both, **({"args": under["args"] + over["args"]} if "args" in under and "args" in over else {})}


def predictor(overlay: str) -> Document:
    """The container that KServe runs."""
    service = only("InferenceService", overlay)
    (container,) = only("ServingRuntime", overlay)["spec"]["containers"]
    whole = yaml.safe_dump(merged(container, service["spec"]["predictor"]["model"]))
    loaded: Document = yaml.safe_load(whole.replace("{{.Name}}", service["metadata"]["name"]))
    return loaded


def predictor_flags(overlay: str) -> predictor_settings.Settings:
    settings, unknown = predictor_settings.read(predictor(overlay)["args"], {})
    assert unknown == []
    return settings


def job_pod(overlay: str) -> Document:
    pod: Document = only("Job", overlay)["spec"]["template"]["spec"]
    return pod


def downloader(overlay: str) -> Document:
    (container,) = job_pod(overlay)["containers"]
    return dict(container)


def downloader_flags(overlay: str) -> downloader_settings.Settings:
    return downloader_settings.parse(downloader(overlay)["args"], {})


def annotations(overlay: str) -> dict[str, str]:
    return dict(only("InferenceService", overlay)["metadata"]["annotations"])


def mode(overlay: str) -> str:
    return annotations(overlay)["serving.kserve.io/deploymentMode"]


def seconds(duration: str) -> int:
    amount, unit = re.fullmatch(r"(\d+)([smh])", duration).groups()  # type: ignore[union-attr]
    return int(amount) * {"s": 1, "m": 60, "h": 3600}[unit]


# ---------------------------------------------------------------- the documents


def strict(schema: Any) -> Any:
    """A CRD's schema with unknown fields refused wherever it does not say otherwise."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_ended:
        closed["additionalProperties"] = False
    return closed


@cache
def crd_validator(kind: str, version: str) -> jsonschema.Draft202012Validator:
    if not CRDS.is_dir():
        pytest.skip(f"needs KServe's CustomResourceDefinitions in {CRDS}")
    text = (CRDS / f"serving.kserve.io_{kind.lower()}s.yaml").read_text()
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (found,) = [entry for entry in crd["spec"]["versions"] if entry["name"] == version]
    schema = strict(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def check_against_crd(document: Document) -> None:
    group, version = document["apiVersion"].split("/")
    assert group == "serving.kserve.io"
    crd_validator(document["kind"], version).validate(document)


@each_overlay
def test_holds_one_of_each(overlay: str) -> None:
    kinds = [document["kind"] for document in render(MANIFESTS / overlay)]
    assert sorted(kinds) == ["InferenceService", "Job", "PersistentVolumeClaim", "ServingRuntime"]


@each_overlay
def test_core_kinds_follow_their_schemas(overlay: str) -> None:
    for kind in ("PersistentVolumeClaim", "Job"):
        kubernetes_validate.validate(only(kind, overlay), kubernetes_validate.latest_version(), strict=True)


@each_overlay
@pytest.mark.parametrize("kind", ["ServingRuntime", "InferenceService"])
def test_kserve_kinds_follow_their_crds(overlay: str, kind: str) -> None:
    check_against_crd(only(kind, overlay))


def test_an_unknown_field_is_refused() -> None:
    document = yaml.safe_load(yaml.safe_dump(only("InferenceService", "base")))
    document["spec"]["predictor"]["model"]["storageURI"] = "pvc://models"
    with pytest.raises(jsonschema.ValidationError, match="storageURI"):
        check_against_crd(document)


def test_base_applies_file_by_file_in_number_order() -> None:
    files = sorted(path.name for path in (MANIFESTS / "base").glob("[0-9]*.yaml"))
    assert yaml.safe_load((MANIFESTS / "base/kustomization.yaml").read_text())["resources"] == files
    alone = [yaml.safe_load((MANIFESTS / "base" / name).read_text()) for name in files]
    by_kind = {document["kind"]: document for document in render(MANIFESTS / "base")}
    assert {document["kind"]: document for document in alone} == by_kind


def test_overlays_are_all_tested_and_short() -> None:
    files = sorted(MANIFESTS.glob("overlays/*/kustomization.yaml"))
    assert [f"overlays/{path.parent.name}" for path in files] == sorted([*KNATIVE, *STANDARD])
    assert all(len(path.read_text().splitlines()) < 40 for path in files)


# ---------------------------------------------------------------- images, security, size


@each_overlay
def test_images_carry_the_version_of_this_tree(overlay: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert predictor(overlay)["image"] == f"dev.local/text-to-image-predictor:{version}"
    assert downloader(overlay)["image"] == f"dev.local/text-to-image-downloader:{version}"


def test_an_overlay_can_name_its_own_registry(tmp_path: Path) -> None:
    images = [
        {"name": f"dev.local/text-to-image-{name}", "newName": f"registry.test/{name}", "newTag": "7"}
        for name in ("predictor", "downloader")
    ]
    resource = os.path.relpath(MANIFESTS / "overlays/knative", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [resource], "images": images}))
    found = re.findall(r"image: (.+)", yaml.safe_dump_all(render(tmp_path)))
    assert sorted(found) == ["registry.test/downloader:7", "registry.test/predictor:7"]


@each_overlay
def test_pod_security_restricted_holds(overlay: str) -> None:
    pod = job_pod(overlay).get("securityContext", {})
    for container, inherited in ((predictor(overlay), {}), (downloader(overlay), pod)):
        own = container["securityContext"]
        context = {**inherited, **own}
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"]["type"] == "RuntimeDefault"
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["readOnlyRootFilesystem"] is True
    for volumes in (job_pod(overlay)["volumes"], only("ServingRuntime", overlay)["spec"]["volumes"]):
        assert {kind for volume in volumes for kind in volume} <= {"name", "emptyDir", "persistentVolumeClaim"}


@each_overlay
def test_a_read_only_root_leaves_tmp_writable(overlay: str) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in predictor(overlay)["volumeMounts"]}
    (volume,) = only("ServingRuntime", overlay)["spec"]["volumes"]
    assert mounts == {volume["name"]: "/tmp"} and volume["emptyDir"]["sizeLimit"]
    (scratch,) = [volume["name"] for volume in job_pod(overlay)["volumes"] if "emptyDir" in volume]
    assert {"name": scratch, "mountPath": "/tmp"} in downloader(overlay)["volumeMounts"]


@each_overlay
def test_only_the_job_sees_the_token_and_can_do_without(overlay: str) -> None:
    documents = render(MANIFESTS / overlay)
    assert [document["kind"] for document in documents if "hf-token" in yaml.safe_dump(document)] == ["Job"]
    (token,) = downloader(overlay)["env"]
    reference = {"name": "hf-token", "key": "token", "optional": True}
    assert token == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}
    assert only("InferenceService", overlay)["spec"]["predictor"]["automountServiceAccountToken"] is False
    assert job_pod(overlay)["automountServiceAccountToken"] is False


@each_overlay
def test_nothing_is_left_to_default_sizes(overlay: str) -> None:
    # KServe fills what the InferenceService leaves out with 1 CPU and 2Gi, whatever the runtime says.
    service = only("InferenceService", overlay)["spec"]["predictor"]["model"]["resources"]
    assert service["limits"]["nvidia.com/gpu"] == "1"
    assert service["requests"]["memory"] == service["limits"]["memory"]
    for resources in (service, downloader(overlay)["resources"]):
        for part in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(resources[part])


# ---------------------------------------------------------------- names and paths


@each_overlay
def test_job_volume_and_service_agree(overlay: str) -> None:
    claim = only("PersistentVolumeClaim", overlay)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    model = only("InferenceService", overlay)["spec"]["predictor"]["model"]
    assert model["storageUri"] == f"pvc://{claim['metadata']['name']}"
    (volume,) = [volume for volume in job_pod(overlay)["volumes"] if "persistentVolumeClaim" in volume]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]

    wrote, reads = downloader_flags(overlay), predictor_flags(overlay)
    assert {"name": volume["name"], "mountPath": str(wrote.root)} in downloader(overlay)["volumeMounts"]
    assert reads.root == KSERVE_MOUNT
    assert (reads.model_id, reads.revision) == (wrote.model_id, wrote.revision)
    assert wrote.source is None and not wrote.plan


@each_overlay
def test_service_and_runtime_agree(overlay: str) -> None:
    runtime = only("ServingRuntime", overlay)
    model = only("InferenceService", overlay)["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert predictor(overlay)["name"] == "kserve-container"


@each_overlay
def test_probes_ask_for_this_very_model(overlay: str) -> None:
    container, name = predictor(overlay), only("InferenceService", overlay)["metadata"]["name"]
    # A number, since Knative renames the container's port.
    at = {"port": container["ports"][0]["containerPort"]}
    assert at == {"port": 8080}
    assert container["readinessProbe"]["httpGet"] == {"path": f"/v1/models/{name}", **at}
    assert container["startupProbe"]["httpGet"] == {"path": f"/v1/models/{name}", **at}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", **at}


def test_one_job_name_for_each_way_to_download() -> None:
    # A Job cannot be changed: two overlays that share a name in one namespace must mean the same.
    ways = {(only("Job", overlay)["metadata"]["name"], downloader_flags(overlay)) for overlay in OVERLAYS}
    assert len(ways) == len({name for name, _ in ways}) == len({(way.model_id, way.variant) for _, way in ways})
    base = (MANIFESTS / "base/20-download.yaml").read_text()
    assert f"kubectl delete job {only('Job', 'base')['metadata']['name']} " in base


@each_overlay
def test_the_job_gives_up_only_where_no_second_try_helps(overlay: str) -> None:
    spec = only("Job", overlay)["spec"]
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert fail["action"] == "FailJob" and ignore["action"] == "Ignore"
    assert fail["onExitCodes"]["containerName"] == downloader(overlay)["name"]
    assert fail["onExitCodes"]["operator"] == "In"
    final = {error.code for error in DownloadError.__subclasses__() if error is not TransientError}
    assert set(fail["onExitCodes"]["values"]) == final == {2, 10, 11, 12, 13, 14}
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy allows no other
    assert spec["backoffLimit"] > 0 and spec["ttlSecondsAfterFinished"] > 0


# ---------------------------------------------------------------- the numbers that depend on each other


@each_overlay
def test_a_stop_cuts_off_no_accepted_request(overlay: str) -> None:
    spec, flags = only("InferenceService", overlay)["spec"]["predictor"], predictor_flags(overlay)
    assert flags.timeout <= flags.grace_period
    # In Knative mode a pod's grace period is its timeout.
    patience = spec["timeout"] if mode(overlay) == "Knative" else spec["terminationGracePeriodSeconds"]
    asleep = spec["model"].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert asleep + flags.grace_period + 15 <= patience


@each_overlay
def test_a_caller_may_wait_for_a_replica_and_for_the_picture(overlay: str) -> None:
    timeout = only("InferenceService", overlay)["spec"]["predictor"]["timeout"]
    assert predictor_flags(overlay).timeout + 300 <= timeout <= KNATIVE_MAX_TIMEOUT


@pytest.mark.parametrize("overlay", KNATIVE)
def test_knative_scales_on_what_shares_a_forward(overlay: str) -> None:
    spec, flags = only("InferenceService", overlay)["spec"]["predictor"], predictor_flags(overlay)
    assert spec["minReplicas"] == 0 < spec["maxReplicas"]
    assert spec["scaleMetric"] == "concurrency"
    assert flags.max_rows in (None, spec["scaleTarget"] * 2)  # a guided request is two rows
    assert spec["scaleTarget"] <= spec["containerConcurrency"]
    assert flags.max_queue_seconds <= flags.timeout
    autoscaling = {name.rpartition("/")[2]: value for name, value in annotations(overlay).items()}
    assert autoscaling["target-utilization-percentage"] == "100"
    assert autoscaling["target-burst-capacity"] == "-1"
    assert seconds(autoscaling["scale-to-zero-pod-retention-period"]) <= 3600
    startup = predictor(overlay)["startupProbe"]
    budget = startup["periodSeconds"] * startup["failureThreshold"]
    assert seconds(autoscaling["progress-deadline"]) > budget


@pytest.mark.parametrize("overlay", ["base", *KNATIVE])
def test_knative_is_given_nothing_that_it_refuses(overlay: str) -> None:
    assert mode(overlay) == "Knative"
    spec, container = only("InferenceService", overlay)["spec"]["predictor"], predictor(overlay)
    behind_flags = {"affinity", "initContainers", "nodeSelector", "securityContext", "tolerations", "volumes"}
    assert not {*behind_flags, "deploymentStrategy", "terminationGracePeriodSeconds"} & set(spec)
    assert not {"affinity", "nodeSelector", "tolerations"} & set(only("ServingRuntime", overlay)["spec"])
    assert "lifecycle" not in container and len(container["ports"]) == 1
    assert not any(name.endswith(("/min-scale", "/max-scale")) for name in annotations(overlay))


@pytest.mark.parametrize("overlay", STANDARD)
def test_standard_runs_fixed_replicas_and_needs_no_spare_gpu(overlay: str) -> None:
    assert mode(overlay) == "Standard"
    assert annotations(overlay)["serving.kserve.io/autoscalerClass"] == "none"
    spec = only("InferenceService", overlay)["spec"]["predictor"]
    assert spec["minReplicas"] == spec["maxReplicas"] > 0
    assert spec["deploymentStrategy"]["rollingUpdate"]["maxSurge"] == 0
    assert not {"scaleTarget", "scaleMetric", "containerConcurrency"} & set(spec)


def test_the_inequality_in_the_comment_is_the_one_in_force() -> None:
    text = (MANIFESTS / "overlays/standard/kustomization.yaml").read_text()
    sum_, limit = re.search(r"#\s+(\d+ +\+ +\d+ +\+ +\d+) +< +(\d+)\n", text).groups()  # type: ignore[union-attr]
    asleep, grace, teardown = (int(number) for number in sum_.split("+"))
    spec = only("InferenceService", "overlays/standard")["spec"]["predictor"]
    assert spec["model"]["lifecycle"]["preStop"]["sleep"]["seconds"] == asleep
    assert predictor_flags("overlays/standard").grace_period == grace
    assert spec["terminationGracePeriodSeconds"] == int(limit) > asleep + grace + teardown


# ---------------------------------------------------------------- the images behind them


def test_dockerfiles_agree_with_the_manifests() -> None:
    files = {name: (ROOT / name).read_text() for name in ("Dockerfile", "Dockerfile.downloader")}
    for text in files.values():
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:3.11-slim-bookworm"}
    users = {user for text in files.values() for user in re.findall(r"^USER (\S+)$", text, re.MULTILINE)}
    group = job_pod("base")["securityContext"]["fsGroup"]
    assert users == {f"{group}:{group}"}
    port = predictor("base")["ports"][0]["containerPort"]
    assert f"\nEXPOSE {port}\n" in files["Dockerfile"]
