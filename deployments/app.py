"""The Ray Serve graph: `serve run deployments.app:build`, or a YAML profile beside this file."""

# No `from __future__ import annotations`: Ray would find a string for the type of `args`, and pass a plain dict.

from typing import Any, cast

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from deployments.flags import REPLICA_FLAGS, metrics_directory
from deployments.forwarder import ForwarderPool
from deployments.ingress import Ingress
from orqen_ray.config import ReplicaSettings, Settings, load_settings

MAX_ONGOING_REQUESTS = 1000


def build(args: Settings) -> Application:
    """Wrap the plain classes. `args:` of a profile are the settings; without any, `ORQEN_CONFIG` names their file.

    Every option set here can be overridden under `deployments:` of a profile.
    """
    settings = args.with_environment() if args.model_fields_set else load_settings()
    pool: Application | None = None
    if settings.forwarder.placement == "pool":
        pool = _deployment(ForwarderPool, "Forwarder", settings.forwarder).bind(settings)
    return _deployment(serve.ingress()(Ingress), "Ingress", settings.ingress).bind(settings, pool)


def shared_metrics() -> dict[str, str]:
    """Where the replicas of a node keep their figures together. Theirs alone: Ray uses the same library."""
    session = ray.get_runtime_context().get_session_name() if ray.is_initialized() else "local"
    return {"PROMETHEUS_MULTIPROC_DIR": str(metrics_directory(session))}


def _deployment(kind: type, name: str, replicas: ReplicaSettings) -> Deployment:
    deployment = cast(Deployment, serve.deployment(kind))  # Ray's stub describes the decorator form
    return deployment.options(name=name, **_options(replicas))


def _options(replicas: ReplicaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"num_replicas": replicas.min_replicas}
    if replicas.max_replicas > replicas.min_replicas:
        options = {
            "autoscaling_config": {
                "min_replicas": replicas.min_replicas,
                "max_replicas": replicas.max_replicas,
                "target_ongoing_requests": MAX_ONGOING_REQUESTS // 4,  # a stream counts for as long as it lasts
                "upscale_delay_s": 5,
                "downscale_delay_s": 1800,  # each change reloads HAProxy
            }
        }
    return options | {
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
        "ray_actor_options": {"num_cpus": 0, "runtime_env": {"env_vars": {**REPLICA_FLAGS, **shared_metrics()}}},
        "graceful_shutdown_timeout_s": 10,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 5,
        "health_check_timeout_s": 10,
        "logging_config": LoggingConfig(enable_access_log=False, log_level="WARNING"),
    }
