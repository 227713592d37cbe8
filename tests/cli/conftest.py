"""The commands, run in this process."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from support.program import Done, Ezxmc

from ezxmc.cli import app as program


@pytest.fixture
def ezxmc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ezxmc:
    """Run the program's entry point in this process, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EZXMC_HOME", str(tmp_path / "home"))
    for name in ("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    # Setting and deleting makes monkeypatch remove what `--debug` sets.
    monkeypatch.setenv("EZXMC_DEBUG", "")

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["ezxmc", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            program.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(int(left.value.code or 0), out, err)

    return run
