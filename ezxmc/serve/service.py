"""A bundle at work: requests in batches, the folder and what is served of it in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyio.to_thread import run_sync

from ezxmc.bundle import Change
from ezxmc.calibration.decisions import Decision
from ezxmc.config import Backend, Precision
from ezxmc.occlusion import MOST_PARTS, Evidence
from ezxmc.predict import Predictor
from ezxmc.records import Document, Prediction
from ezxmc.serve.batching import Batcher
from ezxmc.serve.guard import RefusedError
from ezxmc.serve.limits import LOCAL_NAMES, Limits
from ezxmc.serve.metrics import Metrics
from ezxmc.serve.reload import BundleHolder
from ezxmc.serve.schemas import ChangeOut


@dataclass(frozen=True, slots=True)
class Settings:
    """How a bundle is served.

    Attributes:
        bundle: Its folder.
        limits: What is taken.
        backend: What runs the encoder.
        precision: What it computes in.
        batch_documents: Documents computed together; 1 turns batching off.
        batch_wait: Seconds the first of a batch waits for others.
        token: Bearer token that is asked for.
        hosts: Names the server answers to; `None`: any.
        watch_every: Seconds between looks at the bundle's folder.
    """

    bundle: Path
    limits: Limits = field(default_factory=Limits)
    backend: Backend = "torch"
    precision: Precision = "auto"
    batch_documents: int = 32
    batch_wait: float = 0.002
    token: str | None = None
    hosts: frozenset[str] | None = LOCAL_NAMES
    watch_every: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """The documents of one request and its options."""

    documents: list[Document]
    k: int | None
    threshold: float | None
    decision: bool
    explain: bool = False

    @property
    def size(self) -> int:
        """Texts to encode at most: only the model's thread may take documents apart, by its tokenizer."""
        return len(self.documents) * (1 + MOST_PARTS if self.explain else 1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request: predictions, evidence for each label of each where asked for, the version."""

    predictions: list[Prediction]
    evidence: list[list[Evidence | None]]
    version: str


class Service:
    """What the routes share: the bundle, the batcher, the counters.

    Raises:
        BundleError: There is no intact bundle.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.bundle = BundleHolder(
            lambda: Predictor.load(settings.bundle, backend=settings.backend, precision=settings.precision),
            settings.bundle,
            self._loaded,
        )
        self.batcher: Batcher[Work, Answer] = Batcher(
            self._answer,
            documents=settings.batch_documents,
            wait=settings.batch_wait,
            queue=settings.limits.queue,
            observe=self.metrics.batches.observe,
        )
        self.metrics.watch(
            lambda: self.batcher.waiting, lambda: self.bundle.current.predictor.bundle.index.size
        )

    def _loaded(self, ok: bool) -> None:
        self.metrics.reloads.labels("ok" if ok else "refused").inc()

    def _answer(self, works: Sequence[Work]) -> list[Answer]:
        served = self.bundle.current
        documents = [document for work in works for document in work.documents]
        explained = [document for work in works if work.explain for document in work.documents]
        parts = [served.predictor.occlusions(document) for document in explained]
        # In one call: what is left of documents is encoded beside them.
        rests = [Document("", "", part.rest) for some in parts for part in some]
        vectors = served.predictor.encode([*documents, *rests])
        found: dict[tuple[int | None, float | None, bool], list[int]] = {}
        spans: list[range] = []
        for work in works:
            first = spans[-1].stop if spans else 0
            spans.append(range(first, first + len(work.documents)))
            found.setdefault((work.k, work.threshold, work.decision), []).extend(spans[-1])
        predictions: dict[int, Prediction] = {}
        for (k, threshold, decision), places in found.items():
            tagged = served.predictor.tag(
                [documents[place] for place in places],
                vectors[places],
                k=k,
                threshold=threshold,
                decision=decision_of(served.predictor) if decision else None,
            )
            predictions.update(zip(places, tagged, strict=True))
        self.metrics.documents.inc(len(documents))
        answers, apart, after = [], iter(parts), len(documents)
        for work, span in zip(works, spans, strict=True):
            evidence = []
            for place in span if work.explain else ():
                some = next(apart)
                without, after = vectors[after : after + len(some)], after + len(some)
                evidence.append(served.predictor.evidence(predictions[place], some, without))
            answers.append(Answer([predictions[place] for place in span], evidence, served.version))
        return answers

    async def change(self, act: Callable[[Path], Change]) -> ChangeOut:
        """Change the bundle's folder and serve it; raises as `BundleHolder.change`."""
        change, served = await run_sync(self.bundle.change, act)
        bundle = served.predictor.bundle
        return ChangeOut(
            added=change.added,
            changed=change.changed,
            removed=change.removed,
            total=bundle.index.size,
            bundle=served.version,
            decision=bundle.decision.guarantee if bundle.decision else None,
        )


def decision_of(predictor: Predictor) -> Decision:
    """The bundle's own decision.

    Raises:
        RefusedError: It has none.
    """
    if predictor.bundle.decision is None:
        raise RefusedError(409, "the bundle has no decision", "make one with `ezxmc decide`, or leave it out")
    return predictor.bundle.decision
