"""One process of a training round: `python -m ezxmc.training.worker FOLDER`, started by torchrun."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, record

from ezxmc.errors import EzxmcError
from ezxmc.progress import rank_and_size
from ezxmc.training.launch import FAILURE, Job
from ezxmc.training.ranks import joined
from ezxmc.training.student import trained


def main(folder: Path) -> None:
    """Do this process's share of the job that `folder` describes; the first rank tells how it goes."""
    Thread(target=_end_with_the_caller, daemon=True).start()
    # Standard output is for lines of JSON; what libraries print goes to standard error.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**told: Any) -> None:
        lines.write(json.dumps(told) + "\n")
        lines.flush()

    heard = _Heard(folder / FAILURE)

    def work() -> None:
        with joined() as ranks:
            # Inside as well: a rank must have spoken before the others can lose it.
            summary = record(trained, heard)(Job.load(folder), ranks, lambda *step: tell(progress=step))
            if summary and ranks.rank == 0:
                tell(summary=summary.to_dict())

    record(work, heard)()


class _Heard(ErrorHandler):
    """Writes down an exception, if no other rank was faster; torch's own tells by the second who that was."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def record_exception(self, e: BaseException) -> None:
        """See `ErrorHandler`."""
        if isinstance(e, EzxmcError):
            said = {"kind": type(e).__name__, "message": e.message, "cure": e.cure}
        else:
            rank, size = rank_and_size()
            said = {"message": f"training process {rank} of {size} (the first is 0): {e!r}"}
        with suppress(FileExistsError), self._file.open("x", encoding="utf-8") as target:
            json.dump(said, target)


def _end_with_the_caller() -> None:
    """Whoever asked for the training holds the other end of standard input, and writes nothing."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
