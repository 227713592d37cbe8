"""Loss, batches, selection and the training loop, without weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from ezxmc.config import TrainingConfig
from ezxmc.errors import TrainingError
from ezxmc.feedback.targets import DocumentTargets, PriorCorrection, Targets
from ezxmc.records import Document, Label
from ezxmc.training import train_bi_encoder
from ezxmc.training.dataset import Example, batches, collate, examples
from ezxmc.training.losses import decoupled_softmax
from ezxmc.training.selection import agreement


def random_case(seed: int, rows: int = 4, columns: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, size=(rows, columns))
    scores = rng.uniform(-1, 1, size=kind.shape)
    return scores, np.where(kind == 1, rng.uniform(0.2, 1, size=kind.shape), 0.0), kind == 2


def plain_loss(scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray, tau: float) -> float:
    costs = []
    for s, w, n in zip(scores, positives, negatives, strict=True):
        if w.sum() == 0:
            continue
        against = sum(math.exp(s[j] / tau) for j in np.flatnonzero(n))
        cost = sum(
            w[p] * -math.log(math.exp(s[p] / tau) / (math.exp(s[p] / tau) + against))
            for p in np.flatnonzero(w)
        )
        costs.append(cost / w.sum())
    return sum(costs) / len(costs) if costs else 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_loss_equals_a_plain_loop_and_its_gradient_is_right(seed: int, tau: float) -> None:
    case = random_case(seed)
    scores, positives, negatives = (torch.from_numpy(part) for part in case)
    assert float(decoupled_softmax(scores, positives, negatives, tau)) == pytest.approx(
        plain_loss(*case, tau)
    )
    scores.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: decoupled_softmax(s, positives, negatives, 0.5), (scores,))


def test_unknown_labels_and_other_positives_do_not_enter() -> None:
    scores, positives, negatives = (torch.from_numpy(part) for part in random_case(3))
    base = decoupled_softmax(scores, positives, negatives, 0.1)
    neither = (positives == 0) & ~negatives
    assert neither.any()
    torch.testing.assert_close(base, decoupled_softmax(scores + 9 * neither, positives, negatives, 0.1))


def test_empty_rows_give_zero_and_finite_gradients() -> None:
    scores = torch.zeros(2, 3, requires_grad=True)
    positives = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    loss = decoupled_softmax(scores, positives, torch.zeros(2, 3, dtype=torch.bool), 0.05)
    loss.backward()
    assert float(loss.detach()) == 0.0 and scores.grad is not None and torch.isfinite(scores.grad).all()


def example(document: int, labels: list[int], positives: int, negatives: int) -> Example:
    return Example(document, np.array(labels), np.linspace(0.9, 0.1, len(labels)), positives, negatives)


def test_who_is_negative_for_whom() -> None:
    # Document 0: positives 10, 11; 12 in between; negative 13. Document 1: positives 11, 12, 20; negative 21.
    members = [example(0, [10, 11, 12, 13], 2, 1), example(1, [11, 12, 20, 21], 3, 1)]
    batch = collate(members, 5, np.random.default_rng(0))
    assert batch.labels.tolist() == [10, 11, 12, 13, 20, 21]  # each once, though 11 and 12 are shared
    column = {label: i for i, label in enumerate(batch.labels.tolist())}
    rows = [{label for label in column if batch.negatives[i, column[label]]} for i in range(2)]
    # 12 is judged "not improbable" by document 0: left out. 20 is only document 1's positive: negative.
    # 21 is only document 1's judged negative: nothing is known about it for document 0.
    assert rows == [{13, 20}, {10, 21}]
    assert [set(batch.labels[row > 0].tolist()) for row in batch.positives] == [{10, 11}, {11, 12, 20}]
    assert batch.positives[0, column[10]] == pytest.approx(0.9)
    assert not (batch.negatives & (batch.positives > 0)).any()


def test_a_positive_that_was_not_drawn_is_never_a_negative() -> None:
    members = [example(0, [1, 2, 3], 3, 0), example(1, [1, 2, 3], 3, 0), example(2, [4], 1, 0)]
    for seed in range(20):
        batch = collate(members, 1, np.random.default_rng(seed))
        assert ((batch.positives > 0).sum(axis=1) == 1).all()
        column = {label: i for i, label in enumerate(batch.labels.tolist())}
        assert batch.negatives[0].nonzero()[0].tolist() == [column[4]]


def test_an_epoch_takes_every_usable_document_once_in_even_batches() -> None:
    pool = [example(i, [i, 50], 1, 1) for i in range(23)] + [example(99, [3], 0, 1)]
    found = list(batches(pool, 8, 2, np.random.default_rng(0)))
    assert sorted(i for batch in found for i in batch.documents) == list(range(23))
    assert [len(batch.documents) for batch in found] == [8, 8, 7]
    again = list(batches(pool, 8, 2, np.random.default_rng(0)))
    assert [batch.documents for batch in again] == [batch.documents for batch in found]


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
    assert agreement(document, labels, pool) == pytest.approx(1.0)
    ideal = 0.9 + 0.5 / np.log2(3) + 0.1 / 2
    reverse = (0.1 + 0.5 / np.log2(3) + 0.9 / 2) / ideal
    assert agreement(document, labels[::-1].copy(), pool) == pytest.approx(reverse)
    assert agreement(document, labels, [Example(0, np.array([1]), np.array([0.5]), 1, 0)]) is None


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


DOCUMENTS = [Document(f"d{i}", "", ("rose", "grass", "sky")[i % 3]) for i in range(12)]
LABELS = [Label("r", "red"), Label("g", "green"), Label("b", "blue")]
TARGETS = targets_of(*(target(d.uid, ("rgb", "gbr", "brg")[i % 3], 1, 2) for i, d in enumerate(DOCUMENTS)))
CONFIG = TrainingConfig(epochs=8, batch_size=4, learning_rate=5e-3, max_length=16)


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
        "ezxmc.training.student.decoupled_softmax", lambda *_: torch.tensor(float("nan"), requires_grad=True)
    )
    with pytest.raises(TrainingError, match="nan"):
        train_bi_encoder(DOCUMENTS, LABELS, TARGETS, CONFIG, tmp_path / "s", base=tiny)
    assert not list(tmp_path.iterdir())
