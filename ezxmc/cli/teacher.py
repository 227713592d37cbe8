"""Commands about the teacher: `plan`, what a run will cost; `annotate`, asking it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ezxmc.cli.console import (
    Address,
    Column,
    Engine,
    Json,
    Workers,
    answer,
    bad_rows,
    clock,
    cluster,
    emit,
    read_inputs,
    show_progress,
    shown,
    table,
    with_engine,
)
from ezxmc.cli.run import Documents, Labels, MaxHours, MaxPairs, Strict, with_budget
from ezxmc.config import BudgetConfig, RunConfig
from ezxmc.config.teacher import HttpTeacherConfig, ReplayTeacherConfig, TeacherConfig, VllmTeacherConfig
from ezxmc.errors import DataError

_LLM = VllmTeacherConfig()


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (plan, annotate):
        app.command()(command)


def plan(
    config: Annotated[Path, typer.Argument(help="A file written by `ezxmc init`.")],
    probe_pairs: Annotated[
        int, typer.Option(min=1, help="Real pairs the probe asks; the run finds them judged.")
    ] = 512,
    probe: Annotated[bool, typer.Option(help="Without it: counts and tokens, no times.")] = True,
    max_pairs: MaxPairs = None,
    max_hours: MaxHours = None,
    engine: Engine = None,
    workers: Workers = None,
    ray_address: Address = None,
    json: Json = False,
) -> None:
    """Say what a run will ask the teacher, and what that will take.

    A short probe measures the teacher on real pairs of the run and keeps
    their judgments. Training and tagging are not timed. A second table
    estimates the same run with other teachers, and says which fit this machine.

    Example: ezxmc plan ezxmc.yaml --max-pairs 20000
    """
    from ezxmc.pipeline.plan import plan as make_plan

    settings = with_budget(RunConfig.load(config), max_pairs, max_hours)
    settings = with_engine(settings, engine, workers, ray_address)
    with show_progress() as watch:
        found = make_plan(settings, probe_pairs=probe_pairs if probe else 0, watch=watch)
    if json:
        emit(found.to_dict())
        bad_rows(found.bad_rows)
        return
    parts = (*found.parts, found.total)
    table(
        f"{found.documents:,} documents, {found.labels:,} labels",
        ["", *(part.name for part in parts)],
        [
            ["documents", *(f"{part.documents:,}" for part in parts)],
            ["pairs", *(f"{part.pairs:,}" for part in parts)],
            ["already known", *(f"{part.known:,}" for part in parts)],
            ["to ask", *(f"{part.asked:,}" for part in parts)],
            ["prompt tokens", *(_count(part.prompt_tokens) for part in parts)],
            ["computed tokens", *(_count(part.computed_tokens) for part in parts)],
            ["from the cache", *(_percent(part.cache_share) for part in parts)],
            ["time of the teacher", *(_time(part.seconds) for part in parts)],
        ],
    )
    rows = {f"memory, {name}": _size(peak) for name, peak in found.memory.items() if peak is not None}
    rows |= {f"disk, {name}": _size(size) for name, size in found.disk.items()}
    if found.speed:
        rows |= {
            "pairs a second": f"{found.pairs_per_second or 0:,.1f}",
            "computed tokens a second": f"{found.speed.computed:,.0f}",
            "start of the engine": clock(found.speed.startup),
        }
    if found.unasked_pairs:
        rows["left unasked by the budget"] = (
            f"{found.unasked_pairs:,} candidates, {found.unasked_documents:,} documents whole"
        )
    table("", ["", ""], [[name, value] for name, value in rows.items()])
    if found.teachers:
        table(
            "with another teacher",
            ["", "licence", "memory needed", "here", "time, estimated"],
            [
                [one.model, one.licence, _size(one.memory), one.runs_on or "too large", _time(one.seconds)]
                for one in found.teachers
            ],
        )
    for note in found.notes:
        typer.echo(f"note: {note}")
    bad_rows(found.bad_rows)


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else clock(seconds)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


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
    from ezxmc.data import RowReport, read_shortlist
    from ezxmc.feedback.annotate import annotate as ask
    from ezxmc.feedback.annotate import pairs_of
    from ezxmc.feedback.budget import Budget
    from ezxmc.feedback.database import check_store
    from ezxmc.feedback.exchange import merge_shards
    from ezxmc.feedback.recall import unused_judgments
    from ezxmc.feedback.store import FeedbackStore
    from ezxmc.progress import pulling
    from ezxmc.teacher import load_teacher
    from ezxmc.teacher.base import ShardedTeacher
    from ezxmc.teacher.check import tell_faults

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
    check_store(store, [documents, labels, candidates, replay])
    limits = BudgetConfig(max_pairs=max_pairs, max_hours=max_hours)
    (docs, doc_rows), (tags, tag_rows) = read_inputs(documents, labels, column, strict)
    report = RowReport(strict=strict)
    wanted = read_shortlist(candidates, docs, tags, report)
    if not any(wanted):
        raise DataError(
            f"{candidates} proposes nothing for these documents and labels: {report.summary()}",
            "make it with `ezxmc shortlist` of the same files",
        )
    budget = Budget(limits, [document.uid for document in docs], size=max(map(len, wanted), default=1) or 1)
    part = budget.allocate(1, wanted)
    with show_progress() as watch, FeedbackStore(store) as feedback:
        for name, one in (("documents", doc_rows), ("labels", tag_rows), ("shortlist", report)):
            one.tell(watch.say, name)
        if merged := merge_shards(feedback):
            watch.say(f"{merged:,} judgments of workers whose driver was interrupted")
        teacher = load_teacher(config, cluster=ray, progress=pulling(watch, "teacher"), say=watch.say)
        if unused := unused_judgments(feedback, teacher):
            watch.say(unused)
        tell_faults(teacher, watch.say)
        try:
            summary = ask(
                lambda: pairs_of([docs[i] for i in part.order], tags, [part.rows[i] for i in part.order]),
                teacher,
                feedback,
                stop=budget.stop(feedback, teacher.fingerprint),
                progress=watch.stage("teacher judges"),
            )
        finally:
            teacher.close()
        if replay:
            watch.say(f"{replay} tells documents and labels by their ids: it must be of these very texts")
        totals = feedback.totals(teacher.fingerprint)
    cut = summary.wanted - summary.known - summary.asked if summary.stopped else 0
    done = teacher.workers() if isinstance(teacher, ShardedTeacher) else []
    recorded: RowReport | None = getattr(teacher, "report", None)
    rows = {"documents": doc_rows, "labels": tag_rows, "shortlist": report, "judgments": recorded}
    answer(
        json,
        {
            "wanted": summary.wanted,
            "known": summary.known,
            "asked": summary.asked,
            "unasked_by_budget": part.unasked_pairs + cut,
            "statuses": dict(summary.statuses),
            "problems": summary.to_dict()["problems"],
            "seconds": round(summary.seconds, 1),
            "startup_seconds": round(summary.startup_seconds, 1),
            "pairs_per_second": totals.pairs_per_second,
            "computed_tokens_per_pair": totals.computed_per_pair,
            "cache_share": totals.cache_share,
            "store": str(store),
            **({"workers": done} if json and done else {}),
        },
        rows,
    )
    if done and not json:
        table("workers", list(done[0]), [[shown(value) for value in row.values()] for row in done])
    bad_rows(**rows)
