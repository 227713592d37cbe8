"""`ezxmc review`: pairs for people to decide on, and their decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ezxmc.cli.console import Json, answer, bad_rows, emit, show_progress
from ezxmc.errors import ConfigError

_PAIRS, _DOCUMENTS = 200, 60  # more documents than it takes: some fail
RunDirectory = Annotated[Path, typer.Argument(help="The run_dir of an `ezxmc run`.")]
Reviewer = Annotated[str | None, typer.Option(help="Who decides; kept with each decision.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    review = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Have people decide on pairs.")
    review.command()(export)
    review.command("import")(import_)
    review.command()(ui)
    app.add_typer(review, name="review")


def export(
    run_dir: RunDirectory,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help=".csv, .jsonl or .json (Label Studio). Default: RUN_DIR/review.jsonl"
        ),
    ] = None,
    purpose: Annotated[
        Literal["training", "calibration"],
        typer.Option("--for", help="Doubtful pairs to train on, or random documents to calibrate on."),
    ] = "training",
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Pairs to train on ({_PAIRS}), or documents to calibrate on ({_DOCUMENTS})."
        ),
    ] = None,
    per_label: Annotated[int, typer.Option(min=1, help="Pairs of one label at most, for training.")] = 10,
    per_document: Annotated[
        int, typer.Option(min=1, help="Pairs of one document at most, for training.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Of the documents drawn, and between equal pairs.")] = 0,
    json: Json = False,
) -> None:
    """Write the pairs that are worth a person's minute; what is decided already is left out.

    Decisions to train on are of doubtful pairs: where the teacher is unsure,
    where student and teacher disagree, where like documents vote against the
    teacher. Probabilities fitted to those would be wrong, so calibration takes
    all top labels of random documents that no training sees.

    Example: ezxmc review export runs/default -o review.csv --count 300
    """
    from ezxmc.review.exchange import check_picks, write_picks
    from ezxmc.review.material import PAIRS, pick_pairs
    from ezxmc.review.picks import tally

    out = out or run_dir / PAIRS
    check_picks(out)
    count = count or (_PAIRS if purpose == "training" else _DOCUMENTS)
    limits = {"per_label": per_label, "per_document": per_document, "seed": seed}
    with show_progress() as watch:
        picks, material = pick_pairs(run_dir, purpose, count, **limits, watch=watch)
    files = list(map(str, write_picks(out, picks)))
    answer(json, {**tally(picks), "files": files if json else ", ".join(files)})
    bad_rows(**material.catalog.rows)


def import_(
    run_dir: RunDirectory,
    source: Annotated[
        Path,
        typer.Argument(
            help="An exported file with decisions, or Label Studio's export (JSON, JSON-MIN, CSV)."
        ),
    ],
    reviewer: Reviewer = None,
    json: Json = False,
) -> None:
    """Take decisions back: yes, no or skip in the column `decision`; rows without one are left open.

    Rows may be added with the decision `added`, for labels that are missing on a
    document; titles may stand there for the uids.

    The next `ezxmc run` or `ezxmc train` learns from them. Several rows on one
    pair must agree; a decision that is older than the last one is left out.

    Example: ezxmc review import runs/default review.csv --reviewer ann
    """
    from ezxmc.data import RowReport
    from ezxmc.review.material import STORE, Material

    report = RowReport()
    with show_progress() as watch:
        material = Material.load(run_dir, watch.say)
        done = material.take(source, report, reviewer=reviewer)
        report.tell(watch.say, str(source))
    if json:
        emit({**done.to_dict(), "rows": report.to_dict(), "store": str(run_dir / STORE)})
    else:
        typer.echo(
            f"{done.new:,} new decisions in {run_dir / STORE}, {done.added:,} of them added labels; "
            f"{done.known:,} known before, {done.open:,} rows open"
        )
    bad_rows(**{**material.catalog.rows, "decisions": report})


def ui(
    source: Annotated[
        Path,
        typer.Argument(help="A run_dir (its review.jsonl, made if absent), or a .jsonl that `export` wrote."),
    ],
    store: Annotated[
        Path | None, typer.Option(help="Where decisions go. Default: feedback.sqlite beside the file.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8001,
    reviewer: Reviewer = None,
) -> None:
    """Decide on a page by keyboard: y yes, n no, s skip, u undo, a for a label that is missing.

    Only this machine reaches it, by the address that is printed. Each decision
    is on disk before the next pair is shown; Ctrl-C ends it, and the same
    command goes on where it was.

    Example: ezxmc review ui runs/default --reviewer ann
    """
    try:
        from ezxmc.review.ui import review
    except ModuleNotFoundError as error:
        raise ConfigError(f"the page needs {error.name}", "pip install 'ezxmc[serve]'") from None
    from ezxmc.review.exchange import check_picks, read_picks, write_picks
    from ezxmc.review.material import PAIRS, STORE, labels_to_add, pick_pairs

    pairs = source / PAIRS if source.is_dir() else source
    if source.is_dir() and not pairs.exists():
        check_picks(pairs)
        with show_progress() as watch:
            chosen, _ = pick_pairs(source, "training", _PAIRS, watch=watch)
        write_picks(pairs, chosen)
    store = store or pairs.parent / STORE
    if not store.exists():
        raise ConfigError(f"no feedback store at {store}", "name it with --store")
    picks = read_picks(pairs)
    labels = labels_to_add(store.parent, lambda text: typer.echo(text, err=True))
    told = f"{len(picks):,} pairs to review at "
    review(picks, store, port, lambda url: typer.echo(told + url, err=True), reviewer=reviewer, labels=labels)
