"""examples/python_api: its scripts run as they are, and what they rest on."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from support.fakes import FakeTeacher
from support.tinyworld import document, label_rows, topical, write_catalog

from ezxmc import (
    BiEncoder,
    DistillationLoss,
    FeedbackStore,
    Judgment,
    Predictor,
    TrainingConfig,
    annotate,
    build_targets,
    save_bundle,
    targets_dataset,
    targets_from_rows,
    train_bi_encoder,
)
from ezxmc.data.in_memory import as_documents, as_labels
from ezxmc.errors import ArgumentError, DataError, InputTypeError, TrainingError
from ezxmc.feedback.targets import Targets
from ezxmc.records import Pair, Status
from ezxmc.training import held_out_agreement
from ezxmc.training.dataset import collate, examples
from ezxmc.training.losses import LOSSES
from ezxmc.training.step import Stepper

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLES = Path(__file__).parents[2] / "examples" / "python_api"
DOCUMENTS = as_documents([document(number) for number in range(40)])
LABELS = as_labels(label_rows())
CONFIG = TrainingConfig(epochs=4, batch_size=4, learning_rate=1e-2, max_length=32, precision="float32")


def rows(score: Callable[[float], float] = lambda z: 1 / (1 + np.exp(-z))) -> list[tuple[str, str, float]]:
    """Every document of the small world with a third of the labels."""
    return [
        (doc.uid, label.title, score(topical(Pair(doc, label))))
        for number, doc in enumerate(DOCUMENTS)
        for label in LABELS[number % 3 :: 3]
    ]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ezxmc.teacher.load_teacher", lambda config: FakeTeacher(topical))
    return tmp_path


def script(name: str, *arguments: object) -> dict[str, Any]:
    """Run a script as the command line does; its names afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_page_quotes_its_scripts() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    scripts = {file.name: file.read_text(encoding="utf-8") for file in EXAMPLES.glob("*.py")}
    excerpts = re.findall(r"```python\n(.+?)```", page, re.S)
    assert len(excerpts) > 5
    assert [text for text in excerpts if not any(text in whole for whole in scripts.values())] == []
    assert set(re.findall(r"\((\w+\.py)\)", page)) == set(scripts)


def test_from_documents_to_tags_step_by_step(
    here: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_catalog(here, tiny_encoder)
    done = script("steps.py", "documents.jsonl", "labels.jsonl", tiny_encoder)
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == [doc.uid for doc in done["rest"]]
    bundle = Predictor.load("bundle").bundle
    assert bundle.calibrator is not None and bundle.calibrator.target == "teacher"
    assert bundle.calibrator.n == 10 * len(done["rest"])
    assert not {doc.uid for doc in done["rest"]} & {pair.doc.uid for pair in done["pairs"]}


def test_own_feedback_as_a_list_and_as_a_data_set_trains_one_student(here: Path, tiny_encoder: Path) -> None:
    done = script("own_feedback.py", tiny_encoder)
    assert done["one"].titles[0] in done["labels"]
    weights = [Path(name, "model.safetensors").read_bytes() for name in ("student", "student-of-rows")]
    assert weights[0] == weights[1] != (tiny_encoder / "model.safetensors").read_bytes()


def test_a_student_of_rows_agrees_with_them(tmp_path: Path, tiny_encoder: Path) -> None:
    done = train_bi_encoder(
        DOCUMENTS[:30],
        LABELS,
        rows(),
        CONFIG,
        str(tmp_path / "student"),
        base=tiny_encoder,
        held_out=DOCUMENTS[30:],
    )
    assert done.documents == 30 and done.held_out == 10
    assert max(done.selection) > done.selection[0] + 0.1


def test_a_score_is_taken_at_its_word() -> None:
    given = [(doc.uid, LABELS[row].uid, score) for doc in DOCUMENTS[:2] for row, score in _SCORES.items()]
    targets = targets_from_rows(given, DOCUMENTS, LABELS, TrainingConfig(positives=2))
    assert [target.doc_uid for target in targets.documents] == ["d0", "d1"]
    one = targets.documents[0]
    assert one.probabilities.tolist() == pytest.approx([1, 1, 1, 0.6, 0.3, 0.05, 0])
    # All that is certain is positive; of the rest as many as the configuration says, here none.
    assert sorted(one.positives) == ["l-drums", "l-guitar", "l-melody"]
    assert len(one.negatives) == 2 and one.negatives == one.labels[-2:]
    assert targets.judged == 14 and targets.prior.shifts == {}


_SCORES = {0: 1.0, 1: 1, 2: np.float32(1), 3: 0.6, 4: 0.3, 6: 0.05, 7: 0}


def test_log_odds_are_corrected_as_a_teachers_are() -> None:
    odds = rows(lambda z: z)
    frame = pd.DataFrame(odds, columns=["doc", "tag", "log_odds"])
    uid_of = {label.title: label.uid for label in LABELS}
    said = [Judgment("", doc, uid_of[title], Status.OK, z) for doc, title, z in odds]
    found = targets_from_rows(frame, DOCUMENTS, LABELS, CONFIG)
    assert _plain(found) == _plain(build_targets(said, CONFIG))
    assert found.prior.shifts


def _plain(targets: Targets) -> list[Any]:
    return [
        (one.doc_uid, one.labels, one.positives, one.negatives, one.probabilities.tolist())
        for one in targets.documents
    ]


def test_a_document_may_be_given_by_its_text_or_place() -> None:
    texts, labels = ["guitar melody", "oven soup"], ["music", "cooking"]
    found = [
        _plain(targets_from_rows(given, texts, labels, CONFIG))
        for given in (
            [("0", "music", 0.9), ("1", "cooking", 0.9)],
            [(0, "music", 0.9), [np.int64(1), "cooking", 0.9]],
            [("guitar melody", "music", 0.9), {"document": "oven soup", "label": "cooking", "score": 0.9}],
            Dataset.from_dict({"document": [0, 1], "label": labels, "score": [0.9, 0.9]}),
        )
    ]
    assert found[0] == found[1] == found[2] == found[3]


def test_of_a_pair_given_twice_the_last_counts_and_a_warning_tells() -> None:
    given = [("d0", "guitar", 0.1), ("d0", "soup", 0.1), ("d0", "guitar", 0.8)]
    with pytest.warns(UserWarning, match=r"1 of 3 .*l-guitar.* 2 times.*last"):
        found = targets_from_rows(given, DOCUMENTS, LABELS, CONFIG)
    assert found.judged == 2 and found.documents[0].probabilities[0] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("d99", "guitar", 0.5), "judgments.1.: unknown_document: .*'d99'"),
        (("d0", "nothing", 0.5), "unknown_label: .*'nothing'"),
        (("d0", "guitar", float("nan")), "no_score"),
        (("d0", "guitar", None), "no_score"),
        (("d0", "guitar", 1.5), "score is 1.5\n.*from 0 to 1"),
        (("d0", "guitar", -0.1), "score is -0.1"),
        (("d0", "guitar", "0.5"), "score is '0.5'"),
        (("d0", "guitar", True), "score is True"),
        ({"document": "d0", "label": "guitar", "log_odds": float("inf")}, "log_odds is inf"),
        ({"document": "d0", "label": "guitar", "log_odds": 1.0, "score": 0.7}, "two_scores"),
        ({"document": "d0", "score": 0.7}, "no_label"),
        ({"label": "guitar", "score": 0.7}, "no_document"),
        (("d0", "guitar"), "judgments.1. is"),
        ("d0 guitar 1", "judgments.1. is"),
        (None, "judgments.1. is None"),
    ],
)
def test_a_bad_row_is_named(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        targets_from_rows([("d0", "guitar", 0.9), row], DOCUMENTS, LABELS, CONFIG)


def test_all_bad_rows_are_counted() -> None:
    given = [("d0", "guitar", 0.9), *[("no", "guitar", 0.9)] * 3]
    with pytest.raises(DataError, match="2 more of 4 cannot be used, at 2, 3"):
        targets_from_rows(given, DOCUMENTS, LABELS, CONFIG)


def test_what_is_no_feedback_is_refused(tmp_path: Path) -> None:
    mixed = [("d0", "guitar", 0.9), {"document": "d0", "label": "soup", "log_odds": -1.0}]
    with pytest.raises(DataError, match="in one form"):
        targets_from_rows(mixed, DOCUMENTS, LABELS, CONFIG)
    with pytest.raises(InputTypeError, match="are a file"):
        targets_from_rows(tmp_path / "feedback.csv", DOCUMENTS, LABELS, CONFIG)
    with pytest.raises(TrainingError, match="no judgments"):
        targets_from_rows([], DOCUMENTS, LABELS, CONFIG)
    # Whoever has clicks has nothing else: that is no reason to refuse them.
    clicks = [(doc.uid, LABELS[0].uid, 1) for doc in DOCUMENTS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert targets_from_rows(clicks, DOCUMENTS, LABELS, CONFIG).without_positives == 0


PRIVATE = {
    "backend": "openai",
    "model": "/home/ann/models/secret",
    "served": "http://10.0.0.7:8000",
    "prompt": "generic/3",
    "engine": "vllm 0.32",
}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    """Said to have begun as the encoder for English, whose licence is known."""
    out = tmp_path_factory.mktemp("card") / "student"
    train_bi_encoder(
        DOCUMENTS[:30],
        LABELS,
        rows(),
        CONFIG.model_copy(update={"encoder": "all-MiniLM-L6-v2"}),
        out,
        base=tiny_encoder,
        held_out=DOCUMENTS[30:],
        teacher=PRIVATE,
    )
    return out


def test_a_student_has_a_card_the_hub_understands(student: Path) -> None:
    card = ModelCard.load(student / "README.md")
    data = card.data
    assert data.library_name == "sentence-transformers" and data.pipeline_tag == "sentence-similarity"
    assert data.license == "apache-2.0" and data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert "ezxmc" in data.tags
    (result,) = data.eval_results
    assert result.metric_type == "ndcg_at_5" and 0.5 < result.metric_value <= 1
    numbers = re.search(r"probability: (\S+); .* before training: (\S+)\. ", card.text)
    assert numbers is not None
    after, before = map(float, numbers.groups())
    assert before < after == pytest.approx(result.metric_value, abs=0.001)
    for told in (
        "| judgments | 334 |",
        "| documents | 30 trained on, 10 held out |",
        "backend openai, prompt generic/3, engine vllm 0.32",
        "agreement with the teacher, not with people",
        "Apache-2.0",
    ):
        assert told in card.text, told


def test_a_card_tells_nothing_of_this_machine_or_the_texts(student: Path) -> None:
    text = (student / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"/home|/tmp|secret|10\.0\.0\.7|localhost", text)
    assert str(student.parent) not in text and str(Path.home()) not in text
    assert not [doc.title for doc in DOCUMENTS if doc.title in text or doc.text in text]
    assert not [label.title for label in LABELS if re.search(rf"\b{label.title}\b", text)]


def test_a_card_tells_the_agreement_of_the_weights_it_is_with(
    student: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    mean = tmp_path / "mean"
    taught = targets_from_rows(rows(), DOCUMENTS, LABELS, CONFIG)
    options = {"held_out": DOCUMENTS[30:], "base": tiny_encoder, "seed": 1}
    train_bi_encoder(DOCUMENTS[:30], LABELS, taught, CONFIG, mean, former=student, **options)
    card = ModelCard.load(mean / "README.md")
    found = held_out_agreement(BiEncoder(mean, max_length=32), DOCUMENTS[30:], LABELS, taught)
    assert card.data.eval_results[0].metric_value == pytest.approx(found.mean(), abs=2e-4)
    assert "averaged with the initial ones and a former student's" in card.text


def test_a_store_gives_rows_to_train_on(tmp_path: Path) -> None:
    teacher = FakeTeacher(topical, fails=lambda pair: pair.label.title == "soup")
    pairs = [Pair(doc, label) for doc in DOCUMENTS[:4] for label in LABELS[::3]]
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        assert store.to_dataset().num_rows == 0
        annotate(lambda: pairs, teacher, store)
        wanted = build_targets(store.judgments(), CONFIG)
        silent = [Judgment("f" * 64, "d1", "l-soup", Status.LOW_MASS)]
        store.append(store.open_session(teacher.fingerprint, {}), silent, seconds=0.0)
        found, every = store.to_dataset(), store.to_dataset(scored=False)
        stored = list(store.judgments())
    assert found.num_rows == sum(pair.label.title != "soup" for pair in pairs)
    assert _plain(targets_from_rows(found, DOCUMENTS, LABELS, CONFIG)) == _plain(wanted)
    names = ["doc", "label", "status", "log_odds", "mass", "prompt_tokens", "cached_tokens", "key"]
    assert found.column_names == every.column_names == names
    rows = [dict(zip(names, (*astuple(one)[1:], one.key), strict=True)) for one in stored]
    assert every.to_list() == rows and every[-1]["log_odds"] is every[-1]["mass"] is None


def test_a_name_of_the_catalog_means_its_pinned_weights(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    resolve = lambda name, kind: asked.append(name) or tiny_encoder  # noqa: E731
    monkeypatch.setattr("ezxmc.retrieval.encoder.resolve_model", resolve)
    assert BiEncoder("all-MiniLM-L6-v2").dimension == 32 and asked == ["all-MiniLM-L6-v2"]


def test_without_held_out_documents_or_a_known_licence_the_card_says_so(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    config = CONFIG.model_copy(update={"encoder": str(tiny_encoder), "epochs": 1})
    train_bi_encoder(DOCUMENTS, LABELS, rows(), config, tmp_path / "student")
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert card.data.license == "unknown" and card.data.base_model is None
    assert card.data.eval_results is None and "no judged document was held out" in card.text
    assert str(tiny_encoder) not in str(card)
    # Weights of a folder that tells its licence keep it.
    encoder = BiEncoder(tiny_encoder)
    encoder.card = "---\nlicense: mit\n---\nMine."
    encoder.save(tmp_path / "mine")
    train_bi_encoder(DOCUMENTS, LABELS, rows(), config, tmp_path / "next", base=tmp_path / "mine")
    assert ModelCard.load(tmp_path / "next" / "README.md").data.license == "mit"


def test_the_card_goes_into_the_bundle_and_to_the_hub(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (student / "README.md").read_text(encoding="utf-8")
    manifest = save_bundle(str(tmp_path / "bundle"), student, LABELS, max_length=32, k=3)
    inside = tmp_path / "bundle" / "student"
    assert (inside / "README.md").read_text(encoding="utf-8") == card
    assert "student/README.md" in manifest.files
    Predictor(tmp_path / "bundle")
    pushed: dict[str, str] = {}

    class Hub:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            assert options["private"] is True
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> Any:
            for file in Path(folder_path).rglob("*"):
                if file.is_file():
                    name = file.relative_to(folder_path).as_posix()
                    pushed[name] = file.read_text("utf-8") if name == "README.md" else ""
            return SimpleNamespace(commit_url="url", pr_url=None)

    read = sys.modules["sentence_transformers.base.model"].load_file_path
    monkeypatch.setattr("sentence_transformers.base.model.HfApi", Hub)
    monkeypatch.setattr(
        "sentence_transformers.base.model.load_file_path",
        lambda name, *rest, **options: None if name == "ann/tagger" else read(name, *rest, **options),
    )
    script("share.py", inside, "ann/tagger")
    assert pushed.pop("README.md") == card.replace("sentence_transformers_model_id", "ann/tagger") != card
    listed = {name.removeprefix("student/") for name in manifest.files if name.startswith("student/")}
    assert set(pushed) == listed - {"README.md"}


def test_a_student_embeds_elsewhere_as_it_does_here(student: Path) -> None:
    made = script("embeddings.py", student)["StudentEmbeddings"](str(student))
    texts = [doc.shown for doc in DOCUMENTS[:3]]
    there = made.embed_documents(texts)
    np.testing.assert_allclose(there, BiEncoder(student).encode_documents(texts), atol=1e-5)
    assert made.embed_query(texts[0]) == pytest.approx(there[0], abs=1e-5)


def test_the_stock_trainer_takes_pairs_and_our_losses(here: Path, tiny_encoder: Path) -> None:
    done = script("stock_trainer.py", tiny_encoder)
    assert done["pairs"].column_names == ["document", "title", "score"]
    before, after = (SentenceTransformer(str(path)).state_dict() for path in (tiny_encoder, here / "student"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_targets_as_data_sets() -> None:
    given = [("d0", "guitar", 0.9), ("d0", "soup", 0.1), ("d0", "oven", 0.05), ("d0", "melody", 0.7)]
    given += [("d1", "soup", 0.8), ("d2", "boat", 0.1)]
    targets = targets_from_rows(given, DOCUMENTS, LABELS, CONFIG)
    text = DOCUMENTS[0].shown
    pairs = targets_dataset(DOCUMENTS, LABELS, targets)
    assert pairs[0] == {"document": text, "title": "guitar", "score": pytest.approx(0.9)}
    assert len(pairs) == len(given)
    triplets = targets_dataset(DOCUMENTS, LABELS, targets, "triplets")
    assert triplets.to_list() == [
        {"anchor": text, "positive": "guitar", "negative": "oven"},
        {"anchor": text, "positive": "melody", "negative": "soup"},
    ]
    whole = targets_dataset(DOCUMENTS, LABELS, targets, "documents")
    assert whole.to_list() == [{"document": text, "label": 0}, {"document": DOCUMENTS[1].shown, "label": 1}]
    with pytest.raises(ArgumentError, match="pairs, triplets, documents"):
        targets_dataset(DOCUMENTS, LABELS, targets, "rows")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [*({"losses": {name: 1.0}} for name in LOSSES), {"matryoshka": [8]}, {"negatives": "all"}],
    ids=lambda changes: "-".join(map(str, next(iter(changes.values())))),
)
def test_a_loss_in_the_stock_trainer_is_the_one_of_ours(tiny_encoder: Path, changes: dict[str, Any]) -> None:
    config = TrainingConfig(**{**CONFIG.model_dump(), **changes})
    targets = targets_from_rows(rows(), DOCUMENTS, LABELS, config)
    taught = examples(DOCUMENTS, LABELS, targets)
    members = [row for row, one in enumerate(taught) if one.positives][:5]
    texts, titles = [doc.shown for doc in DOCUMENTS], [label.title for label in LABELS]
    ours = BiEncoder(tiny_encoder, device="cpu")
    stepper = Stepper(ours, texts, titles, [taught[row] for row in members], config, np.random.default_rng(0))
    batch = collate(stepper.pool, len(titles), stepper.every_label, np.random.default_rng(7))
    wanted = stepper._gradients(batch)

    model = SentenceTransformer(str(tiny_encoder), device="cpu").eval()
    loss = DistillationLoss(model, DOCUMENTS, LABELS, targets, config, seed=7)
    features = model.preprocess([texts[taught[row].document] for row in members])
    found = loss([features], torch.tensor(members))
    found.backward()
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0
    expected = dict(ours.model.named_parameters())
    for name, parameter in model.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            # The stock trainer's attention is fused, ours plain for short texts.
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5, msg=name)
    for one, other in zip(loss.loss.parameters(), stepper.loss.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
