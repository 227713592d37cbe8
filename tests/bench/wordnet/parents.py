"""Give wordnet's labels their parents: the hypernyms that WordNet 3.0 itself states.

    python tests/bench/wordnet/parents.py DATA_NOUN LABELS OUT

DATA_NOUN is `data.noun` of WordNet 3.0 (Debian's package `wordnet-base` has it), LABELS the set's
labels.jsonl. OUT is the same with a `parent`. Labels' uids are synsets' places in DATA_NOUN, and titles their
words: where a title is another, nothing is written. Of several hypernyms that are labels the first is taken.
No gold is read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

_ABOVE = ("@", "@i")  # hypernym, class of an instance


def synsets(lines: Iterable[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Words and hypernyms by uid (see wndb(5WN) for the fields)."""
    found = {}
    for line in lines:
        if line.startswith(" "):
            continue  # licence
        fields = line.split(" | ")[0].split()
        words, pointers = int(fields[3], 16), fields[4:]
        names = [word.replace("_", " ") for word in pointers[: 2 * words : 2]]
        rest = pointers[2 * words + 1 :]
        above = [f"n{place}" for sign, place in zip(rest[::4], rest[1::4], strict=False) if sign in _ABOVE]
        found[f"n{fields[0]}"] = names, above
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("nouns", "labels", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    with args.nouns.open(encoding="utf-8") as lines:
        known = synsets(lines)
    rows = [json.loads(line) for line in args.labels.open(encoding="utf-8")]
    if other := [row["uid"] for row in rows if ", ".join(known.get(row["uid"], ([], []))[0]) != row["title"]]:
        raise SystemExit(f"{len(other)} of {len(rows)} labels are no synsets of {args.nouns}: {other[:5]}")
    uids, several = {row["uid"] for row in rows}, 0
    for row in rows:
        above = [uid for uid in known[row["uid"]][1] if uid in uids]
        several += len(above) > 1
        if above:
            row["parent"] = above[0]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    args.out.write_text(text, encoding="utf-8")
    parents = sum("parent" in row for row in rows)
    print(f"{parents:,} of {len(rows):,} labels have a parent among them; {several:,} have more than one")


if __name__ == "__main__":
    main()
