"""The rules that a machine can check: who may import whom, where each library lives, how long a file is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "orqen_ray"
MODULES = sorted(path for path in [*PACKAGE.rglob("*.py"), *(ROOT / "deployments").rglob("*.py")])

# Module (or package) of orqen_ray -> what it may import of orqen_ray. A name also stands for everything below it.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "conversation": set(),
    "types": {"errors", "conversation"},
    "sections": set(),
    "config": {"errors", "sections"},
    "retry_after": {"errors"},
    "metrics": set(),
    "logs": set(),
    "formats": {"errors", "conversation", "types", "retry_after"},
    "providers": {"errors", "conversation", "types", "metrics", "retry_after"},
    "store": {"errors", "conversation", "types", "metrics", "policy", "pins"},
    "traces": {"errors", "conversation", "types", "metrics"},
    "encoders": {"errors", "conversation", "types", "metrics"},
    "policy": {"errors", "conversation", "types"},
    "pins": {"errors", "conversation", "types"},
    "economics": {"errors", "conversation", "types"},
    "terms": {"errors", "conversation", "types"},
    "planning": {
        "errors", "conversation", "types", "metrics", "policy", "pins", "economics", "terms", "encoders", "tools",
        "restore",
    },
    "tools": {
        "errors", "conversation", "types", "metrics", "tokens", "policy", "pins", "economics", "terms", "encoders",
    },
    "models": {"errors", "conversation", "types"},
    "restore": {
        "errors", "conversation", "types", "formats", "policy", "pins", "economics", "terms", "tools", "models",
    },
    "sessions": {"conversation"},
    "tokens": {"conversation"},
    "preview": {"conversation", "formats", "exchange", "candidates", "gateway", "planning"},
    "exchange": {"errors", "conversation", "types", "traces", "providers", "tokens", "planning"},
    "recording": {"exchange", "logs", "metrics", "traces"},
    "relay": {"errors", "conversation", "types", "formats", "exchange"},
    "attempts": {
        "errors", "conversation", "types", "metrics", "retry_after", "formats", "providers", "exchange", "relay",
    },
    "fallbacks": {"errors", "providers"},
    "candidates": {
        "errors", "conversation", "types", "formats", "models", "providers", "exchange", "relay", "attempts",
        "planning",
    },
    "gateway": {
        "errors", "conversation", "types", "metrics", "formats", "models", "providers", "traces", "exchange", "relay",
        "sessions", "attempts", "recording", "policy", "pins", "tools", "planning", "restore", "restoring",
        "candidates",
    },
    "replays": {"errors", "conversation", "types", "formats", "exchange", "relay", "restore"},
    "restoring": {
        "errors", "conversation", "types", "metrics", "formats", "exchange", "relay", "attempts", "tools", "restore",
        "replays",
    },
    "passthrough": {
        "errors", "conversation", "types", "formats", "providers", "exchange", "relay", "gateway", "sessions", "tokens",
        "attempts", "candidates",
    },
    "service": {
        "errors", "types", "config", "metrics", "models", "providers", "store", "traces", "attempts", "fallbacks",
        "gateway", "encoders", "optimizer",
    },
    "optimizer": {"config", "metrics", "tokens", "store", "policy", "pins", "encoders", "tools", "planning"},
    "prompts": {"errors", "types", "config"},
    "probe": {"errors", "conversation", "types", "formats", "providers", "traces"},
    "api": {
        "errors", "conversation", "types", "formats", "providers", "store", "gateway", "relay", "passthrough",
        "service", "metrics", "logs", "recording", "candidates", "preview",
    },
    "offline": {
        "errors", "conversation", "types", "config", "formats", "tokens", "policy", "pins", "economics", "terms",
        "encoders", "tools", "planning", "restore", "models", "store", "traces",
    },
    "doctor": {"errors", "types", "config", "providers", "store", "traces", "probe"},
    "cli": {
        "errors", "conversation", "types", "config", "metrics", "formats", "providers", "store", "traces", "service",
        "probe", "prompts", "doctor", "offline", "tools", "encoders", "audit_cli", "eval_cli", "switches_cli",
    },
    "switches_cli": {"errors", "config", "store", "service"},
    "audit_cli": {"errors", "conversation", "config", "formats", "tools", "encoders"},
    "eval_cli": {"errors", "offline"},
}  # fmt: skip

# Foreign library -> where alone it may be imported.
HOMES: dict[str, tuple[str, ...]] = {
    "aiohttp": ("providers",),
    "yarl": ("providers",),
    "botocore": ("providers", "formats.eventstream"),
    "fastapi": ("api",),
    "starlette": ("api",),
    "sqlalchemy": ("store",),
    "alembic": ("store",),
    "cryptography": ("store",),
    "pyarrow": ("traces",),
    "genai_prices": ("traces",),
    "pydantic": ("config", "sections", "api"),
    "typer": ("cli", "audit_cli", "eval_cli", "switches_cli", "prompts"),
    "prometheus_client": ("metrics",),
    "limits": ("store",),
    "redis": ("store",),
    "psutil": ("metrics", "doctor"),
    "asyncpg": ("store",),
    "torch": ("encoders", "offline"),
    "onnxruntime": ("encoders", "offline"),
    "tokenizers": ("encoders", "offline"),
    "transformers": ("encoders", "offline"),
    "sentence_transformers": ("encoders", "offline"),
    "ray": (),
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def _below(name: str, root: str) -> bool:
    return name == root or name.startswith(root + ".")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_arrows_go_one_way(path: Path) -> None:
    name = _name(path)
    if not name.startswith("orqen_ray.") or path.name == "__init__.py":
        return
    part = name.split(".")[1]
    assert part in MAY_IMPORT, f"{part} has no place in the picture: add it to MAY_IMPORT and to docs/architecture.md"
    for imported in _imports(path):
        assert not _below(imported, "deployments"), f"{name} must not import {imported}"
        if imported.startswith("orqen_ray."):
            other = imported.split(".")[1]
            assert other == part or other in MAY_IMPORT[part], f"{name} must not import {imported}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_each_library_has_one_home(path: Path) -> None:
    name = _name(path)
    if not name.startswith("orqen_ray"):
        return
    for imported in _imports(path):
        homes = HOMES.get(imported.split(".")[0])
        if homes is not None:
            assert any(_below(name, f"orqen_ray.{home}") for home in homes), f"{name} must not import {imported}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path.name} is longer than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} is {length} lines long, over 60"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_packages_are_empty_and_modules_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    if path.name == "__init__.py":
        assert not text.strip()
    elif "migrations" not in path.parts:
        assert ast.get_docstring(ast.parse(text)), f"{path} has no module docstring"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_vague_file_names(path: Path) -> None:
    vague = {"util", "utils", "helper", "helpers", "common", "manager", "handler", "misc"}
    assert not vague & set(path.stem.split("_"))


def test_only_config_reads_the_environment() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "config.py":
            assert "os.environ" not in path.read_text() and "getenv" not in path.read_text(), path


def test_the_readme_names_every_module_of_the_top() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in sorted(PACKAGE.iterdir()):
        if path.suffix == ".py" and path.stem != "__init__" or path.is_dir() and not path.name.startswith("__"):
            assert path.name in readme, f"README.md's tree does not name {path.name}"
