"""`ezxmc bench ...`: measurements against named alternatives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ezxmc.cli.bench_speed import encoding, index, serving
from ezxmc.cli.console import Json, bad_rows, emit, show_progress, table
from ezxmc.config import ShortlistConfig, TrainingConfig
from ezxmc.config.teacher import VllmTeacherConfig

_LLM = VllmTeacherConfig()
_TRAIN = TrainingConfig()


def register(app: typer.Typer) -> None:
    """Add these commands."""
    bench = typer.Typer(no_args_is_help=True, help="Measure ezxmc on this machine against alternatives.")
    for command in (teacher, methods, index, encoding, serving):
        bench.command()(command)
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
    json: Json = False,
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

    docs, doc_rows = read_documents(documents)
    tags, tag_rows = read_labels(labels)
    docs = random.Random(seed).sample(docs, min(count, len(docs)))
    config = VllmTeacherConfig(model=model, prompt=prompt, compile="auto" if compile is None else compile)
    with show_progress() as watch:
        encoder = BiEncoder(resolve_model("all-MiniLM-L6-v2", kind="encoder"), max_length=256)
        found = shortlist(docs, tags, encoder, ShortlistConfig(size=size, explore=0), seed=seed)
        pairs = list(pairs_of(docs, tags, [candidates.labels for candidates in found]))
        result = bench_teacher(pairs, config, baseline_pairs=baseline_pairs, watch=watch)
    figures = result.to_dict()
    if json:
        emit(figures)
    else:
        _show_teacher(figures, f"{model}, prompt {prompt}, {len(docs)} documents x {size} candidates")
    bad_rows(documents=doc_rows, labels=tag_rows)


def _show_teacher(figures: dict[str, Any], title: str) -> None:
    names = {
        "pairs": "ezxmc",
        "prefill": "long prompts, nothing shared",
        "unshared": "(a) one full prompt per pair",
        "top20": "(b) top-20 log-probabilities",
    }
    table(
        title,
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


def methods(
    documents: Annotated[str, typer.Argument(help="All documents.")],
    labels: Annotated[str, typer.Argument(help="Their labels.")],
    gold: Annotated[str, typer.Argument(help="Gold tags of as many documents as there are.")],
    judgments: Annotated[
        Path | None, typer.Option(help="The teacher's: a feedback store, or recorded ones.")
    ] = None,
    report_judgments: Annotated[
        Path | None, typer.Option(help="The same, of documents reported on: for teacher re-ranking.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Some, with commas; default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method that depends on one.")] = 3,
    report_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of documents reported on, by hash of the uid.")
    ] = 0.2,
    report: Annotated[
        Path | None, typer.Option(help="Instead of a share: a file of the uids reported on.")
    ] = None,
    proposer: Annotated[
        str | None, typer.Option(help="The former student that proposed the pairs: fused with the teacher.")
    ] = None,
    judgments_at: Annotated[
        str, typer.Option(help="Also run the judgment-fed methods on so many judgments: 1000,2000,...")
    ] = "",
    labelled: Annotated[
        str, typer.Option(help="Train the supervised method also on so many documents.")
    ] = "100,300,1000,3000",
    encoder: Annotated[str, typer.Option(help="The initial encoder.")] = _TRAIN.encoder,
    pairs_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="The teacher's speed; default: what the store tells.")
    ] = None,
    propensity: Annotated[
        tuple[float, float], typer.Option(help="A and B of PSP; .5 .4 for Wikipedia, .6 2.6 for Amazon.")
    ] = (0.55, 1.5),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON; finished runs in it are not run again.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare ways to tag under one evaluation, from no information to gold labels.

    Documents reported on are never judged and never trained on. Methods:
    untrained, tfidf-word, tfidf-char, bm25, rts, maclr, lmtx, lmtx4,
    lmtx-small, student, student-titles, teacher, supervised.

    Example: ezxmc bench methods documents.jsonl labels.jsonl gold.tsv --judgments feedback.sqlite -o out.json
    """
    from ezxmc.bench.benchmark import load_benchmark
    from ezxmc.bench.methods import METHODS, check_results, run_methods, summary

    if out:
        check_results(out, [documents, labels, gold, judgments, report_judgments, report])
    names = _listed(methods) if methods else list(METHODS)
    config = TrainingConfig(encoder=encoder)
    fed = [name for name in names if name in METHODS and METHODS[name].amount == "judgments"]
    names += [f"{name}@{count}" for count in _listed(judgments_at) for name in fed]
    names += [f"supervised@{count}" for count in _listed(labelled) if "supervised" in names]
    with show_progress() as watch:
        benchmark = load_benchmark(
            documents,
            labels,
            gold,
            judgments=judgments,
            report_judgments=report_judgments,
            config=config,
            proposer=proposer,
            report_share=report_share,
            report=report,
            propensity=propensity,
            watch=watch,
        )
        for name, count in benchmark.counts.items():
            watch.say(f"  {name}: {count:,}")
        results, skipped = run_methods(benchmark, names, seeds=seeds, out=out, watch=watch)
    speed = 1 / pairs_per_second if pairs_per_second else benchmark.seconds_per_judgment
    found = {**summary(results, benchmark, speed), "skipped": skipped}
    if json:
        emit(found)
    else:
        _show_methods(found)
    bad_rows(benchmark.bad_rows)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _show_methods(found: dict[str, Any]) -> None:
    rows = found["methods"]

    def cells(row: dict[str, Any], metrics: list[str]) -> list[str]:
        spread = row["spread"]
        return [
            f"{100 * row['mean'][name]:.1f}" + (f" ±{100 * spread[name]:.1f}" if name in spread else "")
            if name in row["mean"]
            else ""
            for name in metrics
        ]

    first = ["P@1", "P@3", "P@5", "R@5", "R@10", "R@50", "nDCG@5", "PSP@5"]
    groups = [f"{metric} {group}" for metric in ("P@5", "R@10") for group in ("head", "torso", "tail")]
    table("quality, %", ["method", *first], [[name, *cells(row, first)] for name, row in rows.items()])
    table(
        "by frequency of the label, %",
        ["method", *groups],
        [[name, *cells(row, groups)] for name, row in rows.items()],
    )
    table(
        "cost",
        ["method", "uses", "judgments", "labelled documents", "teacher, minutes", "this machine, minutes"],
        [
            [
                name,
                row["uses"],
                f"{row['judgments']:,}" if row["judgments"] else "",
                f"{row['labelled_documents']:,}" if row["labelled_documents"] else "",
                "" if row["teacher_minutes"] is None else f"{row['teacher_minutes']:.1f}",
                f"{row['seconds'] / 60:.1f}",
            ]
            for name, row in rows.items()
        ],
    )
    if found["student_minus"]:
        table(
            "student minus, points, 95% interval over documents",
            ["method", "P@1", "P@5", "R@10", "documents"],
            [
                [name, *(_interval(value) for value in row.values()), str(row["P@1"]["documents"])]
                for name, row in found["student_minus"].items()
            ],
        )
    if found["human_equivalent"]:
        table(
            "equals a supervised model on so many human-labelled documents",
            ["method", "by P@1", "by P@5", "by R@10"],
            [
                [name, *(f"{'' if sign == '=' else sign}{count:,.0f}" for sign, count in row.values())]
                for name, row in found["human_equivalent"].items()
            ],
        )


def _interval(value: dict[str, Any]) -> str:
    if not value["documents"]:
        return ""
    return f"{100 * value['mean']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"
