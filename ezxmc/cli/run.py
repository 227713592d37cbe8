"""`ezxmc run`; `plan`, what it will cost; `report`, its page again, or of two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ezxmc.cli.console import (
    Address,
    Engine,
    Json,
    MaxHours,
    MaxPairs,
    Workers,
    bad_rows,
    brief,
    clock,
    emit,
    show_progress,
    table,
    with_budget,
    with_engine,
)
from ezxmc.config import RunConfig

if TYPE_CHECKING:
    from ezxmc.pipeline.estimate import Plan
    from ezxmc.report import RunReport

_SHOWN = 3  # documents, with their tags, at the end of a run


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (run, plan, report):
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
    else:
        _show_plan(found)
    bad_rows(found.bad_rows)


def _show_plan(found: Plan) -> None:
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


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else clock(seconds)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


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
    from ezxmc.pipeline.steps import finished_run
    from ezxmc.report import compared, write_comparison, write_report
    from ezxmc.report.page import is_page

    if len(run_dirs) != 1 + compare:
        raise typer.BadParameter(
            f"{'two' if compare else 'one'} run directory is needed: {len(run_dirs)} given"
        )
    page = out or (Path("compare.html") if compare else run_dirs[0] / "report.html")
    if not json:
        check_file(page, "a report", made=is_page)
    runs = [finished_run(run_dir) for run_dir in run_dirs]
    if json:
        emit(compared(*runs) if compare else runs[0].model_dump(mode="json"))
        return
    if compare:
        write_comparison(runs[0], runs[1], page)
    else:
        write_report(runs[0], page)
    typer.echo(page)
