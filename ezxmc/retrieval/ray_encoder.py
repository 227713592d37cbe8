"""An encoder whose large jobs are done by the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ezxmc.cluster import RayConfig
from ezxmc.cluster.pool import Pool, Say, Task, Tell
from ezxmc.config import EncoderPrompts, Precision
from ezxmc.files import remove_shards, replacing
from ezxmc.hashing import json_hash, text_hash
from ezxmc.models import model_identity, resolve_model
from ezxmc.retrieval.encoder import BiEncoder, OnProgress

SHARD = 8192  # texts; what is not more than this is encoded here, before workers would have started
_PART = 512  # texts between two words of progress


class RayEncoder(BiEncoder):
    """A `BiEncoder` that shares large jobs out.

    Vectors are those of a single process up to float rounding: texts are batched in other company. Shards are
    files named by encoder and texts: whatever is interrupted, those that are there are not encoded again.

    Args:
        source: A folder on a file system that all nodes share, or a hub id.
        cluster: Where the workers are.
        folder: Of the shards, on a shared file system; the caller deletes it once the vectors have served.
        max_length: As for `BiEncoder`.
        prompts: As there.
        say: Told every half minute how fast each worker is.

    Raises:
        ModelError: As of `BiEncoder`.
    """

    def __init__(
        self,
        source: str | Path,
        cluster: RayConfig,
        folder: Path,
        *,
        max_length: int | None = None,
        prompts: EncoderPrompts | None = None,
        say: Say | None = None,
    ) -> None:
        super().__init__(source, max_length=max_length, prompts=prompts)
        self._given = prompts
        self._cluster, self._folder, self._say = cluster, folder.absolute(), say
        # Workers on other nodes have working directories of their own.
        self._source = str(Path(source).absolute() if Path(source).exists() else source)

    @property
    def _named(self) -> str:
        """What the vectors depend on beside the texts."""
        given = [self._given.model_dump()] if self._given else []
        return json_hash([model_identity(self._source), self.max_length, self.precision, *given])

    def encode(self, texts: Sequence[str], progress: OnProgress | None = None) -> NDArray[np.float32]:
        """As `BiEncoder.encode`, by the workers where there are many texts."""
        if len(texts) <= SHARD or self._converted:
            return super().encode(texts, progress)
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        self._folder.mkdir(parents=True, exist_ok=True)
        starts: dict[str, list[int]] = {}  # where each shard's rows belong; equal shards are encoded once
        done = 0

        def take(path: str) -> None:
            nonlocal done
            rows = np.load(path, allow_pickle=False)
            for start in starts[path]:
                vectors[start : start + len(rows)] = rows
                done += len(rows)
            if progress:
                progress(done, len(texts))

        named = self._named
        for start in range(0, len(texts), SHARD):
            name = text_hash(named, *texts[start : start + SHARD])
            starts.setdefault(str(self._folder / f"{name}.npy"), []).append(start)
        missing = []
        for path in starts:
            if Path(path).exists():
                take(path)
            else:
                missing.append(path)
        if missing:
            job = _Encoding(self._source, self.max_length, self.precision, self._given)
            pool = Pool(self._cluster, job, gpus=1, say=self._say)
            try:
                for task in pool.map(
                    Task(path, list(texts[starts[path][0] : starts[path][0] + SHARD])) for path in missing
                ):
                    take(task.path)
            finally:
                pool.close()
        return vectors


def open_encoder(
    source: str | Path,
    cluster: RayConfig | None,
    folder: Path,
    *,
    max_length: int | None = None,
    prompts: EncoderPrompts | None = None,
    say: Say | None = None,
) -> BiEncoder:
    """A `BiEncoder`, or a `RayEncoder` where there is a cluster; arguments as for these."""
    if cluster is None:
        return BiEncoder(source, max_length=max_length, prompts=prompts)
    return RayEncoder(source, cluster, folder, max_length=max_length, prompts=prompts, say=say)


@contextmanager
def encoder_for(
    out: Path,
    source: str,
    cluster: RayConfig | None,
    *,
    max_length: int | None = None,
    say: Say | None = None,
) -> Iterator[BiEncoder]:
    """`open_encoder` for a job that writes `out`: shards lie beside it, and go unless the job fails.

    `source` is the model: a name of `ezxmc models list`, a folder or a hub id; the other arguments are those
    of `open_encoder`.

    Raises:
        ModelError: As for `resolve_model` and `BiEncoder`.
    """
    vectors = out.with_name(f"{out.name}-vectors")
    found = resolve_model(source, kind="encoder")
    yield open_encoder(found, cluster, vectors, max_length=max_length, say=say)
    remove_shards(vectors)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """The workers' job: encode shards of texts."""

    source: str
    max_length: int
    precision: Precision
    prompts: EncoderPrompts | None

    def open(self, slot: int) -> _Encode:
        """See `ezxmc.cluster.pool.Job`."""
        opened = BiEncoder(
            self.source, max_length=self.max_length, precision=self.precision, prompts=self.prompts
        )
        return _Encode(opened)


@dataclass(frozen=True, slots=True)
class _Encode:
    encoder: BiEncoder

    def __call__(self, task: Task, tell: Tell) -> None:
        parts = []
        for start in range(0, len(task.items), _PART):
            parts.append(self.encoder.encode(task.items[start : start + _PART]))
            tell(len(parts[-1]))
        with replacing(task.path) as fresh, fresh.open("wb") as file:
            np.save(file, np.concatenate(parts), allow_pickle=False)
