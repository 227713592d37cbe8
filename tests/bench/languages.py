"""Should the teacher be asked in the documents' own language?

    python tests/bench/languages.py FOLDER --prompts generic generic-fr --out judged

FOLDER is what `examples/debian_catalog/catalog.py --language` made: documents in another language, labels in
English. 50 documents of its train part, drawn by hash, with the labels that the multilingual encoder puts
first; each prompt's AUC against gold, within documents (mean, and the paired difference to the first prompt
with its standard error) and pooled. Judgments go to OUT/feedback.sqlite: interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from ezxmc.config import ShortlistConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.data import read_documents, read_gold, read_labels
from ezxmc.feedback.annotate import annotate
from ezxmc.feedback.recall import recall
from ezxmc.feedback.store import FeedbackStore
from ezxmc.hashing import text_hash
from ezxmc.models.resolve import MULTILINGUAL
from ezxmc.records import Pair
from ezxmc.retrieval import BiEncoder, shortlist
from ezxmc.teacher.vllm import VllmTeacher

SIZE, DOCUMENTS = 14, 50


def pairs_of(folder: Path) -> tuple[list[Pair], dict[tuple[str, str], bool]]:
    """What is asked, and which of it gold holds."""
    documents, _ = read_documents(folder / "documents.jsonl")
    labels, _ = read_labels(folder / "labels.jsonl")
    gold, _ = read_gold(folder / "gold.tsv")
    train = set((folder / "train.txt").read_text(encoding="utf-8").split())
    part = [document for document in documents if document.uid in train]
    drawn = sorted(part, key=lambda document: text_hash("languages/" + document.uid))[:DOCUMENTS]
    config = ShortlistConfig(size=SIZE, explore=0)
    found = shortlist(drawn, labels, BiEncoder(MULTILINGUAL, max_length=256), config, background=part)
    pairs = [
        Pair(document, labels[row])
        for document, candidates in zip(drawn, found, strict=True)
        for row in candidates.labels
    ]
    right = {(p.doc.uid, p.label.uid): p.label.uid in gold.get(p.doc.uid, ()) for p in pairs}
    return pairs, right


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", nargs="+", default=["generic"])
    parser.add_argument("--out", type=Path, default=Path("languages"))
    parser.add_argument("--model", default="Qwen2.5-Coder-1.5B-Instruct-int8")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pairs, right = pairs_of(options.folder)
    engine = None
    base: dict[str, float] = {}
    with FeedbackStore(options.out / "feedback.sqlite") as store:
        for prompt in options.prompts:
            teacher = VllmTeacher(VllmTeacherConfig(model=options.model, prompt=prompt))
            # One engine for all: prompts differ, weights and longest prompt do not.
            engine = engine or teacher.engine
            teacher.engine = engine
            summary = annotate(lambda: pairs, teacher, store)
            rows: dict[str, list[tuple[float, bool]]] = defaultdict(list)
            unscored = 0
            for judgment in recall(pairs, teacher, store):
                unscored += judgment.log_odds is None
                score = -1e6 if judgment.log_odds is None else judgment.log_odds
                rows[judgment.doc_uid].append((score, right[judgment.doc_uid, judgment.label_uid]))
            within = {
                uid: float(roc_auc_score([hit for _, hit in row], [score for score, _ in row]))
                for uid, row in rows.items()
                if 0 < sum(hit for _, hit in row) < len(row)
            }
            base = base or within
            gaps = np.array([within[uid] - base[uid] for uid in base])
            scores, hits = zip(*(pair for row in rows.values() for pair in row), strict=True)
            figures = {
                "prompt": prompt,
                "pairs": len(scores),
                "auc within": round(float(np.mean(list(within.values()))), 3),
                "auc pooled": round(float(roc_auc_score(hits, scores)), 3),
                "difference within": round(float(gaps.mean()), 3),
                "standard error": round(float(gaps.std() / np.sqrt(len(gaps))), 3),
                "yes %": round(100 * float(np.mean(np.array(scores) > 0)), 1),
                "without score": unscored,
                "seconds": round(summary.seconds),
            }
            print(json.dumps(figures), flush=True)
    if engine:
        engine.close()


if __name__ == "__main__":
    main()
