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


def test_the_pool_is_a_deployment_of_its_own_only_when_asked_for() -> None:
    assert _deployment_names(Settings.model_validate({"limits": {"max_body_mib": 1}})) == {"Ingress"}
    assert _deployment_names(Settings.model_validate({"forwarder": {"placement": "pool"}})) == {"Ingress", "Forwarder"}


def test_the_cluster_file_opens_no_dashboard_and_sets_the_flags_before_ray_starts() -> None:
    cluster = yaml.safe_load(Path(ROOT / "cluster.yaml").read_text())
    for command in [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]:
        if "ray start" in command:
            assert "RAY_SERVE_ENABLE_HA_PROXY=1" in command and "RAY_AUTH_MODE=token" in command
            assert "0.0.0.0" not in command


def _deployment_names(settings: Settings) -> set[str]:
    application = build(settings)
    ingress = application._bound_deployment
    bound = [ingress, *(each._bound_deployment for each in ingress.init_args if hasattr(each, "_bound_deployment"))]
    return {each.name for each in bound}
