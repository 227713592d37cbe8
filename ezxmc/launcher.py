"""Starts the processes of a job on this machine by torch's elastic launcher, and tells which one failed.

    python -m ezxmc.launcher PROCESSES FAILURE MODULE ARGUMENT ...

runs `python -m MODULE ARGUMENT ...` as `torchrun --standalone --nproc-per-node PROCESSES` would. It is a
process of its own, for the launcher takes over the signals of whoever calls it; and it loads nothing but
torch, for it is there as long as the job. If a process fails all others are ended, and FAILURE tells why.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

# How the launcher ends the others when one process has failed, and how NCCL ends one that lost another.
_FOLLOWING = (signal.SIGTERM, signal.SIGABRT)


def rank_and_size() -> tuple[int, int]:
    """Of this process in the job that torchrun started it into; (0, 1) if it is alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def main(processes: int, failure: Path, command: list[str]) -> int:
    """Run a job.

    Args:
        processes: Ranks of the job.
        failure: Where the process that fails first writes why, as JSON with a
            `message`; written here for one that was killed.
        command: Arguments of the Python interpreter.

    Returns:
        An exit code.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # a machine's own name need not resolve
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        codes = {rank: found.exitcode for rank, found in error.failures.items()}
        if message := _unsaid(codes, processes, failure.exists()):
            failure.write_text(json.dumps({"message": message}), encoding="utf-8")
        return 1
    return 0


def _unsaid(codes: Mapping[int, int], processes: int, said: bool) -> str | None:
    """What no process could say itself; one that is killed is why the others lost their connection to it."""
    killed = [rank for rank, code in codes.items() if code < 0 and -code not in _FOLLOWING]
    if said and not killed:
        return None
    rank = min(killed or codes)
    how = f"was killed by {signal.Signals(-codes[rank]).name}" if killed else f"left with {codes[rank]}"
    return f"training process {rank} of {processes} (the first is 0) {how}; the others were ended"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), ["-m", *sys.argv[3:]]))
