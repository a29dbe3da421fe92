"""What each fault did, with figures; printed when the suite ends."""

from __future__ import annotations

ROWS: list[tuple[str, str, str]] = []


def note(case: str, caller: str, figures: str) -> None:
    """Keep a line: what was done to the gateway, what its caller got, and the figures that show it."""
    ROWS.append((case, caller, figures))


def table() -> str:
    """All lines so far, as text."""
    head = ("fault", "the caller got", "figures")
    rows = [head, *sorted(set(ROWS))]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{case:<{widths[0]}}  {caller:<{widths[1]}}  {figures}" for case, caller, figures in rows)
