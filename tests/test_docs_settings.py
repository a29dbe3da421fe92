"""docs/settings.md lists every setting and every variable, with the defaults that the code has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from orqen_ray.config import VARIABLES, Settings

PAGE = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
PLACES = {"storage.database_url": "sqlite+aiosqlite:///data/orqen.db", "storage.traces_uri": "data/traces"}


def settings_below(kind: Any, path: str = "", default: object = PydanticUndefined) -> Iterator[tuple[str, object]]:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is dict and issubclass_of_model(get_args(kind)[1]):
        yield from settings_below(get_args(kind)[1], f"{path}.NAME")
    elif get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Annotated:
        yield from settings_below(get_args(kind)[0], f"{path}[]")
    elif issubclass_of_model(kind):
        for name, field in kind.model_fields.items():
            default = field.get_default(call_default_factory=True)
            yield from settings_below(field.annotation, f"{path}.{name}".removeprefix("."), default)
    else:
        yield path, PLACES.get(path, default)


def issubclass_of_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def shown(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float):
        return f"`{default:g}`"
    return f"`{default}`" if default else "none"


@pytest.mark.parametrize(("path", "default"), list(settings_below(Settings)))
def test_every_setting_is_documented_with_its_default(path: str, default: object) -> None:
    line = next((line for line in PAGE.splitlines() if line.startswith(f"| `{path}` |")), None)
    assert line is not None, f"docs/settings.md lacks a line for `{path}`"
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == shown(default), f"docs/settings.md: the default of `{path}` is {shown(default)}"
    assert len(cells[2]) > 10, f"docs/settings.md: `{path}` has no meaning"


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = {path for path, _ in settings_below(Settings)} | set(VARIABLES)
    listed = {line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")}
    assert listed == known


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_is_documented(name: str) -> None:
    assert f"| `{name}` |" in PAGE
