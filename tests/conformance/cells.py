"""The matrix: which cells there are, what each pair cannot carry, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.lab import DIALECTS

SDKS = ("openai", "anthropic", "boto3")
PAIRS = tuple((sdk, dialect) for sdk in SDKS for dialect in DIALECTS)

ROWS = {
    "plain": "plain",
    "stream": "stream",
    "async stream": "stream, asyncio client",
    "tools": "tools",
    "tools stream": "tools, stream",
    "parallel": "parallel tools",
    "parallel stream": "parallel tools, stream",
    "results": "tool results, one an error",
    "result images": "an image in a tool result",
    "images": "images",
    "thinking": "thinking",
    "thinking stream": "thinking, stream",
    "replay": "thinking sent back with tool results",
    "cache": "cache markers and cached tokens",
    "stop": "stop sequence",
    "length": "token limit",
    "error 400": "error 400",
    "error 401": "error 401",
    "error 429": "error 429",
    "error 500": "error 500",
    "error 529": "error 529",
    "break error": "error in mid-stream",
    "break cut": "connection cut in mid-stream",
    "disconnect": "client leaves in mid-stream",
    "vendor": "the vendor's own service",
}

AIMOCK_ROWS = ("plain", "stream", "tools", "tools stream")
# aimock 1.43 announces text blocks with an empty `start`, which boto3 1.44 refuses; the gateway passes its bytes on.
_NOT_AIMOCK = {("stream", "boto3", "bedrock")}


@dataclass(frozen=True, slots=True)
class Cell:
    """`tested`: by whom (`scripted`, `aimock`); empty means expected only. `note` says what is lost, or why."""

    tested: tuple[str, ...] = ("scripted",)
    note: str = ""

    @property
    def mark(self) -> str:
        if not self.tested:
            return "expected" if self.note != "none" else "none"
        return ("lossy" if self.note else "yes") + ("+aimock" if "aimock" in self.tested else "")


_NO_SIGNATURE = "OpenAI's format has no signatures: the reasoning arrives without one, and is not sent back"
_NO_SEQUENCE = "OpenAI's format does not say which sequence stopped it"
_NOT_ASKED = "Converse names the sequence only when asked with a field path, which the gateway does not add"
_NO_PATHS = "the reason arrives; the sequence, which boto3 reads by a field path, does not"
_LOST: dict[tuple[str, str, str], str] = {
    **{
        (row, "openai", dialect): _NO_SIGNATURE
        for row in ("thinking", "thinking stream", "replay")
        for dialect in ("anthropic", "bedrock")
    },
    **{("stop", sdk, "openai"): _NO_SEQUENCE for sdk in ("anthropic", "boto3")},
    ("stop", "anthropic", "bedrock"): _NOT_ASKED,
    ("stop", "boto3", "anthropic"): _NO_PATHS,
    **{("cache", sdk, "openai"): "Chat Completions has no cache markers; caching is automatic" for sdk in SDKS[1:]},
}
_EXPECTED: dict[tuple[str, str, str], str] = {
    **{("vendor", *pair): "needs keys and money: the scripted provider stands in" for pair in PAIRS},
    **{("async stream", "boto3", dialect): "none" for dialect in DIALECTS},
    **{("result images", "openai", dialect): "none" for dialect in DIALECTS},
}


def cell(row: str, sdk: str, dialect: str) -> Cell:
    """What is declared of one cell."""
    key = (row, sdk, dialect)
    if key in _EXPECTED:
        return Cell((), _EXPECTED[key])
    tested = ("scripted", "aimock") if row in AIMOCK_ROWS and key not in _NOT_AIMOCK else ("scripted",)
    return Cell(tested, _LOST.get(key, ""))


def pairs_of(row: str) -> list[tuple[str, str]]:
    """The pairs that a test must cover."""
    return [pair for pair in PAIRS if cell(row, *pair).tested]


PASSED: set[tuple[str, str, str, str]] = set()
"""(row, SDK, dialect, by whom) of what a test of this run has shown, and in FAILED of what one has refuted."""
FAILED: set[tuple[str, str, str, str]] = set()

FIGURES: list[str] = []
"""What this run has measured, a line each."""

_SIGNS = {
    "yes": "✔",
    "yes+aimock": "✔✔",
    "lossy": "◐",
    "lossy+aimock": "◐◐",
    "expected": "expected",
    "none": "–",
}


def matrix(*, run: bool = False) -> str:
    """The table as Markdown: as declared or, with `run`, as this run has shown it (`?`: has not passed)."""
    head = ["", *(f"{sdk} › {dialect}" for sdk, dialect in PAIRS)]
    lines = [head, ["---", *(":-:" for _ in PAIRS)]]
    for row, title in ROWS.items():
        lines.append([title, *(_sign(row, *pair, run=run) for pair in PAIRS)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _sign(row: str, sdk: str, dialect: str, *, run: bool) -> str:
    declared = cell(row, sdk, dialect)
    if run and not all((row, sdk, dialect, whom) in PASSED - FAILED for whom in declared.tested):
        return "?"
    return _SIGNS[declared.mark]


def document() -> str:
    """docs/conformance.md."""
    notes: dict[str, list[str]] = {}
    for row in ROWS:
        for pair in PAIRS:
            declared = cell(row, *pair)
            if declared.note and declared.note != "none":
                notes.setdefault(f"**{ROWS[row]}**: {declared.note}", []).append(" › ".join(pair))
    listed = "\n".join(
        f"- {note} ({'all pairs' if len(pairs) == 9 else ', '.join(pairs)})." for note, pairs in notes.items()
    )
    return _DOCUMENT.format(matrix=matrix(), notes=listed)


_DOCUMENT = """# Conformance

Columns: the official SDK that asks › the dialect of the provider that answers, through the gateway on Ray Serve.
`tests/conformance` holds the tests; `ORQEN_WRITE_DOCS=1 make test` writes this page from what they declare, and a test
fails when the two differ. Each run prints the matrix as it found it.

✔ tested against a scripted provider that checks requests as its vendor does · ✔✔ also against
[aimock](https://aimock.copilotkit.dev), which others write · ◐ tested, and something cannot be carried (below) ·
`expected`: should hold, and no test shows it · – the SDK has no such thing

{matrix}

{notes}

A cell passes when the SDK got what the provider said (text, calls with their arguments, stop reason, tokens, reasoning
and its signature, its own error class with the status), when the provider received a request that its vendor would
take, with its own key and nothing of the gateway's, when the bytes are the caller's own where SDK and provider speak
the same format (but for the documented edits), and when `x-orqen-dropped` names what of the request was lost. Of the
reply it names what is lost when the whole reply is known, so not in a stream, whose headers are sent first.

Errors keep the provider's status; AWS says 403 where others say 401, and 503 where Anthropic says 529. boto3 has no
class for 529: it raises `ServiceUnavailableException`.

## Tools that are left out, and come back

Scripted models that need a tool which the gateway has left out ask for it, each in its own way, whole and as streams.
`test_restoring.py` drives them with each SDK in its own format, with two across formats, and with a provider that binds
its reasoning to the prefix before it: it answers 400 when a byte of `system`, `tools` or the messages before a signed
block has changed, or when another of its keys is used. It has no cause to.

| the model asks | what the caller gets |
| --- | --- |
| at once, or after thinking | one answer that calls the tool; `x-orqen-restored` names it |
| after visible text | the same answer goes on; where reasoning is bound, it ends there and the tool comes next turn |
| beside a real call | that call; the tool comes next turn |
| again in the same turn, or for a name that does not exist | one answer; all tools are there |
| for two at once | one answer that has both |
| in a later turn | the same as in the first |
| not at all, but calls the tool straight away | that call; the tool is there from the next turn on |
| never | its answer |

In every one of these the caller sees nothing of the gateway's tool, input tokens as in the last call of the turn, and
output tokens of all of them. What was sent before is sent again, byte for byte but for cache markers; where a model
takes no tools added behind messages, `tools` grow by each restore, and nothing else changes. A conversation whose turns
reach different processes, or one that started anew, goes on the same (`tests/api/test_pinned_prefix.py`).

Beside the matrix: Converse with the key as a bearer token (by hand: boto3 sends one over HTTPS only), token counts,
Responses, Embeddings and Invoke passed through, bad input, a hundred streams cut by their clients, and Claude Code
reading a file by a tool call, with a provider of each dialect; with a key that gets few tools it asks for its `Read`,
and for one of the sixty tools of an MCP server. [The snippets for other clients](sdks.md) are run, too.
"""
