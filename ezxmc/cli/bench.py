"""`ezxmc bench ...`: measurements against named alternatives."""

from __future__ import annotations

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
    for command in (teacher, index, encoding, serving):
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
    show_figures(
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
    from ezxmc.bench.tagging import bench_encoding
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
    show_figures(
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

    names = [name for part in methods.split(",") if (name := part.strip())]
    wanted = _numbers(sizes, "--sizes")
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
    show_figures(
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
    from ezxmc.bench.tagging import bench_serving
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
    show_figures(
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


def show_figures(title: str, rows: list[dict[str, Any]], *columns: tuple[Any, ...]) -> None:
    """A table of figures; a column is a head, a key or function of a row, a format, and a factor.

    What a row has no figure for, `None`, is left blank.
    """

    def cell(row: dict[str, Any], key: Any, form: str = "", factor: float = 1) -> str:
        if callable(key):
            return str(key(row))
        value = row[key]
        return "" if value is None else format(value if factor == 1 else value * factor, form)

    table(title, [head for head, *_ in columns], [[cell(row, *how) for _, *how in columns] for row in rows])
