"""What encoders are trained on: permissive sets alone, no tool too often, and no right tool as a wrong one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from orqen_ray.offline.encoder_data import LICENCES, rows
from tests.offline.small import query, write_lines, write_set


def _folder(path: Path) -> Path:
    write_set(path / "dev", "metatool", [query(i, "weather") for i in range(12)] + [query(90, "music", "maps")])
    write_set(path / "dev", "sgd", [query(i, "sgd mail") for i in range(5)], first_cluster=100)
    write_set(path / "dev", "nestful", [query(i, "nestful poems") for i in range(3)], first_cluster=200)
    pairs = [
        {"set": "metatool", "licence": "MIT", **query(50, "stocks")},
        {"set": "metatool", "licence": "CC-BY-NC-4.0", **query(51, "flights")},
        {"set": "sgd", "licence": "CC-BY-SA-4.0", **query(52, "sgd mail")},
    ]
    write_lines(path / "train_pairs.jsonl.gz", pairs)
    return path


def test_only_permissive_rows_are_learned(tmp_path: Path) -> None:
    found = rows(_folder(tmp_path))
    assert {row.source for row in found} == {"metatool", "nestful"} <= LICENCES.keys()
    tools = {row.tool.partition(":")[0] for row in found}
    assert "stocks" in tools and not tools & {"flights", "sgd mail"}


def test_a_set_left_out_is_not_read_at_all(tmp_path: Path) -> None:
    assert {row.source for row in rows(_folder(tmp_path), leave_out=["metatool"])} == {"nestful"}


def test_no_tool_has_more_rows_than_allowed(tmp_path: Path) -> None:
    counts = Counter(row.cluster for row in rows(_folder(tmp_path), per_tool=4))
    assert max(counts.values()) == 4


def test_a_row_knows_every_tool_that_its_call_needed(tmp_path: Path) -> None:
    found = {row.cluster: row for row in rows(_folder(tmp_path)) if len(row.right) > 1}
    assert found[2].right == found[6].right == {2, 6}


def test_one_seed_gives_one_list(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    assert rows(folder, seed=1) == rows(folder, seed=1)
    assert rows(folder, seed=1) != rows(folder, seed=2)
    assert rows(folder, seed=1, limit=5) == rows(folder, seed=1)[:5]
