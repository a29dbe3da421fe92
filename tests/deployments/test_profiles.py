"""The YAML profiles say what Ray Serve accepts, and the builder makes the graph that the settings ask for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.app import build
from orqen_ray.config import Settings
from tests.conftest import ROOT

DEPLOYMENTS = ROOT / "deployments"


def _serve_config(name: str) -> Any:
    document = yaml.safe_load((DEPLOYMENTS / name).read_text())
    return yaml.safe_load(document["spec"]["serveConfigV2"]) if name == "kuberay.yaml" else document


@pytest.mark.parametrize("name", ["local.yaml", "production.yaml", "kuberay.yaml"])
def test_a_profile_is_what_serve_and_the_settings_accept(name: str) -> None:
    config = ServeDeploySchema.model_validate(_serve_config(name))
    (application,) = config.applications
    assert application.import_path == "deployments.app:build"
    known = _deployment_names(Settings.model_validate(application.args))
    assert {each.name for each in application.deployments} <= known


def test_the_builder_has_one_parameter_that_ray_can_resolve() -> None:
    (parameter,) = inspect.signature(build).parameters.values()
    assert parameter.annotation is Settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"limits": {"max_body_mib": 1}}, {"Ingress", "Embedder"}),
        ({"forwarder": {"placement": "pool"}}, {"Ingress", "Embedder", "Forwarder"}),
        ({"encoders": {"reranker": "some/model"}}, {"Ingress", "Embedder", "Reranker"}),
        ({"encoders": {"placement": "ingress"}}, {"Ingress"}),
        ({"optimization": {"tools": False}}, {"Ingress"}),
    ],
)
def test_what_is_a_deployment_of_its_own(settings: dict[str, Any], expected: set[str]) -> None:
    assert _deployment_names(Settings.model_validate(settings)) == expected


def test_encoders_on_a_gpu_ask_for_one_and_scale_with_short_work() -> None:
    encoders = {"device": "cuda", "embedder": "some/model", "max_replicas": 4}
    ingress = build(Settings.model_validate({"encoders": encoders}))._bound_deployment
    embedder = next(each for each in _bound(ingress) if each.name == "Embedder")
    assert embedder.ray_actor_options["num_gpus"] == 1
    scaling = embedder._deployment_config.autoscaling_config
    assert scaling is not None and (scaling.max_replicas, scaling.target_ongoing_requests) == (4, 4)


def test_the_cluster_file_opens_no_dashboard_and_sets_the_flags_before_ray_starts() -> None:
    cluster = yaml.safe_load(Path(ROOT / "cluster.yaml").read_text())
    for command in [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]:
        if "ray start" in command:
            assert "RAY_SERVE_ENABLE_HA_PROXY=1" in command and "RAY_AUTH_MODE=token" in command
            assert "0.0.0.0" not in command


def _deployment_names(settings: Settings) -> set[str]:
    return {each.name for each in _bound(build(settings)._bound_deployment)}


def _bound(ingress: Any) -> list[Any]:
    """The ingress and the deployments that it is given handles of."""
    return [ingress, *(each._bound_deployment for each in ingress.init_args if hasattr(each, "_bound_deployment"))]
