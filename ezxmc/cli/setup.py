"""`ezxmc init`, `doctor` and `models`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from pydantic import BaseModel

from ezxmc.cli.console import Json, emit, say, show_progress, table
from ezxmc.config import DataConfig, RunConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.errors import ConfigError
from ezxmc.files import check_file, write_file

if TYPE_CHECKING:
    from ezxmc.models.teachers import Proposal

models_app = typer.Typer(no_args_is_help=True, help="Models whose weights install as packages.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(init)
    app.command()(doctor)
    app.add_typer(models_app, name="models")


def init(
    path: Annotated[Path, typer.Argument(help="Where to write the configuration.")] = Path("ezxmc.yaml"),
    documents: Annotated[str, typer.Option(help="Your documents.")] = "documents.jsonl",
    labels: Annotated[str, typer.Option(help="Your labels.")] = "labels.jsonl",
    gold: Annotated[str | None, typer.Option(help="Known tags, for evaluation only.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The teacher: name, folder or hub id; default: what fits this machine.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented configuration.

    Its teacher fits this machine. Without an NVIDIA GPU that is the default, whose weights install as
    packages; with one, the largest model of a short table that its memory holds, if the hub answers
    for it. Of the table only the default was measured as a teacher, and nothing was on a GPU.

    Example: ezxmc init ezxmc.yaml --documents products.csv --labels tags.txt
    """
    from ezxmc.models.teachers import Proposal, machine, propose

    if path.exists() and not force:
        raise ConfigError(f"{path} exists", "choose another name, or --force")
    check_file(path, "a configuration", made=lambda _: force, inputs=[documents, labels, gold])
    teacher = Proposal(model, 1, "as given with --model") if model else propose(machine())
    text = commented_config(documents, labels, gold, teacher)
    write_file(path, text.encode(), "a configuration", made=lambda _: force)
    for line in (
        f"teacher {teacher.model}: {teacher.why}",
        f"wrote {path}; look through it, then: ezxmc run {path}",
    ):
        say(line)


def doctor(json: Json = False) -> None:
    """Check the installation and name the cure of each fault.

    Example: ezxmc doctor
    """
    from dataclasses import asdict

    from ezxmc.doctor import check

    checks = check()
    if json:
        emit([asdict(one) for one in checks])
    else:
        table(
            "",
            ["check", "status", "finding"],
            [
                [one.name, one.status, f"{one.detail}\ncure: {one.cure}" if one.cure else one.detail]
                for one in checks
            ],
        )
    if any(one.status == "fail" for one in checks):
        raise typer.Exit(1)


@models_app.command("list")
def list_(json: Json = False) -> None:
    """List the models and which of them are here.

    Example: ezxmc models list
    """
    from dataclasses import asdict

    from ezxmc.models import list_models

    found = list_models()
    if json:
        emit([{**asdict(one), "path": str(one.path)} for one in found])
        return
    table(
        "",
        ["model", "kind", "licence", "download", "disk", "here"],
        [
            [
                one.name,
                one.kind,
                one.licence,
                f"{one.download_mb:,} MB",
                f"{one.disk_mb:,} MB",
                "yes" if one.pulled else "no",
            ]
            for one in found
        ],
    )


@models_app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of `ezxmc models list`.")],
    force: Annotated[bool, typer.Option(help="Fetch again even if it is here.")] = False,
    json: Json = False,
) -> None:
    """Fetch a model, check it, convert it, keep it.

    Example: ezxmc models pull Qwen2.5-Coder-1.5B-Instruct
    """
    from ezxmc.models import pull as fetch
    from ezxmc.progress import pulling

    with show_progress() as watch:
        folder = fetch(name, pulling(watch, name), force=force)
    _folder(name, folder, json)


@models_app.command("path")
def path_(
    name: Annotated[str, typer.Argument(help="A name of `ezxmc models list`.")], json: Json = False
) -> None:
    """Print the folder of a model that is here.

    Example: ezxmc models path all-MiniLM-L6-v2
    """
    from ezxmc.models import model_path

    _folder(name, model_path(name), json)


def _folder(name: str, folder: Path, json: bool) -> None:
    if json:
        emit({"model": name, "path": str(folder)})
    else:
        typer.echo(folder)


def commented_config(documents: str, labels: str, gold: str | None, teacher: Proposal) -> str:
    """A YAML config with every key, its default and its meaning.

    Args:
        documents: The user's documents.
        labels: The user's labels.
        gold: Known tags, if any.
        teacher: The language model, and why it.
    """
    config = RunConfig(
        data=DataConfig(documents=documents, labels=labels, gold=gold),
        teacher=VllmTeacherConfig(model=teacher.model, tensor_parallel=teacher.tensor_parallel),
    )
    head = "# Run it with: ezxmc run THIS_FILE. Relative paths start at this file's folder.\n"
    return head + "".join(_commented(config, "", {"model": f"Here: {teacher.why}"}))


def _commented(part: BaseModel, indent: str, notes: Mapping[str, str]) -> Iterator[str]:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:\n"
            yield from _commented(value, indent + "  ", notes)
            continue
        for comment in filter(None, (field.description, notes.get(name))):
            yield f"{indent}# {comment}\n"
        yield textwrap.indent(yaml.safe_dump({name: value}, allow_unicode=True), indent)
