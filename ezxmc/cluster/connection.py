"""Joining a Ray cluster, or starting one on this machine: the only module that touches Ray's settings."""

from __future__ import annotations

import logging
import os
import signal
import threading
from functools import cache
from importlib.util import find_spec
from typing import Any

from ezxmc.cluster import RayConfig
from ezxmc.errors import ClusterError

_OBJECT_STORE = 256 << 20  # bytes; shards go through files, so little lies in it
_lock = threading.Lock()
_users = 0
_ours = False


def connect(config: RayConfig) -> Any:
    """Join the cluster, or start one; each call wants a `disconnect`.

    A cluster started here listens on the loopback interface alone, reports
    nothing to anybody, and ends with this process, however that ends. Where
    the caller has called `ray.init` before, that cluster is used, and stays.

    Returns:
        The module `ray`.

    Raises:
        ClusterError: Ray is not installed, or there is no such cluster.
    """
    global _users, _ours
    if find_spec("ray") is None:
        raise ClusterError("Ray is not installed, and the engine is ray", "pip install 'ezxmc[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Notices nobody can act on would bury the progress; set this to see them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # On a machine of our own Ray would kill workers, again and again, because other programs fill its memory.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    # Ray's own switch between the machine's address and 127.0.0.1, for the processes it starts ...
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = str(int(config.address is not None))
    import ray
    from ray._private import ray_constants

    # ... and for this one, where vLLM or others may have imported ray before.
    ray_constants.ENABLE_RAY_CLUSTER = config.address is not None
    with _lock:
        if not _users:
            _ours = not ray.is_initialized()
            if _ours:
                # Ray would have SIGTERM end us at once; the caller may have work in hand.
                ended = signal.getsignal(signal.SIGTERM)
                _init(ray, config)
                if callable(ended) and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, ended)
        _users += 1
    return ray


def disconnect() -> None:
    """Leave the cluster with the last user; one that was started here ends."""
    global _users
    import ray

    with _lock:
        _users -= 1
        if not _users and _ours:
            ray.shutdown()


def _init(ray: Any, config: RayConfig) -> None:
    _keep_from_stdout()
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if config.address is None:
            ray.init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=config.workers,
                object_store_memory=_OBJECT_STORE,
                include_dashboard=False,
                **quiet,
            )
        else:
            ray.init(address=config.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = config.address or "this machine"
        raise ClusterError(
            f"no Ray cluster on {where}: {error}",
            "start it (`ray start --head --port=6379`; examples/cluster) and name it in ray.address "
            "(--ray-address); without one, a cluster of this machine is started",
        ) from error


@cache  # wrapped once, however many clusters a process starts
def _keep_from_stdout() -> None:
    """Let Ray tell of workers that died on stderr: on stdout it would stand among answers and JSON."""
    from ray._private import worker

    tell = worker.print_to_stdstream

    def on_stderr(data: dict[str, Any], *args: Any, **options: Any) -> None:
        tell({**data, "is_err": True}, *args, **options)

    worker.print_to_stdstream = on_stderr
