"""`ezxmc report`: the page of a run, or of two side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ezxmc.cli.console import Json, emit
from ezxmc.errors import DataError

if TYPE_CHECKING:
    from ezxmc.report import RunReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


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

    from ezxmc.manifest import MANIFEST, guarantee_of
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
