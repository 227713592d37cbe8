"""`ezxmc bench ...`: measurements against named alternatives."""

from __future__ import annotations

from typing import Annotated

import typer

from ezxmc.cli.console import emit, table, watching
from ezxmc.config import ShortlistConfig, VllmTeacherConfig

_LLM = VllmTeacherConfig()


def register(app: typer.Typer) -> None:
    """Add these commands."""
    bench = typer.Typer(no_args_is_help=True, help="Measure ezxmc on this machine against alternatives.")
    bench.command()(teacher)
    app.add_typer(bench, name="bench")


def teacher(
    documents: Annotated[str, typer.Argument(help="Documents to judge.")],
    labels: Annotated[str, typer.Argument(help="Their labels.")],
    model: Annotated[str, typer.Option(help="LLM: name, folder or hub id.")] = _LLM.model,
    prompt: Annotated[str, typer.Option(help="Prompt name or file.")] = _LLM.prompt,
    count: Annotated[int, typer.Option(min=4, help="Documents measured.")] = 105,
    size: Annotated[int, typer.Option(min=1, help="Candidates per document.")] = 20,
    baseline_pairs: Annotated[int, typer.Option(min=8, help="Pairs for the slow ways.")] = 96,
    compile: Annotated[bool | None, typer.Option(help="Compile the model; default: as a job would.")] = None,
    seed: Annotated[int, typer.Option(help="Which documents.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")] = False,
) -> None:
    """Judge real pairs and say what they cost: tokens, time, share of the hardware's limit.

    Run it with nothing else running. Compared in the same run: the engine on
    long prompts, one full prompt per pair, a top-20 log-probabilities scorer.

    Example: ezxmc bench teacher documents.jsonl labels.jsonl --prompt software
    """
    import random

    from ezxmc.bench.teacher import bench_teacher
    from ezxmc.data import read_documents, read_labels
    from ezxmc.feedback.annotate import pairs_of
    from ezxmc.models import resolve_model
    from ezxmc.retrieval import BiEncoder, shortlist

    docs, _ = read_documents(documents)
    tags, _ = read_labels(labels)
    docs = random.Random(seed).sample(docs, min(count, len(docs)))
    config = VllmTeacherConfig(model=model, prompt=prompt, compile="auto" if compile is None else compile)
    with watching() as watch:
        encoder = BiEncoder(resolve_model("all-MiniLM-L6-v2", kind="encoder"), max_length=256)
        found = shortlist(docs, tags, encoder, ShortlistConfig(size=size, explore=0), seed=seed)
        pairs = list(pairs_of(docs, tags, [candidates.labels for candidates in found]))
        result = bench_teacher(pairs, config, baseline_pairs=baseline_pairs, watch=watch)
    figures = result.to_dict()
    if json:
        emit(figures)
        return
    names = {
        "pairs": "ezxmc",
        "prefill": "long prompts, nothing shared",
        "unshared": "(a) one full prompt per pair",
        "top20": "(b) top-20 log-probabilities",
    }
    table(
        f"{model}, prompt {prompt}, {len(docs)} documents x {size} candidates",
        ["", "prompts/s", "computed tokens/prompt", "cache share", "computed tokens/s", "TFLOP/s"],
        [
            [
                name,
                f"{figures[way]['per_second']:.2f}",
                f"{figures[way]['computed_tokens_per_prompt']:.1f}",
                f"{figures[way]['cache_share']:.1%}",
                f"{figures[way]['computed_tokens_per_second']:.0f}",
                f"{figures[way]['flops'] / 1e12:.3f}",
            ]
            for way, name in names.items()
        ],
    )
    table(
        "",
        ["ezxmc against", ""],
        [
            ["the engine's rate on long prompts", f"{figures['of_prefill_rate']:.1%}"],
            [
                f"the measured matrix ceiling, {figures['ceiling_flops'] / 1e12:.3f} TFLOP/s bf16",
                f"{figures['of_ceiling']:.1%}",
            ],
            ["(a) one full prompt per pair", f"{figures['times_unshared']:.1f}x"],
            ["(b) top-20 log-probabilities", f"{figures['times_top20']:.1f}x"],
            [
                "engine start" + (", model compiled" if figures["compiled"] else ""),
                f"{figures['start_seconds']:.0f} s",
            ],
        ],
    )
