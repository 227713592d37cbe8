"""`ezxmc prompts`, `ezxmc judgments`: what the teacher is asked, whether a model can answer, what it said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ezxmc.cli.console import Json, bad_rows, emit, show_progress, shown, table
from ezxmc.progress import pulling

if TYPE_CHECKING:
    from ezxmc.teacher.prompt import Prompt


Model = Annotated[str, typer.Option(help="Whose tokenizer: a catalog name, a folder or a hub id.")]
Block = Annotated[int, typer.Option(min=1, help="The engine's cache block, in tokens.")]
_RULE = "─" * 4


def register(app: typer.Typer) -> None:
    """Add these commands."""
    groups: dict[tuple[str, str], dict[str, Callable[..., None]]] = {
        ("prompts", "The questions the teacher is asked."): {"list": list_, "show": show, "check": check},
        ("judgments", "Look into a feedback store."): {
            "stats": stats,
            "failures": failures,
            "export": export,
            "import": import_,
        },
    }
    for (name, told), commands in groups.items():
        group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=told)
        for command, function in commands.items():
            group.command(command)(function)
        app.add_typer(group, name=name)


def list_(json: Json = False) -> None:
    """The shipped prompts.

    Example: ezxmc prompts list
    """
    from ezxmc.teacher.prompt import Prompt, prompt_files

    prompts = [Prompt.load(name) for name in prompt_files()]
    if json:
        emit([_identity(prompt) for prompt in prompts])
        return
    rows = [[one.name, str(one.version), one.domain, one.answer.scheme, one.hash[:12]] for one in prompts]
    table("", ["name", "version", "domain", "scheme", "hash"], rows)


def show(
    prompt: Annotated[str, typer.Argument(help="A shipped prompt's name, or a prompt file.")],
    model: Annotated[
        str | None, typer.Option(help="Render it for this model (name, folder or hub id).")
    ] = None,
    document: Annotated[str | None, typer.Option(help="Render this text instead of a sample.")] = None,
    label: Annotated[str | None, typer.Option(help="Render this label instead of a sample.")] = None,
    block: Block = 32,
    json: Json = False,
) -> None:
    """A prompt file; with --model the tokens that model gets, and what each pair costs.

    Example: ezxmc prompts show software --model Qwen2.5-Coder-1.5B-Instruct --label "Purpose: Games"
    """
    from ezxmc.teacher.prompt import Prompt, prompt_files

    loaded = Prompt.load(prompt)
    path = prompt_files().get(prompt) or Path(prompt)
    text = path.read_text(encoding="utf-8")
    found: dict[str, Any] = {**_identity(loaded), "path": str(path), "text": text}
    if model is not None:
        found["rendered"] = _rendered(loaded, model, block, document, label)
    if json:
        emit(found)
    elif model is None:
        typer.echo(text.rstrip("\n"))
    else:
        _draw(found["rendered"], block)


def check(
    prompt: Annotated[str, typer.Argument(help="A shipped prompt's name, a prompt file, or `all` shipped.")],
    model: Model,
    block: Block = 32,
    json: Json = False,
) -> None:
    """What breaks a prompt on a model, and the cure; exit code 1 if anything does.

    Example: ezxmc prompts check mine.toml --model Qwen2.5-Coder-1.5B-Instruct
    """
    from ezxmc.teacher.check import check_file
    from ezxmc.teacher.prompt import prompt_files

    names = [*prompt_files()] if prompt == "all" else [prompt]
    tokenizer = _tokenizer(model)
    found = {name: check_file(name, tokenizer, block_size=block) for name in names}
    if json:
        emit(
            [
                {"prompt": name, "findings": [asdict(finding) for finding in findings]}
                for name, findings in found.items()
            ]
        )
    else:
        for name, findings in found.items():
            typer.echo(f"{name}: {'' if findings else 'nothing to mend'}".rstrip())
            for finding in findings:
                typer.echo(f"  {finding.severity}: {finding.problem} [{finding.code}]")
                if finding.cure:
                    typer.echo(f"    cure: {finding.cure}")
    if any(finding.severity == "error" for findings in found.values() for finding in findings):
        raise typer.Exit(1)


def _identity(prompt: Prompt) -> dict[str, Any]:
    return {
        "name": prompt.name,
        "version": prompt.version,
        "domain": prompt.domain,
        "scheme": prompt.answer.scheme,
        "hash": prompt.hash,
    }


def _tokenizer(model: str) -> Any:
    from ezxmc.models.resolve import load_tokenizer

    with show_progress() as watch:
        return load_tokenizer(model, progress=pulling(watch, "model"))


def _rendered(
    prompt: Prompt, model: str, block: int, document: str | None, label: str | None
) -> dict[str, Any]:
    from ezxmc.teacher import check as prompt_check

    tokenizer = _tokenizer(model)
    renderer = prompt_check.renderer_for(prompt, tokenizer, block)
    sample = (
        prompt_check.SAMPLE_DOCUMENT if document is None else document,
        prompt_check.SAMPLE_LABEL if label is None else label,
    )
    cost = prompt_check.cost(renderer, *sample)
    answers = renderer.answers
    return {
        "model": model,
        "tokens": {**asdict(cost), "prefix": cost.prefix, "per_pair": cost.per_pair},
        "parts": {
            name: prompt_check.readable(tokenizer, ids)
            for name, ids in renderer.sections(*sample)._asdict().items()
        },
        "answers": [
            {"token": token, "text": tokenizer.decode([token]), "relevance": weight}
            for token, weight in zip(answers.ids, answers.weights, strict=True)
        ],
    }


def _draw(rendered: dict[str, Any], block: int) -> None:
    tokens = rendered["tokens"]
    paid = {"head": "once", "label": "for every pair", "tail": "for every pair"}
    for name, text in rendered["parts"].items():
        if name == "label":
            typer.echo(
                f"{'═' * 4} the shared prefix ends: {tokens['prefix']} tokens, "
                f"{tokens['prefix'] // block} blocks of {block} {'═' * 4}"
            )
        typer.echo(f"{_RULE} {name}: {tokens[name]} tokens, {paid.get(name, 'once per document')} {_RULE}")
        if text:
            typer.echo(text.removesuffix("\n"))
    typer.echo(f"{_RULE} each pair costs {tokens['per_pair']} tokens; answers are read from {_RULE}")
    for answer in rendered["answers"]:
        typer.echo(f"{answer['token']:>8} {answer['text']!r}, relevance {answer['relevance']:.4g}")


Store = Annotated[Path, typer.Argument(help="Feedback store, an SQLite file.")]


def stats(store: Store, json: Json = False) -> None:
    """What each teacher's judgments are and what they cost.

    Example: ezxmc judgments stats feedback.sqlite
    """
    from ezxmc.feedback.exchange import store_statistics

    found = store_statistics(store)
    if json:
        emit(found)
        return
    rows, teachers = found["judgments"], found["teachers"]
    per = f", {found['bytes_per_judgment']:.0f} each" if rows else ""
    typer.echo(f"{store}: {rows:,} judgments of {len(teachers)} teachers in {found['bytes']:,} bytes{per}")
    for one in teachers:
        title = one.pop("teacher")
        for name, value in one.pop("description").items():
            one[f"  {name}"] = value
        table(title, ["", ""], [[name.replace("_", " "), shown(value)] for name, value in one.items()])


def failures(
    store: Store,
    limit: Annotated[int, typer.Option(min=1, help="Pairs shown of each teacher.")] = 1_000,
    json: Json = False,
) -> None:
    """Pairs whose attempts all failed; the next `annotate` asks about them again.

    Example: ezxmc judgments failures feedback.sqlite
    """
    from ezxmc.feedback.exchange import failed_pairs

    found = failed_pairs(store, limit)
    if json:
        emit(found)
        return
    for one in found:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in one["counts"].items())
        typer.echo(f"{one['teacher']}: {counts or 'no pair failed'}")
        if pairs := one["pairs"]:
            table("", list(pairs[0]), [[str(value) for value in pair.values()] for pair in pairs])


def export(
    store: Store,
    out: Annotated[Path, typer.Argument(help="A .parquet, .jsonl or .csv (also .gz) file.")],
    teacher: Annotated[
        str | None, typer.Option(help="Only this teacher's: the beginning of its fingerprint.")
    ] = None,
    json: Json = False,
) -> None:
    """Write judgments to a file that `ezxmc judgments import` and `annotate --replay` read.

    Example: ezxmc judgments export feedback.sqlite judgments.parquet
    """
    from ezxmc.feedback.exchange import export_judgments
    from ezxmc.feedback.recall import existing_store

    with show_progress() as watch, existing_store(store) as feedback:
        rows = export_judgments(feedback, out, teacher=teacher, progress=watch.stage("export"))
    if json:
        emit({"judgments": rows, "out": str(out), "bytes": out.stat().st_size})
    else:
        typer.echo(f"{rows:,} judgments in {out}")


def import_(
    store: Annotated[Path, typer.Argument(help="Feedback store; made if absent.")],
    source: Annotated[str, typer.Argument(help="What `ezxmc judgments export` wrote.")],
    json: Json = False,
) -> None:
    """Add exported judgments to a store; those it holds already are skipped.

    Example: ezxmc judgments import feedback.sqlite judgments.parquet
    """
    from ezxmc.data import RowReport
    from ezxmc.data.rows import source_kind
    from ezxmc.feedback.database import check_store
    from ezxmc.feedback.exchange import import_judgments
    from ezxmc.feedback.store import FeedbackStore

    check_store(store, [source])
    source_kind(source)  # a misspelt name must not leave an empty store behind
    report = RowReport()
    with show_progress() as watch, FeedbackStore(store) as feedback:
        done = import_judgments(feedback, source, report, progress=watch.stage("import"))
        report.tell(watch.say, source)
    if json:
        emit({**done.to_dict(), "rows": report.to_dict(), "store": str(store)})
    else:
        typer.echo(f"{done.new:,} new judgments in {store}, {done.duplicates:,} duplicates skipped")
    bad_rows(judgments=report)
