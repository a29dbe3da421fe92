"""The documents name everything that a user can meet."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.routing import Route

from orqen_ray import errors
from orqen_ray.api.app import create_app
from orqen_ray.service import Service
from tests.api.conftest import service, upstream  # noqa: F401  # fixtures
from tests.faults.test_kills import KILLED
from tests.faults.test_provider_faults import BEFORE_THE_FIRST_BYTE, INSIDE_A_STREAM

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs" / "api.md").read_text()
HEADERS = sorted(
    {
        header
        for path in (ROOT / "orqen_ray").rglob("*.py")
        for header in re.findall(r"x-orqen-[a-z-]+", path.read_text())
    }
    - {"x-orqen-"}
)


@pytest.mark.parametrize("header", HEADERS)
def test_every_header_is_documented(header: str) -> None:
    assert header in API.lower()


async def test_every_route_is_documented(service: Service) -> None:  # noqa: F811
    for route in create_app(service).router.routes:
        assert isinstance(route, Route)
        path = route.path.replace(":path", "").replace("{model_id}", "{id}").removesuffix("/{rest}")
        assert path in API or path.removeprefix("/model/{id}") in API, path


def test_every_status_of_an_error_is_documented() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.GatewayError)]
    for kind in kinds:
        assert re.search(rf"\b{kind.status}\b", API), f"{kind.__name__} {kind.status}"


@pytest.mark.parametrize("fault", [*BEFORE_THE_FIRST_BYTE, *INSIDE_A_STREAM, "error-stream", *KILLED])
def test_every_fault_is_documented(fault: str) -> None:
    assert f"`{fault}`" in (ROOT / "docs" / "faults.md").read_text()


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_the_readme_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
