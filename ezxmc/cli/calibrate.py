"""`ezxmc calibrate` and `ezxmc decide`: a bundle's scores become probabilities, and probabilities tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
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
    show_progress,
    shown,
    table,
)
from ezxmc.cli.judgments import opened
from ezxmc.cli.run import Documents, Seed, newest_judgments
from ezxmc.records import Prediction


class TargetName(StrEnum):
    """Whose decisions a probability foretells."""

    TEACHER = "teacher"
    HUMAN = "human"
    BOTH = "both"


class KindName(StrEnum):
    """The shapes of a calibration curve."""

    ISOTONIC = "isotonic"
    PLATT = "platt"
    TEMPERATURE = "temperature"
    RANKED = "ranked"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(calibrate)
    app.command()(decide)


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; its calibrator is replaced.")],
    documents: Documents,
    store: Annotated[Path | None, typer.Option(help="The teacher's judgments.")] = None,
    gold: Annotated[
        str | None, typer.Option(help="People's tags: all that are right among the top labels.")
    ] = None,
    reviewed: Annotated[
        Path | None,
        typer.Option(
            help="A store with people's decisions, in place of --gold: on half of a top list or more."
        ),
    ] = None,
    target: Annotated[
        TargetName | None,
        typer.Option(help="Default: by what is given; `both` alone corrects the bundle's own calibrator."),
    ] = None,
    kind: Annotated[KindName | None, typer.Option(help="Default: the one that foretells best.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="Ranks per document used.")] = 10,
    held_out: Annotated[
        float | None, typer.Option(help="As given to `ezxmc train`; else all are used.")
    ] = None,
    missing: Annotated[
        Path | None,
        typer.Option(help="Fit nothing: write the pairs --store lacks, for `ezxmc annotate`."),
    ] = None,
    seed: Seed = 0,
    without_gold: Untagged = None,
    column: Column = None,
    json: Json = False,
) -> None:
    """Turn a bundle's scores into probabilities.

    With --store they foretell the teacher, with --gold people. With both, or
    with --gold --target both on a bundle that foretells its teacher, the
    teacher gives the shape and 50 to 200 reviewed documents correct it. Instead
    of --gold, --reviewed takes what `ezxmc review` put into a store.

    Use documents the student was not trained on: --held-out and --seed as in
    `ezxmc train` pick the part it kept apart, or give a file of their own. The
    teacher must have judged the bundle's own top labels of them, not only a
    shortlist that another model made: --missing writes what to ask yet.

    Example: ezxmc calibrate bundle reviewed.jsonl --gold reviewed.tsv --target both
    """
    from ezxmc.bundle.bundle import add_calibrator
    from ezxmc.bundle.manifest import check_changeable
    from ezxmc.bundle.predict import Predictor
    from ezxmc.calibration import (
        KINDS,
        LEAST_JUDGED,
        Calibrator,
        Verdict,
        completed,
        fit_calibrator,
        fit_few_shot,
        judged_rows,
        unjudged,
    )
    from ezxmc.data import calibration_part, columns_for, read_documents, read_gold
    from ezxmc.data.predictions import check_shortlist, write_shortlist
    from ezxmc.errors import TrainingError
    from ezxmc.feedback.reviews import ReviewedPairs, tag_verdicts
    from ezxmc.feedback.targets import teacher_verdicts

    if gold is not None and reviewed is not None:
        raise typer.BadParameter("give --gold or --reviewed, not both")
    people = gold is not None or reviewed is not None
    aim = target or _target(store is not None, people)
    if (aim is not TargetName.TEACHER and not people) or (aim is TargetName.TEACHER and store is None):
        raise typer.BadParameter(f"--target {aim} needs {'--store' if people else '--gold or --reviewed'}")
    if missing is not None:
        if store is None:
            raise typer.BadParameter("--missing needs --store")
        check_shortlist(missing, [documents, store])
    kinds = KINDS if kind is None else (kind.value,)
    check_changeable(bundle)
    docs, doc_rows = read_documents(documents, columns=columns_for("documents", columns_of(column)))
    everything = docs
    uids = [document.uid for document in docs]
    if held_out is not None:
        part = set(calibration_part(docs, held_out, seed))
        docs = [document for document in docs if document.uid in part]
    with show_progress() as watch:
        doc_rows.tell(watch.say, "documents")
        predictor = Predictor(bundle)
        human: Verdict = tag_verdicts({})
        tag_rows = None
        if gold is not None:
            tags, tag_rows = read_gold(
                gold, documents=uids, labels=predictor.bundle.titles(), more_documents=True
            )
            tag_rows.tell(watch.say, "gold")
            settle_untagged(tags, (document.uid for document in docs), gold, without_gold, watch.say)
            human = tag_verdicts(tags)
        bar = watch.stage("scoring")
        predictions = []
        for done, prediction in enumerate(predictor.stream(docs, k=depth), start=1):
            predictions.append(prediction)
            bar(done, len(docs))
        if reviewed is not None:
            with opened(reviewed):
                decided = ReviewedPairs.load(reviewed, docs, predictor.bundle.labels)
            lists = decided.lists(predictions, depth)
            watch.say(f"{decided.line}; {lists.counts}")
            if aim is not TargetName.TEACHER:
                human = completed(predictions, lists, depth)
    if aim is TargetName.HUMAN:
        calibrator = fit_calibrator(predictions, human, target="human", k=depth, kinds=kinds)
    elif store is None:
        former = [predictor.bundle.calibrator] if predictor.bundle.calibrator else []
        calibrator = Calibrator.correct(former, judged_rows(predictions, human, depth))
    else:
        recalled = newest_judgments(store, everything, predictor.bundle.labels, watch.say)
        teacher = teacher_verdicts(recalled.judgments)
        lacking = unjudged(predictions, {(j.doc_uid, j.label_uid) for j in recalled.judgments}, depth)
        if missing is not None:
            wanted = [{"doc": doc, "labels": labels} for doc, labels in lacking.items() if labels]
            write_shortlist(missing, wanted, [documents, store])
            pairs = sum(map(len, lacking.values()))
            told = {"documents": len(wanted), "pairs": pairs, "out": str(missing)}
            answer(json, told, {"documents": doc_rows})
            bad_rows(documents=doc_rows)
            return
        if found := _unjudged(lacking, predictions, depth):
            share, line, cure = found
            # People set right what the teacher's rates are off by.
            if share < LEAST_JUDGED and aim is TargetName.TEACHER:
                raise TrainingError(line, cure.format(store=store, documents=documents))
            watch.say(line)
        if aim is TargetName.TEACHER:
            calibrator = fit_calibrator(predictions, teacher, target="teacher", k=depth, kinds=kinds)
        else:
            calibrator = fit_few_shot(predictions, teacher, human, k=depth, kinds=kinds)
    add_calibrator(bundle, calibrator)
    losses = {name: round(loss, 4) for name, loss in calibrator.nll_cross_fitted.items()}
    facts = {
        "target": calibrator.target,
        "kind": calibrator.kind,
        "documents": calibrator.documents,
        "pairs": calibrator.n,
        "ece_cross_fitted": calibrator.ece_cross_fitted,
        "ece_uncorrected": calibrator.ece_uncorrected,
        "nll_cross_fitted": losses if json else ", ".join(f"{name} {loss}" for name, loss in losses.items()),
        "bundle": str(bundle),
    }
    rows = {"documents": doc_rows, "gold": tag_rows}
    answer(json, {name: value for name, value in facts.items() if value is not None}, rows)
    bad_rows(**rows)


def _unjudged(
    lacking: Mapping[str, Sequence[str]], predictions: Sequence[Prediction], depth: int
) -> tuple[float, str, str] | None:
    """Judged share of the documents' top pairs, what to say of the others, and their cure; `None` if none."""
    pairs = sum(min(depth, len(p.labels)) for p in predictions if p.uid in lacking)
    missing = sum(map(len, lacking.values()))
    if missing in (0, pairs):
        return None
    return (
        1 - missing / pairs,
        f"{missing:,} of {pairs:,} pairs of the bundle's own top {depth} were never judged. Those that were, "
        "another model proposed, and of these more are right: probabilities fitted to them are too high",
        "write the missing pairs with the same command and `--missing missing.jsonl`, ask about them with "
        "`ezxmc annotate {documents} LABELS missing.jsonl --store {store}`, then calibrate again",
    )


def _target(teacher: bool, people: bool) -> TargetName:
    if teacher and people:
        return TargetName.BOTH
    if not teacher and not people:
        raise typer.BadParameter("give --store, --gold, --reviewed, or --store with one of the others")
    return TargetName.HUMAN if people else TargetName.TEACHER


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
    from ezxmc.bundle.bundle import add_decision
    from ezxmc.bundle.manifest import check_changeable
    from ezxmc.bundle.predict import Predictor
    from ezxmc.calibration.decisions import Decision
    from ezxmc.calibration.guarantees import (
        GRID,
        control_false_tag_rate,
        control_missed_rate,
        control_top_error,
        maximise_f1,
    )
    from ezxmc.calibration.rates import ReviewedDocuments, rates
    from ezxmc.data import columns_for, read_documents, read_gold
    from ezxmc.errors import ConfigError

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
    with show_progress() as watch:
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
    reviewed = ReviewedDocuments.of(predictions, tags)
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
