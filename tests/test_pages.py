"""Pages hold: commands run or say why they are not run, options and files exist, links lead somewhere."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from scipy.sparse import csr_matrix
from support.pages import ROOT, Block, Shell, anchors, blocks, inside, links, name_of, pages, simple_commands
from support.tinyworld import TOPIC_OF, document, topical, write_rows

from ezxmc import Predictor
from ezxmc.cli import app as program
from ezxmc.records import Document, Label, Pair

pytestmark = pytest.mark.usefixtures("one_thread")

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
page_ids = {"argvalues": PAGES, "ids": map(name_of, PAGES)}
README, TUTORIAL, SERVING, REVIEW, HOW = (
    ROOT / name
    for name in (
        "README.md",
        *(f"examples/{name}/README.md" for name in ("tutorial", "serving", "review", "how_it_works")),
    )
)
RUN_HERE = {
    README,
    TUTORIAL,
    SERVING,
    REVIEW,
    HOW,
    *(ROOT / f"{name}/README.md" for name in ("prompts", "examples/benchmarks")),
}


def unmarked(page: Path, language: str = "bash") -> list[Block]:
    return [
        block
        for block in blocks(page)
        if not block.mark and (block.language == "python") == (language == "python")
    ]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_is_run_by_a_test_or_says_why_it_is_not(block: Block) -> None:
    if block.mark.startswith("run by "):
        test = ROOT / block.mark.removeprefix("run by ")
        assert test.is_file() and block.page.parent.name in test.read_text(encoding="utf-8")
    elif block.mark:
        told, _, reason = block.mark.partition(": ")
        assert told == "not run" and len(reason) > 5, f"{block.where}: {block.mark}"
        for file in re.findall(r"tests/\w+\.py", reason):
            assert (ROOT / file).is_file(), f"{block.where}: {file}"
    else:
        assert block.page in RUN_HERE, f"{block.where}: run it here, or say <!-- not run: REASON -->"


SHELL_BLOCKS = [block for block in BLOCKS if block.language != "python"]


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.where)
def test_commands_are_there_with_their_options_and_files(block: Block) -> None:
    for line in block.lines:
        for sign, words in simple_commands(line):
            if sign == ">":
                continue
            while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if "ezxmc" in words and words[: words.index("ezxmc")][-1:] in ([], ["-m"]):
                parsed(words[words.index("ezxmc") + 1 :])
            elif words[0] in ("python", "bash") and words[1].endswith((".py", ".sh")):
                script(block, words[1], words[2:])
            for word in words:
                if re.match(r"(examples|tests|prompts|data_cards)/", word) and not re.search(
                    r"/(run|data)/", word
                ):
                    assert (ROOT / word).exists(), f"{block.where}: {word}"


def parsed(words: list[str]) -> None:
    """Fails as the command line would: no such command or option, a wrong value, an argument too few."""
    program._register()
    command = typer.main.get_command(program.app)
    context = None
    while subcommands := getattr(command, "commands", None):
        assert words and words[0] in subcommands, f"no command {' '.join(words)}"
        context = command.make_context(words[0], [], parent=context, resilient_parsing=True)
        command, words = subcommands[words[0]], words[1:]
    if "--help" not in words:
        try:
            command.make_context("ezxmc", list(words), parent=context)
        except Exception as error:
            if not str(error).endswith("does not exist."):  # a reader's own files
                raise


def script(block: Block, name: str, words: list[str]) -> None:
    found = next((folder / name for folder in (ROOT, block.page.parent) if (folder / name).is_file()), None)
    assert found, f"{block.where}: there is no {name}"
    code = found.read_text(encoding="utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in code or word[2:].replace("-", "_") in code, f"{block.where}: {word}"


@pytest.mark.parametrize(
    "line", ["ezxmc predikt x", "ezxmc predict b d --kk 3", "ezxmc evaluate b", "ezxmc predict b d --k x"]
)
def test_a_wrong_command_would_be_seen(line: str) -> None:
    with pytest.raises((AssertionError, Exception), match=r"predikt|kk|gold|valid integer"):
        parsed(line.split()[1:])


@pytest.mark.parametrize("page", **page_ids)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert ROOT in (target, *target.parents)
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {link}"


def test_the_pictures_can_be_shown() -> None:
    svg = (HOW.parent / "flow.svg").read_text(encoding="utf-8")
    assert "<title" in svg and "prefers-color-scheme: dark" in svg and "<script" not in svg
    picture = (HOW.parent / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) <= 300_000


# From here on the pages' commands are run, with a catalog of a few words and recorded judgments.


def small(encoder: Path, judgments: Path) -> Callable[[Path], None]:
    """What makes a configuration that `init` wrote small enough for a test."""

    def change(folder: Path) -> None:
        for path in folder.glob("*.yaml"):
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            config["teacher"] = {"kind": "replay", "judgments": str(judgments)}
            config["cycles"] = 1
            config["training"] = {
                "encoder": str(encoder),
                "epochs": 1,
                "batch_size": 16,
                "learning_rate": 1e-2,
                "max_length": 32,
                "prior": "none",
            }
            path.write_text(yaml.safe_dump(config), encoding="utf-8")

    return change


def judged(path: Path, documents: list[Document], labels: list[Label], rule: Callable[[Pair], float]) -> Path:
    return write_rows(
        path,
        [
            {"doc": doc.uid, "label": label.uid, "log_odds": rule(Pair(doc, label))}
            for doc in documents
            for label in labels
        ],
    )


def decided(folder: Path) -> None:
    """People's decisions, where a list waits for them."""
    for path in folder.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and "decision" in rows[0]:
            for number, row in enumerate(rows):
                row["decision"] = ("yes", "no")[number % 2]
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A folder in which the README's commands were given."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [document(number) for number in range(60)]
    labels = [Label(word, word) for word in TOPIC_OF]
    with (folder / "products.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "tags.txt").write_text("".join(f"{word}\n" for word in TOPIC_OF))
    write_rows(folder / "new.jsonl", [document(number) for number in range(60, 64)])
    judgments = judged(folder / "judged.jsonl", [Document(**row) for row in rows], labels, topical)
    shell = Shell(folder, {"ezxmc run": small(tiny_encoder, judgments)})
    for block in unmarked(README):
        for line in block.lines:
            shell.run(line)
    return folder


@pytest.fixture
def finished(readme: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with."""
    return Path(shutil.copytree(readme, tmp_path / "finished"))


def test_the_readmes_commands(readme: Path) -> None:
    tags = [json.loads(line) for line in (readme / "tags.jsonl").read_text().splitlines()]
    assert [row["uid"] for row in tags] == ["d60", "d61", "d62", "d63"]
    told = re.search(r"^runs/default/\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert told
    for name in re.findall(r"^  ([\w.]+)", told[1], re.M):
        assert (readme / "runs/default" / name).exists(), name


@pytest.mark.encoder
def test_the_readmes_python(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    with inside(finished):
        for block in unmarked(README, "python"):
            exec(block.text, names)
    said = capsys.readouterr().out
    assert len(names["found"].tags) == 3 and all(
        f"{tag.title} {tag.probability}" in said for tag in names["found"].tags
    )
    assert names["tagged"]["uid"][:] == ["0", "1"]
    assert (finished / "student/modules.json").exists()
    assert "P@1" in names["result"].values and "P@1" in said and "tensor" in said


def test_the_commands_of_serving(finished: Path) -> None:
    # The README's, of other options.
    (finished / "tags.jsonl").unlink()
    shell = Shell(finished)
    run_page(shell, SERVING)
    assert len(shell.asked[0]["predictions"][0]["tags"]) == 5
    assert len((finished / "tags.jsonl").read_text().splitlines()) == 4


def test_the_commands_of_review(finished: Path, tiny_encoder: Path) -> None:
    shell = Shell(finished, {"ezxmc review import": decided})
    run_page(shell, REVIEW)
    assert "d" in (finished / "top.csv").read_text()


def test_the_commands_of_how_it_works(finished: Path) -> None:
    shutil.copy(finished / "runs/default/predictions.jsonl", finished / "predictions.jsonl")
    shutil.copy(finished / "predictions.jsonl", finished / "others.jsonl")
    gold = [f"{row['uid']}\t{row['text'].split()[1]}\n" for row in map(document, range(60))]
    (finished / "gold.tsv").write_text("".join(gold))
    run_page(Shell(finished), HOW)
    (block,) = unmarked(HOW, "python")
    chunk = (csr_matrix(np.eye(4) + 0.1), csr_matrix(np.eye(4)))
    exec(block.text, {"chunks": [chunk, chunk]})


@pytest.mark.parametrize("name", ["prompts", "examples/benchmarks"])
def test_commands_that_only_tell(name: str, tmp_path: Path) -> None:
    run_page(Shell(tmp_path), ROOT / name / "README.md")


def run_page(shell: Shell, page: Path) -> None:
    for block in unmarked(page):
        for line in block.lines:
            shell.run(line)


def test_the_tutorial(tmp_path: Path, tiny_encoder: Path) -> None:
    folder = Path(shutil.copytree(TUTORIAL.parent, tmp_path / "tutorial"))
    with (folder / "tickets.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    documents = [Document(row["id"], row["subject"], row["body"]) for row in rows]
    labels = [Label(title, title) for title in (folder / "tags.txt").read_text(encoding="utf-8").splitlines()]

    def shared(pair: Pair) -> float:
        words = set(re.findall(r"\w+", pair.label.title.lower())) & set(
            re.findall(r"\w+", pair.doc.shown.lower())
        )
        return 4.0 * len(words) - 2 + len(pair.label.title) / 50

    def reviewed(folder: Path) -> None:
        """As many reviewed documents as a promise needs, each with all the tags that there are."""
        with (folder / "reviewed.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows(
                [
                    ("id", "subject", "body"),
                    *((f"r{n}", f"again {n}", row["body"]) for n, row in enumerate(rows * 3)),
                ]
            )
        texts = [
            {"uid": f"r{n}", "title": f"again {n}", "text": row["body"]} for n, row in enumerate(rows * 3)
        ]
        found = Predictor.load(folder / "runs/default/bundle").predict(texts, k=20)
        gold = [f"{one.uid}\t{label}\n" for one in found for label in one.labels]
        (folder / "reviewed.tsv").write_text("".join(gold))

    setting = small(tiny_encoder, judged(folder / "judged.jsonl", documents, labels, shared))
    shell = Shell(folder, {"ezxmc plan": setting, "ezxmc review import": decided, "ezxmc decide": reviewed})
    run_page(shell, TUTORIAL)
    assert shell.asked[0].keys() == {"predictions", "bundle"}
    assert len((folder / "tags.jsonl").read_text().splitlines()) == 3
