"""Secrets that the user of the command line gives: from the environment, standard input or a hidden prompt."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import typer

from orqen_ray.config import read_environment
from orqen_ray.errors import BadRequest
from orqen_ray.types import AwsCredentials


def read_api_key(name: str, variable: str | None) -> str:
    if variable is None:
        return _read_secret(f"API key of {name}", required=True)
    value = read_environment().get(variable, "").strip()
    if not value:
        raise BadRequest(f"the environment variable {variable} is not set", param="--api-key-env")
    return value


def read_aws_keys() -> AwsCredentials:
    environment: Mapping[str, str] = read_environment()
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        key_id, secret = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
        token = environment.get("AWS_SESSION_TOKEN", "")
    else:
        key_id = _read_secret("AWS access key id", required=True)
        secret = _read_secret("AWS secret access key", required=True)
        token = _read_secret("AWS session token (empty for none)", required=False)
    return AwsCredentials(access_key_id=key_id, secret_access_key=secret, session_token=token.strip() or None)


def _read_secret(what: str, *, required: bool) -> str:
    """A line that nobody sees: from a hidden prompt, or from standard input when that is no terminal."""
    if sys.stdin.isatty():
        secret = str(typer.prompt(what, hide_input=True, default="" if not required else None, show_default=False))
    else:
        secret = sys.stdin.readline()
    if required and not secret.strip():
        raise BadRequest(f"{what}: nothing was given; pipe it in, or name its variable with --api-key-env")
    return secret.strip()
