"""Batches, passes, the objective, selection and the training loop, without real weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from ezxmc.config import TrainingConfig
from ezxmc.errors import ConfigError, ModelError, TrainingError
from ezxmc.feedback.targets import DocumentTargets, PriorCorrection, Targets
from ezxmc.records import Document, Label
from ezxmc.retrieval import BiEncoder
from ezxmc.retrieval.backends import TokenCache, passes
from ezxmc.training import train_bi_encoder
from ezxmc.training.dataset import Example, collate_all, collate_in_batch, examples, length_grouped
from ezxmc.training.step import (
    Embedder,
    Schedule,
    Stepper,
    computing_dtype,
    configured_schedule,
    matryoshka_loss,
    schedule_for,
    scored,
    without_likely_positives,
)
from ezxmc.training.student import agreement, averaged

pytestmark = pytest.mark.usefixtures("one_thread")


def example(document: int, labels: list[int], positives: int, negatives: int) -> Example:
    return Example(document, np.array(labels), np.linspace(0.9, 0.1, len(labels)), positives, negatives)


def test_who_is_negative_for_whom() -> None:
    # Document 0: positives 10, 11; 12 in between; negative 13. Document 1: positives 11, 12, 20; negative 21.
    members = [example(0, [10, 11, 12, 13], 2, 1), example(1, [11, 12, 20, 21], 3, 1)]
    batch = collate_in_batch(members, 5, np.random.default_rng(0))
    assert batch.labels.tolist() == [10, 11, 12, 13, 20, 21]  # each once, though 11 and 12 are shared
    column = {label: i for i, label in enumerate(batch.labels.tolist())}
    rows = [{label for label in column if batch.negatives[i, column[label]]} for i in range(2)]
    # 12 is judged "not improbable" by document 0: left out. 20 is only document 1's positive: negative.
    # 21 is only document 1's judged negative: nothing is known about it for document 0.
    assert rows == [{13, 20}, {10, 21}]
    assert [set(batch.labels[row > 0].tolist()) for row in batch.positives] == [{10, 11}, {11, 12, 20}]
    assert batch.positives[0, column[10]] == pytest.approx(0.9)
    assert not (batch.negatives & (batch.positives > 0)).any()
    assert [set(batch.labels[row].tolist()) for row in batch.judged] == [{10, 11, 12, 13}, {11, 12, 20, 21}]
    assert batch.probabilities[1, column[21]] == pytest.approx(0.1)
    assert (batch.probabilities[~batch.judged] == 0).all()


def test_against_every_label_only_what_was_not_refused_is_no_negative() -> None:
    members = [example(0, [4, 0, 2, 3], 2, 1), example(1, [1], 1, 0)]
    batch = collate_all(members, 6)
    assert batch.labels.tolist() == list(range(6))
    assert [row.nonzero()[0].tolist() for row in batch.positives] == [[0, 4], [1]]
    assert [row.nonzero()[0].tolist() for row in batch.negatives] == [[1, 3, 5], [0, 2, 3, 4, 5]]
    assert [row.nonzero()[0].tolist() for row in batch.judged] == [[0, 2, 3, 4], [1]]


def test_an_unjudged_label_near_the_lowest_positive_is_no_negative() -> None:
    batch = collate_all([example(0, [0, 1, 2], 2, 1), example(1, [5], 1, 0)], 6)
    scores = torch.tensor([[0.8, 0.6, 0.7, 0.58, 0.56, 0.9], [0.1, 0.2, 0.3, 0.4, 0.48, 0.5]])
    found = without_likely_positives(scored(scores, batch))
    # 0.95 x 0.6 = 0.57: labels 3 and 5 may be positives; label 2 scores higher, but was refused.
    assert found.negatives.tolist() == [
        [False, False, True, False, True, False],
        [True, True, True, True, False, False],
    ]
    torch.testing.assert_close(found.positives, torch.from_numpy(batch.positives))


def test_a_positive_that_was_not_drawn_is_never_a_negative() -> None:
    members = [example(0, [1, 2, 3], 3, 0), example(1, [1, 2, 3], 3, 0), example(2, [4], 1, 0)]
    for seed in range(20):
        batch = collate_in_batch(members, 1, np.random.default_rng(seed))
        assert ((batch.positives > 0).sum(axis=1) == 1).all()
        column = {label: i for i, label in enumerate(batch.labels.tolist())}
        assert batch.negatives[0].nonzero()[0].tolist() == [column[4]]


def test_an_epoch_takes_every_document_once_in_even_batches() -> None:
    lengths = [5] * 23
    found = length_grouped(lengths, 8, np.random.default_rng(0))
    assert sorted(row for rows in found for row in rows) == list(range(23))
    assert sorted(len(rows) for rows in found) == [7, 8, 8]
    again = length_grouped(lengths, 8, np.random.default_rng(0))
    assert [rows.tolist() for rows in again] == [rows.tolist() for rows in found]
    assert [rows.tolist() for rows in length_grouped([3], 8, np.random.default_rng(0))] == [[0]]


def test_a_batch_holds_like_lengths_but_not_the_longest_of_the_epoch() -> None:
    lengths = np.random.default_rng(1).integers(1, 257, size=960)
    found = length_grouped(lengths.tolist(), 48, np.random.default_rng(0))
    spread = np.mean([np.ptp(lengths[rows]) for rows in found])
    assert 30 < spread < 100  # alone by length it would be 13, shuffled 250
    means = [lengths[rows].mean() for rows in found]
    assert means != sorted(means) and means != sorted(means, reverse=True)


def test_a_pass_keeps_to_its_tokens() -> None:
    lengths = [3, 50, 7, 8, 2, 9, 30, 30]
    found = passes(lengths, 32)
    assert sorted(row for rows in found for row in rows) == list(range(8))
    longest = [max(lengths[row] for row in rows) for rows in found]
    assert longest == sorted(longest)
    assert all(len(rows) == 1 or len(rows) * top <= 32 for rows, top in zip(found, longest, strict=True))
    assert len(found) == 5  # 2 3 7 8 | 9 | 30 | 30 | 50


def test_the_loss_of_prefixes_is_the_sum_over_cut_and_renormalised_vectors() -> None:
    batch = collate_in_batch(
        [example(0, [0, 1, 2], 1, 1), example(1, [2, 3], 1, 1)], 2, np.random.default_rng(0)
    )
    rng = np.random.default_rng(0)
    documents, labels = rng.normal(size=(2, 8)), rng.normal(size=(4, 8))
    expected = 0.0
    for size in (2, 5, 8):
        for i, d in enumerate(documents):
            for j, label in enumerate(labels):
                cosine = d[:size] @ label[:size] / np.linalg.norm(d[:size]) / np.linalg.norm(label[:size])
                expected += (batch.positives[i, j] - 2 * batch.negatives[i, j]) * cosine
    found = matryoshka_loss(
        lambda b: ((b.positives - 2 * b.negatives.float()) * b.scores).sum(),
        torch.from_numpy(documents),
        torch.from_numpy(labels),
        batch,
        [2, 5, 8],
    )
    assert float(found) == pytest.approx(expected)


def test_what_the_configuration_leaves_open_follows_the_size_of_the_data() -> None:
    assert schedule_for(599).epochs > schedule_for(600).epochs
    assert configured_schedule(TrainingConfig(), 5000) == schedule_for(5000)
    mixed = configured_schedule(TrainingConfig(epochs=7, learning_rate=1e-3), 100)
    assert mixed == Schedule(7, schedule_for(100).batch_size, 1e-3)
    plan = Schedule(epochs=4, batch_size=10, learning_rate=1.0)
    factors = [plan.factor(step, 95) for step in range(41)]
    assert plan.steps(95) == 40 and factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[40] == 0
    assert factors[4:] == sorted(factors[4:], reverse=True)


def target(uid: str, labels: str, positives: int, negatives: int) -> DocumentTargets:
    names = tuple(labels)
    p = np.linspace(0.9, 0.1, len(names))
    return DocumentTargets(uid, names, p, names[:positives], names[len(names) - negatives :])


def targets_of(*documents: DocumentTargets) -> Targets:
    return Targets(list(documents), PriorCorrection({}, 0.0), 0, 0, 0, 0)


def test_labels_taken_off_the_list_are_left_out() -> None:
    documents = [Document("x", "", "x"), Document("y", "", "y")]
    labels = [Label(uid, uid) for uid in "dcb"]  # "a", the best positive, is gone
    (found,) = examples(documents, labels, targets_of(target("y", "abcd", 2, 1)))
    assert (found.document, found.labels.tolist(), found.positives, found.negatives) == (1, [2, 1, 0], 1, 1)
    np.testing.assert_allclose(found.probabilities, np.linspace(0.9, 0.1, 4)[1:])


def test_agreement_is_one_for_the_teachers_order_and_lower_for_any_other() -> None:
    pool = [Example(0, np.array([0, 1, 2]), np.array([0.9, 0.5, 0.1]), 2, 1)]
    document = np.array([[1.0, 0.0]], dtype=np.float32)
    labels = np.array([[0.9, 0], [0.5, 0], [0.1, 0]], dtype=np.float32)
    assert agreement(document, labels, pool) == pytest.approx([1.0])
    ideal = 0.9 + 0.5 / np.log2(3) + 0.1 / 2
    reverse = (0.1 + 0.5 / np.log2(3) + 0.9 / 2) / ideal
    assert agreement(document, labels[::-1].copy(), pool) == pytest.approx([reverse])
    assert agreement(document, labels, [Example(0, np.array([1]), np.array([0.5]), 1, 0)]).size == 0


@pytest.fixture
def choosing_by_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with enough held-out documents."""
    monkeypatch.setattr("ezxmc.training.student._CHOOSING", 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT over a vocabulary of a few words, as a sentence-transformers folder."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "sky", "grass", "rose"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(16)]).save(str(folder / "st"))
    return folder / "st"


WORDS = ["rose", "sky blue", "grass green green", "", "red sky rose grass blue", "sky"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_cached_tokens_are_what_the_encoder_would_be_given(tiny: Path, side: str) -> None:
    encoder = BiEncoder(tiny, max_length=5)
    encoder.model.tokenizer.padding_side = side
    cache = TokenCache(encoder, WORDS)
    for texts in (WORDS, WORDS[1:2], WORDS[::-1]):
        found, expected = cache.features(texts), encoder.features(texts)
        assert set(found) == set(expected)
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(found[name], value), name
            else:
                assert found[name] == value
    assert [cache.length(text) for text in WORDS] == [3, 4, 5, 2, 5, 3]


def with_prompt(tiny: Path, folder: Path) -> Path:
    prompts = {"query": "red ", "document": ""}
    model = SentenceTransformer(str(tiny), prompts=prompts, default_prompt_name="query")
    model.save(str(folder))
    return folder


def static_model() -> SentenceTransformer:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "red", "green", "blue", "sky", "grass", "rose"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


@pytest.mark.parametrize("kind", ["plain", "prompted", "static", "cut"])
def test_training_embeds_as_the_finished_student_does(tiny: Path, tmp_path: Path, kind: str) -> None:
    encoder = BiEncoder(with_prompt(tiny, tmp_path / "model") if kind == "prompted" else tiny)
    if kind == "static":
        encoder.model, encoder.dimension = static_model(), 8
    if kind == "cut":
        encoder.model.truncate_dim = encoder.dimension = 6
    rows = Embedder(encoder, WORDS[::-1], "float32")(WORDS)
    assert rows.requires_grad
    unit = torch.nn.functional.normalize(rows, dim=1).detach().numpy()
    np.testing.assert_allclose(unit, encoder.encode_documents(WORDS), atol=1e-6)
    if kind == "prompted":
        assert not np.allclose(unit, BiEncoder(tiny).encode_documents(WORDS), atol=1e-3)


def test_bfloat16_where_it_is_asked_for_or_fast(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for vector, matrix in [(False, False), (True, False), (False, True)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=vector: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=matrix: has)
        fast = torch.bfloat16 if vector or matrix else torch.float32
        assert computing_dtype("auto", cpu) is fast
    assert computing_dtype("bfloat16", cpu) is torch.bfloat16
    assert computing_dtype("float32", cpu) is torch.float32
    encoder = BiEncoder(tiny)
    exact, rough = (Embedder(encoder, WORDS, precision)(WORDS) for precision in ("float32", "bfloat16"))
    assert rough.dtype is torch.float32
    assert 0 < float((exact - rough).detach().abs().max()) < 0.05


DOCUMENTS = [Document(f"d{i}", "", ("rose", "grass", "sky")[i % 3]) for i in range(12)]
LABELS = [Label("r", "red"), Label("g", "green"), Label("b", "blue")]
TARGETS = targets_of(*(target(d.uid, ("rgb", "gbr", "brg")[i % 3], 1, 2) for i, d in enumerate(DOCUMENTS)))
few_choose = pytest.mark.usefixtures("choosing_by_few")
CONFIG = TrainingConfig(epochs=8, batch_size=4, learning_rate=5e-3, max_length=16, precision="float32")


@few_choose
def test_training_learns_selects_saves_and_repeats(tiny: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    train, held = DOCUMENTS[:9], DOCUMENTS[9:]
    random_state = torch.get_rng_state()
    summary = train_bi_encoder(
        train,
        LABELS,
        TARGETS,
        CONFIG,
        tmp_path / "a" / "student",
        base=tiny,
        held_out=held,
        progress=lambda done, total, _: steps.append((done, total)),
    )
    assert torch.equal(random_state, torch.get_rng_state())
    assert steps == [(i, 24) for i in range(1, 25)] and summary.steps == 24
    assert len(summary.losses) == 8 and len(summary.selection) == 9
    assert summary.selection[summary.best_epoch] == max(summary.selection) > summary.selection[0]
    assert summary.losses[-1] < summary.losses[0]
    assert (summary.documents, summary.held_out, summary.labels_seen) == (9, 3, 3)
    json.dumps(summary.to_dict())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["student"]
    student = SentenceTransformer(str(tmp_path / "a" / "student"))
    sims = student.similarity(
        student.encode(["rose", "grass", "sky"]), student.encode(["red", "green", "blue"])
    )
    assert sims.argmax(dim=1).tolist() == [0, 1, 2]

    again = train_bi_encoder(train, LABELS, TARGETS, CONFIG, tmp_path / "b", base=tiny, held_out=held)
    assert again.losses == summary.losses
    other = train_bi_encoder(train, LABELS, TARGETS, CONFIG, tmp_path / "b", base=tiny, held_out=held, seed=5)
    assert other.losses != summary.losses


def weights_after(tiny: Path, folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    config = CONFIG.model_copy(update={"epochs": 2, **changes})
    train_bi_encoder(DOCUMENTS, LABELS, TARGETS, config, folder / "s", base=tiny)
    return dict(SentenceTransformer(str(folder / "s")).state_dict())


def test_every_label_and_in_batch_agree_where_a_batch_holds_every_label(tiny: Path, tmp_path: Path) -> None:
    # All three labels are judged for every document, so both ways see the same positives and negatives.
    one = weights_after(tiny, tmp_path, batch_size=12)
    other = weights_after(tiny, tmp_path, batch_size=12, negatives="all")
    start = SentenceTransformer(str(tiny)).state_dict()
    assert any(not torch.allclose(one[name], start[name], atol=1e-3) for name in one)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "changes", [{"negatives": "all"}, {"precision": "bfloat16"}, {"losses": {"mw": 1.0}}]
)
def test_each_way_of_training_learns(tiny: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    config = CONFIG.model_copy(update=changes)
    summary = train_bi_encoder(DOCUMENTS, LABELS, TARGETS, config, tmp_path / "s", base=tiny)
    assert summary.losses[-1] < summary.losses[0] / 2
    student = SentenceTransformer(str(tmp_path / "s"))
    assert all(value.dtype is torch.float32 for value in student.parameters())
    sims = student.similarity(
        student.encode(["rose", "grass", "sky"]), student.encode(["red", "green", "blue"])
    )
    assert sims.argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("negatives", ["in_batch", "all"])
def test_a_matryoshka_student_ranks_alike_when_cut(tiny: Path, tmp_path: Path, negatives: str) -> None:
    config = CONFIG.model_copy(update={"matryoshka": [2, 6], "negatives": negatives})
    train_bi_encoder(DOCUMENTS, LABELS, TARGETS, config, tmp_path / "s", base=tiny)
    for size in (2, 6, 16):
        student = SentenceTransformer(str(tmp_path / "s"), truncate_dim=size)
        documents, labels = student.encode(["rose", "grass", "sky"]), student.encode(["red", "green", "blue"])
        assert documents.shape == (3, size)
        assert student.similarity(documents, labels).argmax(dim=1).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="16 dimensions"):
        weights_after(tiny, tmp_path, matryoshka=[4, 16])


def test_parameters_of_a_loss_are_trained(tiny: Path) -> None:
    texts, titles = [document.shown for document in DOCUMENTS], [label.title for label in LABELS]
    for negatives in ("in_batch", "all"):
        config = CONFIG.model_copy(update={"losses": {"bce": 1.0}, "negatives": negatives})
        pool = examples(DOCUMENTS, LABELS, TARGETS)
        stepper = Stepper(BiEncoder(tiny), texts, titles, pool, config, np.random.default_rng(0))
        before = [float(value.detach()) for value in stepper.loss.parameters()]
        list(stepper.epoch())
        after = [float(value.detach()) for value in stepper.loss.parameters()]
        assert len(after) == 2 and all(a != b for a, b in zip(before, after, strict=True))


def test_a_former_student_can_be_trained_further(tiny: Path, tmp_path: Path) -> None:
    train, held = DOCUMENTS[:9], DOCUMENTS[9:]
    short = CONFIG.model_copy(update={"epochs": 2, "average": False})
    first = train_bi_encoder(train, LABELS, TARGETS, short, tmp_path / "1", base=tiny, held_out=held)
    runs = [
        train_bi_encoder(train, LABELS, TARGETS, short, tmp_path / name, base=tmp_path / "1", held_out=held)
        for name in ("2", "3")
    ]
    assert runs[0].selection[0] == pytest.approx(first.selection[first.best_epoch])
    assert runs[0].losses == runs[1].losses and runs[0].losses[0] < first.losses[0]
    one, other = (SentenceTransformer(str(tmp_path / name)).state_dict() for name in ("2", "3"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_student_is_averaged_with_the_initial_weights_and_the_former_one(
    tiny: Path, tmp_path: Path
) -> None:
    alone = weights_after(tiny, tmp_path, average=False)
    untouched = SentenceTransformer(str(tiny)).state_dict()
    other = weights_after(tiny, tmp_path, average=False, epochs=4)
    former = tmp_path / "former"
    (tmp_path / "s").rename(former)
    for average, before, shares in (
        (True, former, (0.4, 0.4, 0.2)),
        (True, None, (2 / 3, 0, 1 / 3)),
        (False, former, (1, 0, 0)),
    ):
        config = CONFIG.model_copy(update={"epochs": 2, "average": average})
        train_bi_encoder(DOCUMENTS, LABELS, TARGETS, config, tmp_path / "mean", base=tiny, former=before)
        found = SentenceTransformer(str(tmp_path / "mean")).state_dict()
        for name, value in found.items():
            parts = (alone[name].double(), other[name].double(), untouched[name].double())
            wanted = sum(share * part for share, part in zip(shares, parts, strict=True))
            torch.testing.assert_close(value.double(), wanted, atol=1e-6, rtol=0)


def test_students_of_two_architectures_are_not_averaged(tiny: Path, tmp_path: Path) -> None:
    encoder = BiEncoder(tiny)
    weights = {name: value[..., :1] for name, value in encoder.model.state_dict().items()}
    with pytest.raises(ModelError, match="another architecture"):
        averaged(weights, weights, encoder.model.state_dict())


@few_choose
def test_a_student_that_only_gets_worse_is_left_untrained(tiny: Path, tmp_path: Path) -> None:
    before = SentenceTransformer(str(tiny))
    order = np.argsort(
        -before.similarity(before.encode(["sky"]), before.encode(["red", "green", "blue"])).numpy()[0]
    )
    best = "".join("rgb"[i] for i in order)
    # Held out: the untrained order is the teacher's. Trained on: the reverse.
    targets = targets_of(target("d2", best, 1, 2), *(target(d.uid, best[::-1], 1, 2) for d in DOCUMENTS[3:]))
    train_on, held = [Document(d.uid, "", "sky") for d in DOCUMENTS[3:]], [DOCUMENTS[2]]
    summary = train_bi_encoder(train_on, LABELS, targets, CONFIG, tmp_path / "s", base=tiny, held_out=held)
    assert summary.best_epoch == 0
    after = SentenceTransformer(str(tmp_path / "s"))
    np.testing.assert_allclose(after.encode(["rose sky"]), before.encode(["rose sky"]), atol=1e-6)


@few_choose
def test_epochs_are_chosen_by_other_targets_than_those_that_teach(tiny: Path, tmp_path: Path) -> None:
    before = SentenceTransformer(str(tiny))
    order = np.argsort(
        -before.similarity(before.encode(["sky"]), before.encode(["red", "green", "blue"])).numpy()[0]
    )
    best = "".join("rgb"[i] for i in order)
    # What is taught, on the held-out document too, is the reverse of what the teacher alone says.
    taught = targets_of(*(target(d.uid, best[::-1], 1, 2) for d in DOCUMENTS[2:]))
    plain = targets_of(target("d2", best, 1, 2))
    train_on, held = [Document(d.uid, "", "sky") for d in DOCUMENTS[3:]], [DOCUMENTS[2]]
    options = {"base": tiny, "held_out": held}
    summary = train_bi_encoder(train_on, LABELS, taught, CONFIG, tmp_path / "s", **options)
    assert summary.best_epoch > 0
    summary = train_bi_encoder(
        train_on, LABELS, taught, CONFIG, tmp_path / "s", held_out_targets=plain, **options
    )
    assert summary.best_epoch == 0 and summary.selection[0] == max(summary.selection) > summary.selection[-1]


@pytest.mark.parametrize(("least", "chosen"), [(2, True), (3, True), (4, False)])
def test_few_held_out_documents_choose_no_epoch(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, chosen: bool
) -> None:
    monkeypatch.setattr("ezxmc.training.student._CHOOSING", least)
    monkeypatch.setattr("ezxmc.training.student.student_agreement", lambda *args: np.full(3, next(scores)))
    scores = iter((0.5, 0.9, 0.6))
    config = CONFIG.model_copy(update={"epochs": 2, "average": False})
    train, held = DOCUMENTS[:9], DOCUMENTS[9:]
    out = tmp_path / "s"
    summary = train_bi_encoder(train, LABELS, TARGETS, config, out, base=tiny, held_out=held)
    assert summary.held_out == 3 and summary.selection == (0.5, 0.9, 0.6)
    assert summary.best_epoch == (1 if chosen else 2)


def test_without_held_out_the_last_epoch_is_kept(tiny: Path, tmp_path: Path) -> None:
    summary = train_bi_encoder(DOCUMENTS, LABELS, TARGETS, CONFIG, tmp_path / "s", base=tiny)
    assert summary.best_epoch == 8 and summary.selection == ()


def test_refusals(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="'d3'"):
        train_bi_encoder(
            DOCUMENTS, LABELS, TARGETS, CONFIG, tmp_path / "s", base=tiny, held_out=[DOCUMENTS[3]]
        )
    hopeless = targets_of(target("d0", "rgb", 0, 3))
    with pytest.raises(TrainingError, match="none of 12"):
        train_bi_encoder(DOCUMENTS, LABELS, hopeless, CONFIG, tmp_path / "s", base=tiny)
    monkeypatch.setattr(
        "ezxmc.training.losses.DecoupledSoftmax.forward",
        lambda _, batch: batch.scores.sum() * float("nan"),
    )
    with pytest.raises(TrainingError, match="nan"):
        train_bi_encoder(DOCUMENTS, LABELS, TARGETS, CONFIG, tmp_path / "s", base=tiny)
    with pytest.raises(ConfigError, match="no_such_loss"):
        weights_after(tiny, tmp_path, losses={"no_such_loss": 1.0})
    assert not list(tmp_path.iterdir())
