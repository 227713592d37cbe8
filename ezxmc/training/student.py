"""One training round of the student: a plain PyTorch loop over a sentence-transformers model."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ezxmc.config import TrainingConfig
from ezxmc.data.in_memory import as_documents, as_labels
from ezxmc.errors import ModelError, TrainingError, instance_of
from ezxmc.feedback.targets import Targets, targets_from_rows
from ezxmc.launcher import rank_and_size
from ezxmc.models import resolve_model
from ezxmc.retrieval.encoder import BiEncoder, check_student_place
from ezxmc.training.card import model_card, told_of_teacher
from ezxmc.training.dataset import examples
from ezxmc.training.job import Job, TrainSummary, compact
from ezxmc.training.processes import Progress, launched, processes_of
from ezxmc.training.ranks import Ranks, joined
from ezxmc.training.selection import student_agreement
from ezxmc.training.step import Stepper

_CHOOSING = 30
"""Fewer held-out documents choose no epoch: seven of debtags liked no epoch of a student as well as the
untrained encoder."""


def train_bi_encoder(
    documents: Iterable[Any],
    labels: Iterable[Any],
    targets: Targets | Iterable[Any],
    config: TrainingConfig,
    out: str | Path,
    *,
    base: str | Path | None = None,
    former: str | Path | None = None,
    held_out: Iterable[Any] = (),
    held_out_targets: Targets | None = None,
    teacher: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainSummary:
    """Distil the teacher's judgments into a bi-encoder and save its best epoch.

    AdamW with linear warm-up and decay on the configured losses. After each
    epoch the held-out documents' judged labels are ranked and compared with
    the teacher's probabilities; no human label is used. The same seed gives
    the same weights on the same machine and thread count.

    Processes share each step as in `ezxmc.training.ranks`: those of the job that
    torchrun started this process into (each must call this with the same
    arguments; the first writes `out`), else `config.processes` started here.

    Args:
        documents: Documents to train on, as `Predictor.predict` takes them; those without
            positives are skipped.
        labels: All labels, or their titles.
        targets: Of the training and the held-out documents; or feedback of your own about them, (document,
            label, score) rows or a data set, as `ezxmc.targets_from_rows` takes it.
        config: Losses, sizes, rates and the encoder.
        out: Folder to write, a plain sentence-transformers model with a model card. A student that
            `BiEncoder.save` wrote there is replaced as a whole, if nothing was changed or put beside it.
        base: Weights to start from instead of `config.encoder`: a former student, say.
        former: A student of the same initial encoder, to average the weights with if
            `config.average` says so: a soup of two (Wortsman et al., arXiv 2203.05482).
        held_out: Documents for selection, disjoint from `documents`; with
            fewer than 30 judged ones the last epoch is kept.
        held_out_targets: Of the held-out documents, if `targets` are not to judge them: what is fused
            with a former student's opinion teaches well, and prefers students that agree with that.
        teacher: Description of who judged, for the model card; paths and addresses in it are left out.
        seed: Of the order and of the positives drawn.
        progress: Called with (step, steps, loss), in the first process alone.

    Raises:
        TrainingError: No document has a positive, the sets overlap, the loss is not finite,
            or a process of the job failed.
        ConfigError: Something else is in the place of `out`, or the base or the former student;
            a loss is unknown, a Matryoshka prefix is no shorter than the vectors,
            or there are more processes than GPUs.
        DataError, InputTypeError: There are documents or labels that cannot be used.
        ModelError: The base or the former student cannot be loaded, or they are of two architectures.

    Example:
        >>> rows = [("A song for guitar", "music", 0.9)]  # doctest: +SKIP
        >>> train_bi_encoder(texts, labels, rows, TrainingConfig(), "student")  # doctest: +SKIP
    """
    documents, labels, held_out = as_documents(documents), as_labels(labels), as_documents(held_out)
    out = Path(out)
    instance_of(config, TrainingConfig, "config", "give an ezxmc.config.TrainingConfig")
    check_student_place(out, [base, former, config.encoder])
    if shared := {d.uid for d in documents} & {d.uid for d in held_out}:
        raise TrainingError(
            f"{len(shared)} documents are both trained on and held out, {min(shared)!r} among them",
            "split the documents by uid",
        )
    if not isinstance(targets, Targets):
        targets = targets_from_rows(targets, [*documents, *held_out], labels, config)
    pool = [example for example in examples(documents, labels, targets) if example.positives]
    judged = examples(held_out, labels, held_out_targets or targets)
    if not pool:
        raise TrainingError(
            f"none of {len(documents)} documents has a label the teacher calls probable",
            "annotate more documents, or look at a few judgments: the prompt may not fit",
        )
    shown, pool = compact([document.shown for document in documents], pool)
    apart, judged = compact([document.shown for document in held_out], judged)
    job = Job(
        documents=shown,
        titles=[label.title for label in labels],
        pool=pool,
        held_out=apart,
        judged=judged,
        config=config,
        base=str(base or resolve_model(config.encoder, kind="encoder")),
        former=str(former) if former and config.average else None,
        seed=seed,
        out=out,
        card={"judgments": targets.judged, "teacher": told_of_teacher(teacher or {})},
    )
    if rank_and_size()[1] == 1 and (processes := processes_of(config)) > 1:
        return launched(job, processes, progress)
    with joined() as ranks:
        return trained(job, ranks, progress)


def trained(job: Job, ranks: Ranks, progress: Progress | None = None) -> TrainSummary:
    """Do a training round, as one of the processes that share it.

    Args:
        job: The same on every rank.
        ranks: This process among them.
        progress: As for `train_bi_encoder`.

    Raises:
        TrainingError: The loss is not finite, or the ranks have different jobs.
        ConfigError: As for `train_bi_encoder`.
        ModelError: As for `train_bi_encoder`.
    """
    if ranks.size > 1:
        ranks.compare(job.digest())
    encoder = BiEncoder(job.base, max_length=job.config.max_length, device=ranks.device)
    cuda = encoder.model.device.type == "cuda"
    with torch.random.fork_rng(devices=[encoder.model.device] if cuda else []):
        torch.manual_seed(job.seed)
        stepper = Stepper(
            encoder, job.documents, job.titles, job.pool, job.config, np.random.default_rng(job.seed), ranks
        )
        return _train(stepper, job, progress if ranks.rank == 0 else None)


def _train(stepper: Stepper, job: Job, progress: Progress | None) -> TrainSummary:
    """Run all epochs and save the one that the held-out documents like best, the last if they are too few."""
    pool, plan, ranks, encoder = stepper.pool, stepper.plan, stepper.ranks, stepper.encoder

    def select() -> float | None:
        values = student_agreement(encoder, job.held_out, job.titles, job.judged, ranks)
        return float(values.mean()) if len(values) else None

    steps, done, seconds = plan.steps(len(pool)), 0, 0.0
    losses: list[float] = []
    selection = select()
    best, best_epoch = stepper.weights(), 0
    scores = [] if selection is None else [selection]
    for epoch in range(1, plan.epochs + 1):
        started, costs = time.perf_counter(), []
        for cost in stepper.epoch():
            costs.append(cost)
            done += 1
            if progress:
                progress(done, steps, cost)
        seconds += time.perf_counter() - started
        losses.append(float(np.mean(costs)))
        selection = select()
        if selection is None or len(job.judged) < _CHOOSING or selection > max(scores):
            best, best_epoch = stepper.weights(), epoch
        if selection is not None:
            scores.append(selection)
    summary = TrainSummary(
        documents=len(pool),
        labels_seen=len(set(np.concatenate([example.labels for example in pool]).tolist())),
        held_out=len(job.judged),
        steps=done,
        seconds=seconds,
        samples_per_second=plan.epochs * len(pool) / seconds,
        losses=tuple(losses),
        selection=tuple(scores),
        best_epoch=best_epoch,
        peak_memory_bytes=_peak_memory(),
        processes=ranks.size,
    )
    encoder.model.load_state_dict(averaged(best, job.former) if job.former else best)
    # Averaged weights are others than those that were compared.
    kept = select() if job.former else max(scores, default=None)
    if ranks.rank == 0:
        encoder.card = model_card(job, summary, kept, encoder.card)
        encoder.save(job.out)
    ranks.wait()
    return summary


def averaged(weights: Mapping[str, Tensor], former: str | Path) -> dict[str, Tensor]:
    """The mean of a student's weights and of another's that began at the same place.

    Two students of one initial encoder err differently and lie in one basin:
    their mean costs nothing at inference. Measured on debtags (9,464
    judgments, 742 development documents, one seed, refined label vectors):
    P@5 +.5, R@10 +.5 points, P@1 and P@3 unchanged; an exponential moving
    average within one training, and students of three seeds instead of two
    cycles, gave no more.

    Args:
        weights: A state dict.
        former: The other student's folder.

    Raises:
        ModelError: The other has other parameters.
    """
    others = BiEncoder(former).model.state_dict()
    if {name: value.shape for name, value in weights.items()} != {
        name: value.shape for name, value in others.items()
    }:
        raise ModelError(
            f"the student's weights cannot be averaged with those of {former}: another architecture",
            "set training.average to false, or start both from one encoder",
        )
    return {
        name: (value + others[name].to(value)) / 2 if value.is_floating_point() else value
        for name, value in weights.items()
    }


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
