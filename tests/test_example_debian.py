"""The Debian example: stanzas, near-duplicates, the split, apt in a folder of its own, and other systems."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ezxmc.config import RunConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.data import RowReport, read_documents, read_gold, read_labels, split_documents

EXAMPLE = Path(__file__).parents[1] / "examples" / "debian_catalog"
sys.path.insert(0, str(EXAMPLE))
try:
    import catalog
    import control
    from control import Package
finally:
    sys.path.remove(str(EXAMPLE))
    # `catalog` is the name of another example's module too.
    sys.modules.pop("catalog")

PACKAGES = b"""\
Package: alpha
Version: 1
Source: greek (1.0-2)
Description: letter editor
Description-md5: aaa
Tag: role::program, use::editing,
 works-with::text, privacy::tracking

Package: untagged
Description: nothing known

Tag: use::editing
Description: no name

Package: broken
this line is no field
Tag: use::editing

 continues nothing
Package: orphan

Package: twice
Package: again

Package: two words

Package: latin
Description: caf\xe9

Package: beta
Description: inline letters
 First line.
 .
  verbatim line
Tag: use::editing,use::viewing
"""

TRANSLATION = """\
Package: alpha
Description-md5: aaa
Description-en: letter editor, translated
 Edits letters.
 .
 And words.

Package: damaged
Description-en: no digest
"""

VOCABULARY = """\
Facet: use
Description: Purpose
 The general purpose of the software

Tag: use::editing
Description: Editing

Tag: use::viewing
Description: Data Visualization
 Shows data.
 .
 Link: http://example.org/

Tag: use::TODO
Description: Need an extra tag

Facet: role
Description: Role

Tag: role::program
Description: Program

Facet: works-with
Description: Works with

Tag: works-with::text
Description: Text

Tag: devel::library
Description: Libraries

Description: neither

Tag: use::untitled
"""


def package(name: str, source: str = "", text: str = "", tags: str = "use::editing use::viewing") -> Package:
    return Package(name, source or name, name, text, "", frozenset(tags.split()))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def do(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return do


def test_packages_and_translations(write: Callable[[str, str | bytes], Path]) -> None:
    report = RowReport()
    again = b"Package: alpha\nDescription: newer\n\nPackage: beta\nDescription: newer\nTag: use::editing\n"
    found = control.read_packages(
        [write("Packages", PACKAGES), write("More", again)], [write("Translation-en", TRANSLATION)], report
    )
    alpha, beta = found
    assert (alpha.name, alpha.source) == ("alpha", "greek")
    assert (alpha.title, alpha.text) == ("letter editor, translated", "Edits letters.\n\nAnd words.")
    assert alpha.tags == {"role::program", "use::editing", "works-with::text", "privacy::tracking"}
    assert (beta.name, beta.source, beta.title) == ("beta", "beta", "inline letters")
    assert beta.text == "First line.\n\n verbatim line"
    assert beta.tags == {"use::editing", "use::viewing"}
    lines = PACKAGES.decode("latin-1").split("\n")
    at = [
        lines.index(first) + 1
        for first in ("Tag: use::editing", "Package: broken", " continues nothing", "Package: twice")
    ]
    assert [(problem.file, problem.line, problem.kind) for problem in report.problems] == [
        ("Packages", at[0], "no_uid"),
        ("Packages", at[1], "bad_stanza"),
        ("Packages", at[2], "bad_stanza"),
        ("Packages", at[3], "bad_stanza"),
        ("Packages", lines.index("Package: two words") + 1, "no_uid"),
        ("Packages", lines.index("Package: latin") + 1, "bad_utf8"),
        ("Translation-en", TRANSLATION.split("\n").index("Package: damaged") + 1, "bad_stanza"),
    ]
    assert report.kept == 3 + 2 + 1


def test_vocabulary_keeps_what_a_text_can_tell(write: Callable[[str, str | bytes], Path]) -> None:
    report = RowReport()
    tags = control.read_vocabulary(write("vocabulary", VOCABULARY), report)
    assert [(tag.uid, tag.title, tag.text) for tag in tags] == [
        ("use::editing", "Purpose: Editing", "The general purpose of the software"),
        (
            "use::viewing",
            "Purpose: Data Visualization",
            "Shows data.\nThe general purpose of the software",
        ),
        ("works-with::text", "Works with: Text", ""),
    ]
    assert sorted(report.counts.items()) == [("no_title", 1), ("no_uid", 1)]


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
STANZA = st.lists(
    st.tuples(NAMES, VALUES, st.lists(VALUES, max_size=3)),
    min_size=1,
    max_size=4,
    unique_by=lambda field: field[0].lower(),
)


@given(st.lists(st.tuples(STANZA, st.integers(1, 3)), max_size=5))
def test_stanzas_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, stanzas: list) -> None:
    path = tmp_path_factory.mktemp("control") / "file"
    path.write_text(
        "".join(
            "".join(
                f"{name}: {value}\n" + "".join(f" {more}\n" for more in rest) for name, value, rest in fields
            )
            + "\n" * blank
            for fields, blank in stanzas
        ),
        encoding="utf-8",
        newline="\n",
    )
    report = RowReport()
    assert list(control.read_stanzas(path, dict, report)) == [
        {name.lower(): "\n".join([value, *(f" {more}" for more in rest)]) for name, value, rest in fields}
        for fields, _ in stanzas
    ]
    assert (report.kept, report.bad) == (len(stanzas), 0)


@given(st.binary(max_size=200))
@example(b"\x1c\n")
@example("a: b\n\xa0\n".encode())
def test_any_bytes_are_counted_and_never_fatal(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("control") / "file"
    path.write_bytes(raw)
    report = RowReport()
    kept = list(control.read_stanzas(path, control.parse_term, report))
    blocks = [block for block in re.split(rb"(?:(?<=\n)|\A)[ \t\r\f\v]*(?:\n|\Z)", raw) if block.strip()]
    assert len(kept) == report.kept and report.rows == len(blocks)


WORDS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=14).map(" ".join)


@given(st.lists(st.tuples(WORDS, st.sampled_from("xyz")), max_size=12))
def test_no_two_that_stay_are_near_and_each_left_out_is_near_one(texts: list[tuple[str, str]]) -> None:
    packages = [
        Package(str(place), source, "", text * 20, "", frozenset())
        for place, (text, source) in enumerate(texts)
    ]

    def words(each: Package) -> set[tuple[str, ...]]:
        split = each.text.split()
        return {tuple(split[i : i + 3]) for i in range(max(1, len(split) - 2))}

    def near(one: Package, other: Package) -> bool:
        a, b = words(one), words(other)
        start = one.source == other.source and len(one.text) >= 200 and one.text[:200] == other.text[:200]
        return start or len(a & b) / len(a | b) >= 0.6 - 1e-12

    expected: list[Package] = []
    for each in packages:
        if not any(near(each, other) for other in expected):
            expected.append(each)
    assert catalog.distinct(packages) == expected


def test_near_duplicates_by_example() -> None:
    story = "A program that draws maps of the world from open data and prints them on large sheets of paper."
    other = "Reads letters aloud in the evening, and counts the sheep behind the third hill when asked."
    same = package("same", text=story.upper())
    longer = package("longer", text=story + " Documentation.")
    start = "x" * 100 + " " + "y" * 100
    one_source = [package(f"p{n}", "source", f"{start} {text}") for n, text in enumerate((story, other))]
    sources = [package(f"q{n}", f"s{n}", f"{start} {text}") for n, text in enumerate((story, other))]
    found = catalog.distinct([package("maps", text=story), same, longer, package("sheep", text=other)])
    assert [each.name for each in found] == ["maps", "sheep"]
    assert catalog.distinct(one_source) == one_source[:1]
    assert catalog.distinct(sources) == sources


@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), st.text("xyz", min_size=1, max_size=2))))
def test_no_source_is_in_two_parts(names: list[tuple[str, str]]) -> None:
    packages = [package(name, source) for name, source in names]
    train, report = catalog.split(packages)
    assert not {each.source for each in train} & {each.source for each in report}
    assert sorted(each.name for each in train + report) == sorted(each.name for each in packages)
    # Nothing moves when packages come or go.
    assert catalog.split(packages[::2])[1] == [each for each in packages[::2] if each in report]


def test_the_split_is_not_the_run_s_own() -> None:
    """A run that holds out documents by its own hash must find its share of them in the train part."""
    train, report = catalog.split([package(f"p{number}") for number in range(5000)])
    assert 0.18 < len(report) / 5000 < 0.22
    for seed in (0, 1):
        held_out = split_documents([each.name for each in train], 0.15, seed)[1]
        assert 0.13 < len(held_out) / len(train) < 0.17


def test_the_files_fit_together(tmp_path: Path) -> None:
    vocabulary = [
        control.Tag("use::editing", "Purpose: Editing", "x"),
        control.Tag("use::viewing", "Purpose: Viewing", ""),
        control.Tag("use::unused", "Purpose: Unused", ""),
    ]
    words = ["draws", "maps", "of", "every", "country", "and", "prints", "them"]
    packages = [
        package(
            f"p{n}", text=" ".join(f"{word}{n}" for word in words), tags="use::editing use::viewing role::x"
        )
        for n in range(60)
    ]
    packages += [
        package("copy", text=packages[0].text),
        package(
            "poor", text="only one tag", tags="use::editing use::TODO use::new role::x privacy::tracking"
        ),
    ]
    files, told = catalog.catalog(packages, vocabulary)
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    labels, _ = read_labels(tmp_path / "labels.jsonl", strict=True)
    assert [label.uid for label in labels] == ["use::editing", "use::viewing"]
    uids = {}
    for prefix in ("", "sample_", "report_"):
        documents, _ = read_documents(tmp_path / f"{prefix}documents.jsonl", strict=True)
        uids[prefix] = [document.uid for document in documents]
        gold, _ = read_gold(
            tmp_path / f"{prefix}gold.tsv",
            documents=set(uids[prefix]),
            labels={label.uid for label in labels},
            strict=True,
        )
        assert gold == {uid: {"use::editing", "use::viewing"} for uid in uids[prefix]}
    assert sorted(uids[""]) == sorted(f"p{n}" for n in range(60))
    train, report = (files[f"{part}.txt"].split() for part in ("train", "report"))
    assert uids["report_"] == report and set(uids["sample_"]) == set(train)
    assert sorted(train + report) == sorted(uids[""])
    assert "62 packages have tags, 61 at least 2" in told and "1 near-duplicates left out" in told
    assert "1 tags left out that the vocabulary lacks: use::new\n" in told
    assert f"train part {len(train)}" in told and "2 labels, 120 gold pairs" in told
    assert "use::editing alone is right for 60 of 60 documents (P@1 100.0 on the report part)" in told


def run_catalog(out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLE / "catalog.py", out, *options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def test_another_system_is_told_so_and_nothing_is_left(tmp_path: Path) -> None:
    done = run_catalog(tmp_path / "data", PATH=str(tmp_path))
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert "apt-get" in done.stderr and "cure:" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("apt", [False, True])
def test_where_there_is_no_such_system_the_other_example_runs(tmp_path: Path, apt: bool) -> None:
    """Told before any work: without apt even before the set-up, without tags before the LLM."""
    shell, folder, tools = shutil.which("bash"), tmp_path / "examples" / "debian_catalog", tmp_path / "bin"
    assert shell
    folder.mkdir(parents=True)
    tools.mkdir()
    shutil.copy(EXAMPLE / "run.sh", folder)
    (tools / "dirname").symlink_to(shutil.which("dirname") or "")
    for name, code in {"bash": 0, "ezxmc": 0, "python": 2, **({"apt-get": 0} if apt else {})}.items():
        (tools / name).write_text(f'#!{shell}\necho "{name} $*"\nexit {code}\n', encoding="utf-8")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        [shell, folder / "run.sh"], capture_output=True, text=True, timeout=60, env={"PATH": str(tools)}
    )
    why = "no package index with tags on this system" if apt else "no apt on this system"
    said = f"{why}: tagging this environment's Python packages instead (examples/python_packages)\n"
    assert (done.returncode, done.stderr) == (0, said)
    before = ["bash ../../.ci/setup", "python catalog.py data"] if apt else []
    assert done.stdout.splitlines() == [*before, "bash ../python_packages/run.sh"]


def test_config_is_valid_and_within_budget() -> None:
    config = RunConfig.load(EXAMPLE / "config.yaml")
    assert isinstance(config.teacher, VllmTeacherConfig) and config.teacher.prompt == "software"
    assert config.data.gold is not None and Path(config.run_dir) == EXAMPLE / "run"
    assert config.budget.documents is not None
    assert config.budget.documents * config.cycles <= catalog.SAMPLE
    asked = config.budget.documents * config.shortlist.size * config.cycles
    asked += asked // 10 + (config.budget.calibration or 0) * config.inference.calibration_depth
    # 7 minutes of judging at 6.3 a second, which takes the LLM in 8 bits (2,500 were 9 in bfloat16).
    assert config.teacher.model.endswith("-int8")
    assert config.training.prior == "estimated" and asked <= 2_800


# From here on with apt, on a mirror in a folder: nothing is fetched from anywhere.


class Mirror:
    """A package repository in a folder, and the apt settings of a system that uses it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hook = root / "hook-ran"
        self.arch = subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
        ).stdout.strip()

    def serve(self, packages: str, translation: str, vocabulary: str | None, french: str = "") -> str:
        """Write it; returns the file for APT_CONFIG."""
        stanzas = packages
        if vocabulary is not None:
            stanzas += self._debtags(vocabulary)
        files = {f"main/binary-{self.arch}/Packages": stanzas, "main/i18n/Translation-en": translation}
        if french:
            files["main/i18n/Translation-fr"] = french
        dists = self.root / "dists" / "test"
        sums = []
        for name, content in files.items():
            path = dists / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            sums.append(f" {hashlib.sha256(content.encode()).hexdigest()} {len(content.encode())} {name}")
        # An index of another kind, damaged: whoever fetches it fails.
        (dists / "main" / "extra").write_text("damaged")
        sums.append(f" {64 * '0'} 7 main/extra")
        (dists / "Release").write_text(
            f"Suite: test\nComponents: main\nArchitectures: {self.arch}\n"
            "Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n" + "\n".join(sums) + "\n"
        )
        (self.root / "sources.list").write_text(f"deb [trusted=yes] file:{self.root} test main\n")
        config = self.root / "apt.conf"
        config.write_text(
            f'Dir::Etc::sourcelist "{self.root}/sources.list";\nDir::Etc::sourceparts "{self.root}/none";\n'
            f'Dir::Etc::parts "{self.root}/none";\nDir::Etc::main "{self.root}/none";\n'
            f'APT::Architectures {{ "{self.arch}"; }};\n'
            # What Debian systems and containers are known to set.
            'Acquire::Retries "0";\nAcquire::Languages "none";\nAcquire::GzipIndexes "true";\n'
            f'APT::Update::Post-Invoke {{ "touch {self.hook}"; }};\n'
            'Acquire::IndexTargets::deb::Extra { MetaKey "$(COMPONENT)/extra"; Optional "no";'
            ' ShortDescription "extra"; Description "extra"; };\n'
        )
        return str(config)

    def _debtags(self, vocabulary: str) -> str:
        built = self.root / "debtags"
        (built / "DEBIAN").mkdir(parents=True)
        fields = "Package: debtags\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\n"
        (built / "DEBIAN" / "control").write_text(fields + "Description: tags\n")
        terms = built / "usr/share/debtags/vocabulary"
        terms.parent.mkdir(parents=True)
        terms.write_text(vocabulary)
        archive = self.root / "debtags_1_all.deb"
        subprocess.run(["dpkg-deb", "--build", built, archive], check=True, capture_output=True)
        raw = archive.read_bytes()
        return (
            f"\n{fields}Description: tags\nFilename: {archive.name}\nSize: {len(raw)}\n"
            f"SHA256: {hashlib.sha256(raw).hexdigest()}\n"
        )


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    if not all(map(shutil.which, ("apt-get", "apt-config", "dpkg-deb", "dpkg"))):
        pytest.skip("needs apt")
    root = tmp_path / "mirror"
    root.mkdir()
    mirror = Mirror(root)
    yield mirror
    assert not mirror.hook.exists()  # the system's update hooks are not for a private update


INDEX = "".join(
    f"Package: p{n}\nArchitecture: all\nVersion: 1\nDescription: title {n}\nDescription-md5: {n:032x}\n"
    f"Tag: use::editing, use::viewing, role::program\nFilename: p{n}.deb\nSize: 1\nSHA256: {n:064x}\n\n"
    for n in range(20)
)
LONG = "".join(
    f"Package: p{n}\nDescription-md5: {n:032x}\nDescription-en: title {n}\n word{n} is all this says\n\n"
    for n in range(20)
)
TERMS = VOCABULARY.split("Description: neither")[0]


def test_apt_gives_a_catalog_and_leaves_nothing_else(mirror: Mirror, tmp_path: Path) -> None:
    settings = mirror.serve(INDEX, LONG, TERMS)
    work = tmp_path / 'it\'s "here" %s'
    work.mkdir()
    done = run_catalog(work / "data", APT_CONFIG=settings)
    assert done.returncode == 0, done.stderr
    documents, _ = read_documents(work / "data" / "documents.jsonl", strict=True)
    assert sorted((each.uid, each.title, each.text) for each in documents) == sorted(
        (f"p{n}", f"title {n}", f"word{n} is all this says") for n in range(20)
    )
    assert "20 packages have tags" in done.stdout and "2 labels, 40 gold pairs" in done.stdout
    assert {path.name for path in (work / "data").iterdir()} == {
        *("documents.jsonl", "gold.tsv", "labels.jsonl", "train.txt", "report.txt"),
        *("sample_documents.jsonl", "sample_gold.tsv", "report_documents.jsonl", "report_gold.tsv"),
    }


def test_another_language(mirror: Mirror, tmp_path: Path) -> None:
    """Documents in it, labels in English; what is not translated is left out, and told."""
    french = "".join(
        f"Package: p{n}\nDescription-md5: {n:032x}\nDescription-fr: éditeur {n}\n le mot{n} en dit tout\n\n"
        for n in range(12)
    )
    settings = mirror.serve(INDEX, LONG, TERMS, french)
    done = run_catalog(tmp_path / "data", "--language", "fr", APT_CONFIG=settings)
    assert done.returncode == 0, done.stderr
    documents, _ = read_documents(tmp_path / "data" / "documents.jsonl", strict=True)
    assert sorted((each.uid, each.title, each.text) for each in documents) == sorted(
        (f"p{n}", f"éditeur {n}", f"le mot{n} en dit tout") for n in range(12)
    )
    labels, _ = read_labels(tmp_path / "data" / "labels.jsonl", strict=True)
    assert [label.title for label in labels] == ["Purpose: Editing", "Purpose: Data Visualization"]
    assert "8 packages with tags left out: no description in 'fr'\n12 packages have tags" in done.stdout
    for language, message in (("ko", "described in 'ko'"), ('fr"; };', "no language as Debian spells it")):
        done = run_catalog(tmp_path / language[:2], "--language", language, APT_CONFIG=settings)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
        assert [path.name for path in tmp_path.iterdir() if path.name != "mirror"] == ["data"]


def test_bad_stanzas_are_told_and_cost_nothing_else(mirror: Mirror, tmp_path: Path) -> None:
    done = run_catalog(
        tmp_path / "data", APT_CONFIG=mirror.serve(INDEX, LONG, TERMS + "Tag: use::untitled\n")
    )
    assert done.returncode == 3 and "20 packages have tags" in done.stdout
    assert re.search(r"1 no_title.*vocabulary:\d+: no_title: use::untitled", done.stderr)


@pytest.mark.parametrize(
    ("index", "vocabulary", "message"),
    [
        (re.sub(r"Tag: .*\n", "", INDEX), TERMS, "no Tag fields"),
        (INDEX, None, "Unable to locate package debtags"),
    ],
)
def test_an_index_without_tags_or_vocabulary(
    mirror: Mirror, tmp_path: Path, index: str, vocabulary: str | None, message: str
) -> None:
    done = run_catalog(tmp_path / "data", APT_CONFIG=mirror.serve(index, LONG, vocabulary))
    assert done.returncode == 2 and message in done.stderr and "cure:" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "data").exists()


def test_a_mirror_out_of_reach(mirror: Mirror, tmp_path: Path) -> None:
    settings = mirror.serve(INDEX, LONG, TERMS)
    with (mirror.root / "sources.list").open("a") as sources:
        sources.write("deb [trusted=yes] http://127.0.0.1:9/ test main\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "documents.jsonl").write_text("of an earlier run\n")
    done = run_catalog(tmp_path / "data", APT_CONFIG=settings)
    assert done.returncode == 2 and "apt-get failed" in done.stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["documents.jsonl"]
