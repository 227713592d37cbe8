"""Content hashes: the identity of judgments, prompts, models and bundles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def text_hash(*parts: str) -> str:
    """SHA-256 of several strings, hex.

    Each part is preceded by its byte length, so no two different tuples of
    parts share an input (`("ab", "c")` and `("a", "bc")` differ).
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_framed(part))
    return digest.hexdigest()


def _framed(part: str) -> bytes:
    # A lone surrogate cannot be encoded strictly, yet must still hash.
    raw = part.encode("utf-8", "surrogatepass")
    return b"%d:%b" % (len(raw), raw)


def json_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON form of `value` (sorted keys, no spaces)."""
    return text_hash(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, read in 1 MiB chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def tree_hash(root: Path, names: Iterable[str]) -> str:
    """SHA-256 over the named files below `root`: their names and contents."""
    return text_hash(*(part for name in sorted(names) for part in (name, file_hash(root / name))))


def judgment_key(fingerprint: str, document_shown: str, label_shown: str) -> str:
    """Content key of one judgment.

    It holds no row number and no uid: adding a document or a label leaves
    every other judgment valid, and renaming one costs nothing.

    Args:
        fingerprint: The teacher's fingerprint (model, prompt, scoring, engine).
        document_shown: The document's text as the prompt takes it.
        label_shown: The label's text as the prompt takes it.
    """
    return text_hash(fingerprint, document_shown, label_shown)


def judgment_keys(fingerprint: str, documents_shown: Iterable[str], label_shown: str) -> Iterator[str]:
    """`judgment_key` of many documents and one label, several times as fast."""
    begun = hashlib.sha256(_framed(fingerprint))
    end = _framed(label_shown)
    for shown in documents_shown:
        digest = begun.copy()
        digest.update(_framed(shown) + end)
        yield digest.hexdigest()
