"""Work shared out over a Ray cluster; Ray itself is imported when a job starts.

`pool` runs tasks in worker processes, `board` is where they and the driver
meet, `connection` joins or starts a cluster, `rates` tells who is slow. What a
task does is told by `ezxmc.teacher.ray_data` and `ezxmc.retrieval.ray_encoder`.
"""

from ezxmc.cluster.config import RayConfig

__all__ = ["RayConfig"]
