"""What the repository and the wheel hold, and what an import loads."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ezxmc.bundle.bundle import save_bundle
from ezxmc.calibration import Calibrator, Platt
from ezxmc.records import Label

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "ezxmc").rglob("*.py"))


def python(code: str, cwd: Path, **environment: str) -> Any:
    """Run code in a fresh interpreter away from the checkout; it prints one JSON value."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tracked(*pattern: str) -> list[str]:
    return subprocess.run(
        ["git", "ls-files", *pattern], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_450_lines(module: Path) -> None:
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 450


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_top_of_the_repository_stays_small() -> None:
    allowed = {"pyproject.toml", "README.md", "ezxmc", "prompts", "tests", "data_cards", "examples"}
    top = {Path(name).parts[0] for name in tracked()}
    assert {name for name in top if not name.startswith(".")} <= allowed
    assert {"pyproject.toml", "README.md", "ezxmc", "prompts", "tests"} <= top


FORBIDDEN = {
    "pickle": r"^\s*(import|from) (c?pickle|dill|joblib)\b|pickle\.loads?\(|allow_pickle\s*=\s*True",
    "torch.load": r"\btorch\.load\(",
    "trust_remote_code": r"trust_remote_code[\"']?\s*[=:]\s*True",
    "print": r"(?<![\w.])print\(",
    "eval": r"(?<![\w.])(eval|exec)\(",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden_code(name: str) -> None:
    found = [
        f"{module.relative_to(ROOT)}:{number}: {line.strip()}"
        for module in MODULES
        for number, line in enumerate(module.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(FORBIDDEN[name], line)
    ]
    assert not found


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("pickle", "import pickle"),
        ("pickle", "    from joblib import load"),
        ("torch.load", "x = torch.load(path)"),
        ("trust_remote_code", "trust_remote_code=True"),
        ("trust_remote_code", '{"trust_remote_code": True}'),
        ("print", "    print(1)"),
        ("eval", "eval(text)"),
    ],
)
def test_forbidden_code_would_be_seen(name: str, line: str) -> None:
    assert re.search(FORBIDDEN[name], line)


OPENS = {"from_pretrained", "from_config", "SentenceTransformer"}


def test_whatever_opens_a_model_says_that_its_code_is_not_trusted() -> None:
    # Where transformers is told nothing, it asks whoever sits at the terminal.
    calls = [
        (module.relative_to(ROOT).as_posix(), ast.unparse(node))
        for module in MODULES
        if any(name in module.read_text(encoding="utf-8") for name in OPENS)
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in OPENS
    ]
    assert len(calls) >= 7
    assert [call for call in calls if "trust_remote_code=False" not in call[1]] == []


_COMMANDS = """
import contextlib, io, json, sys
from ezxmc.cli.app import main
loaded = []
for arguments in (["labels", "list", "bundle"], ["predict", "bundle", "one.jsonl"]):
    sys.argv = ["ezxmc", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    assert "guitar" in out.getvalue()
    loaded.append(sorted(sys.modules))
import ezxmc.pipeline.run, ezxmc.teacher.ray, ezxmc.retrieval.ray_encoder, ezxmc.pipeline.plan
print(json.dumps([*loaded, sorted(sys.modules)]))
"""


def test_tagging_loads_neither_engine_nor_teacher_and_no_import_loads_ray(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    """Nor what takes seconds to import and is not needed to tag a document with a plain student."""
    calibrator = Calibrator("teacher", 1, 1, Platt(1.0, 0.0))
    save_bundle(
        tmp_path / "bundle", tiny_encoder, [Label("a", "guitar")], max_length=8, k=1, calibrator=calibrator
    )
    (tmp_path / "one.jsonl").write_text('{"uid": "d", "text": "a guitar"}\n')
    listing, tagging, everything = (set(loaded) for loaded in python(_COMMANDS, tmp_path))
    assert "ezxmc.bundle.bundle" in listing and "torch" in tagging and "ezxmc.cluster.pool" in everything
    of_a_run = {"vllm", "ray", "ezxmc.teacher", "ezxmc.feedback", "ezxmc.training", "ezxmc.pipeline.run"}
    slow = {"transformers", "sentence_transformers", "sklearn", "pandas", "numba", "matplotlib", "datasets"}
    slow |= {"scipy.optimize", "scipy.stats", "torch._dynamo", "sympy"}
    assert not tagging & (of_a_run | slow)
    assert not listing & (of_a_run | slow | {"torch"})
    assert not everything & {"ray", "vllm"}


def test_importing_ezxmc_is_quick_and_so_is_the_command_line(tmp_path: Path) -> None:
    code = (
        "import json, sys, ezxmc, ezxmc.cli.app as a; a._register(); print(json.dumps(sorted(sys.modules)))"
    )
    loaded = python(code, tmp_path)
    heavy = {
        "torch",
        "transformers",
        "sentence_transformers",
        "vllm",
        "ray",
        "faiss",
        "sklearn",
        "datasets",
        "scipy",
    }
    assert not heavy & set(loaded)


def test_every_public_name_resolves() -> None:
    import ezxmc

    assert {"Predictor", "run", "RunConfig", "Document", "Label", "load_teacher"} <= set(ezxmc.__all__)
    for name in ezxmc.__all__:
        assert getattr(ezxmc, name).__name__ == name
    assert dir(ezxmc) == sorted([*ezxmc.__all__, "__version__"])
    assert ezxmc.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ezxmc.nothing_of_the_kind


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("ezxmc-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


_PROMPTS = """
import json, ezxmc
from ezxmc.teacher.prompt import Prompt, prompt_files
rows = [f"{name} {path} {Prompt.load(name).hash}" for name, path in prompt_files().items()]
print(json.dumps([ezxmc.__file__, *rows]))
"""


def shipped(cwd: Path, place: Path) -> tuple[Path, dict[str, tuple[Path, str]]]:
    package, *rows = python(_PROMPTS, cwd, PYTHONPATH=str(place))
    return Path(package), {name: (Path(path), prompt) for name, path, prompt in map(str.split, rows)}


def test_the_wheel_ships_every_module_prompt_card_and_page(wheel: Path) -> None:
    for folder in ("prompts", "data_cards"):
        shown = {path.name: path.read_bytes() for path in (ROOT / folder).iterdir()}
        assert shown
        assert {path.name: path.read_bytes() for path in (wheel / f"ezxmc/_{folder}").iterdir()} == shown
    pages = [str(page.relative_to(ROOT / "ezxmc")) for page in (ROOT / "ezxmc").rglob("*.html*")]
    assert {"report/page.html.j2", "serve/page.html"} <= set(pages)
    for page in pages:
        assert (wheel / "ezxmc" / page).read_bytes() == (ROOT / "ezxmc" / page).read_bytes()
    assert (wheel / "ezxmc" / "py.typed").exists()
    (licence,) = wheel.glob("*.dist-info/licenses/ezxmc/LICENSE")
    assert licence.read_text().lstrip().startswith("Apache License")
    inside = {str(path.relative_to(wheel)) for path in (wheel / "ezxmc").rglob("*.py")}
    assert inside == {str(module.relative_to(ROOT)) for module in MODULES}
    assert not (wheel / "tests").exists() and not list(wheel.rglob("*.pyc"))
    (entry_points,) = wheel.glob("ezxmc-*.dist-info/entry_points.txt")
    assert "ezxmc = ezxmc.cli.app:main" in entry_points.read_text()


def test_prompts_are_found_in_the_wheel_and_in_the_checkout(wheel: Path, tmp_path: Path) -> None:
    package, from_wheel = shipped(tmp_path, wheel)
    assert package == wheel / "ezxmc" / "__init__.py"
    checkout, from_source = shipped(tmp_path, ROOT)
    assert checkout == ROOT / "ezxmc" / "__init__.py"
    assert {path.parent for path, _ in from_wheel.values()} == {wheel / "ezxmc" / "_prompts"}
    assert {path.parent for path, _ in from_source.values()} == {ROOT / "prompts"}
    hashes = [{name: prompt for name, (_, prompt) in found.items()} for found in (from_wheel, from_source)]
    assert hashes[0] == hashes[1] and "generic" in hashes[0]
