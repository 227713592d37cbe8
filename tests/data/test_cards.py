"""Data cards: one form, figures that hold, and a configuration for each benchmark."""

from __future__ import annotations

import gzip
import json
import statistics
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.cards import own
from support.fakes import FakeTeacher
from support.tinyworld import TOPIC_OF, document, label_rows, topical

from ezxmc.config import RunConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.data import DataCard, card_files, compute_statistics, convert, open_folder
from ezxmc.data.datasets import Spread
from ezxmc.data.xmc import XmcRepo
from ezxmc.errors import ConfigError, DataError
from ezxmc.pipeline.plan import plan
from ezxmc.teacher.prompt import Prompt, prompt_files

BENCHMARKS = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"
CONFIGS = sorted(BENCHMARKS.glob("*.yaml"))


@pytest.mark.parametrize("name", card_files())
def test_a_shipped_card_is_whole(name: str) -> None:
    card = DataCard.load(name)
    assert card.name == name and card.prose and "---" not in card.prose.splitlines()
    assert card.prompt in {*prompt_files(), *(path.stem for path in (BENCHMARKS / "prompts").glob("*.toml"))}
    assert (card.propensity.a, card.propensity.b) in {(0.55, 1.5), (0.5, 0.4), (0.6, 2.6)}
    sizes = card.sizes
    if sizes.train and sizes.labels and card.labels_per_document and card.documents_per_label:
        # Three figures of one table, each rounded.
        expected = sizes.train * card.labels_per_document / sizes.labels
        assert card.documents_per_label == pytest.approx(expected, rel=0.005)
    for result in card.published:
        # Precision falls with depth, recall rises.
        for metric, falls in (("P@", True), ("R@", False)):
            at = {int(name[2:]): value for name, value in result.figures.items() if name.startswith(metric)}
            assert [at[k] for k in sorted(at)] == sorted(at.values(), reverse=falls)


def test_the_nine_cards_are_there() -> None:
    benchmarks = {"LF-Amazon-131K", "LF-WikiSeeAlso-320K", "LF-Wikipedia-500K"}
    benchmarks |= {"EURLex-4K", "Wiki10-31K", "AmazonCat-13K"}
    assert set(card_files()) == benchmarks | {"debtags", "wordnet", "python_packages"}
    assert DataCard.load("eurlex-4k").name == "EURLex-4K"


def test_a_card_that_is_not_right_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.md"
    good = card_files()["debtags"].read_text()
    for text, told in [
        (good.replace("licence:", "license:"), "licence: Field required"),
        (good.replace("  labels: 466", "  labels: -1"), r"sizes.labels"),
        (good.replace("---\n", "", 1), "between two lines"),
        ("---\n- a\n---\n", "no mapping"),
        ("---\na: [\n---\n", "flow sequence|expected"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=told):
            DataCard.load(path)
    with pytest.raises(ConfigError, match="no data card named nothing"):
        DataCard.load("nothing")


@given(st.lists(st.integers(0, 40), max_size=60))
def test_spreads_are_those_of_the_standard_library(values: list[int]) -> None:
    found = Spread.of(Counter(values))
    if not values:
        assert found is None
        return
    assert found == Spread(pytest.approx(statistics.mean(values)), statistics.median(values), max(values))


def test_figures_of_a_small_set(tmp_path: Path) -> None:
    found = compute_statistics(open_folder(own(tmp_path)))
    (whole,) = found.splits.values()
    assert (found.labels, found.labels_unused, found.equal_titles, found.test_in_train) == (4, 2, 1, None)
    assert (whole.documents, whole.with_gold, whole.pairs, whole.labels_unknown) == (4, 3, 6, 1)
    assert whole.labels_per_document == Spread(2.0, 2.0, 3)
    assert whole.documents_per_label == Spread(1.25, 1.0, 3)  # 3, 0, 2, 0
    assert whole.characters == Spread((7 + 9 + 3 + 5) / 4, 6.0, 9)
    assert whole.duplicates == 1 and whole.labels_used == 2


def test_parts_by_a_split_file_and_texts_in_both(tmp_path: Path) -> None:
    (own(tmp_path) / "split.tsv").write_text("a\ttrain\nb\ttest\nc\ttest\nd\ttrain\nbroken\n")
    data = open_folder(tmp_path)
    found = compute_statistics(data)
    assert list(found.splits) == ["train", "test"] and found.test_in_train == 1
    assert [found.splits[name].documents for name in found.splits] == [2, 2]
    assert found.splits["test"].pairs == 1 and data.rows["split.tsv"].counts == {"field_count": 1}


def test_what_differs_from_a_card(tmp_path: Path) -> None:
    found = compute_statistics(open_folder(own(tmp_path)))
    right = DataCard.load("debtags").model_copy(
        update={"labels_per_document": 2.009, "documents_per_label": None}
    )
    sizes = right.sizes.model_copy(update={"documents": 4, "labels": 4, "pairs": 6})
    fitting = right.model_copy(update={"sizes": sizes}).compare(found)
    assert len(fitting) == 4 and all(one.fits for one in fitting)
    wrong = sizes.model_copy(update={"documents": 5, "train": 4})
    card = right.model_copy(update={"sizes": wrong, "labels_per_document": 2.02})
    told = {one.figure: (one.card, one.here) for one in card.compare(found) if not one.fits}
    assert told == {
        "training documents": (4, None),
        "documents": (5, 4),
        "labels per document": (2.02, 2.0),
    }


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data set"):
        open_folder(tmp_path)


def benchmark_files(folder: Path, raw: bool) -> None:
    """The tiny world in the layout that the configuration's card names."""
    folder.mkdir(parents=True)
    rows, labels = [document(number) for number in range(60)], label_rows()
    column = {label["uid"]: str(number) for number, label in enumerate(labels)}
    tags = [[column[f"l-{w}"] for w, t in TOPIC_OF.items() if t in row["text"].split()] for row in rows]
    if raw:
        for name, kept in (("trn", rows), ("tst", rows[:5])):
            with gzip.open(folder / f"{name}.json.gz", "wt") as out:
                for row, targets in zip(kept, tags, strict=False):
                    new = {"uid": row["uid"], "title": row["title"], "content": row["text"]}
                    out.write(
                        json.dumps({**new, "target_ind": list(map(int, targets)), "target_rel": [1.0] * 5})
                        + "\n"
                    )
        with gzip.open(folder / "lbl.json.gz", "wt") as out:
            out.writelines(json.dumps(label) + "\n" for label in labels)
        return
    source = folder / "published"
    source.mkdir()
    (source / "X.trn.txt").write_text("".join(f"{row['title']} {row['text']}\n" for row in rows))
    (source / "Y.trn.txt").write_text("".join(",".join(row) + "\n" for row in tags))
    (source / "output-items.txt").write_text("".join(f"{label['title']}\n" for label in labels))
    repo = XmcRepo.find(source)
    assert repo is not None
    convert(repo, folder)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_benchmark_s_configuration_can_be_planned(path: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    config = RunConfig.load(path)
    card = DataCard.load(path.stem)
    # LMTX's sizes (its scripts): candidates, tokens, encoder, batch, rate, one epoch.
    training, teacher = config.training, config.teacher
    assert isinstance(teacher, VllmTeacherConfig)
    assert (config.shortlist.size, teacher.max_document_tokens, training.max_length) == (10, 430, 430)
    assert (training.batch_size, training.learning_rate, training.epochs) == (128, 2e-4, 1)
    assert training.encoder == "sentence-transformers/msmarco-distilbert-base-v4"
    many = card.sizes.train is not None and card.sizes.train > 30_000
    assert config.budget.documents == (30_000 if many else None)
    assert Prompt.load(teacher.prompt).name == card.prompt
    # The configuration itself beside data in the layout it names; only the encoder is a small one.
    raw = yaml.safe_load(path.read_text())
    raw["training"]["encoder"] = str(tiny_encoder)
    raw["run_dir"] = str(tmp_path / "run")
    raw["teacher"]["prompt"] = teacher.prompt
    (tmp_path / path.name).write_text(yaml.safe_dump(raw))
    benchmark_files(tmp_path / "data" / card.name, raw=path.stem.startswith("lf-"))
    found = plan(RunConfig.load(tmp_path / path.name), teacher=FakeTeacher(topical), probe_pairs=0)
    assert (found.documents, found.labels) == (60, 25)
    cycles = [part for part in found.parts if part.name.startswith("cycle")]
    assert len(cycles) == config.cycles
    for part in cycles:
        # Where documents are limited, those for calibration are asked about apart.
        assert part.pairs == 10 * part.documents and (part.documents == 60 or (many and part.documents > 40))


def test_there_is_a_configuration_for_each_benchmark() -> None:
    assert len(CONFIGS) == 6
    text = (BENCHMARKS / "README.md").read_text()
    for path in CONFIGS:
        assert (
            f"`{path.name}`" in text
            and f"`examples/benchmarks/{path.name}`" in DataCard.load(path.stem).prose
        )
