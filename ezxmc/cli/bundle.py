"""What is done to a bundle: `calibrate`, `decide`, `labels ...`, and `export` for a faster runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ezxmc.cli.console import (
    Column,
    Documents,
    Json,
    Seed,
    Untagged,
    answer,
    bad_rows,
    columns_of,
    emit,
    show_progress,
    standard_output,
)
from ezxmc.config import Backend, Precision

if TYPE_CHECKING:
    from ezxmc.pipeline.decide import TagRule

Folder = Annotated[Path, typer.Argument(help="Bundle folder.")]
_TOLD_OF_INDEX = ("kind", "reason", "recall", "recall_at", "advice")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(calibrate)
    app.command()(decide)
    labels = typer.Typer(no_args_is_help=True, help="List, add or remove the labels of a bundle.")
    labels.command("list")(show)
    for command in (add, remove, rebuild):
        labels.command()(command)
    app.add_typer(labels, name="labels")
    app.command()(export)


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
        Literal["teacher", "human", "both"] | None,
        typer.Option(help="Default: by what is given; `both` alone corrects the bundle's own calibrator."),
    ] = None,
    kind: Annotated[
        Literal["isotonic", "platt", "temperature", "ranked"] | None,
        typer.Option(help="Default: the one that predicts best."),
    ] = None,
    ranks: Annotated[
        float, typer.Option(min=0, max=1, help="Share of people's documents that may change ranks; 0: none.")
    ] = 1.0,
    depth: Annotated[int, typer.Option(min=1, help="Ranks per document used.")] = 10,
    held_out: Annotated[
        float | None, typer.Option(help="As given to `ezxmc train`; else all are used.")
    ] = None,
    missing: Annotated[
        Path | None, typer.Option(help="Fit nothing: write the pairs --store lacks, for `ezxmc annotate`.")
    ] = None,
    seed: Seed = 0,
    without_gold: Untagged = None,
    column: Column = None,
    json: Json = False,
) -> None:
    """Turn a bundle's scores into probabilities.

    With --store they predict the teacher, with --gold people. With both, or
    with --gold --target both on a bundle that predicts its teacher, the
    teacher gives the shape and 50 to 200 reviewed documents correct it. Instead
    of --gold, --reviewed takes what `ezxmc review` put into a store.

    From 20 documents on, what people decided changes ranks too, where
    cross-validation says that it gains. For a guarantee of `ezxmc decide` on
    the same documents, keep some of them from that: --ranks 0.5.

    Use documents the student was not trained on: --held-out and --seed as in
    `ezxmc train` pick the part it kept apart, or give a file of their own. The
    teacher must have judged the bundle's own top labels of them, not only a
    shortlist that another model made: --missing writes what to ask yet.

    Example: ezxmc calibrate bundle reviewed.jsonl --gold reviewed.tsv --target both
    """
    from ezxmc.pipeline.calibrate import calibrate as fit
    from ezxmc.pipeline.calibrate import missing_pairs

    with show_progress() as watch:
        common: dict[str, Any] = {"depth": depth, "held_out": held_out, "seed": seed, "watch": watch}
        common["columns"] = columns_of(column)
        found = (
            missing_pairs(bundle, documents, store, missing, **common)
            if missing is not None
            else fit(
                bundle,
                documents,
                store=store,
                gold=gold,
                reviewed=reviewed,
                target=target,
                kind=kind,
                ranks=ranks,
                without_gold=without_gold,
                **common,
            )
        )
    answer(json, found.to_dict(), found.rows)
    bad_rows(**found.rows)


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
    from ezxmc.pipeline.decide import decide as choose

    with show_progress() as watch:
        found = choose(
            bundle,
            documents,
            gold,
            missed_rate=missed_rate,
            false_tag_rate=false_tag_rate,
            first_tag_error=first_tag_error,
            f1=f1,
            document_f1=document_f1,
            threshold=threshold,
            top_k=top_k,
            abstain_below=abstain_below,
            confidence=confidence,
            depth=depth,
            without_gold=without_gold,
            columns=columns_of(column),
            watch=watch,
        )
    _answer_decision(json, found)
    bad_rows(**found.rows)


def _answer_decision(json: bool, found: TagRule) -> None:
    facts = found.to_dict()
    if not json:
        facts = {**facts["decision"], "guarantee": facts["guarantee"], **facts["measured"]}
        facts.pop("promise", None)
    answer(json, {name: "none" if value is None else value for name, value in facts.items()}, found.rows)


def show(bundle: Folder, json: Json = False) -> None:
    """Print a bundle's labels, uid and title, and how they are searched.

    Example: ezxmc labels list run/bundle
    """
    from ezxmc.bundle.bundle import open_labels

    with show_progress() as watch:
        labels, index, decision = open_labels(bundle)
        if json:
            emit(
                {
                    "labels": [{"uid": label.uid, "title": label.title} for label in labels],
                    "decision": decision.guarantee if decision else None,
                    "index": {name: getattr(index, name) for name in _TOLD_OF_INDEX},
                }
            )
            return
        standard_output().writelines(f"{label.uid}\t{label.title}\n" for label in labels)
        watch.say(f"{index.size:,} labels; index {index.summary}")
        if decision:
            watch.say(f"decision: {decision.guarantee}")
        if index.advice:
            watch.say(f"{index.advice}; `ezxmc labels rebuild {bundle}` makes the search fast again")


def add(
    bundle: Folder,
    labels: Annotated[str, typer.Argument(help="Labels, as for `ezxmc index`.")],
    column: Column = None,
    json: Json = False,
) -> None:
    """Add labels, or replace those whose uid is there already; documents get them from now on.

    A label that is there under another uid (its title is that label's) is left
    out and told. Titles are encoded by the bundle's own student. Nothing is trained, and the
    index is not built again.

    Example: ezxmc labels add run/bundle new_labels.jsonl
    """
    from ezxmc.bundle.labels import add_labels
    from ezxmc.bundle.manifest import check_changeable, labels_of
    from ezxmc.data import columns_for, read_labels

    check_changeable(bundle)
    tags, rows = read_labels(
        labels, known=labels_of(bundle), columns=columns_for("labels", columns_of(column, labels_only=True))
    )
    rows.refuse_empty(labels, "label", tags)
    with show_progress() as watch:
        change = add_labels(bundle, tags, progress=watch.stage("encoding titles"))
    facts = {"added": change.added, "changed": change.changed, "bundle": str(bundle)}
    answer(json, facts | _decision(bundle), {"labels": rows})
    bad_rows(labels=rows)


def remove(
    bundle: Folder, uids: Annotated[list[str], typer.Argument(help="Uids of the labels.")], json: Json = False
) -> None:
    """Remove labels; no document gets them any more.

    Example: ezxmc labels remove run/bundle outdated other-label
    """
    from ezxmc.bundle.labels import remove_labels

    change = remove_labels(bundle, uids)
    answer(json, {"removed": change.removed, "bundle": str(bundle)} | _decision(bundle))


def _decision(bundle: Path) -> dict[str, str]:
    """What a bundle's decision, if it has one, promises of the labels there are now."""
    from ezxmc.bundle.manifest import guarantee_of

    guarantee = guarantee_of(bundle)
    return {} if guarantee is None else {"decision": guarantee}


def rebuild(bundle: Folder, json: Json = False) -> None:
    """Build the index again, after many labels came or went. Nothing is encoded or trained.

    Example: ezxmc labels rebuild run/bundle
    """
    from ezxmc.bundle.labels import rebuild_index

    index = rebuild_index(bundle)
    answer(json, {"labels": index.size, "index": index.summary, "bundle": str(bundle)})


def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    backend: Annotated[Backend, typer.Option(help="The runtime: onnx or openvino; or static.")] = "onnx",
    precision: Annotated[
        Precision, typer.Option(help="onnx: float32, int8; openvino: float32, bfloat16.")
    ] = "auto",
    documents: Annotated[
        str | None,
        typer.Option(help="static: the catalog's documents, tags not needed; default: those of the run."),
    ] = None,
    column: Column = None,
    json: Json = False,
) -> None:
    """Convert a bundle's student, check the conversion against it, and put it into the bundle.

    The student stays as it is; OpenVINO and ONNX Runtime share a float32 file.
    Then `ezxmc predict` and `ezxmc serve` take --backend and --precision.

    --backend static makes a student without a transformer, hundreds of times
    as fast: one vector a token, tuned to what the student says of the
    documents, with probabilities of its own. What it loses is measured on a
    tenth of them. A new student or calibrator asks for a new one.

    Example: ezxmc export run/bundle --backend onnx --precision int8
    """
    if backend == "static":
        from ezxmc.pipeline.export import export_static

        with show_progress() as watch:
            made = export_static(bundle, documents, columns=columns_of(column), watch=watch)
        answer(json, made.to_dict(), made.rows)
        bad_rows(**made.rows)
        return
    if documents is not None or column:
        raise typer.BadParameter("--documents and --column are for --backend static")
    from ezxmc.pipeline.export import export_student

    with show_progress() as watch:
        watch.stage("converting")
        found = export_student(bundle, backend=backend, precision=precision)
    facts = found.to_dict()
    facts = {"file": f"student/{facts.pop('name')}", "megabytes": round(facts.pop("bytes") / 1e6, 1), **facts}
    answer(json, facts)
