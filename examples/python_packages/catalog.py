"""A real catalog with gold out of any Python environment.

    python catalog.py data

writes `data/documents.jsonl` (installed packages: summary and description),
`data/labels.jsonl` (Trove classifiers that a reader of the text could decide)
and `data/gold.tsv` (the classifiers each package's authors chose themselves).
Nothing is downloaded; everything is read from the environment it runs in.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

KINDS = ("Topic", "Framework", "Intended Audience")
LONGEST = 1500

# Classifiers that so large a share of the packages with any carry tell little apart, and a tagger that always
# answered them would look good: "Intended Audience :: Developers" alone is right for nine of ten.
COMMON = 0.1

# `Framework :: Django :: 4.2`: a version cannot be told from a description.
_VERSION = re.compile(r":: [\d.]+$")

_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, flags), by)
    for pattern, flags, by in (
        (r"<!--.*?-->", re.S, ""),
        (r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1", re.S | re.M, ""),  # fenced code
        (r"^\.\. .*\n(?:[ \t]+\S.*\n|[ \t]*\n(?=[ \t]+\S))*", re.M, ""),  # RST directives with their body
        (r"::[ \t]*\n(?:[ \t]*\n)+(?:[ \t]+\S.*\n|[ \t]*\n)+", 0, ":\n\n"),  # RST literal blocks
        (r"^[ \t]*(?:>>>|\$ ).*$", re.M, ""),  # sessions
        (r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])", 0, ""),  # Markdown images
        (r"\[\s*\](?:\([^)]*\)|\[[^\]]*\])", 0, ""),  # links left empty by them
        (r"\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])", 0, r"\1"),  # Markdown links
        (r"^ {0,3}\[[^\]]+\]:.*$", re.M, ""),  # Markdown link targets
        (r":[\w:+-]+:`([^`<]+?)(?:\s*<[^>]*>)?`", 0, r"\1"),  # RST roles
        (r"`([^`<]+?)\s*<[^>]+>`_{1,2}", 0, r"\1"),  # RST links
        (r"\|[\w .-]+\|(?:_{1,2})?", 0, ""),  # RST substitutions
        (r"</?[A-Za-z][^>]*>", re.S, ""),  # HTML tags, <https://...>
        (r"\bhttps?://\S+", 0, ""),
        (r"^[ \t]*([=\-~#*^\"'+_.:`|])\1{2,}[ \t]*$", re.M, ""),  # underlines and rules
        (r"^[ \t]*#+[ \t]*", re.M, ""),  # Markdown headings
        (r"`{1,2}([^`]*)`{1,2}_{0,2}", 0, r"\1"),  # inline code, RST references
        (r"\*\*|__", 0, ""),
        (r"(?<=\w)_(?=[\s.,;:)]|$)", 0, ""),  # RST references without quotes
        (r"[ \t]+", 0, " "),
        (r"^ +| +$|^ ?[-*|] ?$", re.M, ""),
        (r"\n{3,}", 0, "\n\n"),
    )
)


def clean(description: str, longest: int = LONGEST) -> str:
    """A README as plain prose: no badges, HTML, code blocks or addresses; at most `longest` characters."""
    text = description.replace("\r\n", "\n") + "\n"
    for pattern, by in _MARKUP:
        text = pattern.sub(by, text)
    text = text.strip()
    if len(text) > longest:
        text = text[:longest].rsplit(None, 1)[0]
    return text


def readable(classifier: str) -> str:
    """`Topic :: A :: B` as the models are shown it: `Topic: A: B`."""
    return classifier.replace(" :: ", ": ")


def labels() -> list[str]:
    """The Trove classifiers one can decide from a description, sorted."""
    try:
        from trove_classifiers import classifiers
    except ImportError:
        sys.exit("the label list is missing\n  cure: pip install trove-classifiers")
    return sorted(c for c in classifiers if c.split(" :: ")[0] in KINDS and not _VERSION.search(c))


def common(chosen: Iterable[set[str]]) -> list[str]:
    """The classifiers that more than `COMMON` of the packages with any carry, the most frequent first."""
    tagged = [each for each in chosen if each]
    used = Counter(classifier for each in tagged for classifier in sorted(each))
    return [classifier for classifier, count in used.most_common() if count > COMMON * len(tagged)]


def installed() -> Iterator[Distribution]:
    """Every distribution of this environment, those vendored inside another included; each name once."""
    vendored = [str(folder) for entry in sys.path for folder in sorted(Path(entry).glob("*/_vendor"))]
    seen: set[str] = set()
    for distribution in distributions(path=[*sys.path, *vendored]):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name not in seen:
            seen.add(name)
            yield distribution


def build(out: Path, min_chars: int) -> str:
    """Write the three files into `out`.

    Args:
        out: The folder, made if missing.
        min_chars: Packages whose cleaned text is shorter say too little to be tagged.

    Returns:
        What was written, in a few lines.
    """
    decidable = set(labels())
    documents: list[dict[str, str]] = []
    chosen: dict[str, set[str]] = {}
    short = 0
    for distribution in sorted(installed(), key=lambda d: d.metadata["Name"].lower()):
        meta = distribution.metadata
        title = (meta["Summary"] or "").strip()
        title = "" if title == "UNKNOWN" else title
        text = clean(meta.get("Description") or str(meta.get_payload() or ""))  # type: ignore[attr-defined]
        if len(title) + len(text) < min_chars:
            short += 1
            continue
        uid = meta["Name"]
        documents.append({"uid": uid, "title": title, "text": text or title})
        chosen[uid] = set(meta.get_all("Classifier") or []) & decidable

    left_out = common(chosen.values())
    names = sorted(decidable - set(left_out))
    gold = [(uid, classifier) for uid, its in chosen.items() for classifier in sorted(its - set(left_out))]
    out.mkdir(parents=True, exist_ok=True)
    _write_jsonl(out / "documents.jsonl", documents)
    _write_jsonl(out / "labels.jsonl", [{"uid": name, "title": readable(name)} for name in names])
    (out / "gold.tsv").write_text("".join(f"{uid}\t{label}\n" for uid, label in gold), encoding="utf-8")

    tagged = len({uid for uid, _ in gold})
    used = Counter(label for _, label in gold)
    lines = [
        f"{len(documents)} documents ({short} packages left out: under {min_chars} characters), "
        f"{len(names)} labels",
        f"gold: {len(gold)} pairs on {tagged} documents and {len(used)} labels",
    ]
    if left_out:
        lines.append(
            f"left out, as more than {COMMON:.0%} of the packages with any carry them: "
            + ", ".join(map(readable, left_out))
        )
    if used:
        label, count = used.most_common(1)[0]
        lines.append(
            f"to compare with: answering {readable(label)!r} to everything is right for "
            f"{count} of the {tagged} documents with gold (P@1 {100 * count / tagged:.1f})"
        )
    return "\n".join(lines)


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="A catalog with gold out of this Python environment.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to write, made if missing")
    parser.add_argument("--min-chars", type=int, default=80, help="shortest usable text (default 80)")
    arguments = parser.parse_args()
    print(build(arguments.out, arguments.min_chars))


if __name__ == "__main__":
    main()
