"""Files of predictions against files of gold: what `ezxmc evaluate` does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ezxmc.data import RowReport, read_gold, read_labels
from ezxmc.data.catalog import WithoutGold, settle_untagged
from ezxmc.data.forest import Forest
from ezxmc.data.predictions import read_predictions
from ezxmc.errors import ArgumentError, DataError
from ezxmc.metrics.bootstrap import Difference
from ezxmc.metrics.evaluation import Evaluation, compare, evaluate
from ezxmc.progress import NoProgress, Progress
from ezxmc.records import Prediction


@dataclass(frozen=True, slots=True)
class EvaluatedFiles:
    """What `evaluate_files` found.

    Attributes:
        evaluation: Of the predictions.
        other: Of those they were compared with, if any.
        differences: The former minus the latter, by metric.
        rows: How reading each file went, by the argument it was given as.
    """

    evaluation: Evaluation
    other: Evaluation | None
    differences: dict[str, Difference]
    rows: dict[str, RowReport]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        found = self.evaluation.to_dict()
        if self.other:
            gaps = {name: asdict(gap) for name, gap in self.differences.items()}
            found["compare"] = {**self.other.to_dict(), "differences": gaps}
        return {**found, "rows": {name: report.to_dict() for name, report in self.rows.items()}}


def evaluate_files(
    predictions: str,
    gold: str,
    *,
    train_gold: str | None = None,
    propensity: tuple[float, float] | None = None,
    threshold: float | None = None,
    filtered: str | None = None,
    labels: str | None = None,
    compared: str | None = None,
    without_gold: WithoutGold = "unreviewed",
    watch: Progress | None = None,
) -> EvaluatedFiles:
    """`evaluate` for files of predictions and gold, which are read with care and told about.

    Args:
        predictions: What `ezxmc predict` wrote; "-" is standard input.
        gold: People's tags, see `read_gold`. They are held against the labels that were predicted, or
            against all with `labels`.
        train_gold: Gold of training documents: adds PSP, PSnDCG, and head, torso and tail.
        propensity: A and B of PSP; (0.55, 1.5) if not given. Needs `train_gold`.
        threshold: Adds F1 of the tags at least this probable.
        filtered: A file of pairs that count neither as predicted nor as gold.
        labels: The label list: gold of others is left out and told. By default, what was predicted. A
            hierarchy adds hierarchical metrics.
        compared: Predictions of another run, subtracted document by document.
        without_gold: What predicted documents are that `gold` has no label for.
        watch: Told how reading each file went.

    Raises:
        ArgumentError: `propensity` is not above 0, or there is no `train_gold`; or as for `evaluate`.
        DataError: A file cannot be read or holds nothing usable, or as for `evaluate`.

    Example:
        >>> found = evaluate_files("tags.jsonl", "gold.tsv")
        >>> found.evaluation.n_documents
        60
    """
    if propensity and train_gold is None:
        raise ArgumentError("propensities are of training documents", "--propensity needs --train-gold")
    if propensity and min(propensity) <= 0:
        raise ArgumentError(f"propensity is {propensity}", "--propensity takes two numbers above 0")
    watch = watch or NoProgress()
    rows: dict[str, RowReport] = {}
    titles: dict[str, str] = {}
    forest = None
    if labels is not None:
        known, rows["labels"] = read_labels(labels)
        titles, forest = {label.uid: label.title for label in known}, Forest.of(known)
    # Gold is held against what was predicted, so that is read first; standard input only once.
    sources = {"predictions": predictions} | ({} if compared is None else {"compare": compared})
    held: dict[str, list[Prediction]] = {}
    seen: dict[str, None] = {}
    for name, source in sources.items():
        rows[name] = RowReport()
        for one in read_predictions(source, rows[name]):
            if source == "-":
                held.setdefault(name, []).append(one)
            seen[one.uid] = None
            if labels is None:
                titles.update(zip(one.labels, one.titles, strict=True))
        if not rows[name].kept:
            summary = rows[name].summary()
            raise DataError(f"{source} holds no prediction: {summary}", "give what `ezxmc predict` wrote")
    pairs = {}
    for name, file in (("gold", gold), ("train_gold", train_gold), ("filter", filtered)):
        if file is not None:
            pairs[name], rows[name] = read_gold(
                file,
                documents=None if name == "train_gold" else seen,
                labels=titles,
                more_documents=True,
                more_labels=labels is None,
                refuse=name == "gold",
            )
    for name, report in rows.items():
        if report.counts or report.notes:
            report.tell(watch.say, name)
    settle_untagged(pairs["gold"], seen, gold, without_gold, watch.say)

    def stream(name: str) -> Iterable[Prediction]:
        return held[name] if name in held else read_predictions(sources[name], RowReport())

    found = {
        name: evaluate(
            stream(name),
            pairs["gold"],
            train_gold=pairs.get("train_gold"),
            propensity=propensity or (0.55, 1.5),
            threshold=threshold,
            filtered=pairs.get("filter", {}),
            forest=forest,
        )
        for name in sources
    }
    first, other = found["predictions"], found.get("compare")
    return EvaluatedFiles(first, other, compare(first, other) if other else {}, rows)
