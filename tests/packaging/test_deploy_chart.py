"""The chart: valid for Kubernetes' own schemas, and as safe as it says, whatever a site chooses."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from chart import CHART, DEFAULTS, SCHEMA, kinds, render, values
from conftest import REPOSITORY

from merkit import __version__
from merkit.admission import TRUSTED_KEYS
from merkit.serving.container import EXIT_SECONDS

KUBERNETES = "1.32"
ALL: dict[str, Any] = {
    "imagePullSecrets": [{"name": "pull"}],
    "tls": {"enabled": True, "secret": "merkit-tls", "mutual": True},
    "auth": {"tokenSecret": "merkit-token", "adminKeySecret": "merkit-admin"},
    "tracing": {"url": "http://collector:4318/v1/traces", "rate": 1_000_000},
    "trust": {"keysConfigMap": "merkit-keys"},
    "extraArgs": ["--log-verbose=1"],
    "bundle": {
        "source": "init",
        "init": {"image": "tool:1", "command": ["cp", "-r", "/b/.", "/models"], "env": []},
    },
    "networkPolicy": {
        "clients": [{"podSelector": {"matchLabels": {"app": "web"}}}],
        "egress": [{"to": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 4318}]}],
    },
    "monitoring": {"serviceMonitor": True, "rules": True, "labels": {"release": "prometheus"}},
    "podAnnotations": {"team": "affect"},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
}
BARE: dict[str, Any] = {
    "gpus": 0,
    "autoscaling": {"enabled": False},
    "disruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "serviceAccount": {"name": "mine"},
    "bundle": {"source": "pvc", "claim": "bundles", "subPath": "today"},
}
CHOICES = [pytest.param(c, id=n) for n, c in {"default": {}, "all": ALL, "bare": BARE}.items()]
OPERATORS = {"ServiceMonitor", "PrometheusRule"}  # the Prometheus operator's, not Kubernetes' own


def container(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (one,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


@pytest.mark.parametrize("choice", CHOICES)
def test_manifests_are_valid_for_kubernetes(choice: dict[str, Any]) -> None:
    documents = render(choice)
    assert documents
    for document in documents:
        assert document["metadata"]["namespace"] == "emotion"
        if document["kind"] not in OPERATORS:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_validation_can_fail() -> None:
    broken = kinds()["Deployment"]
    broken["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("choice", CHOICES)
def test_pods_run_with_nothing_that_they_do_not_need(choice: dict[str, Any]) -> None:
    found = kinds(choice)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for one in [*pod["containers"], *pod.get("initContainers", [])]:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    shm = next(v for v in pod["volumes"] if v["name"] == "shm")["emptyDir"]
    assert shm["medium"] == "Memory"
    assert shm["sizeLimit"]


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_mounted_exists_and_selectors_meet(choice: dict[str, Any]) -> None:
    found = kinds(choice)
    spec = found["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for one in [*pod["containers"], *pod.get("initContainers", [])]:
        assert {mount["name"] for mount in one["volumeMounts"]} <= volumes
    chosen = spec["selector"]["matchLabels"]
    assert chosen.items() <= spec["template"]["metadata"]["labels"].items()
    assert found["Service"]["spec"]["selector"] == chosen
    for kind, path in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        if kind in found:
            assert found[kind]["spec"][path]["matchLabels"] == chosen
    ports = {port["name"] for port in container(found)["ports"]}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} <= ports
    account = pod["serviceAccountName"]
    assert (
        found.get("ServiceAccount", {"metadata": {"name": "mine"}})["metadata"]["name"] == account
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_a_pod_drains_before_it_is_killed(choice: dict[str, Any]) -> None:
    found = kinds(choice)
    one = container(found)
    command = one["lifecycle"]["preStop"]["exec"]["command"]
    grace = found["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert command[0] == "sleep"
    assert int(command[1]) + EXIT_SECONDS < grace
    starting = one["startupProbe"]["periodSeconds"] * one["startupProbe"]["failureThreshold"]
    assert starting >= values(choice)["startSeconds"]
    assert {one[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")} == {
        "/v2/health/ready"
    }
    assert one["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_secrets_reach_the_server_as_files_and_never_as_values() -> None:
    found = kinds(ALL)
    names = {entry["name"]: entry["value"] for entry in container(found)["env"]}
    mounts = {mount["mountPath"] for mount in container(found)["volumeMounts"]}
    for name in ("TLS_CERT", "TLS_KEY", "CLIENT_CA", "TOKEN_FILE", "ADMIN_KEY_FILE"):
        assert names[f"MERKIT_{name}"].rpartition("/")[0] in mounts
    assert names["MERKIT_TRACE_RATE"] == "1000000", "Helm turns numbers into floats: not 1e+06"
    pod = found["Deployment"]["spec"]["template"]["spec"]
    secrets = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    assert secrets == {"merkit-tls", "merkit-token", "merkit-admin"}


def test_trusted_keys_reach_the_server_as_a_folder() -> None:
    found = kinds(ALL)
    names = {entry["name"]: entry["value"] for entry in container(found)["env"]}
    (mount,) = [m for m in container(found)["volumeMounts"] if m["name"] == "keys"]
    assert mount["mountPath"] == names[TRUSTED_KEYS]
    volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "keys", "configMap": {"name": "merkit-keys"}} in volumes
    assert TRUSTED_KEYS not in {entry["name"] for entry in container(kinds())["env"]}


def test_only_clients_and_scrapers_are_let_in_and_nothing_out() -> None:
    spec = kinds()["NetworkPolicy"]["spec"]
    assert [rule["ports"][0]["port"] for rule in spec["ingress"]] == [8001, 8002]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == []
    assert len(kinds(ALL)["NetworkPolicy"]["spec"]["egress"]) == 2


def test_the_autoscaler_follows_the_metric_that_is_recorded_and_adapted() -> None:
    (metric,) = kinds()["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    rules = yaml.safe_load((CHART / "dashboards" / "rules.yaml").read_text("utf-8"))
    assert name in {rule.get("record") for group in rules["groups"] for rule in group["rules"]}
    adapter = yaml.safe_load((CHART / "dashboards" / "prometheus-adapter.yaml").read_text("utf-8"))
    assert adapter["rules"]["custom"][0]["name"]["matches"] == name
    assert "replicas" not in kinds()["Deployment"]["spec"], (
        "the autoscaler's, else each upgrade resets it"
    )
    assert kinds(BARE)["Deployment"]["spec"]["replicas"] == DEFAULTS["replicas"]


def test_monitoring_goes_out_as_it_lies_in_the_repository() -> None:
    found = kinds(ALL)
    assert found["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == "metrics"
    assert found["ServiceMonitor"]["metadata"]["labels"]["release"] == "prometheus"
    rules = yaml.safe_load((CHART / "dashboards" / "rules.yaml").read_text("utf-8"))
    assert found["PrometheusRule"]["spec"] == rules
    board = kinds({"monitoring": {"dashboard": True}})["ConfigMap"]["data"]["merkit.json"]
    folder = REPOSITORY / "triton_repo" / "dashboards"
    assert json.loads(board) == json.loads((folder / "merkit.json").read_text("utf-8"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpu": 1},
        {"gpus": -1},
        {"sharedMemory": "lots"},
        {"tls": {"enabled": True}},
        {"tls": {"enable": True}},
        {"bundle": {"source": "pvc"}},
        {"bundle": {"source": "init"}},
        {"bundle": {"source": "s3"}},
        {"tracing": {"url": "collector:4317"}},
        {"extraArgs": ["log-verbose=1"]},
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        values(wrong)


def test_the_schema_knows_every_value_and_no_other() -> None:
    def names(schema: dict[str, Any], prefix: str = "") -> set[str]:
        inner = schema.get("properties", {})
        return {prefix + k for k in inner} | {
            name for k, v in inner.items() for name in names(v, f"{prefix}{k}.")
        }

    def keys(found: Any, prefix: str = "") -> set[str]:
        if not isinstance(found, dict):
            return set()
        return {prefix + k for k in found} | {
            name for k, v in found.items() for name in keys(v, f"{prefix}{k}.")
        }

    free = re.compile(r"resources\.(requests|limits)\.|global$")
    stated = {name for name in keys(DEFAULTS) if not free.match(name)}
    assert stated == {name for name in names(SCHEMA) if not free.match(name)}


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["version"] == chart["appVersion"] == __version__
