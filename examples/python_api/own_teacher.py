"""A teacher of your own: anything that can judge a document and a label. Here a cross-encoder (reranker)."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sentence_transformers import CrossEncoder

from ezxmc import Judgment, Pair
from ezxmc.hashing import json_hash, judgment_key
from ezxmc.models import model_identity
from ezxmc.records import Status

_BATCH = 32


class CrossEncoderTeacher:
    """Judges by the logit of a cross-encoder with one output.

    Args:
        model: A local folder or a hub id.
        question: What stands before the label's title.
    """

    def __init__(self, model: str, question: str = "This is about") -> None:
        self.question, self._name, self._model = question, model, None
        # Everything that can change an answer: judgments of another teacher are never taken for this one's.
        self.description: dict[str, Any] = {
            "backend": "cross-encoder",
            "model": model_identity(model),
            "question": question,
        }
        self.fingerprint = json_hash(self.description)

    def key(self, pair: Pair) -> str:
        """What an answer is kept under: the texts that are shown, whatever their uids."""
        return judgment_key(self.fingerprint, pair.doc.shown, pair.label.title)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """One judgment for each pair; pairs are read as answers are asked for."""
        source = iter(pairs)
        while batch := list(islice(source, _BATCH)):
            self._model = self._model or CrossEncoder(self._name)
            texts = [(pair.doc.shown, f"{self.question} {pair.label.title}") for pair in batch]
            # Without the sigmoid that `predict` applies by default the output is the log-odds.
            logits = self._model.predict(texts, activation_fn=lambda logit: logit, show_progress_bar=False)
            for pair, logit in zip(batch, logits.tolist(), strict=True):
                yield Judgment(self.key(pair), pair.doc.uid, pair.label.uid, Status.OK, log_odds=logit)

    def close(self) -> None:
        """Free the model's memory; the next `score` loads it again."""
        self._model = None
