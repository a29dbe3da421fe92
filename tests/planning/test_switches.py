"""Settings, key and caller together say what may be optimized; nobody can turn on what another turned off."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.errors import BadRequest
from orqen_ray.planning.switches import Switches, narrowed

NAMES = ("tools", "schemas", "context")


@given(
    st.builds(Switches, tools=st.booleans(), schemas=st.booleans(), context=st.booleans(), restore=st.booleans()),
    st.dictionaries(st.sampled_from([*NAMES, "restore"]), st.booleans()),
    st.one_of(st.none(), st.just(()), st.lists(st.sampled_from(NAMES), min_size=1)),
)
def test_a_switch_is_on_when_all_three_leave_it_on(
    allowed: Switches, key: dict[str, bool], wanted: list[str] | None
) -> None:
    header = None if wanted is None else " , ".join(wanted).upper()
    found = asdict(narrowed(allowed, key, header))
    for name, on in asdict(allowed).items():
        asked = not wanted or name in wanted or name == "restore"
        assert found[name] == (on and key.get(name, True) and asked), name


def test_off_turns_off_all() -> None:
    assert not narrowed(Switches(), {}, " OFF ").any


@pytest.mark.parametrize("header", ["of", "tools,off", "tools;schemas", "restore", "x" * 10_000, "\u00e9"])
def test_a_word_that_is_no_switch_is_refused_and_the_right_ones_are_named(header: str) -> None:
    with pytest.raises(
        BadRequest, match="x-orqen-optimize: .* expected off, or a list of tools, schemas, context"
    ) as caught:
        narrowed(Switches(), {}, header)
    assert len(str(caught.value)) < 200
