"""Keyword scores: BM25 over the cards of one tool set, in flat arrays so that a set never seen is indexed at once.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_K1, _B = 1.2, 0.6
_QUERY_TERMS_MAX = 120


class KeywordIndex:
    """The terms of N documents. Immutable; `scores` may be called from any thread."""

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        vocabulary: dict[str, int] = {}
        ids = [vocabulary.setdefault(term, len(vocabulary)) for terms in documents for term in terms]
        lengths = np.array([len(terms) for terms in documents], dtype=np.int64)
        count, size = len(documents), max(1, len(vocabulary))
        at = np.repeat(np.arange(count, dtype=np.int64), lengths)
        # One number for each (term, document), sorted by term: equal ones are the term's repeats in the document.
        pairs, repeats = np.unique(np.array(ids, dtype=np.int64) * max(1, count) + at, return_counts=True)
        terms_of_pairs, self._documents = np.divmod(pairs, max(1, count))
        found_in = np.bincount(terms_of_pairs, minlength=size)
        self._starts = np.concatenate(([0], np.cumsum(found_in)))
        self._idf = np.log1p((count - found_in + 0.5) / (found_in + 0.5))
        norm = _K1 * (1 - _B + _B * lengths / max(1.0, float(lengths.mean()) if count else 1.0))
        self._weights = repeats * (_K1 + 1) / (repeats + norm[self._documents])
        self._unseen_idf = float(np.log1p((count + 0.5) / 0.5))
        self._vocabulary = vocabulary
        self._count = count

    def scores(self, query: Sequence[str]) -> tuple[NDArray[np.float64], float]:
        """BM25 of each document, shape (documents,), and the most that a document could reach: the query's weight."""
        scores = np.zeros(self._count)
        most = 0.0
        for term in dict.fromkeys(query[:_QUERY_TERMS_MAX]):
            index = self._vocabulary.get(term)
            if index is None:
                most += self._unseen_idf
                continue
            start, end = self._starts[index], self._starts[index + 1]
            scores[self._documents[start:end]] += self._idf[index] * self._weights[start:end]
            most += float(self._idf[index]) * (_K1 + 1)
        return scores, most
