"""`ezxmc evaluate`: predictions against gold, and one run against another."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ezxmc.cli.console import (
    Json,
    Untagged,
    WithoutGold,
    accounts,
    bad_rows,
    emit,
    settle_untagged,
    table,
    watching,
)

if TYPE_CHECKING:
    from ezxmc.metrics import Difference
    from ezxmc.records import Prediction


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    predictions: Annotated[str, typer.Argument(help="What `ezxmc predict` wrote.")],
    gold: Annotated[str, typer.Argument(help="Gold: TSV or JSONL pairs.")],
    train_gold: Annotated[
        str | None,
        typer.Option(help="Gold of training documents: adds PSP, PSnDCG, and head, torso and tail."),
    ] = None,
    propensity: Annotated[
        tuple[float, float] | None,
        typer.Option(help="A and B of PSP: .55 1.5 if not given; .5 .4 for Wikipedia, .6 2.6 for Amazon."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Adds F1 of the tags at least this probable.")
    ] = None,
    filter_pairs: Annotated[
        str | None,
        typer.Option("--filter", help="Pairs, as TSV or JSONL, that count neither as predicted nor as gold."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The label list: gold of others is left out and told. Default: what was predicted."
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Predictions of another run, subtracted document by document.")
    ] = None,
    without_gold: Untagged = WithoutGold.UNREVIEWED,
    json: Json = False,
) -> None:
    """Compare predictions with gold tags: P@k, R@k, nDCG@k, coverage, ECE@k, with 95% intervals.

    Gold labels are held against the labels that were predicted, or against all
    with --labels: a title, several in one cell and the like are taken and told.
    Documents that nothing fits (an empty label cell, "labels": [] in JSON, or
    --without-gold none) count in F1 and the calibration metrics.

    Intervals and p values are of the bootstrap over documents, paired where
    two runs are compared.

    Example: ezxmc evaluate tags.jsonl gold.tsv --train-gold train.tsv --threshold 0.5 --compare old.jsonl
    """
    from ezxmc.data import RowReport, read_gold, read_labels
    from ezxmc.data.predictions import read_predictions
    from ezxmc.errors import DataError
    from ezxmc.evaluation import Evaluation
    from ezxmc.evaluation import compare as difference
    from ezxmc.evaluation import evaluate as assess

    if propensity and train_gold is None:
        raise typer.BadParameter("--propensity needs --train-gold")
    if propensity and min(propensity) <= 0:
        raise typer.BadParameter("--propensity takes two numbers above 0")
    reports: dict[str, RowReport] = {}
    if labels is not None:
        known, reports["labels"] = read_labels(labels)
        titles = {label.uid: label.title for label in known}
    # Gold is held against what was predicted, so that is read first; standard input only once.
    predicted: dict[str, list[Prediction]] = {}
    seen: tuple[dict[str, None], dict[str, str]] = {}, {}
    for name, source in (("predictions", predictions), ("compare", compare)):
        if source is None:
            continue
        reports[name] = RowReport()
        for one in read_predictions(source, reports[name]):
            if source == "-":
                predicted.setdefault(name, []).append(one)
            seen[0][one.uid] = None
            if labels is None:
                seen[1].update(zip(one.labels, one.titles, strict=True))
        if not reports[name].kept:
            raise DataError(
                f"{source} holds no prediction: {reports[name].summary()}", "give what `ezxmc predict` wrote"
            )
    pairs = {}
    for name, source in (("gold", gold), ("train_gold", train_gold), ("filter", filter_pairs)):
        if source is not None:
            pairs[name], reports[name] = read_gold(
                source,
                documents=None if name == "train_gold" else seen[0],
                labels=seen[1] if labels is None else titles,
                more_documents=True,
                more_labels=labels is None,
                refuse=name == "gold",
            )
    with watching() as watch:
        for name, report in reports.items():
            if report.counts or report.notes:
                report.tell(watch.say, name)
        settle_untagged(pairs["gold"], seen[0], gold, without_gold, watch.say)

    def assessed(name: str, source: str) -> Evaluation:
        return assess(
            predicted[name] if name in predicted else read_predictions(source, RowReport()),
            pairs["gold"],
            train_gold=pairs.get("train_gold"),
            propensity=propensity or (0.55, 1.5),
            threshold=threshold,
            filtered=pairs.get("filter", {}),
        )

    found = assessed("predictions", predictions)
    answer: dict[str, Any] = found.to_dict()
    metrics = [["metric", "value", "95% interval"], *map(list, found.rows())]
    counts = [["", "count"], *([name, f"{count:,}"] for name, count in found.counts().items())]
    if compare is not None:
        other = assessed("compare", compare)
        gaps = difference(found, other)
        answer["compare"] = {
            **other.to_dict(),
            "differences": {name: asdict(gap) for name, gap in gaps.items()},
        }
        beside = {name: value for name, value, _ in other.rows()}
        metrics = [
            ["metric", "value", "other", "difference", "95% interval", "p"],
            *(
                [name, value, beside.get(name, ""), *_cells(gaps.get(name))]
                for name, value, _ in found.rows()
            ),
        ]
        for row, count in zip(counts, ["other", *(f"{n:,}" for n in other.counts().values())], strict=True):
            row.append(count)
    if json:
        emit({**answer, "rows": accounts(reports)})
    else:
        for columns, *rows in (metrics, counts):
            table("", columns, rows)
    bad_rows(**reports)


def _cells(gap: Difference | None) -> list[str]:
    if gap is None:
        return ["", "", ""]
    from ezxmc.evaluation import roughly

    ends = f"{gap.low:+.4f} to {gap.high:+.4f}{roughly(gap.rows)}"
    return [f"{gap.value:+.4f}", ends, f"{gap.p:.3f}"]
