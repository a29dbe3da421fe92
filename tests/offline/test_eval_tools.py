"""`orqen eval tools` on a small data set, and the fit of the scorer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from orqen_ray.cli import app
from orqen_ray.errors import BadRequest
from orqen_ray.offline.tool_data import load_tool_data
from orqen_ray.offline.tune_tools import Rows, fit
from orqen_ray.policy import ToolPolicy, default_snapshot
from orqen_ray.tools.features import FEATURES, WORD_FEATURES
from orqen_ray.tools.scoring import WORDS, probabilities
from tests.offline.labelled import write


def test_eval_tools_says_how_much_is_kept_and_lost(tmp_path: Path) -> None:
    write(tmp_path)
    arguments = ["eval", "tools", "--data", str(tmp_path), "--size", "60", "--limit", "3", "--conversations", "0"]
    found = CliRunner().invoke(app, [*arguments, "--only", "set1", "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.output)
    assert list(report["sets"]) == ["set1"] and not report["sets"]["set1"]["refitted_without"]
    rules = report["first_sight"]["sizes"]["60"]
    assert set(rules) == {"orqen", "litellm", "vllm_semantic_router"}
    ours = rules["orqen"]["sets"]["set1"]
    assert ours["conversations"] == 3 and ours["named"] == 1.0 and ours["recall"] == 1.0
    assert 0 < ours["kept"] < 0.6 and 0 < ours["tokens"] < 0.8
    text = CliRunner().invoke(app, [*arguments, "--only", "set1"])
    assert "litellm" in text.output


def test_eval_tools_refuses_a_folder_without_data(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["eval", "tools", "--data", str(tmp_path)])
    assert found.exit_code == 1 and "holds no" in found.stderr


def test_candidates_hold_what_is_needed_and_no_twin(tmp_path: Path) -> None:
    data = load_tool_data(write(tmp_path))
    for query in data.queries["set0"]:
        found = data.candidates("set0", query, 50)
        assert found == data.candidates("set0", query, 50) and len(set(found)) == 50
        assert set(query.gold) <= set(found)
        groups = {data.tools[name].group for name in query.gold}
        assert sum(data.tools[name].group in groups for name in found) == 4  # as many as there are
    with pytest.raises(BadRequest, match="no set is named"):
        load_tool_data(tmp_path, ["set9"])


# --- The fit ------------------------------------------------------------------------------------------------------

BASE = ToolPolicy(bias=0.0, weights={})


def rows(count: int, seed: int = 0) -> list[Rows]:
    """Tools whose need depends on `best` and, wrongly, falls with `group`; nothing else is told."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        features = np.zeros((50, len(FEATURES)), np.float32)
        best = features[:, FEATURES.index("best")] = chance.normal(size=50)
        group = features[:, FEATURES.index("group")] = chance.normal(size=50)
        needed = chance.random(50) < 1 / (1 + np.exp(4 - 2 * best + 0.5 * group))
        found.append(
            Rows(of_set="a", count=50, features=features, needed=needed, always=np.zeros(50, bool), later=None)
        )
    return found


def test_a_fit_is_cautious_calibrated_and_keeps_to_the_signs_that_make_sense() -> None:
    policy = fit(rows(400), BASE)
    assert 1.2 < policy.weights["best"] < 2.0 and "group" not in policy.weights
    assert policy == fit(rows(400), BASE)
    fresh = rows(200, seed=1)
    p = np.concatenate([probabilities(one.features.astype(np.float64), FEATURES, policy) for one in fresh])
    needed = np.concatenate([one.needed for one in fresh])
    assert p.mean() == pytest.approx(needed.mean(), rel=0.1)
    assert p[needed].mean() > 4 * p[~needed].mean()


def test_the_shipped_policy_knows_no_other_features() -> None:
    known = {*FEATURES, WORDS, *(WORDS + name for name in WORD_FEATURES)}
    policy = default_snapshot().tools
    assert set(policy.weights) <= known and replace(policy, bias=0.0) != replace(BASE, bias=0.0)
