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
from pathlib import Path
from typing import Any
from uuid import uuid4


def rank_and_size() -> tuple[int, int]:
    """Of this process in the job that torchrun or `accelerate launch` started it into; (0, 1) if none did."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def main(processes: int, failure: Path, command: list[str]) -> int:
    """Run a job.

    Args:
        processes: Ranks of the job.
        failure: Told why the job failed, as JSON with a `message`, unless one of the
            processes knows better and has written it already.
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
        if not failure.exists():
            message = _cause(error.failures, processes)
            failure.write_text(json.dumps({"message": message}), encoding="utf-8")
        return 1
    return 0


def _cause(failures: dict[int, Any], processes: int) -> str:
    """Who failed first. One that is killed says nothing, and the others soon lose their connection to it."""
    killed = {r: f for r, f in failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM}
    candidates = killed or failures
    rank = min(candidates, key=lambda rank: (candidates[rank].timestamp, rank))
    failed = candidates[rank]
    if rank in killed:
        how = f"was ended by {failed.signal_name()}"
    else:
        said = failed.message
        how = f"failed: {said['message'] if isinstance(said, dict) else f'exit code {failed.exitcode}'}"
    return f"process {rank} of {processes} (the first is 0) {how}; the others were ended"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), ["-m", *sys.argv[3:]]))
