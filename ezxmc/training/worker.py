"""One process of a training round: `python -m ezxmc.training.worker FOLDER`, started by `ezxmc.launcher`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Thread
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from ezxmc.errors import EzxmcError
from ezxmc.training.job import Job
from ezxmc.training.processes import FAILURE
from ezxmc.training.ranks import joined
from ezxmc.training.student import trained


@record  # tells the launcher of any exception
def main(folder: Path) -> None:
    """Do this process's share of the job that `folder` describes; the first rank tells how it goes."""
    Thread(target=_end_with_the_caller, daemon=True).start()
    # Standard output is for lines of JSON; what libraries print goes to standard error.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**told: Any) -> None:
        lines.write(json.dumps(told) + "\n")
        lines.flush()

    try:
        job = Job.load(folder)
        with joined() as ranks:
            summary = trained(job, ranks, lambda *step: tell(progress=step))
            if ranks.rank == 0:
                tell(summary=summary.to_dict())
    except EzxmcError as error:
        _fail(folder / FAILURE, error)
        raise


def _fail(file: Path, error: EzxmcError) -> None:
    said = {"kind": type(error).__name__, "message": error.message, "cure": error.cure}
    try:
        with file.open("x", encoding="utf-8") as target:
            json.dump(said, target)
    except FileExistsError:
        pass  # another rank was faster


def _end_with_the_caller() -> None:
    """Whoever asked for the training holds the other end of standard input, and writes nothing."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
