"""docs/operate.md lists every metric with its type and its labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from orqen_ray.metrics import Metrics

PAGE = (Path(__file__).parents[1] / "docs" / "operate.md").read_text(encoding="utf-8")
METRICS = [each for each in vars(Metrics()).values() if isinstance(each, MetricWrapperBase)]
SUFFIXES = {"counter": "_total"}


def exposed_name(metric: MetricWrapperBase) -> str:
    (family,) = metric.describe()
    return f"{family.name}{SUFFIXES.get(family.type, '')}"


@pytest.mark.parametrize("metric", METRICS, ids=exposed_name)
def test_every_metric_is_documented_with_its_type_and_labels(metric: MetricWrapperBase) -> None:
    (family,) = metric.describe()
    line = next((line for line in PAGE.splitlines() if line.startswith(f"| `{exposed_name(metric)}` |")), None)
    assert line is not None, f"docs/operate.md lacks a line for {exposed_name(metric)}"
    kind, labels, meaning = (cell.strip() for cell in line.strip("|").split("|")[1:])
    assert kind == family.type
    assert labels == (", ".join(f"`{name}`" for name in metric._labelnames) or "none")
    assert len(meaning) > 10 and len(family.documentation) > 10


def test_no_metric_is_named_that_does_not_exist() -> None:
    known = {exposed_name(metric) for metric in METRICS}
    for name in re.findall(r"orqen_[a-z_]+", PAGE):
        assert name in known or name.removesuffix("_bucket") in known or name == "orqen_ray", name


def test_the_examples_for_prometheus_are_yaml() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3 and all(yaml.safe_load(block) for block in blocks)
