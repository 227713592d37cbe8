"""The debtags set out of a Debian system's own package index.

    python catalog.py data
    python catalog.py data --language fr     descriptions in French, labels in English

Documents are descriptions of packages, labels are the debtags a reader of a description could decide, gold
is what the packages' maintainers chose. Written into `data/`: `documents.jsonl`, `labels.jsonl`, `gold.tsv`;
the uids of the two parts they are split into, `train.txt` and `report.txt`; and what the run reads: a sample
of the train part and the whole report part, each with its gold.

apt fetches the index into a folder of its own, removed at the end: no rights are needed, nothing of the
system is changed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from control import Package, Tag, decidable, read_packages, read_vocabulary
from private_apt import PrivateApt, UnfitError, check_tools

from ezxmc.data import RowReport, split_documents
from ezxmc.hashing import text_hash

UNFIT, BAD_ROWS = 2, 3  # exit codes
LEAST_TAGS = 2  # a package with fewer was hardly looked at by anyone who tags
SHINGLE, NEAR = 3, 0.6  # words, Jaccard similarity
SAME_START = 200  # characters
REPORT_SHARE, SAMPLE = 0.2, 1_000


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The runs of `SHINGLE` words, in lower case; of a shorter text, all its words."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def distinct(packages: Iterable[Package]) -> list[Package]:
    """Without near-duplicates, in the order given.

    A package is left out if one before it that stays is near: their shingles' Jaccard similarity is at
    least `NEAR`, or they are of one source and begin with the same `SAME_START` characters. So no two that
    stay are near, and each one left out is near one that stays.

    Sets that similar share a shingle among the rarest of each, so only these are looked up (prefix
    filtering: Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", WWW 2007); nothing is
    approximate.
    """
    packages = list(packages)
    sets = [shingles(f"{package.title}\n{package.text}") for package in packages]
    frequency = Counter(shingle for each in sets for shingle in each)
    kept: list[Package] = []
    holders: defaultdict[tuple[str, ...], list[frozenset[tuple[str, ...]]]] = defaultdict(list)
    starts: set[tuple[str, str]] = set()
    for package, mine in zip(packages, sets, strict=True):
        shared = math.ceil(NEAR * len(mine))  # at least, with one that is near
        rarest = sorted(mine, key=lambda shingle: (frequency[shingle], shingle))[: len(mine) - shared + 1]
        start = package.source, package.text[:SAME_START]
        if start in starts or any(_near(mine, other) for shingle in rarest for other in holders[shingle]):
            continue
        kept.append(package)
        if len(package.text) >= SAME_START:
            starts.add(start)
        for shingle in rarest:
            holders[shingle].append(mine)
    return kept


def _near(one: frozenset[Any], other: frozenset[Any]) -> bool:
    common = len(one & other)
    return common >= NEAR * (len(one) + len(other) - common)


def split(packages: Sequence[Package]) -> tuple[list[Package], list[Package]]:
    """Train and report part; all packages of a source are in one of them, by the hash of its name."""
    # Not the bare name: a run splits by the hash of seed and uid, often the same name, and would find its
    # own held-out documents in the report part.
    keys = {f"source {package.source}" for package in packages}
    apart = set(split_documents(sorted(keys), REPORT_SHARE, seed=0)[1])
    parts: tuple[list[Package], list[Package]] = [], []
    for package in packages:
        parts[f"source {package.source}" in apart].append(package)
    return parts


def build(work: Path, report: RowReport, language: str = "en") -> tuple[dict[str, str], str]:
    """Make the catalog.

    Args:
        work: An empty folder for apt.
        report: Receives bad stanzas.
        language: Of the documents; a package that is not described in it is left out.

    Returns:
        The contents of each file by its name, and what is in them, in a few lines.

    Raises:
        UnfitError: The index cannot be had here, holds no tags, or nothing in this language.
    """
    apt = PrivateApt(work, dict.fromkeys((language, "en")))
    indexes, translations = apt.update()
    tagged = read_packages(indexes, translations, report, language)
    if not tagged:
        raise UnfitError(
            "the package index of this system has no Tag fields",
            "run it on Debian or in a Debian container: not every distribution keeps them",
        )
    terms = apt.unpack("debtags") / "usr/share/debtags/vocabulary"
    if not terms.exists():
        raise UnfitError(
            "this system's debtags package holds no vocabulary", "run it on another Debian release"
        )
    vocabulary = read_vocabulary(terms, report)
    if language == "en":  # the index itself is in English
        return catalog(tagged, vocabulary)
    translated = [package for package in tagged if package.translated]
    if not translated:
        raise UnfitError(
            f"no package of this system's index is described in {language!r}",
            "give a language as Debian spells it: fr, de, ru, ko, pt_BR",
        )
    files, told = catalog(translated, vocabulary)
    left_out = len(tagged) - len(translated)
    return files, f"{left_out:,} packages with tags left out: no description in {language!r}\n{told}"


def catalog(tagged: Sequence[Package], vocabulary: Sequence[Tag]) -> tuple[dict[str, str], str]:
    """The files' contents by name, and what is in them, in a few lines."""
    known = {tag.uid for tag in vocabulary}
    gold = {package.name: sorted(package.tags & known) for package in tagged}
    enough = [package for package in tagged if len(gold[package.name]) >= LEAST_TAGS]
    # Of near-duplicates the one with the most tags stays.
    enough.sort(key=lambda package: (-len(gold[package.name]), len(package.name), package.name))
    documents = sorted(distinct(enough), key=lambda package: package.name)
    train, reported = split(documents)
    sample = sorted(train, key=lambda package: text_hash("sample", package.name))[:SAMPLE]
    used = Counter(tag for package in documents for tag in gold[package.name])
    labels = [tag for tag in vocabulary if tag.uid in used]

    files = {
        "labels.jsonl": _jsonl(
            {"uid": tag.uid, "title": tag.title, "text": tag.text, "parent": tag.uid.partition("::")[0]}
            for tag in labels
        ),
        "train.txt": "".join(f"{package.name}\n" for package in train),
        "report.txt": "".join(f"{package.name}\n" for package in reported),
    }
    for prefix, part in (("", documents), ("sample_", sample), ("report_", reported)):
        files[f"{prefix}documents.jsonl"] = _jsonl(
            {"uid": package.name, "title": package.title, "text": package.text} for package in part
        )
        files[f"{prefix}gold.tsv"] = "".join(
            f"{package.name}\t{tag}\n" for package in part for tag in gold[package.name]
        )
    sources = {package.source for package in documents}
    untold = sum(not package.text for package in documents)
    lines = [
        f"{len(tagged):,} packages have tags, {len(enough):,} at least {LEAST_TAGS} that a text can tell",
        f"{len(enough) - len(documents):,} near-duplicates left out",
        f"{len(documents):,} documents of {len(sources):,} source packages; {untold:,} have a title only",
        f"{len(labels):,} labels, {used.total():,} gold pairs",
        f"train part {len(train):,}, of which the run takes {len(sample):,}; report part {len(reported):,}",
    ]
    unknown = Counter(tag for package in tagged for tag in package.tags - known if decidable(tag))
    if unknown:
        lines.append(
            f"{unknown.total():,} tags left out that the vocabulary lacks: {', '.join(sorted(unknown))}"
        )
    if used:
        [(label, count)] = used.most_common(1)
        right = sum(label in gold[package.name] for package in reported) / max(1, len(reported))
        lines.append(
            f"to compare with: {label} alone is right for {count:,} of {len(documents):,} documents "
            f"(P@1 {100 * right:.1f} on the report part)"
        )
    return files, "\n".join(lines)


def _jsonl(rows: Iterable[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(out: Path, language: str = "en") -> tuple[str, RowReport]:
    """Make the catalog in `out`, all of it or nothing.

    Returns:
        What was written, in a few lines, and how reading the index went.

    Raises:
        UnfitError: This system has no index to make it of.
    """
    check_tools()
    print("fetching the package index with apt, 16 MB for Debian 12", file=sys.stderr)
    report = RowReport()
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="apt-", dir=out) as work:
            files, told = build(Path(work), report, language)
        for name, content in files.items():
            (out / name).write_text(content, encoding="utf-8")
    except BaseException:
        if new:
            shutil.rmtree(out)
        raise
    return told, report


def main() -> int:
    parser = argparse.ArgumentParser(description="The debtags set out of this system's package index.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to write, made if missing")
    parser.add_argument(
        "--language", default="en", help="of the documents: fr, de, ru, ko, ...; labels stay English"
    )
    given = parser.parse_args()
    if not re.fullmatch(r"[a-z]{2,3}(_[A-Z]{2})?(@[a-z]+)?", given.language):
        parser.error(f"no language as Debian spells it (fr, de, pt_BR): {given.language!r}")
    try:
        told, report = write(given.out, given.language)
    except UnfitError as error:
        print(error, file=sys.stderr)
        return UNFIT
    print(told)
    if report.bad:
        print(f"package index: {report.summary()}", file=sys.stderr)
    return BAD_ROWS if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
