"""`ezxmc bench teacher` with a real engine: its figures must fit together."""

from __future__ import annotations

import pytest
from support.fakes import catalog

from ezxmc.bench.teacher import Rate, TeacherBench, _flop, bench_teacher
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.feedback.annotate import pairs_of
from ezxmc.models import resolve_model
from ezxmc.progress import NoProgress
from ezxmc.records import Document


def test_figures_of_a_rate() -> None:
    rate = Rate(prompts=10, seconds=4.0, prompt_tokens=1000, computed_tokens=200)
    assert (rate.per_second, rate.computed_per_second, rate.computed_per_prompt) == (2.5, 50.0, 20.0)
    assert rate.cache_share == pytest.approx(0.8)


def test_ratios_and_flops() -> None:
    fast, slow = Rate(10, 1.0, 1000, 200), Rate(10, 5.0, 1000, 1000)
    bench = TeacherBench(9.0, False, fast, slow, slow, fast, 1e6, flop_per_token=10, flop_per_answer=100)
    figures = bench.to_dict()
    assert figures["times_unshared"] == 5 and figures["times_top20"] == 1
    assert figures["of_prefill_rate"] == 1 and figures["of_ceiling"] == pytest.approx(3000 / 1e6)


@pytest.mark.llm
def test_flop_per_token_counts_the_matrices_of_the_weights() -> None:
    per_token, per_answer, width, inner = _flop(resolve_model("SmolLM2-135M-Instruct", kind="llm"))
    # 30 layers: q and o 576x576, k and v 192x576, gate, up and down 1536x576.
    assert (width, inner) == (576, 1536)
    assert per_token == 2 * 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)
    assert per_answer == 2 * 49152 * 576


@pytest.mark.llm
def test_sharing_prefixes_computes_less_and_answers_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    # A benchmark's long prompts are as long as the engine takes.
    monkeypatch.setattr("ezxmc.teacher.vllm._MAX_SUFFIX", 64)
    docs, labels = catalog(10, 8)
    docs = [Document(doc.uid, doc.title, f"{doc.text}. It has a long description. " * 12) for doc in docs]
    pairs = list(pairs_of(docs, labels, [list(range(8))] * 10))
    config = VllmTeacherConfig(
        model="SmolLM2-135M-Instruct",
        kv_cache_gib=0.25,
        min_label_mass=0,
        compile=False,
        max_document_tokens=128,
    )
    bench = bench_teacher(pairs, config, baseline_pairs=16, watch=NoProgress())
    assert bench.pairs.prompts == len(pairs) - len(pairs) // 20
    assert bench.unshared.prompts == bench.top20.prompts == 16
    assert bench.prefill.cache_share == bench.unshared.cache_share == 0
    assert bench.pairs.computed_per_prompt < 0.5 * bench.unshared.computed_per_prompt
    assert bench.pairs.cache_share > 0.5
    assert 0 < bench.flops(bench.pairs) < bench.ceiling * 1.5
    assert bench.to_dict()["times_unshared"] > 1
