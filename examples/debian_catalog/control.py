"""Debian control files: stanzas of a package index, of its translations, and of the debtags vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ezxmc.data import RowError, RowReport

# How a package is built, not what it is about: no description tells whether a tag of these applies.
_FACETS = frozenset(
    {
        "implemented-in",
        "interface",
        "junior",
        "privacy",
        "role",
        "scope",
        "secteam",
        "special",
        "system",
        "uitoolkit",
    }
)
_TAGS = re.compile(
    r".*TODO|devel::(doc|ecma-cli|examples|library)|x11::(application|library)"
    r"|made-of::(audio|html|icons|info|man|pdf|postscript|sgml|svg|vrml|xml)"
)

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Package:
    """A tagged package of the index.

    Attributes:
        name: Its name; never shown to a model.
        source: The source package it is built from.
        title: The short description.
        text: The long one; empty where the index keeps it elsewhere.
        digest: Names the long description in the index's translations.
        tags: All its debtags.
        translated: Whether title and text are in the language asked for.
    """

    name: str
    source: str
    title: str
    text: str
    digest: str
    tags: frozenset[str]
    translated: bool = False


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of the vocabulary, its title with the facet's: "Purpose: Editing"."""

    uid: str
    title: str
    text: str


def read_stanzas(path: Path, parse: Callable[[dict[str, str]], _Item], report: RowReport) -> Iterator[_Item]:
    """What `parse` makes of each stanza of a Debian control file, the bad ones reported.

    Args:
        path: Stanzas with blank lines between; a line that begins with a space continues a field.
        parse: Gets the fields by lower-case name, continuation lines as they stand; raises `RowError`.
        report: Receives stanzas that `parse` refuses, that are not UTF-8 (`bad_utf8`), or that have a
            line outside any field or a field twice (`bad_stanza`).
    """
    for line, lines in _blocks(path):
        try:
            item = parse(_fields(lines))
        except RowError as error:
            report.add(path.name, line, error.kind, error.detail)
        else:
            report.kept += 1
            yield item


def _blocks(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    block: list[bytes] = []
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                block.append(line)
            elif block:
                yield number - len(block), block
                block = []
    if block:
        yield number + 1 - len(block), block


def _fields(lines: list[bytes]) -> dict[str, str]:
    fields: dict[str, list[str]] = {}
    name = ""
    for raw in lines:
        try:
            line = raw.decode().rstrip(" \t\r\n\v\f")
        except UnicodeDecodeError as error:
            raise RowError("bad_utf8", str(error)) from None
        if line[0] in " \t":
            if not name:
                raise RowError("bad_stanza", f"continues no field: {line[:80]!r}")
            fields[name].append(line)
            continue
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name in fields:
            raise RowError("bad_stanza", f"{'twice' if colon else 'no field'}: {line[:80]!r}")
        fields[name] = [value.strip()]
    return {name: "\n".join(values) for name, values in fields.items()}


def description(value: str) -> tuple[str, str]:
    """Short and long description of a control field: one space off each line, " ." is an empty one."""
    title, _, rest = value.partition("\n")
    lines = ("" if line.strip() == "." else line[1:] for line in rest.split("\n"))
    return title, "\n".join(lines).strip("\n")


def parse_package(fields: dict[str, str]) -> Package | None:
    """A stanza of a Packages file; None if it has no tags.

    Raises:
        RowError: It has no package name, or one with a space in it.
    """
    name = fields.get("package", "")
    if not re.fullmatch(r"\S+", name):
        raise RowError("no_uid", f"no name of a package: {name[:80]!r}")
    tags = frozenset(re.findall(r"[^\s,]+", fields.get("tag", "")))
    if not tags:
        return None
    source = fields.get("source", "").split()  # perhaps with a version in parentheses
    title, text = description(fields.get("description", ""))
    return Package(name, source[0] if source else name, title, text, fields.get("description-md5", ""), tags)


def parse_translation(fields: dict[str, str]) -> tuple[str, str, str, str]:
    """A stanza of a Translation file: digest, language, title, text.

    Raises:
        RowError: One of them is missing.
    """
    digest = fields.get("description-md5")
    for name, value in fields.items():
        if digest and value and (language := re.fullmatch(r"description-(?!md5$)(.+)", name)):
            return digest, language[1], *description(value)
    raise RowError("bad_stanza", f"no description of {fields.get('package', 'a package')!r}")


def parse_term(fields: dict[str, str]) -> tuple[str, str, str]:
    """A stanza of the vocabulary: name of a facet or tag, title, text.

    Raises:
        RowError: It is neither, or has no title.
    """
    name = fields.get("tag") or fields.get("facet")
    title, text = description(fields.get("description", ""))
    if not name:
        raise RowError("no_uid", "neither a facet nor a tag")
    if not title:
        raise RowError("no_title", name)
    return name, title, text


def read_packages(
    indexes: Sequence[Path], translations: Sequence[Path], report: RowReport, language: str = "en"
) -> list[Package]:
    """The tagged packages, each name once, with their long descriptions.

    Args:
        indexes: Packages files; of several entries of a name the first that has tags counts.
        translations: Translation files: of the language, and of English, which stands in for it.
        report: Receives bad stanzas.
        language: As apt spells it: "fr", "pt_BR".
    """
    found: dict[str, Package] = {}
    for path in indexes:
        for package in read_stanzas(path, parse_package, report):
            if package:
                found.setdefault(package.name, package)
    wanted = {package.digest for package in found.values()}
    told: dict[tuple[str, bool], tuple[str, str]] = {}
    for path in translations:
        for digest, spoken, title, text in read_stanzas(path, parse_translation, report):
            if digest in wanted:
                told[digest, spoken == language.lower()] = title, text
    packages = []
    for package in found.values():
        translated = (package.digest, True) in told
        english = package.title, package.text
        title, text = told.get((package.digest, translated), english)
        packages.append(replace(package, title=title, text=text, translated=translated))
    return packages


def decidable(tag: str) -> bool:
    """Whether a description can tell that this tag applies."""
    return tag.partition("::")[0] not in _FACETS and not _TAGS.fullmatch(tag)


def read_vocabulary(path: Path, report: RowReport) -> list[Tag]:
    """The decidable tags of the vocabulary, in its order."""
    terms = {name: (title, text) for name, title, text in read_stanzas(path, parse_term, report)}
    tags = []
    for name, (title, text) in terms.items():
        facet, colons, _ = name.partition("::")
        if not colons or not decidable(name):
            continue
        facet_title, facet_text = terms.get(facet, (facet, ""))
        told = re.sub(r"\s*^Link:.*$", "", text, flags=re.M)
        tags.append(Tag(name, f"{facet_title}: {title}", f"{told}\n{facet_text}".strip()))
    return tags
