"""Folders of the public XMC benchmarks, read as they are published.

| texts                           | labels             | gold                      | read by                 |
|---------------------------------|--------------------|---------------------------|-------------------------|
| `trn.json.gz` `tst.json.gz`     | `lbl.json.gz`      | in the texts              | pyxclib, DEXA; unzipped |
|                                 |                    |                           | MACLR, LMTX             |
| `trn.raw.txt` `tst.raw.txt`     | `lbl.raw.txt`      | `trn_X_Y.txt`             | pyxclib, NGAME          |
| `raw/trn_X.txt` `raw/tst_X.txt` | `raw/Y.txt`        | `trn_X_Y.txt` `Y.trn.npz` | ELIAS, IRENE            |
| `X.trn.txt` `X.tst.txt`         | `output-items.txt` | `Y.trn.txt` `Y.trn.npz`   | PECOS                   |
| `train_raw_texts.txt`           | `label_map.txt`    | `Y.trn.txt` `Y.trn.npz`   | X-Transformer,          |
|                                 |                    |                           | CascadeXML              |
| the same, or `train_texts.txt`  | (none)             | `train_labels.txt`        | AttentionXML, LightXML  |

Any of them may be `.gz` or not. `filter_labels_train.txt` and `filter_labels_test.txt` may stand beside.
The files' forms are told in `xmc_files`. Labels known by name only have it for uid, and `_`
in it is shown as a space.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ezxmc.data.documents import document_of, iter_records
from ezxmc.data.xmc_files import (
    LABEL_FILES,
    PairFile,
    first_file,
    is_json,
    iter_gold,
    iter_names,
    label_columns,
    labels_at,
    targets,
    text_documents,
    uids_of,
)
from ezxmc.errors import DataError, RowReport
from ezxmc.files import check_file, json_line, replacing, sign, unchanged
from ezxmc.hashing import file_hash
from ezxmc.records import Document, Label, Result

# In order of preference; {0} is train or test, {1} trn or tst.
_SPLITS = {"train": "trn", "test": "tst"}
_TEXTS = ("{1}.json", "{1}.raw.txt", "raw/{1}_X.txt", "X.{1}.txt", "{0}_raw_texts.txt", "{0}_texts.txt")
_GOLD = ("{1}_X_Y.txt", "Y.{1}.txt", "Y.{1}.npz")
_NAMES = ("{0}_labels.txt",)
_KIND = "benchmark"  # what the manifest beside converted files says
_BREAKS = re.compile(r"[\t\r\n]")


@dataclass(frozen=True, slots=True)
class Example:
    """A document with its gold labels.

    Attributes:
        line: The document's line in its file, from 1.
        document: The document.
        labels: Uids of its labels, each once; `None` where the gold does not tell.
        filtered: Uids of labels to be left out of its evaluation.
    """

    line: int
    document: Document
    labels: tuple[str, ...] | None
    filtered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class XmcSplit:
    """The files of one split: texts, gold (`None`: in the texts, or none) and filtered pairs."""

    texts: Path
    gold: Path | None
    filtered: Path | None


@dataclass(slots=True)
class XmcRepo:
    """A benchmark's folder.

    Attributes:
        folder: Where it is.
        labels_file: The label file; `None` where the gold files name the labels.
        parts: The splits that are there, of "train" and "test".
        strict: Whether the first bad row raises.
        rows: How reading went, by file; texts with targets have a second account of these.
    """

    folder: Path
    labels_file: Path | None
    parts: dict[str, XmcSplit]
    strict: bool = False
    rows: dict[str, RowReport] = field(default_factory=dict)
    _columns: list[Label | None] | None = None

    @classmethod
    def find(cls, folder: str | Path, *, strict: bool = False) -> XmcRepo | None:
        """The benchmark in a folder; `None` if it holds no texts of any of the layouts.

        Raises:
            DataError: There are texts, but neither a label file nor labels by name.
        """
        base = Path(folder)
        labels_file = first_file(base, LABEL_FILES)
        parts: dict[str, XmcSplit] = {}
        for split, short in _SPLITS.items():

            def there(patterns: tuple[str, ...], names: tuple[str, str] = (split, short)) -> Path | None:
                return first_file(base, [pattern.format(*names) for pattern in patterns])

            if texts := there(_TEXTS):
                gold = None if is_json(texts) else there(_GOLD if labels_file else _NAMES)
                parts[split] = XmcSplit(texts, gold, there(("filter_labels_{0}.txt",)))
        if parts and labels_file is None and not any(part.gold for part in parts.values()):
            raise DataError(
                f"{base} holds texts of a benchmark, but no labels",
                f"add one of {', '.join(LABEL_FILES)}, or train_labels.txt; each also .gz",
            )
        return cls(base, labels_file, parts, strict) if parts else None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are there."""
        return tuple(self.parts)

    @property
    def files(self) -> list[Path]:
        """All files that are read."""
        named = (self.labels_file, *(f for p in self.parts.values() for f in (p.texts, p.gold, p.filtered)))
        return [file for file in named if file is not None]

    def labels(self) -> list[Label]:
        """All usable labels.

        Raises:
            DataError: The file cannot be read, or a row is bad and the folder is read strictly.
        """
        return [label for label in self._by_number() if label is not None]

    def examples(self, split: str) -> Iterator[Example]:
        """Stream a split's documents; in memory are the labels, and pairs to filter.

        What cannot be used is told in `rows`. In gold and filter files these count pairs of document and
        label: numbers without a usable label (`unknown_label`), filtered pairs without a usable document
        (`unknown_document`), and more or fewer rows of gold than of texts (`row_count`).

        Raises:
            DataError: As for `labels`.
        """
        part = self.parts[split]
        uids = uids_of(self._by_number())
        rows = (
            self._json_rows(part.texts, uids) if is_json(part.texts) else self._line_rows(split, part, uids)
        )
        if part.filtered is None:
            yield from (Example(row + 1, document, labels) for row, document, labels in rows)
            return
        report = self._account(part.filtered)
        pairs = PairFile(part.filtered, report)
        for row, document, labels in rows:
            filtered: list[str] = []
            for column, line in pairs.take(row):
                filtered += labels_at([column], uids, pairs.file, line, report)
            report.kept += len(filtered)
            yield Example(row + 1, document, labels, tuple(filtered))
        for row, line in pairs.left():
            report.add(pairs.file, line, "unknown_document", f"no usable document has the number {row}")

    def _account(self, file: Path, of: str = "") -> RowReport:
        self.rows[f"{file.relative_to(self.folder)}{of}"] = report = RowReport(strict=self.strict)
        return report

    def _by_number(self) -> list[Label | None]:
        if self._columns is None:
            if self.labels_file:
                self._columns = label_columns(self.labels_file, self._account(self.labels_file))
            else:
                # What is wrong with these files is told when the documents are read.
                gold = (part.gold for part in self.parts.values() if part.gold)
                names = {
                    one for file in gold for *_, row in iter_names(file, RowReport()) for one in row or ()
                }
                self._columns = [Label(name, name.replace("_", " ")) for name in sorted(names)]
        return self._columns

    @staticmethod
    def _kept(labels: list[str] | None, report: RowReport) -> tuple[str, ...] | None:
        """Labels each once, counted as pairs that are used."""
        if labels is None:
            return None
        found = tuple(dict.fromkeys(labels))
        report.kept += len(found)
        return found

    def _json_rows(
        self, file: Path, uids: list[str | None]
    ) -> Iterator[tuple[int, Document, tuple[str, ...] | None]]:
        report, about = self._account(file), self._account(file, ": targets")
        for name, line, row, document in iter_records(file, report, document_of):
            yield line - 1, document, self._kept(targets(row, uids, name, line, about), about)

    def _line_rows(
        self, split: str, part: XmcSplit, uids: list[str | None]
    ) -> Iterator[tuple[int, Document, tuple[str, ...] | None]]:
        texts = text_documents(part.texts, split, self._account(part.texts))
        if part.gold is None:
            yield from ((row, document, None) for row, document in texts if document)
            return
        report = self._account(part.gold)
        gold = self._gold_rows(part.gold, uids, report)
        # Rows may be missing on either side: those that are not UTF-8.
        ahead = next(gold, None)
        row = gold_end = -1
        for row, document in texts:
            while ahead and ahead[0] < row:
                ahead = next(gold, None)
            gold_end = ahead[0] if ahead else gold_end
            if document:
                yield row, document, ahead[1] if ahead and ahead[0] == row else None
        gold_end = max([gold_end, *(number for number, _ in gold)])
        if gold_end != row:
            detail = f"labels of {gold_end + 1:,} rows where {part.texts.name} has {row + 1:,} documents"
            report.add(str(part.gold), gold_end + 1, "row_count", detail)

    def _gold_rows(
        self, file: Path, uids: list[str | None], report: RowReport
    ) -> Iterator[tuple[int, tuple[str, ...] | None]]:
        numbered = iter_gold(file, report) if self.labels_file else ()
        named = () if self.labels_file else iter_names(file, report)
        for row, _, names in named:
            yield row, self._kept(names, report)
        for row, line, columns in numbered:
            found = None if columns is None else labels_at(columns, uids, str(file), line, report)
            yield row, self._kept(found, report)


@dataclass(frozen=True, slots=True)
class Converted(Result):
    """What `convert` wrote of one split: documents, those without labels, gold pairs, filtered pairs."""

    documents: int
    without_labels: int
    pairs: int
    filtered: int


def convert(repo: XmcRepo, out: str | Path) -> dict[str, Converted]:
    """Write a benchmark as this package's own files, streaming.

    `labels.jsonl`, and per split `train.jsonl` (uid, title, text), `train_gold.tsv` and, where there are
    filtered pairs, `train_filter.tsv` (document uid TAB label uid, below a header line). A document without
    labels has no line in the gold file.

    Args:
        repo: Where from; its `rows` tell what was left out. A document with a tab or line break in its uid
            or in a label's does not fit (`bad_uid`).
        out: The folder, made if absent. Files of a former call are replaced; `ezxmc.json` tells them.

    Returns:
        Counts by split.

    Raises:
        ConfigError: As for `check_converted`.
        DataError: As for `XmcRepo.labels`, or no label is usable.
    """
    folder = Path(out)
    names = ["labels.jsonl", *(name for split in repo.splits for name in _names(repo, split))]
    check_converted(folder, names, repo.files)
    labels = repo.labels()
    if not labels:
        raise DataError(f"{repo.folder} holds no usable label", "see examples/benchmarks")
    # All files are written before the first one takes its place.
    with ExitStack() as stack:
        fresh = {name: stack.enter_context(replacing(folder / name)) for name in names}
        with fresh["labels.jsonl"].open("wb") as file:
            rows = ({"uid": label.uid, "title": label.title, "text": label.text} for label in labels)
            file.writelines(map(json_line, rows))
        written = {split: _convert_split(repo, split, fresh) for split in repo.splits}
        check_converted(folder, names, repo.files)
        sign(folder, _KIND, {name: file_hash(path) for name, path in fresh.items()})
    return written


def _names(repo: XmcRepo, split: str) -> list[str]:
    filtered = [f"{split}_filter.tsv"] if repo.parts[split].filtered else []
    return [f"{split}.jsonl", f"{split}_gold.tsv", *filtered]


def check_converted(folder: Path, names: Iterable[str], inputs: Sequence[Path]) -> None:
    """Whether files may be written that `convert` writes: those of a former call may be replaced.

    Raises:
        ConfigError: One is there that is no former call's, or that was changed since; or it is an input.
    """
    own = unchanged(folder, _KIND) or ()

    for name in names:

        def made(_: Path, name: str = name) -> bool:
            return name in own

        check_file(folder / name, "a converted benchmark file", made=made, inputs=inputs)


def _convert_split(repo: XmcRepo, split: str, fresh: Mapping[str, Path]) -> Converted:
    documents = without = pairs = filtered = 0
    part = repo.parts[split]
    report = RowReport(strict=repo.strict)
    with ExitStack() as stack:
        texts, *tables = (
            stack.enter_context(fresh[name].open("w", encoding="utf-8", newline="\n"))
            for name in _names(repo, split)
        )
        for table in tables:
            table.write("doc\tlabel\n")
        for example in repo.examples(split):
            document = example.document
            columns = (example.labels or (), example.filtered)
            if any(map(_BREAKS.search, (document.uid, *columns[0], *columns[1]))):
                detail = f"tab or line break in {reprlib.repr(document.uid)} or in a uid of its labels"
                report.add(str(part.texts), example.line, "bad_uid", detail)
                continue
            row = {"uid": document.uid, "title": document.title, "text": document.text}
            texts.write(json_line(row).decode())
            for table, labels in zip(tables, columns, strict=False):
                table.writelines(f"{document.uid}\t{label}\n" for label in labels)
            report.kept += 1
            documents += 1
            without += not columns[0]
            pairs += len(columns[0])
            filtered += len(columns[1])
    repo.rows[f"{split}, written"] = report
    return Converted(documents, without, pairs, filtered)
