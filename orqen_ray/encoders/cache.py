"""Vectors of tool texts, which come again with every conversation: kept in memory, and in a store that all share."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orqen_ray.encoders.protocol import Embedder, EncoderUnavailable, Vectors

MAX_ENTRIES = 20_000
MAX_PENDING = 20_000
_BATCH = 32
"""Texts of one call to the embedder: enough to keep it busy, few enough to be kept soon."""
_BATCHES_AT_A_TIME = 2
_SAVES_AT_A_TIME = 8

Vector = NDArray[np.float32]
Fill = asyncio.Task[dict[str, Vector]]

_log = logging.getLogger(__name__)


class VectorStore(Protocol):
    """Vectors by the name of their encoder and the digest of their text. May raise anything: it is only a cache."""

    async def get_many(self, encoder: str, digests: Sequence[str]) -> Mapping[str, bytes]:
        """Those that are there: digest -> little-endian float32."""
        ...

    async def put_many(self, encoder: str, vectors: Mapping[str, bytes]) -> None:
        """Keep these. One that is there already stays as it is."""
        ...


class VectorCache:
    """Belongs to the event loop that uses it first.

    A text is embedded once for all who wait for it. Whoever cannot wait leaves, and the work goes on: the next request
    with these tools finds them.

    Args:
        store: shared with other processes and later ones; None: memory only.
        max_entries: vectors kept in memory, those used last.
        max_pending: texts that may wait to be embedded; with more, the request is turned away.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: VectorStore | None = None,
        max_entries: int = MAX_ENTRIES,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._max_entries = max_entries
        self._max_pending = max_pending
        self._kept: OrderedDict[str, Vector] = OrderedDict()
        self._fills: dict[str, Fill] = {}
        self._saves: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_BATCHES_AT_A_TIME)

    def __len__(self) -> int:
        return len(self._kept)

    async def query(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts that do not come again; see `Embedder.embed`."""
        return await self._embedder.embed(texts)

    async def vectors(self, texts: Sequence[str], timeout_s: float | None = None) -> Vectors:
        """One vector for each text, in order.

        Raises:
            EncoderUnavailable: not all are there within `timeout_s`, and embedding them goes on; or see `Embedder`.
        """
        name = self._embedder.name
        digests = [_digest(name, text) for text in texts]
        found: dict[str, Vector] = {}
        missing: dict[str, str] = {}
        for digest, text in zip(digests, texts, strict=True):
            if (vector := self._kept.get(digest)) is None:
                missing[digest] = text
            else:
                self._kept.move_to_end(digest)
                found[digest] = vector
        if missing:
            for filled in await self._filled(name, missing, timeout_s):
                found.update(filled)
        if not digests:
            return np.zeros((0, self._embedder.dimensions), np.float32)
        return np.stack([found[digest] for digest in digests])

    async def aclose(self) -> None:
        """Stop embedding; what is embedded already is still written."""
        fills = set(self._fills.values())
        for fill in fills:
            fill.cancel()
        await asyncio.gather(*fills, return_exceptions=True)
        await asyncio.gather(*self._saves)

    async def _filled(
        self, name: str, missing: Mapping[str, str], timeout_s: float | None
    ) -> Iterable[Mapping[str, Vector]]:
        new = {digest: text for digest, text in missing.items() if digest not in self._fills}
        if new:
            if len(self._fills) + len(new) > self._max_pending:
                raise EncoderUnavailable(f"overloaded: {len(self._fills)} tool texts wait already")
            # In no request's context: Serve would cancel the work with the request that happened to begin it.
            fill = asyncio.create_task(self._fill(name, new), context=Context())
            self._fills.update(dict.fromkeys(new, fill))
            fill.add_done_callback(lambda fill: self._forget(new, fill))
        fills = {self._fills[digest] for digest in missing}
        _, late = await asyncio.wait(fills, timeout=timeout_s)
        if late:
            raise EncoderUnavailable(f"late: {len(missing)} tool texts are not embedded yet")
        for fill in fills:
            if fill.cancelled() or (error := fill.exception()) is not None:
                raise EncoderUnavailable("closed" if fill.cancelled() else str(error))
        return [fill.result() for fill in fills]

    def _forget(self, digests: Iterable[str], fill: Fill) -> None:
        for digest in digests:
            del self._fills[digest]
        if not fill.cancelled():
            fill.exception()  # it was told to those who waited; nobody may have

    async def _fill(self, name: str, texts: Mapping[str, str]) -> dict[str, Vector]:
        stored = await self._stored(name, texts)
        self._keep(stored)
        missing = [digest for digest in texts if digest not in stored]
        made: dict[str, Vector] = {}
        try:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                async with self._turns:
                    rows = await self._embedder.embed([texts[digest] for digest in batch])
                if self._embedder.name != name:
                    raise EncoderUnavailable("another model has taken over")
                new = {digest: row.copy() for digest, row in zip(batch, rows, strict=True)}
                self._keep(new)
                made.update(new)
        finally:
            self._save(name, made)
        return stored | made

    def _keep(self, vectors: Mapping[str, Vector]) -> None:
        self._kept.update(vectors)
        while len(self._kept) > self._max_entries:
            self._kept.popitem(last=False)

    async def _stored(self, name: str, texts: Mapping[str, str]) -> dict[str, Vector]:
        if self._store is None:
            return {}
        try:
            rows = await self._store.get_many(name, list(texts))
        except Exception as error:  # noqa: BLE001  # whatever fails: they are embedded again
            _log.debug("no stored vectors: %s", error)
            return {}
        size = self._embedder.dimensions * 4
        return {digest: np.frombuffer(row, "<f4") for digest, row in rows.items() if len(row) == size}

    def _save(self, name: str, vectors: Mapping[str, Vector]) -> None:
        """Write in the background. Beside a slow store, some vectors are not written."""
        if self._store is not None and vectors and len(self._saves) < _SAVES_AT_A_TIME:
            rows = {digest: vector.astype("<f4").tobytes() for digest, vector in vectors.items()}
            saving = asyncio.create_task(self._put(self._store, name, rows), context=Context())
            self._saves.add(saving)
            saving.add_done_callback(self._saves.discard)

    async def _put(self, store: VectorStore, name: str, rows: Mapping[str, bytes]) -> None:
        try:
            await store.put_many(name, rows)
        except Exception as error:  # noqa: BLE001  # whatever fails: they are embedded again
            _log.debug("vectors were not stored: %s", error)


def _digest(name: str, text: str) -> str:
    return hashlib.sha256(f"{name}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
