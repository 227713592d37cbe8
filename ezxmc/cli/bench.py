"""`ezxmc bench ...`: measurements against named alternatives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ezxmc.cli.console import Json, bad_rows, emit, show_progress, table
from ezxmc.config import TrainingConfig
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
    from ezxmc.bench.teacher import bench_files

    config = VllmTeacherConfig(model=model, prompt=prompt, compile="auto" if compile is None else compile)
    with show_progress() as watch:
        found = bench_files(
            documents,
            labels,
            config,
            count=count,
            size=size,
            baseline_pairs=baseline_pairs,
            seed=seed,
            watch=watch,
        )
    figures = found.result.to_dict()
    if json:
        emit(figures)
    else:
        _show_teacher(figures, f"{model}, prompt {prompt}, {found.documents} documents x {size} candidates")
    bad_rows(**found.rows)


def _show_teacher(found: dict[str, Any], title: str) -> None:
    names = {
        "pairs": "ezxmc",
        "prefill": "long prompts, nothing shared",
        "unshared": "(a) one full prompt per pair",
        "top20": "(b) top-20 log-probabilities",
    }
    _figures(
        title,
        [{"way": name, **found[way]} for way, name in names.items()],
        ("", "way"),
        ("prompts/s", "per_second", ".2f"),
        ("computed tokens/prompt", "computed_tokens_per_prompt", ".1f"),
        ("cache share", "cache_share", ".1%"),
        ("computed tokens/s", "computed_tokens_per_second", ".0f"),
        ("TFLOP/s", "flops", ".3f", 1e-12),
    )
    ceiling = f"the measured matrix ceiling, {found['ceiling_flops'] / 1e12:.3f} TFLOP/s bf16"
    against = {
        "the engine's rate on long prompts": f"{found['of_prefill_rate']:.1%}",
        ceiling: f"{found['of_ceiling']:.1%}",
        names["unshared"]: f"{found['times_unshared']:.1f}x",
        names["top20"]: f"{found['times_top20']:.1f}x",
        "engine start" + ", model compiled" * found["compiled"]: f"{found['start_seconds']:.0f} s",
    }
    table("", ["ezxmc against", ""], [list(item) for item in against.items()])


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
    from ezxmc.bench.methods import bench_methods

    inputs: dict[str, Any] = {"judgments": judgments, "report_judgments": report_judgments, "report": report}
    inputs |= {"proposer": proposer, "report_share": report_share, "propensity": propensity}
    with show_progress() as watch:
        found, bad = bench_methods(
            documents,
            labels,
            gold,
            names=_listed(methods or ""),
            judgments_at=_listed(judgments_at),
            labelled=_listed(labelled),
            seeds=seeds,
            pairs_per_second=pairs_per_second,
            out=out,
            config=TrainingConfig(encoder=encoder),
            **inputs,
            watch=watch,
        )
    if json:
        emit(found)
    else:
        _show_methods(found)
    bad_rows(bad)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _show_methods(found: dict[str, Any]) -> None:
    rows = [{"method": name, **row} for name, row in found["methods"].items()]

    def percent(metric: str) -> Callable[[dict[str, Any]], str]:
        def cell(row: dict[str, Any]) -> str:
            spread = f" ±{100 * row['spread'][metric]:.1f}" if metric in row["spread"] else ""
            return f"{100 * row['mean'][metric]:.1f}{spread}" if metric in row["mean"] else ""

        return cell

    first = ("P@1", "P@3", "P@5", "R@5", "R@10", "R@50", "nDCG@5", "PSP@5")
    groups = [f"{metric} {group}" for metric in ("P@5", "R@10") for group in ("head", "torso", "tail")]
    for title, metrics in (("quality, %", first), ("by frequency of the label, %", groups)):
        _figures(title, rows, ("method", "method"), *((metric, percent(metric)) for metric in metrics))
    _figures(
        "cost",
        [
            {**row, **{name: row[name] or None for name in ("judgments", "labelled_documents")}}
            for row in rows
        ],
        ("method", "method"),
        ("uses", "uses"),
        ("judgments", "judgments", ","),
        ("labelled documents", "labelled_documents", ","),
        ("teacher, minutes", "teacher_minutes", ".1f"),
        ("this machine, minutes", "seconds", ".1f", 1 / 60),
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


def encoding(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, calibrated.")],
    documents: Annotated[str, typer.Argument(help="Documents.")],
    gold: Annotated[str | None, typer.Option(help="Gold tags: measure P@5 too.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Documents encoded per round.")] = 1000,
    singles: Annotated[int, typer.Option(min=1, help="Documents tagged one at a time.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Which documents.")] = 0,
    json: Json = False,
) -> None:
    """Encode with each backend and say what it gains and loses against plain float32 `encode`.

    Run it with nothing else running, after `ezxmc export` for the backends that need it.

    Example: ezxmc bench encoding run/bundle documents.jsonl --gold gold.tsv
    """
    from ezxmc.bench.encoding import bench_encoding
    from ezxmc.bundle.bundle import load_bundle
    from ezxmc.data import read_documents, read_gold

    docs, doc_rows = read_documents(documents)
    tags, gold_rows = None, None
    if gold:
        uids, titles = [document.uid for document in docs], load_bundle(bundle, verify=False).titles()
        tags, gold_rows = read_gold(gold, documents=uids, labels=titles, more_documents=True)
    with show_progress() as watch:
        found = bench_encoding(
            bundle, docs, tags, count=count, singles=singles, rounds=rounds, seed=seed, watch=watch
        )
    if json:
        emit(found)
    else:
        _show_encoding(found)
    bad_rows(documents=doc_rows, gold=gold_rows)


def _show_encoding(found: dict[str, Any]) -> None:
    _figures(
        f"{found['documents']:,} documents together, {found['singles']:,} alone, {found['threads']} threads",
        found["rows"],
        ("", "way"),
        ("documents/s", "documents_per_second", ",.1f"),
        ("processor s/1,000", "processor_seconds", ",.2f"),
        ("times plain", "times_plain", ".2f"),
        ("cosine, least", "cosine_least", ".5f"),
        ("P@5, %", "precision", ".2f", 100),
        ("points lost", "points_lost", "+.2f"),
        ("alone p50, ms", "p50_ms", ".1f"),
        ("p99, ms", "p99_ms", ".1f"),
        ("processor p50, ms", "p50_processor_ms", ".1f"),
        ("p99, ms", "p99_processor_ms", ".1f"),
    )
    if found["skipped"]:
        table("", ["not measured", "why"], [list(item) for item in found["skipped"].items()])


def index(
    labels: Annotated[
        str, typer.Argument(help="Real labels; synthetic ones are added to reach larger sizes.")
    ],
    documents: Annotated[str, typer.Argument(help="Real documents: the queries.")],
    encoder: Annotated[str, typer.Option(help="Encoder: name, folder or hub id.")] = _TRAIN.encoder,
    sizes: Annotated[str, typer.Option(help="Numbers of labels.")] = "1000,10000,100000,1000000",
    methods: Annotated[str, typer.Option(help="What to measure.")] = "exact,hnsw,ivf,torch,numpy,hnswlib",
    count: Annotated[int, typer.Option(min=64, help="Documents asked about.")] = 1000,
    seed: Annotated[int, typer.Option(help="Which documents, and of the synthetic labels.")] = 0,
    json: Json = False,
) -> None:
    """Search 10³ to 10⁶ labels in every way there is: time to build, memory, recall, queries per second.

    Run it with nothing else running.

    Example: ezxmc bench index labels.jsonl documents.jsonl --sizes 1000,100000
    """
    from ezxmc.bench.index import bench_files

    names, wanted = _listed(methods), _numbers(sizes, "--sizes")
    with show_progress() as watch:
        found, rows = bench_files(
            labels, documents, wanted, encoder=encoder, methods=names, count=count, seed=seed, watch=watch
        )
    if json:
        emit(found)
    else:
        _show_index(found)
    bad_rows(**rows)


def _numbers(text: str, option: str) -> list[int]:
    """Whole numbers with commas between, 1e5 among them."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(number >= 1 and number.is_integer() for number in found):
        raise typer.BadParameter("give whole numbers from 1, with commas", param_hint=option)
    return list(map(int, found))


def _show_index(found: dict[str, Any]) -> None:
    _figures(
        f"{found['real_labels']:,} real labels, {found['queries']} documents, {found['cores']} cores",
        found["rows"],
        ("labels", "labels", ","),
        ("method", lambda row: row["method"] + " (chosen)" * row["chosen"]),
        ("build, s", "build_seconds", ",.2f"),
        ("load, s", "load_seconds", ".3f"),
        ("MB", "bytes", ",.1f", 1e-6),
        ("recall@100", "recall", ".3f"),
        ("queries/s", "single", ",.0f"),
        ("by 64", "batched", ",.0f"),
        ("+10,000, s", "add_seconds", ".2f"),
    )
    probes = next(iter(found["difficulty"].values()))
    table(
        "recall@100 of 128 lists by lists visited: are synthetic labels as hard as real ones?",
        ["labels", *probes],
        [[name, *(f"{value:.3f}" for value in row.values())] for name, row in found["difficulty"].items()],
    )


def serving(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    documents: Annotated[str, typer.Argument(help="Documents to send, one a request.")],
    seconds: Annotated[float, typer.Option(min=1, help="Of each load.")] = 10.0,
    connections: Annotated[str, typer.Option(help="Clients at once, with commas.")] = "1,8,32",
    json: Json = False,
) -> None:
    """Load the service on loopback, with and without batching: requests a second, p50, p99.

    Run it with nothing else running. wrk sends the requests where it is
    installed, else a client on httpx.

    Example: ezxmc bench serving run/bundle documents.jsonl --connections 1,8,32
    """
    from ezxmc.bench.serving import bench_serving
    from ezxmc.data import RowReport

    counts, rows = _numbers(connections, "--connections"), RowReport()
    with show_progress() as watch:
        found = bench_serving(
            bundle, documents, seconds=seconds, connections=counts, watch=watch, report=rows
        )
    if json:
        emit(found)
    else:
        _show_serving(found)
    bad_rows(documents=rows)


def _show_serving(found: dict[str, Any]) -> None:
    _figures(
        f"{found['generator']} {found['version']}, one document a request, {found['bytes']:,} bytes",
        found["runs"],
        ("batching", lambda row: "on" if row["batching"] else "off"),
        ("connections", "connections", ""),
        ("requests/s", "per_second", ".1f"),
        ("p50, ms", "p50_ms", ".1f"),
        ("p99, ms", "p99_ms", ".1f"),
        ("documents a batch", "batch_documents", ".1f"),
        ("errors", "errors", ""),
    )


def _figures(title: str, rows: list[dict[str, Any]], *columns: tuple[Any, ...]) -> None:
    """A table of figures; a column is a head, a key or function of a row, a format, and a factor.

    What a row has no figure for, `None`, is left blank.
    """

    def cell(row: dict[str, Any], key: Any, form: str = "", factor: float = 1) -> str:
        if callable(key):
            return str(key(row))
        value = row[key]
        return "" if value is None else format(value if factor == 1 else value * factor, form)

    table(title, [head for head, *_ in columns], [[cell(row, *how) for _, *how in columns] for row in rows])
