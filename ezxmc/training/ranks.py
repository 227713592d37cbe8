"""The processes that share a training step: who encodes what, and how the parts come together.

Every rank draws the same batch and encodes its part of the texts. The vectors are gathered, every rank
computes the whole loss from all of them, and carries back the gradients of its own vectors alone. With v_t
the vector of text t and T_r the texts of rank r, each text on one rank::

    dL/dθ = Σ_t (dL/dv_t)(dv_t/dθ) = Σ_r Σ_{t∈T_r} (dL/dv_t)(dv_t/dθ)

So the ranks' gradients are summed, with factor 1: the loss already averages over the global batch. A mean,
as DistributedDataParallel takes it, would make them smaller by the number of ranks. Every loss is exact, also
one that compares documents with each other or finds negatives by their scores; the activations, which fill
the memory, are shared; the loss, which every rank computes, is small beside them; nothing is communicated in
the backward pass but the sum at its end. DistributedDataParallel also wants one forward pass a step, and work
for every rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from ezxmc.errors import ConfigError, TrainingError
from ezxmc.progress import rank_and_size


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its job; without arguments it is alone.

    Attributes:
        rank: 0 writes files and tells progress.
        size: Processes in all.
        device: Where this one computes; `None`: the best present.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None

    def part(self, lengths: Sequence[int]) -> NDArray[np.int64]:
        """Which of N texts are this rank's, ascending; each is of one rank.

        Dealt in turn in order of length: the ranks' numbers of texts differ by
        one at most, and their tokens by no more than the longest text.

        Args:
            lengths: (N,) of the texts.
        """
        order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
        return np.sort(order[self.rank :: self.size])

    def gathered(self, own: Tensor, rows: NDArray[np.int64], total: int) -> Tensor:
        """All ranks' vectors; the gradient of this rank's goes back to it, that of the others' to nobody.

        Args:
            own: (n, D), this rank's.
            rows: (n,) where they belong.
            total: N, over all ranks.

        Returns:
            (N, D), the same on every rank.
        """
        gathered: Tensor = _Gathered.apply(own, torch.from_numpy(rows).to(own.device), total, self.size)  # type: ignore[no-untyped-call]
        return gathered

    def embedded(
        self, embed: Callable[[Sequence[str]], Tensor], texts: Sequence[str], lengths: Sequence[int]
    ) -> Tensor:
        """(N, D) vectors of texts, each embedded by one rank, with the gradient of `gathered`."""
        if self.size == 1:
            return embed(texts)
        part = self.part(lengths)
        return self.gathered(embed([texts[row] for row in part]), part, len(texts))

    def encoded(
        self, encode: Callable[[Sequence[str]], NDArray[np.float32]], texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """(N, D) vectors of texts, each encoded by one rank, without gradient."""
        if self.size == 1:
            return encode(texts)
        vectors = self.embedded(
            lambda part: torch.from_numpy(encode(part)).to(self.device), texts, [len(text) for text in texts]
        )
        rows: NDArray[np.float32] = vectors.cpu().numpy()
        return rows

    def sum_gradients(self, model: nn.Module, loss: nn.Module) -> None:
        """Make every rank's gradients those of the whole step.

        Args:
            model: Each rank has the gradient of its own texts: the sum counts.
            loss: Each rank has the whole gradient of its parameters: the mean
                counts, for on a GPU these may differ in their last digit.
        """
        if self.size == 1:
            return
        learned = [p for p in model.parameters() if p.requires_grad]
        shares = [*((p, 1.0) for p in learned), *((p, 1 / self.size) for p in loss.parameters())]
        # What no rank used must stay without gradient, or its weights would decay.
        used = torch.tensor([float(p.grad is not None) for p, _ in shares], device=self.device)
        parts = [
            p.new_zeros(p.numel()) if p.grad is None else share * p.grad.flatten() for p, share in shares
        ]
        flat = torch.cat([used, *parts])
        del parts
        dist.all_reduce(flat)
        counts, *sums = torch.split(flat, [len(shares), *(p.numel() for p, _ in shares)])
        for (parameter, _), count, total in zip(shares, counts.tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if count else None

    def align(self, *modules: nn.Module) -> None:
        """Give every rank the first one's weights: unlike processors may come to differ in the last digit."""
        if self.size > 1:
            for module in modules:
                for value in module.state_dict().values():
                    dist.broadcast(value, 0)

    def compare(self, digest: bytes) -> None:
        """Make sure that all ranks do the same job.

        Args:
            digest: Of everything that they should have in common.

        Raises:
            TrainingError: It is another one on the first rank.
        """
        if self.size == 1:
            return
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(self.device)
        first = mine.clone()
        dist.broadcast(first, 0)
        if not torch.equal(mine, first):
            raise TrainingError(
                f"process {self.rank} of {self.size} was given other inputs than the first",
                "every machine needs the same documents, labels, judgments and options",
            )

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes of the job: over NCCL with a GPU each, over gloo on processors.

    Raises:
        ConfigError: There are fewer GPUs here than processes.
    """
    if rank_and_size()[1] == 1:
        yield ALONE
        return
    device = "cpu"
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        enough_gpus(local + 1)
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    if device == "cpu":
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("nccl", device_id=torch.device(device))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def enough_gpus(processes: int) -> None:
    """Refuse two processes on one GPU.

    Raises:
        ConfigError: There are GPUs, but fewer than processes.
    """
    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise ConfigError(
            f"training on {processes} processes needs as many GPUs; here are {gpus}",
            "set training.processes to auto, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train without",
        )


class _Gathered(torch.autograd.Function):
    """Rows of all ranks. Summed, since every row is 0 but on one rank: parts need not be of equal size."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: Tensor, total: int, size: int) -> Tensor:
        ctx.save_for_backward(rows)
        everyone = own.new_zeros(total, own.shape[1])
        everyone[rows] = own
        if size > 1:
            dist.all_reduce(everyone)
        return everyone

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        return gradients[0][rows], None, None, None
