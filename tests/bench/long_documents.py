"""What passages of a long document add to its head.

    python tests/bench/long_documents.py make OUT --wheels FOLDER... --debs FOLDER... --debtags DEBTAGS
    python tests/bench/long_documents.py compare OUT/python OUT/debian [--model MODEL] [--untitled]

`make` writes two sets of documents of 500 to 20,000 words, out of files that lie on this machine, as `pip
download --no-deps` and `apt-get download` leave them. `python`: the READMEs of wheels, code blocks included,
with the Trove classifiers that their authors chose. `debian`: README, NEWS, manual pages and upstream
changelog of a package, one after the other, with debtags. Titles are one-line summaries, as in the sets of
`examples/`. By hash of the uid half of each set chooses, half reports.

`compare` encodes each document in passages of 256 tokens, eight at most, and ranks labels by the head alone,
by the unit mean of the passages' vectors, by head and mean, and by each label's best passage; `--untitled`:
the head without the title.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from email.parser import HeaderParser
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "python_packages"))

from catalog import _MARKUP, common, readable
from catalog import labels as decidable

from ezxmc.data import read_documents, read_labels, split_documents
from ezxmc.retrieval import BiEncoder

LEAST, MOST = 500, 20_000  # words
PASSAGES, TOKENS = 8, 256
FILES = 20  # of a kind in a package
DRAWS = 2000
_CODE = slice(1, 5)  # of the example's rules those that take code away

Gold = dict[str, set[str]]
Rows = list[dict[str, str]]


def python_set(folders: Iterable[Path]) -> tuple[Rows, Rows, Gold]:
    """Documents, labels and gold out of wheels, one of each package."""
    wheels = {file.name.split("-")[0].lower(): file for place in folders for file in place.rglob("*.whl")}
    rules = [rule for rule in _MARKUP if rule not in _MARKUP[_CODE]]
    known, documents, gold = set(decidable()), [], {}
    for uid, file in sorted(wheels.items()):
        with zipfile.ZipFile(file) as archive:
            inside = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            meta = HeaderParser().parsestr(archive.read(inside[0]).decode("utf-8", "replace"))
        text = (meta["Description"] or str(meta.get_payload())).replace("\r\n", "\n") + "\n"
        for pattern, by in rules:
            text = pattern.sub(by, text)
        documents.append({"uid": uid, "title": (meta["Summary"] or "").strip(), "text": text.strip()})
        gold[uid] = set(meta.get_all("Classifier") or []) & known
    names = sorted(known - set(common(gold.values())))
    return documents, [{"uid": name, "title": readable(name)} for name in names], gold


def debian_set(folders: Iterable[Path], debtags: Path) -> tuple[Rows, Rows, Gold]:
    """Documents, labels and gold out of .deb files."""
    debs = {file.name.split("_")[0]: file for place in folders for file in sorted(place.glob("*.deb"))}
    titles = {one.uid: one.title for one in read_documents(debtags / "documents.jsonl")[0]}
    gold: Gold = {}
    for line in (debtags / "qrels.tsv").read_text(encoding="utf-8").splitlines():
        uid, label = line.split("\t")
        gold.setdefault(uid, set()).add(label)
    documents = []
    for uid in sorted(debs.keys() & gold):
        with tempfile.TemporaryDirectory() as work:
            subprocess.run(["dpkg-deb", "-x", debs[uid], work], check=True)
            text = "\n\n".join(said(Path(work) / "usr/share", uid))
        documents.append({"uid": uid, "title": titles[uid], "text": text})
    labels, _ = read_labels(debtags / "labels_faceted.jsonl")
    return documents, [{"uid": one.uid, "title": one.title} for one in labels], gold


def said(share: Path, uid: str) -> Iterator[str]:
    """What a package says of itself."""
    for pattern in (f"doc/{uid}/README*", f"doc/{uid}/NEWS*", "man/man*/*.gz", f"doc/{uid}/changelog.gz"):
        for file in sorted(share.glob(pattern))[:FILES]:
            if file.is_symlink() or not file.is_file():
                continue
            raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            if pattern.startswith("man"):
                command = ["groff", "-man", "-Tutf8", "-P-c", "-rLL=2000n"]
                shown = subprocess.run(command, input=raw, capture_output=True, check=False).stdout
                raw = subprocess.run(["col", "-bx"], input=shown, capture_output=True, check=False).stdout
            yield raw.decode("utf-8", "replace").strip()


def write(folder: Path, documents: Rows, labels: Rows, gold: Gold) -> None:
    """Write the documents that are long and have gold."""
    known = {one["uid"] for one in labels}
    long = [
        {**one, "text": " ".join(one["text"].split(" ")[:MOST])}
        for one in documents
        if len(one["text"].split()) >= LEAST and gold[one["uid"]] & known
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("documents", long), ("labels", labels)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    pairs = [f"{one['uid']}\t{label}\n" for one in long for label in sorted(gold[one["uid"]] & known)]
    (folder / "gold.tsv").write_text("".join(pairs), encoding="utf-8")
    words = np.array([len(one["text"].split()) for one in long])
    more = ", ".join(f"{(words >= least).sum()} of {least:,} and more" for least in (1_000, 2_000))
    print(f"{folder}: {len(long)} documents ({more}; median {np.median(words):,.0f} words)")
    print(f"{len(labels)} labels, {len(pairs)} pairs of gold")


def passages(encoder: BiEncoder, text: str) -> list[str]:
    """A text in pieces that the encoder reads whole, the first as it reads it today; words stay whole."""
    found: list[str] = []
    while text.strip() and len(found) < PASSAGES:
        piece = encoder.read_of(text)
        if len(piece) < len(text) and (end := max(piece.rfind(" "), piece.rfind("\n"))) > len(piece) // 2:
            piece = piece[: end + 1]
        if not piece:
            break
        found.append(piece)
        text = text[len(piece) :]
    return found


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def figures(scores: NDArray[np.float32], gold: Sequence[set[int]]) -> NDArray[np.float64]:
    """P@1, P@5, R@10 and R@50 of each document, in percent."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.array([np.isin(row, list(right)) for row, right in zip(order, gold, strict=True)])
    count = np.array([len(right) for right in gold])
    at = {k: hits[:, :k].sum(axis=1) for k in (1, 5, 10, 50)}
    return 100 * np.stack([at[1], at[5] / 5, at[10] / count, at[50] / count], axis=1)


def compare(folder: Path, encoder: BiEncoder, untitled: bool) -> None:
    """Print a row for each way to rank: chosen by, reported on, and the change from the head, both parts."""
    documents, labels = read_documents(folder / "documents.jsonl")[0], read_labels(folder / "labels.jsonl")[0]
    row = {label.uid: place for place, label in enumerate(labels)}
    gold: dict[str, set[int]] = {}
    for line in (folder / "gold.tsv").read_text(encoding="utf-8").splitlines():
        uid, label = line.split("\t")
        gold.setdefault(uid, set()).add(row[label])
    texts = [document.text.strip() if untitled else document.shown for document in documents]
    pieces = [passages(encoder, text) for text in texts]
    total = sum(map(len, texts))
    heads, read = sum(len(some[0]) for some in pieces), sum(len(one) for some in pieces for one in some)
    print(f"\n{folder}: heads are {heads / total:.0%} of the text, passages {read / total:.0%}")
    vectors = encoder.encode_documents([one for some in pieces for one in some])
    titles = encoder.encode_labels([label.title for label in labels])
    parts = np.split(vectors, list(accumulate(map(len, pieces)))[:-1])
    head = np.stack([part[0] for part in parts])
    mean = unit(np.stack([part.mean(axis=0) for part in parts]))
    best = np.stack([(part @ titles.T).max(axis=0) for part in parts])
    ways = {
        "head": head @ titles.T,
        "mean of 2": unit(np.stack([part[:2].mean(axis=0) for part in parts])) @ titles.T,
        "mean of 4": unit(np.stack([part[:4].mean(axis=0) for part in parts])) @ titles.T,
        "mean of 8": mean @ titles.T,
        "head + mean": unit(head + mean) @ titles.T,
        "2 head + mean": unit(2 * head + mean) @ titles.T,
        "best passage": best,
        "mean + best": mean @ titles.T + best,
    }
    right = [gold[document.uid] for document in documents]
    reported = set(split_documents([document.uid for document in documents], 0.5, seed=0)[1])
    apart = np.array([document.uid in reported for document in documents])
    alone = figures(ways["head"], right)
    draw = np.random.default_rng(0).integers(0, len(documents), (DRAWS, len(documents)))
    print("P@1, P@5, R@10, R@50 | of the half that reports | change, 95 % interval, both halves")
    for name, scores in ways.items():
        found = figures(scores, right)
        low, high = np.percentile((found - alone)[draw].mean(axis=1), [2.5, 97.5], axis=0)
        sides = [" ".join(f"{value:5.1f}" for value in found[part].mean(axis=0)) for part in (~apart, apart)]
        gaps = ", ".join(f"{a:+.1f} to {b:+.1f}" for a, b in zip(low, high, strict=True))
        print(f"{name:13} | {sides[0]} | {sides[1]} | {gaps}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Passages of long documents.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("out", type=Path)
    making.add_argument("--wheels", type=Path, nargs="+", required=True)
    making.add_argument("--debs", type=Path, nargs="+", required=True)
    making.add_argument("--debtags", type=Path, required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("sets", type=Path, nargs="+")
    comparing.add_argument("--model", default="all-MiniLM-L6-v2")
    comparing.add_argument("--untitled", action="store_true")
    given = parser.parse_args()
    if given.command == "make":
        write(given.out / "python", *python_set(given.wheels))
        write(given.out / "debian", *debian_set(given.debs, given.debtags))
        return
    encoder = BiEncoder(given.model, max_length=TOKENS).faster()
    for folder in given.sets:
        compare(folder, encoder, given.untitled)


if __name__ == "__main__":
    main()
