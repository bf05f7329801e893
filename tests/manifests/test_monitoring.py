"""The monitoring component: what it renders to, and that every expression in it asks for something that a predictor tells."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import promql_parser
import pytest
import yaml
from test_manifests import MANIFESTS, OVERLAYS, ROOT, Document, check_against_crd, each_overlay, predictor, render

import scrape
from predictor.errors import DeviceFailed
from predictor.settings import Settings
from scrape import Scrape
from serving import Server

COMPONENT = MANIFESTS / "components/monitoring"
DASHBOARD = json.loads((COMPONENT / "dashboard.json").read_text())
RULES = yaml.safe_load((COMPONENT / "alerts.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["spec"]["groups"] for rule in group["rules"]}
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
TARGETS = [(title, target) for title, panel in PANELS.items() for target in panel["targets"]]
TARGET_LABELS = {"namespace", "pod", "container", "job", "instance", "inferenceservice"}  # which Prometheus adds
FROM_ELSEWHERE = {  # of kube-state-metrics, docs/metrics/workload/pod-metrics.md
    "kube_pod_container_status_last_terminated_exitcode": {"namespace", "pod", "container", "uid"},
    "kube_pod_container_status_restarts_total": {"namespace", "pod", "container", "uid"},
}

each_alert = pytest.mark.parametrize("name", ALERTS)


# ---------------------------------------------------------------- rendered


def rendered(overlay: str, tmp_path: Path, **more: object) -> list[Document]:
    """An overlay of one's own, with the component."""
    where = {name: [os.path.relpath(path, tmp_path.resolve())] for name, path in named(overlay).items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(where | more))
    return render(tmp_path)


def named(overlay: str) -> dict[str, Path]:
    return {"resources": MANIFESTS / overlay, "components": COMPONENT}


def only(kind: str, documents: list[Document]) -> Document:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


@each_overlay
def test_any_overlay_can_have_it_and_is_otherwise_what_it_was(overlay: str, tmp_path: Path) -> None:
    before = {document["kind"]: document for document in render(MANIFESTS / overlay)}
    after = {document["kind"]: document for document in rendered(overlay, tmp_path)}
    assert after.keys() - before.keys() == {"PodMonitor", "PrometheusRule", "ConfigMap"}
    runtime = after["ServingRuntime"]
    check_against_crd(runtime)
    assert runtime["spec"].pop("labels") == {"app.kubernetes.io/name": "text-to-image-predictor"}
    assert {kind: after[kind] for kind in before} == before


def test_there_is_an_overlay_of_each_mode() -> None:
    assert {"overlays/knative", "overlays/standard"} <= set(OVERLAYS)


@each_overlay
def test_the_monitor_selects_our_pods_and_their_one_port(overlay: str, tmp_path: Path) -> None:
    documents = rendered(overlay, tmp_path)
    spec = only("PodMonitor", documents)["spec"]
    # KServe gives a pod the labels of its runtime's spec, and the name of its InferenceService.
    assert spec["selector"]["matchLabels"] == only("ServingRuntime", documents)["spec"]["labels"]
    assert spec["selector"]["matchExpressions"] == [{"key": "serving.kserve.io/inferenceservice", "operator": "Exists"}]
    [endpoint] = spec["podMetricsEndpoints"]
    assert [endpoint["portNumber"]] == [port["containerPort"] for port in predictor(overlay)["ports"]]
    assert endpoint["relabelings"][0]["targetLabel"] in TARGET_LABELS


def closed(**properties: object) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


TEXT, TEXTS = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": "^(0|([0-9]+(ms|[smhdwy]))+)$"}
RELABELING = closed(
    sourceLabels={"type": "array", "items": TEXT}, targetLabel=TEXT, regex=TEXT, action={"enum": ["replace", "keep", "drop"]}
)
# As much of monitoring.coreos.com_podmonitors.yaml and _prometheusrules.yaml (prometheus-operator 0.93) as is used here.
SCHEMAS = {
    "PodMonitor": closed(
        selector=closed(matchLabels=TEXTS, matchExpressions={"type": "array", "items": closed(key=TEXT, operator=TEXT)}),
        podMetricsEndpoints={
            "type": "array",
            "items": closed(
                portNumber={"type": "integer", "minimum": 1, "maximum": 65535},
                path=TEXT,
                interval=DURATION,
                scrapeTimeout=DURATION,
                relabelings={"type": "array", "items": RELABELING},
                metricRelabelings={"type": "array", "items": RELABELING},
            ),
        },
    ),
    "PrometheusRule": closed(
        groups={
            "type": "array",
            "items": closed(
                name=TEXT,
                interval=DURATION,
                rules={
                    "type": "array",
                    "items": closed(
                        **{"alert": TEXT, "expr": TEXT, "for": DURATION, "keep_firing_for": DURATION},
                        labels=TEXTS,
                        annotations=TEXTS,
                    ),
                },
            ),
        }
    ),
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_the_operator_reads_has_its_form(kind: str, tmp_path: Path) -> None:
    document = only(kind, rendered("base", tmp_path))
    assert document["apiVersion"] == "monitoring.coreos.com/v1"
    jsonschema.Draft202012Validator(SCHEMAS[kind]).validate(document["spec"])


def test_grafana_finds_the_dashboard_under_a_name_that_stays(tmp_path: Path) -> None:
    config = only("ConfigMap", rendered("base", tmp_path))
    assert config["metadata"] == {"name": "text-to-image-dashboard", "labels": {"grafana_dashboard": "1"}}
    assert json.loads(config["data"]["dashboard.json"]) == DASHBOARD


def test_a_label_for_a_choosy_prometheus_is_given_as_the_comment_says(tmp_path: Path) -> None:
    comment = re.search(r"^#     patches:\n(#     .*\n)+", (COMPONENT / "kustomization.yaml").read_text(), re.MULTILINE)
    assert comment
    documents = rendered("overlays/knative", tmp_path, **yaml.safe_load(comment[0].replace("#     ", "")))
    labelled = {each["kind"] for each in documents if each["metadata"].get("labels") == {"release": "prometheus"}}
    assert labelled == {"PodMonitor", "PrometheusRule"}


# ---------------------------------------------------------------- expressions


@pytest.fixture(scope="module")
def live(toy_volume: Path) -> Scrape:
    """What a predictor tells once it has made a picture."""
    arguments = ["--model-id", "toy/model", "--root", str(toy_volume), "--device", "cpu"]
    with Server(arguments) as server:
        server.wait_until_ready()
        assert server.predict({"prompt": "a", "parameters": {"num_inference_steps": 3}}).status_code == 200
        return scrape.read(server.client.get("/metrics").text)


def told(live: Scrape) -> dict[str, set[str]]:
    """The labels of every name that can be asked for."""
    labels = {name: set(live.labels[scrape.without_part(name)]) for name in live.samples}
    buckets = {name for name in labels if name.endswith("_bucket")}
    labels["predictor_device_memory_bytes"] = {"kind"}  # which a CPU does not show
    ours = {name: own | TARGET_LABELS | ({"le"} if name in buckets else set()) for name, own in labels.items()}
    return ours | FROM_ELSEWHERE


EXPRESSIONS = [(name, rule["expr"]) for name, rule in ALERTS.items()] + [(title, each["expr"]) for title, each in TARGETS]


def parsed(expression: str) -> promql_parser.Expr:
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def nodes(expression: promql_parser.Expr, kind: type) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(expression, lambda node: found.append(node) if isinstance(node, kind) else None)
    return found


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    return nodes(expression, promql_parser.VectorSelector)


def problems(expression: str, live: Scrape) -> list[str]:
    """What in it a predictor does not have: names, labels, values of labels."""
    known, tree, found = told(live), parsed(expression), []
    for selector in selectors(tree):
        if selector.name not in known:
            found.append(selector.name)
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in known[selector.name]:
                found.append(f"{selector.name}.{matcher.name}")
            elif matcher.name not in TARGET_LABELS:
                values = {value for labels in live.samples[selector.name] for name, value in labels if name == matcher.name}
                found += sorted(set(matcher.value.split("|")) - values)
    for each in nodes(tree, promql_parser.AggregateExpr):
        inside = set.union(*(known.get(selector.name, set()) for selector in selectors(each)))
        found += sorted(set(each.modifier.labels if each.modifier else ()) - inside)
    return found


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_expression_asks_for_what_there_is(live: Scrape, where: str, expression: str) -> None:
    assert selectors(parsed(expression))
    assert problems(expression, live) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("predictor_requests", "predictor_requests"),
        ("rate(predictor_queue_seconds_total[5m])", "predictor_queue_seconds_total"),
        ("predictor_requests_total{result='ok'}", "predictor_requests_total.result"),
        ("predictor_requests_total{outcome=~'ok|fine'}", "fine"),
        ("sum by (door) (predictor_rejected_total)", "door"),
        ("sum by (le) (predictor_queue_seconds_sum)", "le"),
    ],
)
def test_what_there_is_not_is_found(live: Scrape, expression: str, problem: str) -> None:
    assert problems(expression, live) == [problem]


def test_variables_of_the_dashboard_ask_for_what_there_is(live: Scrape) -> None:
    queries = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    for query in queries:
        expression, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert problems(expression, live) == []
        assert label in TARGET_LABELS
    assert len(queries) == 2


# ---------------------------------------------------------------- alerts


def labels_of(expression: promql_parser.Expr) -> set[str]:
    """Of the result: those that the outermost aggregations keep, where there are any."""
    match expression:
        case promql_parser.AggregateExpr():
            return set(expression.modifier.labels if expression.modifier else ())
        case promql_parser.BinaryExpr():
            return labels_of(expression.lhs)
        case promql_parser.ParenExpr():
            return labels_of(expression.expr)
        case promql_parser.Call():
            return set.union(*(labels_of(each) for each in expression.args)) - {"le"}
        case promql_parser.VectorSelector():
            return FROM_ELSEWHERE[expression.name]
    return set()


@each_alert
def test_an_alert_says_what_is_wrong_and_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["for"]
    assert set(rule["annotations"]) == {"summary", "description", "what_to_do"}
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert used and used <= labels_of(parsed(rule["expr"]))


@each_alert
def test_what_to_do_names_flags_metrics_log_lines_and_alerts_that_there_are(live: Scrape, name: str) -> None:
    text = " ".join(ALERTS[name]["annotations"].values())
    assert set(re.findall(r"--([a-z-]+)", text)) <= {field.name.replace("_", "-") for field in fields(Settings)}
    assert set(re.findall(r"predictor_\w+", text)) <= set(live.types)
    logged = "".join(path.read_text() for path in (ROOT / "predictor").glob("*.py"))
    assert all(f'"{line}"' in logged for line in re.findall(r'"([a-z ]+)"', text))
    assert set(re.findall(r"Predictor[A-Z]\w+", text)) <= set(ALERTS)


def test_the_exit_code_and_the_container_are_ours() -> None:
    expression = ALERTS["PredictorDeviceFaults"]["expr"]
    assert f"== {DeviceFailed.exit_code}\n" in expression
    assert set(re.findall(r'container="([\w-]+)"', expression)) == {predictor("base")["name"]}


OURS = 'namespace="n",inferenceservice="m",pod="a"'
POD = 'namespace="n",pod="a",container="kserve-container"'
# Samples every 15 s, in the notation of promtool: what is the case first, then in the end; when the first is looked at, and
# when the other. The alert is silent then, and fires then, and no other does.
SCENARIOS = {
    "PredictorQueueFull": ({f'predictor_rejected_total{{{OURS},reason="queue_full"}}': "0x40 1+1x60"}, "10m", "24m"),
    "PredictorQueueLong": (
        {
            f"predictor_accepted_work_seconds{{{OURS}}}": "95x40 97x60",
            f"predictor_accepted_work_limit_seconds{{{OURS}}}": "120x100",
        },
        "10m",
        "24m",
    ),
    "PredictorErrors": (
        {
            f'predictor_requests_total{{{OURS},door="v1",outcome="ok"}}': "0+10x200",
            f'predictor_requests_total{{{OURS},door="v1",outcome="failed"}}': "0+0.4x80 32+1x120",
            f'predictor_requests_total{{{OURS},door="v1",outcome="invalid"}}': "0+50x200",
        },
        "20m",
        "32m",
    ),
    "PredictorSlow": (
        {
            f'predictor_request_seconds_bucket{{{OURS},outcome="ok",le="60.0"}}': "0+10x100 1000+0x200",
            f'predictor_request_seconds_bucket{{{OURS},outcome="ok",le="180.0"}}': "0+10x300",
            f'predictor_request_seconds_bucket{{{OURS},outcome="ok",le="+Inf"}}': "0+10x300",
            f"predictor_timeout_seconds{{{OURS}}}": "240x300",
        },
        "24m",
        "70m",
    ),
    "PredictorHangs": (
        {f"predictor_last_tick_seconds{{{OURS}}}": "0x40 15+15x10", f"predictor_ready{{{OURS}}}": "1x42 0x10"},
        "10m30s",
        "11m30s",
    ),
    "PredictorOutOfMemory": ({f"predictor_out_of_memory_total{{{OURS}}}": "0x40 1x10 2x69 3x60"}, "29m", "36m"),
    "PredictorDeviceFaults": (
        {
            f"kube_pod_container_status_last_terminated_exitcode{{{POD}}}": "24x100",
            f"kube_pod_container_status_restarts_total{{{POD}}}": "1x40 2x40 3x20",
        },
        "15m",
        "24m",
    ),
    "PredictorNobodyReady": (
        {
            f"predictor_ready{{{OURS}}}": "0x100",
            f'predictor_rejected_total{{{OURS},reason="device"}}': "0x40 1+1x60",
        },
        "10m",
        "20m",
    ),
}


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_alert_fires_when_it_should_and_not_before(name: str, tmp_path: Path) -> None:
    series, silent, fires = SCENARIOS[name]
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    cases = [{"expr": firing, "eval_time": silent, "exp_samples": []}]
    cases += [{"expr": firing, "eval_time": fires, "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}]}]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": what, "values": values} for what, values in series.items()],
                "promql_expr_test": cases,
            }
        ],
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES["spec"]))
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_scenario() -> None:
    assert set(SCENARIOS) == set(ALERTS)


# ---------------------------------------------------------------- the dashboard


def test_every_panel_is_of_the_models_that_were_chosen() -> None:
    assert len(PANELS) == len(DASHBOARD["panels"])
    for title, target in TARGETS:
        for selector in selectors(parsed(target["expr"])):
            matchers = {(matcher.name, matcher.value) for matcher in selector.matchers.matchers}
            assert {("namespace", "$namespace"), ("inferenceservice", "$inferenceservice")} <= matchers, title
        assert target["datasource"]["uid"] == "${datasource}"
        kept = labels_of(parsed(target["expr"]))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, title


def test_panels_say_what_they_show_and_lie_side_by_side() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith(".")
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    squares = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in panels)
    ]
    assert not any(one & other for one, other in combinations(squares, 2))


def test_the_dashboard_shows_what_an_operator_watches() -> None:
    shown = {scrape.without_part(each.name) for _, target in TARGETS for each in selectors(parsed(target["expr"]))}
    assert shown >= {
        *("predictor_requests_total", "predictor_request_seconds", "predictor_rejected_total", "predictor_cancelled_total"),
        *("predictor_queue_depth", "predictor_queue_seconds", "predictor_accepted_work_seconds", "predictor_stage_seconds"),
        *("predictor_images_total", "predictor_forwards_total", "predictor_forward_seconds", "predictor_rows_per_forward"),
        *("predictor_row_limit", "predictor_out_of_memory_total", "predictor_device_memory_bytes", "predictor_ready"),
        *("predictor_last_tick_seconds", "predictor_start_seconds", "predictor_model_info"),
    }
