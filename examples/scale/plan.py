"""What a catalog of millions costs: arithmetic from measured rates, for some numbers of GPUs.

    python examples/scale/plan.py [--documents 10_000_000] [--labels 1_000_000] [--gpus 1,8,64]

Every rate is one that a committed benchmark measured on two processor cores (`Measured`), or an assumption
about GPUs, of which none was at hand (`Assumed`). Put your own there: `ezxmc plan` on a GPU measures the
teacher's pairs per second, `ezxmc bench encoding` the student's texts.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """2 cores of an AMD EPYC server processor; seconds are of one core."""

    # tests/bench/README.md, "The teacher": Qwen2.5-Coder-1.5B, bf16, 20 candidates a document.
    flop_per_token: float = 0.645e12 / 244
    prompt_tokens: float = 228.0
    computed_tokens: float = 16.4
    # tests/bench/store.py --rows 10_000_000: one writer, in bulk.
    judgment_bytes: float = 84.0
    inserts_per_second: float = 22_700.0
    # tests/bench/million.py, 100,000 documents x 1,000,000 labels, 20,000 judgments.
    read_row: float = 10e-6
    lexical_label: float = 12e-6
    lexical_document: float = 0.16e-3
    shortlist_document: float = 160e-6  # fusion and files
    search_document: float = 0.9e-3
    index_label: float = 150e-6
    target_judgment: float = 10e-6  # at 10,000 labels; the rest is of the labels
    refine_judgment: float = 1.5e-3  # likewise
    tag_document: float = 120e-6  # rows and files
    document_memory: float = 16e3  # from reading to the shortlists' peak
    tagged_document_bytes: float = 522.0  # 5 tags
    # Counted: the record, and vectors of 384 float32 held three times while an index is built.
    label_memory: float = 760 + 3 * 1_536
    bundle_label_bytes: float = 1_536 + 192 + 120
    # A record and its part of the targets, in memory (tracemalloc over 11,399 judgments).
    judgment_memory: float = 622.0


@dataclass(frozen=True)
class Assumed:
    """Of one GPU and its share of a machine; nothing here was measured."""

    flops: float = 989e12  # NVIDIA H100 SXM, bf16, dense: the data sheet's peak
    teacher_share: float = 0.4  # of it, reached by a teacher (92 % of the measured ceiling on processors)
    encoder_share: float = 0.1  # of it, reached by a student of 22 M parameters
    engine_requests: float = 1_500.0  # a second, that one vLLM engine can schedule
    cores: int = 16
    machine_gpus: int = 8  # the driver has the cores of one machine, no more
    scaling: float = 0.7  # of a search, over many cores


GPU_STAGES = ("shortlist: encode", "teacher", "training", "tag: encode, search")
# all-MiniLM-L6-v2 without its embeddings: 10.6 M parameters, two operations each.
STUDENT_FLOP = 2 * 10.6e6
DOCUMENT_TOKENS, TITLE_TOKENS, TITLES_A_STEP, EPOCHS = 200, 8, 8, 2


@dataclass(frozen=True)
class Job:
    """A catalog, and how much of it the teacher sees."""

    documents: int
    labels: int
    judged: int
    candidates: int

    @property
    def pairs(self) -> int:
        return self.judged * self.candidates


def tokens_per_pair(candidates: int) -> float:
    """Computed: a pair's own, and its share of the document. Own = x, with (228 - x) / 20 + x = 16.4."""
    m = Measured()
    own = (m.computed_tokens - m.prompt_tokens / 20) / (1 - 1 / 20)
    return (m.prompt_tokens - own) / candidates + own


def pairs_per_second(candidates: int, parameters: float) -> tuple[float, str]:
    """Of one GPU, and what limits it."""
    a, flop = Assumed(), Measured().flop_per_token * parameters / 1.54e9
    arithmetic = a.flops * a.teacher_share / (flop * tokens_per_pair(candidates))
    if arithmetic < a.engine_requests:
        return arithmetic, "arithmetic"
    return a.engine_requests, "engine's scheduler"


def stages(job: Job, gpus: int, parameters: float) -> dict[str, float]:
    """Wall seconds of each stage."""
    m, a = Measured(), Assumed()
    cores = a.cores * min(gpus, a.machine_gpus) * a.scaling
    encoding = STUDENT_FLOP / (gpus * a.flops * a.encoder_share)  # seconds a token
    documents = job.documents * DOCUMENT_TOKENS * encoding
    titles = job.labels * TITLE_TOKENS * encoding
    searched = job.documents * m.search_document / cores
    lexical = job.labels * m.lexical_label + job.documents * m.lexical_document
    step = DOCUMENT_TOKENS + TITLES_A_STEP * TITLE_TOKENS
    return {
        "read (one core)": (job.documents + job.labels) * m.read_row,
        "shortlist: encode": documents + titles,
        "shortlist: index, search": job.labels * m.index_label / cores + searched,
        "shortlist: BM25, fusion (one core)": lexical + job.documents * m.shortlist_document,
        "teacher": job.pairs / (gpus * pairs_per_second(job.candidates, parameters)[0]),
        "store (one writer)": job.pairs / m.inserts_per_second,
        "targets (one core)": job.pairs * m.target_judgment,
        "training": job.judged * EPOCHS * step * 3 * encoding,
        "label vectors, index": titles + (job.pairs * m.refine_judgment + job.labels * m.index_label) / cores,
        "tag: encode, search": documents + searched,
        "tag: write (one core)": job.documents * m.tag_document,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--candidates", type=int, default=14)
    parser.add_argument("--parameters", type=float, default=1.54e9, help="of the teacher")
    parser.add_argument("--gpus", default="1,8,64")
    given = parser.parse_args()
    rate, limit = pairs_per_second(given.candidates, given.parameters)
    print(
        f"{tokens_per_pair(given.candidates):.1f} computed tokens a pair; {rate:,.0f} pairs/s a GPU ({limit})"
    )
    counts = [int(part) for part in given.gpus.split(",")]
    for judged in (given.documents // 10, given.documents):
        job = Job(given.documents, given.labels, judged, given.candidates)
        show(job, counts, [stages(job, gpus, given.parameters) for gpus in counts])


def show(job: Job, counts: list[int], found: list[dict[str, float]]) -> None:
    """A table: stages down, numbers of GPUs across."""
    m = Measured()
    print(f"\n{job.judged:,} documents judged, {job.pairs:,} pairs; minutes with so many GPUs")

    def row(name: str, cells: list[str]) -> None:
        print(f"{name:36}" + "".join(f"{cell:>10}" for cell in cells))

    row("", [f"{gpus}" for gpus in counts])
    for name in found[0]:
        row(name, [f"{one[name] / 60:.1f}" for one in found])
    # Judgments are stored while others are given.
    walls = [sum(one.values()) - min(one["teacher"], one["store (one writer)"]) for one in found]
    row("hours by the clock", [f"{wall / 3600:.1f}" for wall in walls])
    row("GPU-hours held", [f"{gpus * wall / 3600:.0f}" for gpus, wall in zip(counts, walls, strict=True)])
    busy = [sum(one[name] for name in GPU_STAGES) for one in found]
    row("GPU-hours in GPU stages", [f"{n * part / 3600:.0f}" for n, part in zip(counts, busy, strict=True)])
    for gpus, one in zip(counts, found, strict=True):
        print(f"longest with {gpus}: {max(one, key=one.__getitem__)}")
    memory = job.documents * m.document_memory + job.labels * m.label_memory + job.pairs * m.judgment_memory
    disk = job.pairs * m.judgment_bytes, job.labels * m.bundle_label_bytes
    tags = job.documents * m.tagged_document_bytes
    print(f"driver's memory {memory / 1e9:,.0f} GB")
    print(
        f"judgments {disk[0] / 1e9:.1f} GB, bundle {disk[1] / 1e9:.1f} GB, tags {tags / 1e9:.1f} GB of disk"
    )


if __name__ == "__main__":
    main()
