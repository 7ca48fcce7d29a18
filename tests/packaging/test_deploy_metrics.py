"""Dashboard, alerts and autoscaler name only metrics that a server gives: a wrong name shows
nothing and alarms nobody, for ever."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import promql_parser
import pytest
import yaml
from conftest import REPOSITORY

from merkit.opening import connect
from merkit.serving.server import Server

FOLDER = REPOSITORY / "triton_repo" / "dashboards"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "merkit.json").read_text("utf-8"))
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yaml").read_text("utf-8"))
ADAPTER = (FOLDER / "prometheus-adapter.yaml").read_text("utf-8")
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GPU_ONLY = {  # triton-inference-server/server, docs/user_guide/metrics.md, "GPU Metrics"
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
}
NAME = re.compile(r"\b(?:nv|merkit)_\w+\b")


def expressions() -> list[str]:
    rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    return rules + [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def exported(toy_server: Server) -> dict[str, list[str]]:
    """Metric names to their label sets, after a request."""
    with connect(toy_server.grpc, deadline=60) as client:
        client.predict(text="hello")
    text = urllib.request.urlopen(toy_server.metrics, timeout=20).read().decode()
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, labels = line.rpartition(" ")[0].partition("{")
            found.setdefault(name, []).append(labels)
    return found


def test_every_metric_is_exported_or_recorded(exported: dict[str, list[str]]) -> None:
    recorded = {r["record"] for group in RULES["groups"] for r in group["rules"] if "record" in r}
    named = {name for text in [*expressions(), ADAPTER] for name in NAME.findall(text)}
    assert len(named) > 10
    assert named <= exported.keys() | recorded | GPU_ONLY
    assert not GPU_ONLY & exported.keys() or exported.keys() >= GPU_ONLY


def test_every_expression_is_promql() -> None:
    for text in expressions():
        promql_parser.parse(text.replace("$__rate_interval", "5m"))


def test_every_label_that_is_asked_for_is_there(exported: dict[str, list[str]]) -> None:
    scraped = {"namespace", "pod"}  # a ServiceMonitor's
    for text in expressions():
        for name, inner in re.findall(r"(nv_inference_\w+)\{([^}]*)\}", text):
            asked = set(re.findall(r"(\w+)=?[=~!]", inner)) - scraped
            assert any(all(f"{label}=" in have for label in asked) for have in exported[name]), text


def test_the_quantiles_are_those_that_triton_keeps(exported: dict[str, list[str]]) -> None:
    have = {
        quantile
        for labels in exported["nv_inference_request_summary_us"]
        for quantile in re.findall(r'quantile="([\d.]+)"', labels)
    }
    asked = {q for text in expressions() for q in re.findall(r'quantile="([\d.]+)"', text)}
    assert asked == {"0.5", "0.95", "0.99"}
    assert asked <= have
    of = [x for x in exported["nv_inference_request_summary_us"] if 'model="merkit' in x]
    assert of, "the entry points have none"


def test_failures_are_counted_with_a_reason(exported: dict[str, list[str]]) -> None:
    assert any("reason=" in labels for labels in exported["nv_inference_request_failure"])


def test_the_dashboard_is_whole() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [tuple(panel["gridPos"][k] for k in "xywh") for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    for panel in PANELS:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert [target["refId"] for target in panel["targets"]] == sorted(
            {target["refId"] for target in panel["targets"]}
        )
    titles = " ".join(panel["title"].lower() for panel in PANELS)
    for subject in ("requests a second", "latency", "queue", "batch", "failures", "gpu memory"):
        assert subject in titles


def test_alerts_say_what_to_do() -> None:
    alerts = [r for group in RULES["groups"] for r in group["rules"] if "alert" in r]
    assert len(alerts) >= 5
    for alert in alerts:
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["action"]
        assert alert["labels"]["severity"] in ("warning", "critical")
