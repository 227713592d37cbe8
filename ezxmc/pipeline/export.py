"""A bundle's student for a faster runtime: `ezxmc export`.

Converted it stays what it is. A static student has no transformer: it learns from what the student says of
the catalog's own documents, so that nobody is asked anything; a part of them is kept apart, on which its
probabilities are fitted and its loss is measured.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle.bundle import Bundle, add_student_files, load_bundle
from ezxmc.bundle.manifest import CALIBRATOR, MADE_FROM, STATIC, check_changeable, made_from
from ezxmc.calibration import Calibrator, JudgedRows
from ezxmc.config import Backend, Precision, RunConfig
from ezxmc.data.catalog import Rows, Source, documents_in
from ezxmc.errors import ConfigError, DataError
from ezxmc.progress import NoProgress, Progress
from ezxmc.records import Document
from ezxmc.retrieval.encoder import clipped
from ezxmc.retrieval.export import Conversion, convert
from ezxmc.retrieval.static import StaticEncoder, WordTokens, write_static
from ezxmc.training.static import (
    NEAREST,
    scored_labels,
    token_vectors,
    tokenizer_of,
    tuned,
    weighted,
    without_unused,
)

_APART, _LEAST_APART, _MOST_APART = 0.1, 5, 1000
_FEW, _MOST = 200, 100_000  # documents; to encode the most of them takes an hour without an accelerator
_DEPTH = 10  # ranks a calibrator is fitted to, where the student's own does not say
_TIMED = 256  # documents

Floats = NDArray[np.float32]


def export_student(path: Path, *, backend: Backend = "onnx", precision: Precision = "auto") -> Conversion:
    """Convert a bundle's student, check the conversion against it, and put it into the bundle.

    Args:
        path: The bundle; its student stays as it is.
        backend: The runtime, `onnx` or `openvino`.
        precision: As for `ezxmc.retrieval.export.convert`.

    Returns:
        The file, and how near its vectors are to the student's own.

    Raises:
        BundleError: As for `add_student_files`.
        ConfigError, ModelError: As for `convert`.
    """
    check_changeable(path)
    opened = load_bundle(path)
    # Beside the bundle's files, where it can be moved from in one step.
    with TemporaryDirectory(dir=path, prefix=".export-") as folder:
        texts = [f"{label.title} {label.text}" for label in opened.labels]
        found = convert(opened.encoder, Path(folder), texts, backend=backend, precision=precision)
        add_student_files(path, {found.name: Path(folder) / found.name})
    return found


@dataclass(frozen=True, slots=True)
class StaticStudent:
    """A static student, and what it is worth on documents kept apart from its tuning.

    Attributes:
        bundle: Whose it is.
        documents: That it was tuned on.
        kept_apart: Documents the rest is measured on.
        megabytes: Of its files.
        cosine_mean: Of its vectors with the student's.
        first_agree: Share of documents with the student's first label as its own first.
        five_agree: Share of the student's five first labels that are among its own.
        documents_per_second: Encoded, by the clock.
        times_student: How many times as fast that is as the student, in the same minute.
        ece_to_student: Mean distance of its probabilities from the student's, cross-fitted, in ten bins;
            `None` where the bundle has no calibrator.
        rows: How reading went.
    """

    bundle: Path
    documents: int
    kept_apart: int
    megabytes: float
    cosine_mean: float
    first_agree: float
    five_agree: float
    documents_per_second: float
    times_student: float
    ece_to_student: float | None = None
    rows: Rows = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Each field but `rows`, JSON-ready; what is not known is left out."""
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "rows"}
        return {
            name: value for name, value in (facts | {"bundle": str(self.bundle)}).items() if value is not None
        }


def export_static(
    bundle: str | Path,
    documents: Source | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    watch: Progress | None = None,
) -> StaticStudent:
    """Distil a bundle's student into token vectors, calibrate them, and put both into the bundle.

    Args:
        bundle: Its folder; its student stays as it is.
        documents: Unlabelled ones of the catalog; by default those of the run that the bundle lies in.
        columns: Columns of a file by the field they serve as.
        seed: Of the part kept apart, and of the tuning.
        watch: Sees stages and messages.

    Raises:
        BundleError: There is no such bundle, or it cannot be changed.
        ConfigError: No documents are given, and the bundle lies in no run directory.
        DataError: The documents cannot be read, or are too few.
        ModelError: The student is none that has vectors of tokens.
    """
    watch, path = watch or NoProgress(), Path(bundle)
    check_changeable(path)
    if documents is None:
        documents, columns = _of_run(path)
    read, rows = documents_in(documents, columns)
    pool = list({document.shown: document for document in read}.values())
    random.Random(seed).shuffle(pool)
    if len(pool) > _MOST:
        watch.say(f"{_MOST:,} of {len(pool):,} documents, drawn at random, are enough to tune on")
        pool = pool[:_MOST]
    count = min(max(round(_APART * len(pool)), _LEAST_APART), _MOST_APART)
    if len(pool) < 2 * _LEAST_APART:
        raise DataError(
            f"{len(pool)} different documents are too few to tune a static student on",
            "give a file of some thousand documents like those to be tagged; they need no tags",
        )
    if len(pool) < _FEW:
        watch.say(
            f"{len(pool)} documents name few of the words that others will use: a static student of so few "
            "is far from its student; give some thousand, they need no tags"
        )
    apart, rest = pool[:count], pool[count:]
    opened = load_bundle(path)
    student, texts = opened.encoder.faster(), [document.shown for document in rest]
    began = time.perf_counter()
    held = student.encode_documents([document.shown for document in apart])
    speed = len(apart) / (time.perf_counter() - began)
    wanted = student.encode_documents(texts, progress=watch.stage("encoding documents"))
    with TemporaryDirectory(dir=path, prefix=".export-") as folder:
        made = Path(folder)
        _tune(opened, texts, wanted, made, seed, watch)
        static = StaticEncoder(made, max_length=opened.manifest.max_length)
        fresh = replace(opened, encoder=static)
        found = static.encode_documents([document.shown for document in apart])
        if calibrator := carried_over(opened, held, fresh, found):
            calibrator.save(made / CALIBRATOR)
        told = made_from(opened.manifest)
        (made / MADE_FROM).write_text(json.dumps(told), encoding="utf-8")
        files = {file.relative_to(made).as_posix(): file for file in made.rglob("*") if file.is_file()}
        size = sum(file.stat().st_size for file in files.values())
        add_student_files(path, files, folder=STATIC)
    first, five = _agreement(opened, held, found)
    fast = _speed(static, apart)
    return StaticStudent(
        bundle=path,
        documents=len(rest),
        kept_apart=len(apart),
        megabytes=size / 1e6,
        cosine_mean=float(np.einsum("nd,nd->n", held, found).mean()),
        first_agree=first,
        five_agree=five,
        documents_per_second=fast,
        times_student=fast / speed,
        ece_to_student=calibrator.ece_cross_fitted if calibrator else None,
        rows={"documents": rows},
    )


def _of_run(bundle: Path) -> tuple[str, dict[str, str]]:
    """The documents of the run that a bundle lies in, and their columns."""
    config = bundle.absolute().parent / "config.yaml"
    if not config.is_file():
        raise ConfigError(
            f"bundle {bundle} lies in no run directory, and holds no documents",
            "name a file of the catalog's documents: --documents FILE; they need no tags",
        )
    data = RunConfig.load(config).data
    return data.documents, data.columns


def _tune(
    opened: Bundle,
    texts: Sequence[str],
    wanted: Floats,
    folder: Path,
    seed: int,
    watch: Progress,
) -> None:
    tokenizer = tokenizer_of(opened.encoder)
    watch.stage("vectors of tokens")
    length = opened.manifest.max_length
    read = [clipped(text, length) for text in texts]
    fewer, tokens = without_unused(tokenizer, read)
    start = token_vectors(opened.encoder, tokenizer, tokens)
    rows = WordTokens(fewer, length)(read)
    index, nearest = opened.index, None
    if not scored_labels(index.size):
        _, nearest = index.search(wanted, NEAREST)
        known, nearest = np.unique(nearest, return_inverse=True)
        labels = index.vectors(known)
    else:
        labels = index.vectors(index.rows)
    bar = watch.stage("tuning")
    weights = tuned(weighted(start, rows), rows, wanted, labels, nearest=nearest, seed=seed, progress=bar)
    write_static(folder, fewer, weights, length)


def carried_over(opened: Bundle, held: Floats, fresh: Bundle, found: Floats) -> Calibrator | None:
    """A calibrator of a static student's scores, fitted to its student's probabilities of the same pairs.

    Args:
        opened: The bundle as it is; `None` comes where it has no calibrator.
        held: (N, D) its vectors of documents that the static student was not tuned on.
        fresh: The same bundle with the static student.
        found: (N, D) that one's vectors of these documents.
    """
    if opened.calibrator is None:
        return None
    depth = min(opened.calibrator.k or _DEPTH, opened.index.size)
    scores, rows = fresh.search(found, depth)
    theirs, ranked = opened.search(held, min(NEAREST, opened.index.size))
    probabilities = opened.calibrator.transform(theirs)
    # What the student does not rank so high is no more likely than the last it does.
    said = np.repeat(probabilities[:, -1:], depth, axis=1)
    same = rows[:, :, None] == ranked[:, None, :]
    said = np.where(same.any(axis=2), np.take_along_axis(probabilities, same.argmax(axis=2), axis=1), said)
    fitted = Calibrator.fit(JudgedRows.of(scores, said), target="teacher")
    return replace(fitted, target=opened.calibrator.target)


def _agreement(opened: Bundle, held: Floats, found: Floats) -> tuple[float, float]:
    k = min(5, opened.index.size)
    (_, theirs), (_, own) = opened.search(held, k), opened.search(found, k)
    same = (own[:, :, None] == theirs[:, None, :]).any(axis=2)
    return float((own[:, 0] == theirs[:, 0]).mean()), float(same.mean())


def _speed(encoder: StaticEncoder, documents: Sequence[Document]) -> float:
    """Documents a second, words known."""
    texts = [document.shown for document in documents]
    texts = texts * -(-_TIMED // len(texts))
    encoder.encode_documents(texts)
    began = time.perf_counter()
    encoder.encode_documents(texts)
    return len(texts) / (time.perf_counter() - began)
