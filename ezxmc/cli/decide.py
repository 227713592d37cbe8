"""`ezxmc decide`: which of a bundle's candidates become tags, and what is promised of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ezxmc.cli.console import (
    Column,
    Json,
    Untagged,
    answer,
    bad_rows,
    columns_of,
    settle_untagged,
    shown,
    table,
    watching,
)
from ezxmc.cli.pipeline import Documents


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(decide)


def decide(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle folder with a calibrator; its decision is replaced.")
    ],
    documents: Documents,
    gold: Annotated[str, typer.Argument(help="All right labels of these documents: TSV or JSONL pairs.")],
    missed_rate: Annotated[
        float | None, typer.Option(help="Of a document's right labels at most this share is missed.")
    ] = None,
    false_tag_rate: Annotated[
        float | None, typer.Option(help="Of a tagged document's tags at most this share is false.")
    ] = None,
    first_tag_error: Annotated[
        float | None,
        typer.Option(
            help="Of the documents tagged at most this share has a false first tag; others abstain."
        ),
    ] = None,
    f1: Annotated[bool, typer.Option("--f1", help="The threshold of the best expected micro F1.")] = False,
    document_f1: Annotated[
        bool,
        typer.Option("--document-f1", help="As many tags for each document as its expected F1 is best with."),
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Tags at least this probable.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="The k best; with --first-tag-error, of documents tagged.")
    ] = None,
    abstain_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="No tag where the best is less probable than this.")
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(help="Of --false-tag-rate and --first-tag-error (--missed-rate holds on average)."),
    ] = 0.9,
    depth: Annotated[int, typer.Option(min=1, help="Candidates per document looked at.")] = 50,
    without_gold: Untagged = None,
    column: Column = None,
    json: Json = False,
) -> None:
    """Decide which candidates become tags, with a guarantee where one is asked for.

    Give documents that are a random sample of those to come, reviewed by
    people, and used neither to train the student nor to calibrate the bundle:
    every guarantee rests on that, and on those that nothing fits being among
    them. The measured rates are of these documents.

    Example: ezxmc decide bundle reviewed.jsonl reviewed.tsv --missed-rate 0.2
    """
    from ezxmc.bundle import add_decision
    from ezxmc.calibration.decisions import Decision
    from ezxmc.calibration.decisions_fit import (
        GRID,
        control_false_tag_rate,
        control_missed_rate,
        control_top_error,
        maximise_f1,
    )
    from ezxmc.calibration.risk_measures import Reviewed, rates
    from ezxmc.data import columns_for, read_documents, read_gold
    from ezxmc.errors import ConfigError
    from ezxmc.manifest import check_changeable
    from ezxmc.predict import Predictor

    alone = top_k is not None and first_tag_error is None
    ways = [missed_rate, false_tag_rate, first_tag_error, f1 or None, document_f1 or None, threshold]
    if sum(way is not None for way in ways) + alone != 1:
        raise typer.BadParameter(
            "give one of --missed-rate, --false-tag-rate, --first-tag-error, --f1, --document-f1, "
            "--threshold, --top-k"
        )
    if first_tag_error is not None and abstain_below is not None:
        raise typer.BadParameter("--first-tag-error chooses itself where to abstain: drop --abstain-below")
    check_changeable(bundle)
    docs, doc_rows = read_documents(documents, columns=columns_for("documents", columns_of(column)))
    with watching() as watch:
        doc_rows.tell(watch.say, "documents")
        predictor = Predictor(bundle)
        if predictor.bundle.calibrator is None:
            raise ConfigError(
                f"a decision needs probabilities, and bundle {bundle} has no calibrator",
                "run `ezxmc calibrate` on it first, with other documents than these",
            )
        tags, tag_rows = read_gold(
            gold,
            documents=[document.uid for document in docs],
            labels=predictor.bundle.titles(),
            more_documents=True,
        )
        tag_rows.tell(watch.say, "gold")
        settle_untagged(tags, (document.uid for document in docs), gold, without_gold, watch.say)
        docs = [document for document in docs if document.uid in tags]
        bar = watch.stage("scoring")
        predictions = []
        for done, prediction in enumerate(predictor.stream(docs, k=max(depth, top_k or 0)), start=1):
            predictions.append(prediction)
            bar(done, len(docs))
    reviewed = Reviewed.of(predictions, tags)
    probabilities = reviewed.probabilities
    at_most = probabilities.shape[1]
    if missed_rate is not None:
        choice = control_missed_rate(reviewed, missed_rate, abstain_below=abstain_below)
    elif false_tag_rate is not None:
        choice = control_false_tag_rate(
            reviewed, false_tag_rate, confidence=confidence, abstain_below=abstain_below
        )
    elif first_tag_error is not None:
        choice = control_top_error(
            reviewed, first_tag_error, confidence=confidence, k=min(top_k or 1, at_most)
        )
    elif threshold is not None:
        choice = Decision.at_threshold(threshold, depth=at_most, abstain_below=abstain_below)
    elif top_k is not None:
        choice = Decision.top_k(min(top_k, at_most), abstain_below=abstain_below)
    else:
        choice = maximise_f1(reviewed, per_document=document_f1, abstain_below=abstain_below)
    add_decision(bundle, choice)
    measured = asdict(rates(reviewed, choice.keep(probabilities)))
    rows = {"documents": doc_rows, "gold": tag_rows}
    rule = {name: value for name, value in choice.to_dict().items() if value is not None}
    if json:
        plain = {float(t): Decision.at_threshold(float(t), depth=at_most) for t in GRID[::-1]}
        curve = [
            {"threshold": t, **asdict(rates(reviewed, one.keep(probabilities)))} for t, one in plain.items()
        ]
        found = {"decision": rule, "guarantee": choice.guarantee, "measured": measured, "curve": curve}
        answer(json, found, rows)
    else:
        rule.pop("promise", None)
        facts = {**rule, "guarantee": choice.guarantee, **measured}
        lines = [
            [name.replace("_", " "), "none" if value is None else shown(value)]
            for name, value in facts.items()
        ]
        table("", ["", ""], lines)
    bad_rows(**rows)
