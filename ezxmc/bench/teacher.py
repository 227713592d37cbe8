"""What a judgment costs, and how near the hardware's limit the teacher runs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ezxmc.config import ShortlistConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.data import RowReport, read_documents, read_labels
from ezxmc.feedback.annotate import pairs_of
from ezxmc.models import resolve_model
from ezxmc.progress import Progress
from ezxmc.records import Pair
from ezxmc.retrieval import BiEncoder, shortlist
from ezxmc.teacher.vllm import VllmEngine, VllmTeacher

_CEILING_ROWS, _CEILING_SECONDS = 2048, 3.0
# vLLM's own block sizes, and rank_llm's batch: each batch waits for its last answer.
_DEFAULT_BLOCK = {True: 128, False: 16}
_RANK_LLM_BATCH = 32


@dataclass(frozen=True, slots=True)
class Rate:
    """Speed and cost of one way to ask.

    Attributes:
        prompts: Answered.
        seconds: Wall time.
        prompt_tokens: Sum of prompt lengths.
        computed_tokens: Of these, not supplied by the prefix cache.
    """

    prompts: int
    seconds: float
    prompt_tokens: int
    computed_tokens: int

    @property
    def per_second(self) -> float:
        """Prompts per second."""
        return self.prompts / self.seconds

    @property
    def computed_per_second(self) -> float:
        """Tokens computed per second."""
        return self.computed_tokens / self.seconds

    @property
    def computed_per_prompt(self) -> float:
        """Tokens computed for one prompt."""
        return self.computed_tokens / self.prompts

    @property
    def cache_share(self) -> float:
        """Share of prompt tokens the prefix cache supplied, in [0, 1]."""
        return 1 - self.computed_tokens / self.prompt_tokens

    def to_dict(self) -> dict[str, float]:
        """Every figure, for JSON."""
        return {
            "prompts": self.prompts,
            "seconds": self.seconds,
            "per_second": self.per_second,
            "computed_tokens_per_prompt": self.computed_per_prompt,
            "computed_tokens_per_second": self.computed_per_second,
            "cache_share": self.cache_share,
        }


@dataclass(frozen=True, slots=True)
class TeacherBench:
    """Figures of one run of `bench_teacher`.

    Attributes:
        start_seconds: Start of the engine.
        compiled: Whether the model was compiled.
        pairs: ezxmc's way.
        prefill: Long prompts that share nothing: the engine's own best rate.
        unshared: (a) the same prompts, unpadded, each computed in full, as LMTX asks.
        top20: (b) unpadded prompts in batches of 32 on the engine's default blocks, read from the top 20
            log-probabilities, as rank_llm asks.
        ceiling: Measured bf16 matrix rate of the machine, FLOP/s.
        flop_per_token: Of the weights' matrices, 2 per weight; attention (a few percent here) is left out.
        flop_per_answer: Of the output matrix, once per prompt.
    """

    start_seconds: float
    compiled: bool
    pairs: Rate
    prefill: Rate
    unshared: Rate
    top20: Rate
    ceiling: float
    flop_per_token: float
    flop_per_answer: float

    def flops(self, rate: Rate) -> float:
        """Achieved FLOP/s of a rate."""
        work = rate.computed_tokens * self.flop_per_token + rate.prompts * self.flop_per_answer
        return work / rate.seconds

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        ways = {"pairs": self.pairs, "prefill": self.prefill, "unshared": self.unshared, "top20": self.top20}
        return {
            "start_seconds": self.start_seconds,
            "compiled": self.compiled,
            "ceiling_flops": self.ceiling,
            **{name: {**rate.to_dict(), "flops": self.flops(rate)} for name, rate in ways.items()},
            "of_prefill_rate": self.pairs.computed_per_second / self.prefill.computed_per_second,
            "of_ceiling": self.flops(self.pairs) / self.ceiling,
            "times_unshared": self.pairs.per_second / self.unshared.per_second,
            "times_top20": self.pairs.per_second / self.top20.per_second,
        }


def bench_teacher(
    pairs: Sequence[Pair], config: VllmTeacherConfig, *, baseline_pairs: int, watch: Progress
) -> TeacherBench:
    """Measure the teacher on real pairs, against its engine, its machine and two other ways to ask.

    Args:
        pairs: Document by document; the first documents warm the engine up.
        config: The teacher.
        baseline_pairs: How many pairs the two slow ways are measured on.
        watch: Sees the parts.

    Raises:
        TeacherError: The engine cannot start.
        ModelError: The model cannot be resolved.
    """
    model = resolve_model(config.model, kind="llm", revision=config.revision)
    per_token, per_answer, width, inner = _flop(model)
    cuda = torch.cuda.is_available()
    watch.say("measuring the machine's bf16 matrix rate")
    ceiling = _matrix_ceiling(width, inner, "cuda" if cuda else "cpu")

    teacher = VllmTeacher(config)
    answers = list(teacher.renderer.answers.ids)
    warm, rest = pairs[: len(pairs) // 20], pairs[len(pairs) // 20 :]
    started = time.monotonic()
    try:
        _drain(teacher.engine.stream(teacher.renderer.prompts(warm[:1]), expected=len(pairs)))
        start_seconds = time.monotonic() - started
        _drain(teacher.engine.stream(teacher.renderer.prompts(warm), logprob_token_ids=answers))
        long = _long_prompts(teacher, rest, 24 if not cuda else 2000)
        bar = watch.stage("long prompts")
        first = _rate(teacher.engine.stream(long[::2], share=False), len(long) // 2, bar)
        shared = _rate(
            teacher.engine.stream(teacher.renderer.prompts(rest), logprob_token_ids=answers),
            len(rest),
            watch.stage("pairs"),
        )
        # Before and after, so that a machine that slows down or speeds up is met halfway.
        second = _rate(teacher.engine.stream(long[1::2], share=False), len(long) // 2, bar)
        few = rest[:baseline_pairs]
        full = teacher.renderer.with_block(1).prompts(few)
        unshared = _rate(
            teacher.engine.stream(full, share=False, logprob_token_ids=answers),
            len(few),
            watch.stage("(a) full prompts"),
        )
    finally:
        teacher.close()
    return TeacherBench(
        start_seconds=start_seconds,
        compiled=teacher.engine.compiled,
        pairs=shared,
        prefill=_sum(first, second),
        unshared=unshared,
        top20=_rank_llm_way(teacher, VllmEngine(model, config), few, watch),
        ceiling=ceiling,
        flop_per_token=per_token,
        flop_per_answer=per_answer,
    )


def _rank_llm_way(teacher: VllmTeacher, engine: VllmEngine, pairs: Sequence[Pair], watch: Progress) -> Rate:
    engine.block = _DEFAULT_BLOCK[engine.cpu]
    engine.max_tokens = -(-teacher.engine.max_tokens // engine.block) * engine.block
    unpadded = teacher.renderer.with_block(1)
    prompts = list(unpadded.prompts(pairs))
    bar = watch.stage("(b) top-20 log-probabilities")
    try:
        _drain(engine.stream(prompts[:1], logprobs=20))
        batches = (
            engine.stream(prompts[start : start + _RANK_LLM_BATCH], logprobs=20)
            for start in range(0, len(prompts), _RANK_LLM_BATCH)
        )
        return _rate(chain.from_iterable(batches), len(prompts), bar)
    finally:
        engine.close()


def _drain(outputs: Iterable[Any]) -> None:
    for _ in outputs:
        pass


def _rate(outputs: Iterable[tuple[Any, Any]], total: int, progress: Callable[[int, int], None]) -> Rate:
    started, prompts, tokens, computed = time.monotonic(), 0, 0, 0
    for _, output in outputs:
        prompts += 1
        tokens += len(output.prompt_token_ids)
        computed += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        progress(prompts, total)
    return Rate(prompts, time.monotonic() - started, tokens, computed)


def _sum(*rates: Rate) -> Rate:
    return Rate(
        sum(rate.prompts for rate in rates),
        sum(rate.seconds for rate in rates),
        sum(rate.prompt_tokens for rate in rates),
        sum(rate.computed_tokens for rate in rates),
    )


def _long_prompts(teacher: VllmTeacher, pairs: Sequence[Pair], count: int) -> list[tuple[int, list[int]]]:
    """Prompts as long as the engine takes, of the documents' own tokens in random order."""
    documents = {pair.doc.uid: pair for pair in pairs}.values()
    tokens = [token for _, ids in teacher.renderer.prompts(documents) for token in ids]
    draw = random.Random(0)
    return [(i, draw.choices(tokens, k=teacher.engine.max_tokens - 1)) for i in range(count)]


def _flop(model: Path | str) -> tuple[float, float, int, int]:
    """FLOP per token and per answer, hidden width and inner width, from the model's configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(model), trust_remote_code=False)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = empty.get_output_embeddings().weight
    matrices = sum(weight.numel() for weight in empty.base_model.parameters() if weight.dim() == 2)
    matrices -= empty.get_input_embeddings().weight.numel()
    return 2.0 * matrices, 2.0 * head.numel(), config.hidden_size, config.intermediate_size


def _matrix_ceiling(width: int, inner: int, device: str) -> float:
    """FLOP/s of bf16 products of the model's largest shapes, 2,048 rows at a time."""

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=torch.bfloat16, device=device)

    rows, hidden = matrix(_CEILING_ROWS, width), matrix(_CEILING_ROWS, inner)
    up, down = matrix(2 * inner, width), matrix(width, inner)

    def once() -> None:
        torch.nn.functional.linear(rows, up)
        torch.nn.functional.linear(hidden, down)
        if device == "cuda":
            torch.cuda.synchronize()

    once()
    started, rounds = time.monotonic(), 0
    while time.monotonic() - started < _CEILING_SECONDS:
        once()
        rounds += 1
    return rounds * 2.0 * _CEILING_ROWS * 3 * inner * width / (time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class FilesBench:
    """What `bench_files` measured: the figures, of how many documents, and how reading went."""

    result: TeacherBench
    documents: int
    rows: dict[str, RowReport]


def bench_files(
    documents: str,
    labels: str,
    config: VllmTeacherConfig,
    *,
    count: int = 105,
    size: int = 20,
    baseline_pairs: int = 96,
    seed: int = 0,
    watch: Progress,
) -> FilesBench:
    """`bench_teacher` on the shortlists of some documents of a file.

    Args:
        documents: Documents to judge.
        labels: Their labels.
        config: The teacher.
        count: Documents measured.
        size: Candidates of each.
        baseline_pairs: Pairs for the slow ways.
        seed: Of the choice of documents.
        watch: Sees the parts.

    Raises:
        DataError: A file cannot be read.
        ModelError, TeacherError: As for `bench_teacher`.
    """
    docs, doc_rows = read_documents(documents)
    tags, tag_rows = read_labels(labels)
    docs = random.Random(seed).sample(docs, min(count, len(docs)))
    encoder = BiEncoder(resolve_model("all-MiniLM-L6-v2", kind="encoder"), max_length=256)
    found = shortlist(docs, tags, encoder, ShortlistConfig(size=size, explore=0), seed=seed)
    pairs = list(pairs_of(docs, tags, [candidates.labels for candidates in found]))
    result = bench_teacher(pairs, config, baseline_pairs=baseline_pairs, watch=watch)
    return FilesBench(result, len(docs), {"documents": doc_rows, "labels": tag_rows})
