"""`ezxmc run` and its parts without a teacher: `shortlist`, `train`, `index`.

And `ezxmc report`: the page of a run again, or of two side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ezxmc.cli.console import (
    Address,
    Column,
    Engine,
    Json,
    Workers,
    answer,
    bad_rows,
    brief,
    cluster,
    columns_of,
    emit,
    read_inputs,
    show_progress,
    table,
    with_engine,
)
from ezxmc.cli.judgments import opened
from ezxmc.config import BudgetConfig, RunConfig, ShortlistConfig, TrainingConfig
from ezxmc.errors import DataError
from ezxmc.progress import rank_and_size
from ezxmc.records import Document, Label

if TYPE_CHECKING:
    from ezxmc.feedback.recall import Recalled
    from ezxmc.report import RunReport

Documents = Annotated[str, typer.Argument(help="Documents: JSONL, CSV, Parquet, `datasets` folder, hub id.")]
Labels = Annotated[str, typer.Argument(help="Labels: the same formats, or a .txt with a title per line.")]
Strict = Annotated[bool, typer.Option(help="Stop at the first bad row.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of splits, exploration and training.")]
MaxPairs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Judgments in the store at most; other commands at work may add theirs in hand."
    ),
]
MaxHours = Annotated[float | None, typer.Option(help="Hours of judging at most, all sessions together.")]
HeldOut = Annotated[float, typer.Option(help="Share of documents kept from training.")]

_LIST, _TRAIN = ShortlistConfig(), TrainingConfig()
_SHOWN = 3  # documents, with their tags, at the end of a run
_BY_SIZE = "Default: by the number of documents."


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (run, report, shortlist, train, index):
        app.command()(command)


def run(
    config: Annotated[Path, typer.Argument(help="A file written by `ezxmc init`.")],
    max_pairs: MaxPairs = None,
    max_hours: MaxHours = None,
    update: Annotated[
        bool, typer.Option("--update", help="Follow a finished run's catalog: ask only what is new.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="With --update: what is new, and what would be asked.")
    ] = False,
    engine: Engine = None,
    workers: Workers = None,
    ray_address: Address = None,
    json: Json = False,
) -> None:
    """Do everything a configuration says, from raw documents to tags and a report.

    Interrupted, the same command goes on where it was. A budget is spent
    over all sessions of the run, on as many documents as it can serve.

    With --update, a finished run follows its documents and labels: the teacher
    is asked about what is new and where the student's probabilities no longer
    hold, and the student is trained on. --max-pairs is then the limit of this update.

    Example: ezxmc run ezxmc.yaml --max-pairs 20000
    """
    if update:
        if max_hours is not None:
            raise typer.BadParameter("an update is limited by --max-pairs")
        if engine or workers or ray_address:
            raise typer.BadParameter("an update takes its engine from the configuration")
        follow(config, max_pairs, plan, json)
        return
    if plan:
        raise typer.BadParameter("--plan goes with --update; for a run there is `ezxmc plan`")
    from ezxmc.pipeline.run import run as run_all

    settings = with_budget(RunConfig.load(config), max_pairs, max_hours)
    settings = with_engine(settings, engine, workers, ray_address)
    with show_progress() as watch:
        report = run_all(settings, watch=watch)
    if json:
        emit(report.model_dump(mode="json"))
    else:
        tell(report, Path(settings.run_dir))
    if report.data:
        bad_rows(report.data.bad)


def tell(report: RunReport, run_dir: Path) -> None:
    """The end of a run: its story, its figures, three documents with their tags, where all is, what next."""
    from ezxmc.report.story import HEADLINE, headline, percent, story

    *told, then = story(report)
    for part in told:
        typer.echo(part)
    found, which = headline(report)
    rows = [
        [metric, *(percent(side[metric]) if metric in side else "" for side in sides)]
        for metric in HEADLINE
        if found and metric in found.after and (sides := (found.constant, found.before, found.after))
    ]
    if found and rows:
        table(
            f"{found.documents:,} documents {which}",
            ["metric", "most frequent tags", "untrained", "student"],
            rows,
        )
    for example in report.examples[:: max(1, len(report.examples) // _SHOWN)][:_SHOWN]:
        tags = (
            brief(tag.title, 40) + ("" if tag.probability is None else f" {percent(tag.probability, 0)}")
            for tag in example.tags
        )
        typer.echo(brief(example.title or example.text or example.uid, 80))
        typer.echo(f"  {'; '.join(tags) or 'no tag'}")
    for place in ("report.html", "predictions.jsonl", "bundle"):
        typer.echo(run_dir / place)
    typer.echo(then.replace("`", ""))


def follow(config: Path, max_pairs: int | None, plan: bool, json: bool) -> None:
    """`ezxmc run --update`."""
    from ezxmc.pipeline.update import update as update_run

    settings = RunConfig.load(config)
    if max_pairs is not None:
        limited = settings.update.model_copy(update={"max_pairs": max_pairs})
        settings = settings.model_copy(update={"update": limited})
    with show_progress() as watch:
        report = update_run(settings, plan=plan, watch=watch)
    if json:
        emit(report.model_dump(mode="json"))
    else:
        for sentence in report.sentences():
            typer.echo(sentence)
        if report.number:
            typer.echo(Path(settings.run_dir) / "updates" / f"{report.number:04}" / "report.html")
    bad_rows(report.data.bad)


def with_budget(config: RunConfig, max_pairs: int | None, max_hours: float | None) -> RunConfig:
    """The configuration with the limits given on the command line."""
    given = {"max_pairs": max_pairs, "max_hours": max_hours}
    # What nobody set stays so: a run keeps the value it was begun with.
    limits = config.budget.model_dump(exclude_unset=True) | {
        name: value for name, value in given.items() if value is not None
    }
    return config.model_copy(update={"budget": BudgetConfig(**limits)})


def shortlist(
    documents: Documents,
    labels: Labels,
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".jsonl, .csv (also .gz) or .parquet, a row per document.")
    ] = Path("shortlist.jsonl"),
    encoder: Annotated[str, typer.Option(help="Model name, folder or hub id.")] = _TRAIN.encoder,
    size: Annotated[int, typer.Option(min=1, help="Candidates per document.")] = _LIST.size,
    explore: Annotated[int, typer.Option(min=0, help="Of these, drawn from deeper ranks.")] = _LIST.explore,
    lexical: Annotated[bool, typer.Option(help="Fuse with BM25.")] = _LIST.lexical,
    descriptions: Annotated[
        float, typer.Option(min=0, help="Weight of descriptions; 0 for a trained student.")
    ] = _LIST.descriptions,
    seed: Seed = 0,
    engine: Engine = None,
    workers: Workers = None,
    ray_address: Address = None,
    column: Column = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Propose candidate labels for each document.

    Example: ezxmc shortlist documents.jsonl labels.jsonl --size 14 -o shortlist.jsonl
    """
    from ezxmc.data.predictions import check_shortlist, write_shortlist
    from ezxmc.files import remove_shards, sole_writer
    from ezxmc.models import resolve_model
    from ezxmc.retrieval import candidate_row
    from ezxmc.retrieval import shortlist as propose
    from ezxmc.retrieval.ray_encoder import open_encoder

    ray = cluster(engine, workers, ray_address)
    inputs = [documents, labels, encoder]
    check_shortlist(out, inputs)
    vectors = out.with_name(f"{out.name}-vectors")
    (docs, doc_rows), (tags, tag_rows) = read_inputs(documents, labels, column, strict)
    with sole_writer(out), show_progress() as watch:
        found = propose(
            docs,
            tags,
            open_encoder(
                resolve_model(encoder, kind="encoder"),
                ray,
                vectors,
                max_length=_TRAIN.max_length,
                say=watch.say,
            ),
            ShortlistConfig(size=size, explore=explore, lexical=lexical, descriptions=descriptions),
            seed=seed,
            progress=watch.stage("shortlist"),
        )
        rows = {"documents": doc_rows, "labels": tag_rows}
        for name, report in rows.items():
            report.tell(watch.say, name)
        write_shortlist(out, (candidate_row(candidates, tags) for candidates in found), inputs)
        remove_shards(vectors)
    facts = {"documents": len(found), "candidates": sum(len(c.labels) for c in found), "out": str(out)}
    answer(json, facts, rows)
    bad_rows(**rows)


def train(
    documents: Documents,
    labels: Labels,
    store: Annotated[Path, typer.Argument(help="Feedback store; its newest teacher's judgments count.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="SentenceTransformer folder.")] = Path("student"),
    encoder: Annotated[str, typer.Option(help="Where to start from.")] = _TRAIN.encoder,
    epochs: Annotated[int | None, typer.Option(min=1, help=_BY_SIZE)] = _TRAIN.epochs,
    batch_size: Annotated[int | None, typer.Option(min=2, help=_BY_SIZE)] = _TRAIN.batch_size,
    learning_rate: Annotated[float | None, typer.Option(min=0, help=_BY_SIZE)] = _TRAIN.learning_rate,
    held_out: HeldOut = _TRAIN.held_out,
    seed: Seed = 0,
    column: Column = None,
    json: Json = False,
) -> None:
    """Distil the judgments of a store into a bi-encoder; people's decisions in it override the teacher's.

    What the teacher said about a text counts for that text, whatever its id is
    now; what the store holds of other texts is left out and told.

    Half of the held-out documents, where these are 30, choose the epoch; the other half is left for
    `ezxmc calibrate` with the same --held-out and --seed.

    On many GPUs, of one machine or several: give torchrun the same command, as
    in `torchrun --nproc-per-node 8 -m ezxmc train ...`. The first process
    answers and writes. Bad rows are then told but leave the exit code 0, for
    torchrun takes any other for a failure.

    Example: ezxmc train documents.jsonl labels.jsonl feedback.sqlite -o student
    """
    from ezxmc.config import DataConfig
    from ezxmc.data import Catalog
    from ezxmc.feedback.reviews import ReviewedPairs
    from ezxmc.feedback.targets import build_targets, context_of, doubt
    from ezxmc.files import sole_writer
    from ezxmc.retrieval.encoder import check_student_place
    from ezxmc.training import train_bi_encoder

    config = TrainingConfig(
        encoder=encoder, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, held_out=held_out
    )
    check_student_place(out, [documents, labels, store, encoder])
    # Of the processes that torchrun starts, one writes.
    with sole_writer(out) if rank_and_size()[0] == 0 else nullcontext(), show_progress() as watch:
        data = DataConfig(documents=documents, labels=labels, columns=columns_of(column))
        catalog = Catalog.load(data, held_out, seed, watch.say)
        apart = {catalog.documents[i].uid for i in catalog.to_calibrate}
        recalled = newest_judgments(store, catalog.documents, catalog.labels, watch.say)
        judgments = [judgment for judgment in recalled.judgments if judgment.doc_uid not in apart]
        verdicts = ReviewedPairs.load(store, catalog.documents, catalog.labels).verdicts_outside(apart)
        targets = build_targets(
            judgments, config, context_of(judgments, len(catalog.labels)), verdicts=verdicts
        )
        if doubtful := doubt(judgments):
            watch.say(doubtful)
        bar = watch.stage("training")
        summary = train_bi_encoder(
            [catalog.documents[i] for i in catalog.to_train],
            catalog.labels,
            targets,
            config,
            out,
            held_out=[catalog.documents[i] for i in catalog.to_select],
            seed=seed,
            progress=lambda done, total, loss: bar(done, total),
        )
    rank, size = rank_and_size()
    if rank == 0:
        told = {**summary.to_dict(), "unused_judgments": recalled.unused, "out": str(out)}
        answer(json, told, catalog.rows)
    if size == 1:
        bad_rows(**catalog.rows)


def index(
    student: Annotated[str, typer.Argument(help="A SentenceTransformer folder or model name.")],
    labels: Labels,
    out: Annotated[Path, typer.Option("--out", "-o", help="Bundle folder.")] = Path("bundle"),
    k: Annotated[int, typer.Option(min=1, help="Labels per document by default.")] = 5,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a document read.")] = _TRAIN.max_length,
    engine: Engine = None,
    workers: Workers = None,
    ray_address: Address = None,
    column: Column = None,
    json: Json = False,
) -> None:
    """Index the labels with a student: a bundle that tags.

    Example: ezxmc index student labels.jsonl -o bundle
    """
    from ezxmc.bundle.bundle import save_bundle
    from ezxmc.bundle.manifest import check_bundle_place
    from ezxmc.data import columns_for, read_labels
    from ezxmc.files import remove_shards, sole_writer
    from ezxmc.models import resolve_model
    from ezxmc.retrieval.ray_encoder import open_encoder

    ray = cluster(engine, workers, ray_address)
    inputs = [student, labels]
    check_bundle_place(out, inputs)
    vectors = out.with_name(f"{out.name}-vectors")
    tags, tag_rows = read_labels(labels, columns=columns_for("labels", columns_of(column, labels_only=True)))
    tag_rows.refuse_empty(labels, "label", tags)
    with sole_writer(out), show_progress() as watch:
        folder = resolve_model(student, kind="encoder")
        bar = watch.stage("label index")
        encoder = open_encoder(folder, ray, vectors, max_length=max_length, say=watch.say)
        manifest = save_bundle(out, encoder, tags, max_length=max_length, k=k, progress=bar, inputs=inputs)
        remove_shards(vectors)
    answer(
        json,
        {
            "labels": manifest.labels,
            "dimension": manifest.dimension,
            "index": manifest.index,
            "out": str(out),
        },
        {"labels": tag_rows},
    )
    bad_rows(labels=tag_rows)


def newest_judgments(
    store: Path, documents: Sequence[Document], labels: Sequence[Label], say: Callable[[str], None]
) -> Recalled:
    """What the store's newest teacher said about these texts; what it holds of others is told.

    Raises:
        DataError: Hardly anything in the store is about these texts.
    """
    from ezxmc.feedback.recall import judgments_of

    with opened(store) as feedback:
        found = judgments_of(documents, labels, feedback)
    for line in found.of_these_texts(str(store)).lines():
        say(line)
    return found


def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="A run directory; two to compare.")],
    compare: Annotated[bool, typer.Option("--compare", help="Write what sets two runs apart.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="HTML file; default: report.html in the run, or compare.html here."),
    ] = None,
    json: Json = False,
) -> None:
    """Write the page of a finished run again, or compare two runs, or print what is on the page.

    A decision made since (`ezxmc decide`) is on it.

    Example: ezxmc report --compare runs/first runs/second -o compare.html
    """
    from ezxmc.files import check_file
    from ezxmc.report import compared, write_comparison, write_report
    from ezxmc.report.page import is_page

    if len(run_dirs) != 1 + compare:
        raise typer.BadParameter(
            f"{'two' if compare else 'one'} run directory is needed: {len(run_dirs)} given"
        )
    page = out or (Path("compare.html") if compare else run_dirs[0] / "report.html")
    if not json:
        check_file(page, "a report", made=is_page)
    runs = [finished(run_dir) for run_dir in run_dirs]
    if json:
        emit(compared(*runs) if compare else runs[0].model_dump(mode="json"))
        return
    if compare:
        write_comparison(runs[0], runs[1], page)
    else:
        write_report(runs[0], page)
    typer.echo(page)


def finished(run_dir: Path) -> RunReport:
    """What a run's report holds, with the decision its bundle has by now.

    Raises:
        DataError: The run is not finished, or its report is damaged.
        BundleError: The bundle's manifest is damaged.
    """
    from pydantic import ValidationError

    from ezxmc.bundle.manifest import MANIFEST, guarantee_of
    from ezxmc.report import RunReport

    try:
        data = RunReport.model_validate_json((run_dir / "report.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{run_dir} holds no finished run", "finish it with `ezxmc run CONFIG`") from None
    except ValidationError as error:
        raise DataError(f"{run_dir / 'report.json'} is damaged: {error}", "run `ezxmc run` again") from None
    bundle = run_dir / "bundle"
    if (bundle / MANIFEST).exists():
        data.decision = guarantee_of(bundle) or ""
    return data
