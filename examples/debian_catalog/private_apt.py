"""apt with a state of its own: it reads the system's settings and sources and changes nothing of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ezxmc.errors import EzxmcError

_TOOLS = ("apt-get", "apt-config", "dpkg-deb")
# Without the system's update hooks, which write to its caches. An index that is fetched in part is an error:
# the catalog would be another one each time.
_SETTINGS = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::Languages;
Acquire::Languages { %s };
Acquire::GzipIndexes "false";
APT::Update::Error-Mode "any";
"""
_FETCHED = {"deb::Packages", "deb::Translations"}


class UnfitError(EzxmcError):
    """This system has no index to make the catalog of."""


def check_tools() -> None:
    """Raises `UnfitError` on a system without apt."""
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if missing:
        raise UnfitError(
            f"this example needs Debian's apt; missing on this system: {', '.join(missing)}",
            "run it on Debian or in a Debian container; examples/python_packages runs anywhere",
        )


class PrivateApt:
    """apt whose lists, caches and status are kept in `folder`.

    Args:
        folder: An empty folder that may be written to.
        languages: Of the descriptions, as apt spells them.

    Raises:
        UnfitError: There is no apt.
    """

    def __init__(self, folder: Path, languages: Sequence[str] = ("en",)) -> None:
        check_tools()
        self._folder = folder = folder.resolve()
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        config = folder / "apt.conf"
        config.write_text(_SETTINGS % " ".join(f'"{each}";' for each in languages), encoding="utf-8")
        places = {
            "Dir::State": folder / "state",
            "Dir::State::lists": folder / "state/lists",
            "Dir::State::status": folder / "status",  # as if nothing were installed
            "Dir::Cache": folder / "cache",
            "Dir::Cache::archives": folder / "cache/archives",
        }
        # Paths as arguments: in a configuration file a quote in them would end the value.
        self._options = [
            f"--config-file={config}",
            *(f"--option={key}={path}" for key, path in places.items()),
        ]
        if os.geteuid() == 0:
            # The user apt downloads as need not be able to enter the folder.
            self._options.append("--option=APT::Sandbox::User=root")
        self._options += [f"--option={key}::DefaultEnabled=false" for key in self._targets()]

    def update(self) -> tuple[list[Path], list[Path]]:
        """Fetch the indexes of the system's sources: Packages files, and Translation files.

        Raises:
            UnfitError: apt could not fetch all of them, or there are no sources.
        """
        self._get("update", "--quiet")
        packages, translations = self._files("Packages"), self._files("Translations")
        if not packages:
            raise UnfitError(
                "apt has no sources of binary packages here", "add Debian's to /etc/apt/sources.list.d"
            )
        return packages, translations

    def unpack(self, package: str) -> Path:
        """Fetch a package and unpack it, nothing of it run: the folder with its files.

        Raises:
            UnfitError: The sources do not have it, or it cannot be fetched.
        """
        folder = self._folder / "unpacked" / package
        folder.mkdir(parents=True)
        self._get("download", package, "--quiet", folder=folder)
        (archive,) = folder.glob("*.deb")
        _run(["dpkg-deb", "--extract", str(archive), str(folder / "files")])
        return folder / "files"

    def _files(self, kind: str) -> list[Path]:
        told = self._get("indextargets", "--format", "$(FILENAME)", f"Created-By: {kind}")
        return [Path(line) for line in told.splitlines()]

    def _targets(self) -> list[str]:
        """Indexes of other kinds that this system is set up to fetch: sources, file lists, icons."""
        told = _run(["apt-config", "dump", "Acquire::IndexTargets"])
        names = set(re.findall(r"^Acquire::IndexTargets::((?:deb|deb-src)::[^: ]+)::", told, re.M))
        return [f"Acquire::IndexTargets::{name}" for name in sorted(names - _FETCHED)]

    def _get(self, *arguments: str, folder: Path | None = None) -> str:
        return _run(["apt-get", *self._options, *arguments], folder)


def _run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:", "dpkg-deb:"))]
        raise UnfitError(
            f"{command[0]} failed: " + ("\n".join(told[-5:]) or f"exit code {done.returncode}"),
            "see that the network is there and that `apt-get update` works on this system, then again",
        )
    return done.stdout
