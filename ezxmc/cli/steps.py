"""The steps of a run by themselves: `ezxmc shortlist`, `annotate`, `train`, `index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ezxmc.cli.console import (
    Address,
    Column,
    Documents,
    Engine,
    Json,
    Labels,
    MaxHours,
    MaxPairs,
    Seed,
    Strict,
    Workers,
    answer,
    bad_rows,
    cluster,
    columns_of,
    show_progress,
    shown,
    table,
)
from ezxmc.config import BudgetConfig, DataConfig, ShortlistConfig, TrainingConfig
from ezxmc.config.teacher import HttpTeacherConfig, ReplayTeacherConfig, TeacherConfig, VllmTeacherConfig
from ezxmc.progress import rank_and_size

if TYPE_CHECKING:
    from ezxmc.pipeline.steps import Annotated as Annotated_

_LIST, _TRAIN, _LLM = ShortlistConfig(), TrainingConfig(), VllmTeacherConfig()
_BY_SIZE = "Default: by the number of documents."


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (shortlist, annotate, train, index):
        app.command()(command)


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
    from ezxmc.data.catalog import read_inputs
    from ezxmc.data.predictions import check_shortlist, write_shortlist
    from ezxmc.files import sole_writer
    from ezxmc.models.resolve import fitting_encoder
    from ezxmc.retrieval import candidate_row
    from ezxmc.retrieval import shortlist as propose
    from ezxmc.retrieval.ray_encoder import encoder_for

    ray, inputs = cluster(engine, workers, ray_address), [documents, labels, encoder]
    check_shortlist(out, inputs)
    config = ShortlistConfig(size=size, explore=explore, lexical=lexical, descriptions=descriptions)
    (docs, doc_rows), (tags, tag_rows) = read_inputs(documents, labels, columns_of(column), strict=strict)
    rows = {"documents": doc_rows, "labels": tag_rows}
    with sole_writer(out), show_progress() as watch:
        name = fitting_encoder(encoder, [doc.shown for doc in docs], say=watch.say)
        with encoder_for(out, name, ray, max_length=_TRAIN.max_length, say=watch.say) as opened:
            found = propose(docs, tags, opened, config, seed=seed, progress=watch.stage("shortlist"))
            for what, report in rows.items():
                report.tell(watch.say, what)
            write_shortlist(out, (candidate_row(candidates, tags) for candidates in found), inputs)
    facts = {"documents": len(found), "candidates": sum(len(c.labels) for c in found), "out": str(out)}
    answer(json, facts, rows)
    bad_rows(**rows)


def annotate(
    documents: Documents,
    labels: Labels,
    candidates: Annotated[str, typer.Argument(help="What `ezxmc shortlist` wrote.")],
    store: Annotated[Path, typer.Option(help="Feedback store; made if absent.")] = Path("feedback.sqlite"),
    model: Annotated[str, typer.Option(help="LLM: name, folder or hub id; its name on the server.")] = (
        _LLM.model
    ),
    prompt: Annotated[str, typer.Option(help="Prompt name or file.")] = _LLM.prompt,
    max_document_tokens: Annotated[int, typer.Option(min=16)] = _LLM.max_document_tokens,
    kv_cache_gib: Annotated[
        float | None, typer.Option(help="KV cache on CPU, GiB; default: from model and machine.")
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of an OpenAI-compatible server, such as http://host:8000/v1; one for each replica."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --server: whose tokenizer; default: the model's.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="With --server: environment variable that holds the API key.")
    ] = None,
    replay: Annotated[str | None, typer.Option(help="Recorded judgments instead of an LLM.")] = None,
    max_pairs: MaxPairs = None,
    max_hours: MaxHours = None,
    engine: Engine = None,
    workers: Workers = None,
    ray_address: Address = None,
    column: Column = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Ask the LLM about every candidate the store does not know yet.

    Interrupted, the same command goes on and asks nothing twice. With
    --max-pairs, every document is asked about its first candidates.

    Example: ezxmc annotate documents.jsonl labels.jsonl shortlist.jsonl --store feedback.sqlite
    """
    from ezxmc.pipeline.steps import annotate_shortlist

    if replay and server:
        raise typer.BadParameter("give either --server or --replay")
    ray = cluster(engine, workers, ray_address, server or ())
    if server and len(server) > 1 and not ray:
        raise typer.BadParameter("several --server go with --engine ray")
    config: TeacherConfig
    common: dict[str, Any] = {"model": model, "prompt": prompt, "max_document_tokens": max_document_tokens}
    if replay:
        config = ReplayTeacherConfig(judgments=replay)
    elif server:
        config = HttpTeacherConfig(base_url=server[0], tokenizer=tokenizer, api_key_env=api_key_env, **common)
    else:
        config = VllmTeacherConfig(kv_cache_gib=kv_cache_gib, **common)
    budget, columns = BudgetConfig(max_pairs=max_pairs, max_hours=max_hours), columns_of(column)
    common = {"budget": budget, "cluster": ray, "columns": columns, "strict": strict}
    with show_progress() as watch:
        found = annotate_shortlist(documents, labels, candidates, config, store, **common, watch=watch)
    _answer_annotated(json, found)
    bad_rows(**found.rows)


def _answer_annotated(json: bool, found: Annotated_) -> None:
    facts, workers = found.to_dict(), found.workers
    if not json:
        facts.pop("workers", None)
    answer(json, facts, found.rows)
    if workers and not json:
        table("workers", list(workers[0]), [[shown(value) for value in row.values()] for row in workers])


def train(
    documents: Documents,
    labels: Labels,
    store: Annotated[Path, typer.Argument(help="Feedback store; its newest teacher's judgments count.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="SentenceTransformer folder.")] = Path("student"),
    encoder: Annotated[str, typer.Option(help="Where to start from.")] = _TRAIN.encoder,
    epochs: Annotated[int | None, typer.Option(min=1, help=_BY_SIZE)] = _TRAIN.epochs,
    batch_size: Annotated[int | None, typer.Option(min=2, help=_BY_SIZE)] = _TRAIN.batch_size,
    learning_rate: Annotated[float | None, typer.Option(min=0, help=_BY_SIZE)] = _TRAIN.learning_rate,
    held_out: Annotated[float, typer.Option(help="Share of documents kept from training.")] = _TRAIN.held_out,
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
    from ezxmc.pipeline.steps import train_on_store

    config = TrainingConfig(
        encoder=encoder, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, held_out=held_out
    )
    data = DataConfig(documents=documents, labels=labels, columns=columns_of(column))
    with show_progress() as watch:
        found = train_on_store(data, store, out, config=config, seed=seed, watch=watch)
    rank, size = rank_and_size()
    if rank == 0:
        answer(json, found.to_dict(), found.rows)
    if size == 1:
        bad_rows(**found.rows)


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
    from ezxmc.data.catalog import labels_in
    from ezxmc.files import sole_writer
    from ezxmc.retrieval.ray_encoder import encoder_for

    ray, inputs = cluster(engine, workers, ray_address), [student, labels]
    check_bundle_place(out, inputs)
    tags, rows = labels_in(labels, columns_of(column, labels_only=True))
    rows.refuse_empty(labels, "label", tags)
    with (
        sole_writer(out),
        show_progress() as watch,
        encoder_for(out, student, ray, max_length=max_length, say=watch.say) as encoder,
    ):
        bar = watch.stage("label index")
        made = save_bundle(out, encoder, tags, max_length=max_length, k=k, progress=bar, inputs=inputs)
    facts = {"labels": made.labels, "dimension": made.dimension, "index": made.index, "out": str(out)}
    answer(json, facts, {"labels": rows})
    bad_rows(labels=rows)
