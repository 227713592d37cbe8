"""What a source is, and its lines as text, whatever it is packed and encoded in.

A source is a file, several by a pattern (`shards/*.parquet`) or a folder of files of one format, a folder
written by `save_to_disk`, a hub id, or "-".

Text is UTF-8 unless the file shows that it is not: UTF-16 and UTF-32 by their mark or their zeros; an 8-bit
encoding (Latin-1, cp1252 and the like) where a line is no UTF-8 and no other line is UTF-8 beyond ASCII.
gzip, bzip2 and xz are known by their first bytes. What is not as the name says goes into the report's notes.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import io
import lzma
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from ezxmc.errors import DataError, RowReport

JSON = (".jsonl", ".ndjson", ".json")
FIELDS = (".csv", ".tsv")
SUPPORTED = (
    "use .jsonl, .csv, .tsv, .txt (each also .gz, .bz2, .xz), .parquet, .xlsx, several of one kind by a "
    "pattern or in a folder, a `datasets` folder, a hub id `org/name`, "
    'or "-" for JSON lines from standard input'
)
_KNOWN = (*JSON, *FIELDS, ".txt", ".parquet", ".xlsx")
_PACKED = (".gz", ".bz2", ".xz")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_HEAD = 4_096  # bytes that tell how a file is encoded
_DOUBTFUL = 65_536  # bytes in doubt that decide on an 8-bit encoding
# By how many people write them; the first that fits wins where the text does not tell.
_ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257"),
    *("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr", "koi8_r", "mac_roman"),
)
# A letter beyond ASCII in a word: a stray byte is no encoding.
_WORD = re.compile(r"[A-Za-z][^\W\d_a-zA-Z]|[^\W\d_a-zA-Z][A-Za-z]|[^\W\d_a-zA-Z]{3}")
_NOT_READ = {
    b"PK\x03\x04": ("a zip archive or a workbook", "name a workbook .xlsx, or unpack the archive"),
    b"\xd0\xcf\x11\xe0": ("a workbook of an old Excel (.xls)", "save it as .xlsx or .csv"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it with `zstd -d`"),
    b"PAR1": ("Parquet", "name it .parquet"),
}


def source_kind(source: str | Path) -> str:
    """The format of a source: a suffix without `.gz`, "folder" (of `datasets`) or "hub".

    Raises:
        DataError: There is no such source, or its format is not supported.
    """
    return locate(source)[0]


def locate(source: str | Path) -> tuple[str, list[str]]:
    """The format of a source as of `source_kind`, and its files in order of their names.

    Raises:
        DataError: As for `source_kind`, or several files are of more than one format.
    """
    name = str(source)
    path = Path(name)
    if name == "-":
        return ".jsonl", [name]
    kind = _kind(name)
    if path.is_dir():
        if any((path / mark).is_file() for mark in ("dataset_dict.json", "dataset_info.json")):
            return "folder", [name]
        files = sorted(str(one) for one in path.iterdir() if one.is_file() and one.name[0] not in "._")
        files = [file for file in files if _kind(file)]
        if not files:
            raise DataError(f"{name} is a folder, but not one written by `save_to_disk`", SUPPORTED)
        return _of_one_kind(name, files)
    if path.exists():
        if not kind:
            raise DataError(f"{name} is of no supported format", SUPPORTED)
        return kind, [name]
    # `Path.glob` takes no absolute pattern.
    if glob.has_magic(name) and (files := sorted(glob.glob(name, recursive=True))):  # noqa: PTH207
        files = [file for file in files if Path(file).is_file()]
        if unknown := [file for file in files if not _kind(file)]:
            raise DataError(f"{unknown[0]} is of no supported format", SUPPORTED)
        return _of_one_kind(name, files)
    if not kind and _HUB_ID.fullmatch(name):
        return "hub", [name]
    raise DataError(f"no file at {name}", "check the path; relative paths start at the working directory")


def _of_one_kind(name: str, files: list[str]) -> tuple[str, list[str]]:
    kinds = Counter(map(_kind, files))
    if len(kinds) > 1:
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise DataError(
            f"{name} holds files of several formats ({found})",
            f"name one file, or those of one format: '{Path(files[0]).parent}/*{_kind(files[0])}'",
        )
    return next(iter(kinds)), files


def _kind(name: str) -> str:
    bare, packed = name, False
    for suffix in _PACKED:
        if name.lower().endswith(suffix):
            bare, packed = name[: -len(suffix)], True
    suffix = Path(bare).suffix.lower()
    return suffix if suffix in _KNOWN and not (packed and suffix in (".parquet", ".xlsx")) else ""


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes."""
    try:
        with path.open("rb") as handle:
            return _unpacker(handle.read(16)) is not None
    except OSError:
        return False


def _unpacker(head: bytes) -> Any:
    if head.startswith(b"\x1f\x8b"):
        return gzip.open
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return bz2.open
    return lzma.open if head.startswith(b"\xfd7zXZ\x00") else None


class Lines:
    """The lines of one text file, numbered from 1, with their line ends.

    Args:
        name: A path, or "-".
        report: Receives notes on what is not as the name says.
        old_mac: Whether a file without any line feed has its lines end at CR.

    Attributes:
        broken: Numbers of the lines that cannot be decoded, and why; in their text, bytes that are not are
            lone surrogates.

    Raises:
        DataError: While reading: the file cannot be read to its end.
    """

    def __init__(self, name: str, report: RowReport, *, old_mac: bool = False) -> None:
        self.broken: dict[int, str] = {}
        self._name, self._report, self._old_mac = name, report, old_mac
        self._other: str | None = None
        self._doubted = False

    def __iter__(self) -> Iterator[tuple[int, str]]:
        try:
            with self._open() as handle:
                for number, raw in enumerate(self._raw(handle), start=1):
                    try:
                        text = raw.decode()
                    except UnicodeDecodeError as error:
                        text = self._rescue(number, raw, error)
                    yield number, text if number > 1 else text.removeprefix("\ufeff")
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"{self._name} cannot be read to its end: {error}", "fetch or write the file again"
            ) from None

    def _open(self) -> IO[bytes]:
        if self._name == "-":
            stream: Any = sys.stdin.buffer
            unpack = _unpacker(stream.peek(16)) if hasattr(stream, "peek") else None
            opened: Any = unpack(stream, "rb") if unpack else _Borrowed(stream)
            return cast(IO[bytes], opened)
        plain = Path(self._name).open("rb")  # noqa: SIM115  (whoever iterates closes it)
        head = plain.peek(16)[:16]
        named = self._name.lower().endswith(_PACKED)
        if unpack := _unpacker(head):
            if not named:
                self._report.note(f"{self._name} is compressed, though not by its name: unpacked")
            unpacked: IO[bytes] = unpack(plain, "rb")
            return unpacked
        for magic, (what, cure) in _NOT_READ.items():
            if head.startswith(magic):
                plain.close()
                raise DataError(f"{self._name} is {what}, whatever its name says", cure)
        if named:
            self._report.note(f"{self._name} is not compressed, whatever its name says: read as it is")
        return plain

    def _raw(self, handle: IO[bytes]) -> Iterator[bytes]:
        """Lines of UTF-8, or of what is to be found out."""
        peek = getattr(handle, "peek", None)
        head = peek(_HEAD)[:_HEAD] if peek else b""
        if encoding := _wide(head):
            self._report.note(f"{self._name} is {encoding.upper()}, not UTF-8: read as that")
            wide = io.TextIOWrapper(handle, encoding=encoding, newline="\n")
            try:
                yield from (line.encode("utf-8", "surrogatepass") for line in wide)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self._name} is no whole {encoding.upper()}: {error.reason}", "save it as UTF-8 again"
                ) from None
        elif self._old_mac and b"\r" in head and b"\n" not in head:
            yield from (line.encode("latin-1") for line in io.TextIOWrapper(handle, encoding="latin-1"))
        else:
            yield from handle

    def _rescue(self, number: int, raw: bytes, error: UnicodeDecodeError) -> str:
        """A line that is no UTF-8, in the file's encoding if that is another."""
        if not self._doubted:
            self._doubted = True
            self._other = self._encoding()
        if self._other:
            try:
                return raw.decode(self._other)
            except UnicodeDecodeError as other:
                error = other
        self.broken[number] = f"byte {error.start + 1} of the line: {error.reason}"
        return raw.decode("utf-8", "surrogateescape")

    def _encoding(self) -> str | None:
        """The 8-bit encoding of a file; `None` where some of its lines are UTF-8 beyond ASCII."""
        if not Path(self._name).is_file():
            return None
        doubtful: list[bytes] = []
        size = 0
        with self._open() as handle:
            for raw in handle:
                if raw.isascii():
                    continue
                try:
                    raw.decode()
                except UnicodeDecodeError:
                    doubtful.append(raw)
                    size += len(raw)
                    if size > _DOUBTFUL:
                        break
                    continue
                self._report.note(
                    f"{self._name} mixes UTF-8 with another encoding: rows that are no UTF-8 are left out; "
                    "`iconv -f cp1252 -t utf-8` mends a part of a file"
                )
                return None
        encoding = _likely(b"".join(doubtful))
        if encoding:
            self._report.note(
                f"{self._name} is not UTF-8: read as {encoding}; if letters look wrong, save it as UTF-8"
            )
        return encoding


class _Borrowed(io.RawIOBase):
    """A stream that stays open."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.peek = getattr(stream, "peek", lambda size: b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._stream.readinto(buffer))

    def __next__(self) -> bytes:
        line: bytes = self._stream.readline()
        if not line:
            raise StopIteration
        return line


def _wide(head: bytes) -> str | None:
    """The encoding of a text of 16 or 32 bits a character; `None` if it is none."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return encoding
    half = len(head) // 2
    if half < 4:
        return None
    even, odd = head[: 2 * half : 2].count(0), head[1 : 2 * half : 2].count(0)
    # Of Latin letters, digits and blanks every second byte is 0.
    if odd > 0.6 * half and not even:
        return "utf-16-le"
    return "utf-16-be" if even > 0.6 * half and not odd else None


def _likely(text: bytes) -> str | None:
    from charset_normalizer import from_bytes

    # Of a few words nothing can be told: then what most such files are in.
    best = from_bytes(text, cp_isolation=list(_ENCODINGS)).best() if len(text) > 200 else None
    for encoding in ([best.encoding] if best else []) + ["cp1252", "latin_1"]:
        try:
            found = text.decode(encoding)
        except UnicodeDecodeError:
            continue
        if _WORD.search(found):
            return encoding
    return None


def iter_lines(
    source: str | Path, report: RowReport, *, blank: bool = False
) -> Iterator[tuple[str, int, str]]:
    """Stream the lines of a text file, without outer spaces.

    Args:
        source: A path, or "-".
        report: Receives lines that cannot be decoded (`bad_utf8`).
        blank: Whether blank lines are yielded, too.

    Yields:
        `(file, line, text)`, the line counted from 1, blank and bad ones included.

    Raises:
        DataError: The file cannot be read to its end.
    """
    file = "<stdin>" if str(source) == "-" else str(source)
    lines = Lines(str(source), report)
    broken = lines.broken
    for line, text in lines:
        if broken and line in broken:
            report.add(file, line, "bad_utf8", broken.pop(line))
            continue
        text = text.strip()
        if text[:1] == "\ufeff":  # of the second of two files put together
            text = text[1:].strip()
        if text or blank:
            yield file, line, text
