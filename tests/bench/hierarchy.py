"""What do scores raised along paths bring, and how far must they be raised?

    python tests/bench/hierarchy.py BUNDLE DOCUMENTS LABELS GOLD [--only UIDS] [--deepest]

BUNDLE is a student's, of the labels that LABELS gives parents (a column, or paths), whether it raises scores
itself or not. UIDS names the documents that figures are of, one a line; --deepest takes off gold what lies
above other gold of the same document, as where people tag with leaves alone. wordnet's parents are made by
`tests/bench/wordnet/parents.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ezxmc.bundle import ancestry
from ezxmc.bundle.ancestry import Ancestry
from ezxmc.bundle.bundle import Bundle, load_bundle
from ezxmc.data import read_documents, read_gold, read_labels
from ezxmc.data.forest import Forest, with_parents
from ezxmc.metrics.evaluation import evaluate
from ezxmc.records import Label, Prediction

SETTINGS = [(tau, share) for tau in (0.05, 0.08, 0.1) for share in (0.25, 0.5, 0.7)]
SHOWN = ("P@1", "P@3", "P@5", "R@10", "R@50", "hF1@1", "hF1@3", "hF1@5", "hF1@10")


def compare(
    bundle: Bundle,
    labels: Sequence[Label],
    uids: Sequence[str],
    vectors: NDArray[np.float32],
    gold: Mapping[str, set[str]],
) -> None:
    """Print figures of a bundle's scores as they are, and raised.

    Args:
        bundle: One whose `search` and `scores` raise nothing.
        labels: Of the bundle's rows, with parents.
        uids: Of N documents.
        vectors: (N, D) of these.
        gold: Right labels by document uid.
    """
    forest, paths = Forest.of(labels), Ancestry.of(labels, bundle.index.rows)
    if forest is None or paths is None:
        raise SystemExit("these labels form no hierarchy")
    print(forest.line())
    print(f"{'':20}" + "  ".join(f"{name:>6}" for name in SHOWN))

    def show(name: str, rows: NDArray[np.int64]) -> None:
        found = [
            Prediction(uid, tuple(labels[row].uid for row in some if row >= 0), (), ())
            for uid, some in zip(uids, rows.tolist(), strict=True)
        ]
        none: tuple[int, ...] = ()
        values = evaluate(
            found,
            {uid: gold[uid] for uid in uids if gold.get(uid)},
            precision_ks=(1, 3, 5, 10),
            recall_ks=(10, 50),
            ndcg_ks=none,
            coverage_ks=none,
            calibration_ks=none,
            forest=forest,
        ).values
        print(f"{name:20}" + "  ".join(f"{100 * values[one]:6.1f}" for one in SHOWN), flush=True)

    show("as they are", bundle.search(vectors, 50)[1])
    for setting in SETTINGS:
        ancestry._TEMPERATURE, ancestry._SHARE = setting
        show(
            "tau {:.2f}, share {:.2f}".format(*setting),
            paths.search(bundle.search, bundle.scores, vectors, 50)[1],
        )


def deepest(gold: Mapping[str, set[str]], labels: Sequence[Label]) -> dict[str, set[str]]:
    """Gold without the parents of other gold."""
    parent = {label.uid: label.parent for label in labels}
    return {uid: right - {parent[one] for one in right if one in parent} for uid, right in gold.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("bundle", "documents", "labels", "gold"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--only", type=Path, help="uids, one a line")
    parser.add_argument("--deepest", action="store_true")
    args = parser.parse_args()
    bundle = replace(load_bundle(args.bundle), paths=None)
    documents, tags = read_documents(args.documents)[0], with_parents(read_labels(args.labels)[0]).labels
    known = {label.uid: label for label in tags}
    labels = [replace(label, parent=known[label.uid].parent) for label in bundle.labels]
    if args.only:
        some = set(args.only.read_text(encoding="utf-8").split())
        documents = [document for document in documents if document.uid in some]
    titles = {label.uid: label.title for label in tags}
    gold, _ = read_gold(args.gold, documents={document.uid for document in documents}, labels=titles)
    vectors = bundle.encoder.encode_documents([document.shown for document in documents])
    if args.deepest:
        gold = deepest(gold, labels)
    compare(bundle, labels, [document.uid for document in documents], vectors, gold)


if __name__ == "__main__":
    main()
