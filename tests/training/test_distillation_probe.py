"""Does one round of distillation from real judgments teach the student? Real weights, real data."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.debtags import DEBTAGS, catalog, figures, judgments, share

from ezxmc.config import TrainingConfig
from ezxmc.feedback.targets import build_targets
from ezxmc.models import resolve_model
from ezxmc.training import train_bi_encoder

pytestmark = [
    pytest.mark.encoder,
    pytest.mark.skipif(
        not DEBTAGS.is_dir(), reason=f"no debtags data at {DEBTAGS}: set EZXMC_DEBTAGS to its folder"
    ),
]


# Share of the judged documents that is trained on, of the others that is reported on, tokens of a document,
# and the least gains in P@1 and R@10.
SIZES = [
    pytest.param(0.2, 0.06, 64, 3, 4, id="small"),
    pytest.param(1.0, 0.2, 256, 10, 7, id="whole", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("judged_share", "report_share", "length", "precision", "recall"), SIZES)
def test_one_round_of_distillation_gains(
    judged_share: float, report_share: float, length: int, precision: float, recall: float, tmp_path: Path
) -> None:
    said = judgments()
    judged = {judgment.doc_uid for judgment in said}
    documents, labels, gold = catalog()
    ours = [d for d in documents if d.uid in judged and share(d.uid) < judged_share]
    train = [d for d in ours if share(d.uid) >= judged_share / 7]
    held_out = [d for d in ours if share(d.uid) < judged_share / 7]
    report = [d for d in documents if d.uid not in judged and gold[d.uid] and share(d.uid) < report_share]
    config = TrainingConfig(max_length=length)

    base = resolve_model(config.encoder, kind="encoder")
    before = figures(base, length, report, labels, gold)
    summary = train_bi_encoder(
        train, labels, build_targets(said, config), config, tmp_path / "student", held_out=held_out
    )
    after = figures(tmp_path / "student", length, report, labels, gold)

    print(f"\n{len(report)} documents never judged, {summary.samples_per_second:.1f} samples/s in training")
    for name, values in (("untrained", before), ("one round", after)):
        print(f"{name:10}", "  ".join(f"{key} {value:.1f}" for key, value in values.items()))
    print("agreement with the teacher by epoch:", [round(value, 3) for value in summary.selection])
    assert summary.best_epoch > 0
    assert after["P@1"] >= before["P@1"] + precision
    assert after["R@10"] >= before["R@10"] + recall
