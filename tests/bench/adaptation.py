"""Is it worth it to adapt the encoder to the catalog's texts before the teacher is asked anything?

    python tests/bench/adaptation.py SETS_FOLDER FOLDER

Adaptation is MACLR's (arXiv 2112.08652) with the student's own training loop: a document's content finds its
title, then documents find pseudo-labels (the best by TF-IDF, and the encoder's best where it is confident);
in-batch softmax, one pass each at 5e-5. It reads the debtags documents outside the development and report
parts, no label of theirs. Compared on the 742 development documents, one seed: the encoders, the recall of
their shortlists, and students of one and of two cycles that begin from them and learn from the judgments of
`tests/bench/debtags/judgments.parquet`, which the encoder that was not adapted proposed. About an hour.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from contrastive import pseudo_positives, title_and_sentences
from former import HEADS, figures, first_student, opened, recorded
from methods import METHODS
from shortlists import Remembering, recall
from task import Task

from ezxmc.config import ShortlistConfig, TrainingConfig
from ezxmc.data import read_gold
from ezxmc.feedback.targets import DocumentTargets, PriorCorrection, Targets
from ezxmc.models import resolve_model
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder
from ezxmc.training import train_bi_encoder

REPORT = Path(__file__).parent / "debtags" / "report.txt"
RATE, KEEP_TITLE = 5e-5, 0.1
CANDIDATES = ShortlistConfig(size=10, explore=0)


def certain(positives: Mapping[str, Sequence[str]]) -> Targets:
    """Targets that nobody judged: labels of probability 1."""
    documents = [
        DocumentTargets(uid, tuple(labels), np.ones(len(labels)), tuple(labels), ())
        for uid, labels in sorted(positives.items())
    ]
    return Targets(documents, PriorCorrection({}, 0.0), sum(map(len, positives.values())), 0, 0, 0)


def titles_find_contents(task: Task, out: Path) -> None:
    rng = np.random.default_rng(0)
    contents, own, uid_of = list[Document](), dict[str, list[str]](), dict[str, str]()
    for document in task.rest:
        if (pair := title_and_sentences(document)) is None:
            continue
        title, sentences = pair
        kept = (s if rng.random() < KEEP_TITLE else s.replace(title, "") for s in sentences)
        contents.append(Document(document.uid, "", " ".join(kept).strip() or " ".join(sentences)))
        own[document.uid] = [uid_of.setdefault(title, f"title {len(uid_of)}")]
    titles = [Label(uid, title) for title, uid in uid_of.items()]
    train_bi_encoder(contents, titles, certain(own), task.config, out)


def documents_find_pseudo_labels(task: Task, base: Path, out: Path) -> None:
    found = pseudo_positives(task, BiEncoder(base, max_length=task.config.max_length))
    labels = {
        document.uid: [task.labels[row].uid for row in sorted(rows)]
        for document, rows in zip(task.rest, found, strict=True)
        if rows
    }
    documents = [document for document in task.rest if document.uid in labels]
    train_bi_encoder(documents, task.labels, certain(labels), task.config, out, base=base)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path)
    parser.add_argument("folder", type=Path)
    sets, folder = vars(parser.parse_args()).values()
    files, first, both = recorded(sets, folder)
    one = opened(*files, first)
    reported = set(REPORT.read_text(encoding="utf-8").split())
    texts = replace(
        one.task,
        rest=[document for document in one.task.rest if document.uid not in reported],
        config=TrainingConfig(learning_rate=RATE, epochs=1),
    )
    titled, adapted = folder / "titled", folder / "adapted"
    if not titled.exists():
        titles_find_contents(texts, titled)
    if not adapted.exists():
        documents_find_pseudo_labels(texts, titled, adapted)

    print(" " * 32 + HEADS)
    gold = read_gold(str(sets / "qrels.tsv"))[0]
    for name, weights in (("untrained", None), ("titles", titled), ("adapted", adapted)):
        encoder = BiEncoder(weights or resolve_model("all-MiniLM-L6-v2", kind="encoder"), max_length=256)
        print(f"{name:32}" + figures(one, one.task.ranked_by(encoder)), flush=True)
        if weights != titled:
            found = recall(one.task.report, one.task.labels, Remembering(encoder), CANDIDATES, gold)
            print(f"  its shortlists of ten: R@10 {found['R@10']:.1f}", flush=True)
    for name, start in (("", "all-MiniLM-L6-v2"), (", from the adapted", str(adapted))):
        config, former = TrainingConfig(encoder=start), folder / f"former{name}"
        if not former.exists():
            first_student(replace(one.task, config=config), former)
        ranked = one.task.ranked_by(BiEncoder(former, max_length=256))
        print(f"{f'one cycle{name}':32}" + figures(one, ranked), flush=True)
        two = opened(*files, both, former)
        ranked = METHODS["student"].rank(replace(two.task, config=config), 0)
        print(f"{f'two cycles{name}':32}" + figures(two, ranked), flush=True)


if __name__ == "__main__":
    main()
