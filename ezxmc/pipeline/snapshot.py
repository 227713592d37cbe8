"""What has changed in a catalog since a run: by uid and content, whatever order the rows are in.

A run leaves `catalog.jsonl`: the split's settings, then a row a document (`document`, `hash`; `placed_by`
where another document of its text decides its part) and a row a label (`label`, `title`, `rest`: a hash of
what else is known of it). A text that comes back under another uid carries the uids it was asked about before
(`also`), so that its judgments are found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ezxmc.data.catalog import Catalog, Places
from ezxmc.errors import DataError
from ezxmc.hashing import text_hash
from ezxmc.records import Document, Label

CATALOG = "catalog.jsonl"
"""Name of the file in a run directory."""


@dataclass(slots=True)
class Snapshot:
    """A catalog as a run saw it.

    Attributes:
        seed: Of the split.
        held_out: Share set apart.
        documents: Content hash by uid.
        labels: Title and hash of the rest, by uid.
        also: By uid of a document, other uids its text was asked about under.
        labels_also: The same of labels.
        placed_by: By uid of a document that another one of its text placed, the other's uid.
    """

    seed: int
    held_out: float
    documents: dict[str, str] = field(default_factory=dict)
    labels: dict[str, tuple[str, str]] = field(default_factory=dict)
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labels_also: dict[str, tuple[str, ...]] = field(default_factory=dict)
    placed_by: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, catalog: Catalog, seed: int, held_out: float, former: Snapshot | None = None) -> Snapshot:
        """Of a catalog as it is now, with what a former snapshot knows of renamed uids."""
        documents = {document.uid: content(document) for document in catalog.documents}
        labels = {label.uid: label_content(label) for label in catalog.labels}
        found = cls(seed, held_out, documents, labels, placed_by=dict(catalog.placed_by))
        if former:
            titles = {uid: title for uid, (title, _) in labels.items()}
            known = {uid: title for uid, (title, _) in former.labels.items()}
            found.also = _also(documents, former.documents, former.also)
            found.labels_also = _also(titles, known, former.labels_also)
        return found

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Read what `rows` wrote.

        Raises:
            DataError: The file is missing or damaged.
        """
        try:
            with path.open(encoding="utf-8") as lines:
                head = json.loads(next(lines))
                found = cls(int(head["seed"]), float(head["held_out"]))
                for row in map(json.loads, lines):
                    found._add(row)
        except FileNotFoundError:
            raise DataError(
                f"{path} is missing: nothing tells what the run has seen",
                "finish the run with `ezxmc run CONFIG`, on the catalog as it was; what is judged is not "
                "asked again",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, OSError) as error:
            raise DataError(f"{path} is damaged: {error}", "finish the run again with `ezxmc run`") from None
        return found

    def _add(self, row: dict[str, Any]) -> None:
        uid = row.get("document")
        if uid is not None:
            self.documents[uid] = row["hash"]
            if "placed_by" in row:
                self.placed_by[uid] = row["placed_by"]
            also = self.also
        else:
            uid = row["label"]
            self.labels[uid] = row["title"], row["rest"]
            also = self.labels_also
        if "also" in row:
            also[uid] = tuple(row["also"])

    def rows(self) -> Iterator[dict[str, Any]]:
        """JSON lines of `catalog.jsonl`."""
        yield {"seed": self.seed, "held_out": self.held_out}
        for uid, shown in self.documents.items():
            more: dict[str, Any] = {"also": self.also[uid]} if uid in self.also else {}
            if uid in self.placed_by:
                more["placed_by"] = self.placed_by[uid]
            yield {"document": uid, "hash": shown, **more}
        for uid, (title, rest) in self.labels.items():
            more = {"also": self.labels_also[uid]} if uid in self.labels_also else {}
            yield {"label": uid, "title": title, "rest": rest, **more}

    @classmethod
    def places(cls, run_dir: Path) -> Places:
        """What decides the parts of the documents that a run has seen; nothing where none was finished.

        Raises:
            DataError: The run's `catalog.jsonl` is damaged.
        """
        file = run_dir / CATALOG
        return cls.load(file).placing if file.exists() else {}

    @property
    def placing(self) -> Places:
        """By uid of a document: the hash of its text, and the uid that placed it."""
        return {uid: (shown, self.placed_by.get(uid, uid)) for uid, shown in self.documents.items()}

    @property
    def hash(self) -> str:
        """Tells it from any other."""
        return text_hash(*map(json.dumps, self.rows()))


@dataclass(frozen=True, slots=True)
class Changes:
    """What is not as it was. Documents and labels of the catalog by position, gone ones by uid.

    Attributes:
        new: Documents whose uid and text are new.
        edited: Documents of a known uid with another text.
        moved: Documents of a known text under a new uid.
        gone: Documents that are neither there nor moved.
        new_labels: Labels whose uid and title are new.
        renamed_labels: Labels of a known uid with another title.
        described_labels: Labels of which only description, aliases or parent changed.
        moved_labels: Labels of a known title under a new uid.
        gone_labels: Labels that are neither there nor moved.
    """

    new: list[int] = field(default_factory=list)
    edited: list[int] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    new_labels: list[int] = field(default_factory=list)
    renamed_labels: list[int] = field(default_factory=list)
    described_labels: list[int] = field(default_factory=list)
    moved_labels: list[int] = field(default_factory=list)
    gone_labels: list[str] = field(default_factory=list)

    @classmethod
    def between(cls, former: Snapshot, catalog: Catalog) -> Changes:
        """From a snapshot to a catalog."""
        texts = set(former.documents.values())
        titles = {uid: title for uid, (title, _) in former.labels.items()}
        known = set(titles.values())
        now = {document.uid: content(document) for document in catalog.documents}
        there = {label.uid: label.title for label in catalog.labels}
        found = cls(gone=_gone(former.documents, now), gone_labels=_gone(titles, there))
        for row, (uid, shown) in enumerate(now.items()):
            if uid not in former.documents:
                (found.moved if shown in texts else found.new).append(row)
            elif former.documents[uid] != shown:
                found.edited.append(row)
        for row, label in enumerate(catalog.labels):
            if label.uid not in titles:
                (found.moved_labels if label.title in known else found.new_labels).append(row)
            elif titles[label.uid] != label.title:
                found.renamed_labels.append(row)
            elif former.labels[label.uid] != label_content(label):
                found.described_labels.append(row)
        return found

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {
            "new documents": len(self.new),
            "edited documents": len(self.edited),
            "known texts under another uid": len(self.moved),
            "removed documents": len(self.gone),
            "new labels": len(self.new_labels),
            "renamed labels": len(self.renamed_labels),
            "labels described otherwise": len(self.described_labels),
            "known titles under another uid": len(self.moved_labels),
            "removed labels": len(self.gone_labels),
        }

    @property
    def any(self) -> bool:
        """Whether there is any change."""
        return any(self.counts().values())

    @property
    def unseen(self) -> list[int]:
        """Documents no teacher has seen as they are."""
        return sorted([*self.new, *self.edited])

    @property
    def unseen_labels(self) -> list[int]:
        """Labels no teacher has seen as they are."""
        return sorted([*self.new_labels, *self.renamed_labels])


def content(document: Document) -> str:
    """Hash of what the models see of a document."""
    return text_hash(document.shown)


def label_content(label: Label) -> tuple[str, str]:
    """Title, and hash of what else is known of a label."""
    return label.title, text_hash(label.text, label.parent or "", *label.aliases)


def _gone(former: dict[str, str], now: dict[str, str]) -> list[str]:
    known = set(now.values())
    return [uid for uid, held in former.items() if uid not in now and held not in known]


def _also(
    now: dict[str, str], former: dict[str, str], known: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Other uids each content was asked about under."""
    names: dict[str, list[str]] = {}
    for uid, held in former.items():
        names.setdefault(held, []).extend((uid, *known.get(uid, ())))
    found = {
        uid: tuple(dict.fromkeys(n for n in names.get(held, ()) if n != uid)) for uid, held in now.items()
    }
    return {uid: also for uid, also in found.items() if also}
