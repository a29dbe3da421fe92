"""The Ray Serve graph: `serve run deployments.app:build`, or a YAML profile beside this file."""

# No `from __future__ import annotations`: Ray would find a string for the type of `args`, and pass a plain dict.

from typing import Any, cast

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from deployments.encoders import EmbedderPool, RerankerPool
from deployments.flags import REPLICA_FLAGS, metrics_directory
from deployments.forwarder import ForwarderPool
from deployments.ingress import Ingress
from orqen_ray.config import Settings, load_settings
from orqen_ray.sections import ReplicaSettings

MAX_ONGOING_REQUESTS = 1000
TARGET_ONGOING_REQUESTS = MAX_ONGOING_REQUESTS // 4
"""A stream counts for as long as it lasts."""
TARGET_ONGOING_ENCODINGS = 4
"""Short work that keeps a core busy: what is more waits."""


def build(args: Settings) -> Application:
    """Wrap the plain classes. `args:` of a profile are the settings; without any, `ORQEN_CONFIG` names their file.

    Every option set here can be overridden under `deployments:` of a profile.
    """
    settings = args.with_environment() if args.model_fields_set else load_settings()
    pool: Application | None = None
    if settings.forwarder.placement == "pool":
        pool = _deployment(ForwarderPool, "Forwarder", _options(settings.forwarder)).bind(settings)
    ingress = _deployment(serve.ingress()(Ingress), "Ingress", _options(settings.ingress))
    return ingress.bind(settings, pool, *_encoders(settings))


def _encoders(settings: Settings) -> tuple[Application | None, Application | None]:
    """The embedder and the reranker, where they have places of their own."""
    encoders = settings.encoders
    if encoders.placement != "pool" or not settings.optimization.tools:
        return None, None
    options = _options(encoders, TARGET_ONGOING_ENCODINGS)
    options["ray_actor_options"]["num_gpus"] = 1 if encoders.device == "cuda" else 0
    embedder = _deployment(EmbedderPool, "Embedder", options).bind(settings)
    reranker = _deployment(RerankerPool, "Reranker", options).bind(settings) if encoders.reranker else None
    return embedder, reranker


def shared_metrics() -> dict[str, str]:
    """Where the replicas of a node keep their figures together. Theirs alone: Ray uses the same library."""
    session = ray.get_runtime_context().get_session_name() if ray.is_initialized() else "local"
    return {"PROMETHEUS_MULTIPROC_DIR": str(metrics_directory(session))}


def _deployment(kind: type, name: str, options: dict[str, Any]) -> Deployment:
    deployment = cast(Deployment, serve.deployment(kind))  # Ray's stub describes the decorator form
    return deployment.options(name=name, **options)


def _options(replicas: ReplicaSettings, target_ongoing_requests: int = TARGET_ONGOING_REQUESTS) -> dict[str, Any]:
    options: dict[str, Any] = {"num_replicas": replicas.min_replicas}
    if replicas.max_replicas > replicas.min_replicas:
        options = {
            "autoscaling_config": {
                "min_replicas": replicas.min_replicas,
                "max_replicas": replicas.max_replicas,
                "target_ongoing_requests": target_ongoing_requests,
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
