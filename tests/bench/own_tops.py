"""A student's own top labels, on real judgments: who is favoured, what is stated, what an old review says.

    python tests/bench/own_tops.py FOLDER [--students 2]

EZXMC_DEBTAGS names the folder of debtags (data_cards/debtags.md) with judgments.jsonl: a 1.5B teacher on 700
documents and the 14 labels of each that the untrained encoder ranks first. Students of one recipe and other
seeds learn from 410 of these documents and are kept in FOLDER; figures are of the other 290. What nobody
judged limits what can be told, so all is measured twice. Once a document has its 14 recorded labels and no
others: every answer is the teacher's own, and the untrained encoder's shortlist is the first 7 (4 a cycle).
Once it has all 466, and an unrecorded pair gets the answer of a recorded one of the same gold status and
about the same cosine: an oracle with the teacher's confusion, which knows nothing of what students have in
common with the teacher beside that. The gold tags that stand for people's reviews are real in both.

Two students, ten halvings of the documents where some fit and others tell, 140 s of one core:

| what | recorded labels only | all labels, oracle |
|---|---|---|
| the newer of two equal students, nDCG@5 on what the former proposed | -.0006 ± .0011 | +.0031 ± .0014 |
| the same with both students' own first five judged, as a run does | -.0004 ± .0001 | -.0019 ± .0003 |
| how far the two students are apart | .0038 | .0019 |
| share of the student's top that the untrained encoder's shortlist lacks | .22 | .37 |
| teacher's "yes": stated by the store alone, realised | .638, .637 | .567, .538 |
| the same with what `calibrate --missing` asks | .641, .637 | .540, .538 |
| stated less realised at a rank: by the store alone, with what was missing | .016, .016 | .031, .017 |
| people's tags, stated less realised: reviews of the student's own lists | -.0045 | -.0002 |
| reviews of the former student's lists, decided pairs alone (.85, .76 of the top) | +.0079 | +.0153 |
| the same, completed as a run does | -.0021 | +.0006 |

So a run that compares students favours none by more than .002, and if one, the one that proposed. The rates
of a store alone are too high by .03 where all labels count, and cannot be told among 14: there nearly every
label of the list is likely.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.debtags import DEBTAGS, catalog, judgments, rows, share

from ezxmc.calibration import Verdict, completed, fit_calibrator, fit_few_shot, unjudged
from ezxmc.config import TrainingConfig
from ezxmc.feedback.reviews import Answer, ReviewedPairs
from ezxmc.feedback.targets import build_targets
from ezxmc.models import resolve_model
from ezxmc.records import Judgment, Prediction, Status
from ezxmc.retrieval import BiEncoder
from ezxmc.training import train_bi_encoder
from ezxmc.training.student import ndcg

APART = 0.4
"""Share of the judged documents that no student learns from."""
UNJUDGED = 0.1
LENGTH = 64
NEAR = 200  # recorded pairs an unrecorded one takes its answer from
UNTRAINED = -1
SPLITS = 10


def train(folder: Path, students: int) -> None:
    """Students of one recipe and other seeds, and the scores of all labels on documents kept apart."""
    said = judgments()
    judged = {judgment.doc_uid for judgment in said}
    documents, labels, _ = catalog()
    taught = [d for d in documents if d.uid in judged and share(d.uid) >= APART]
    apart = [d for d in documents if share(d.uid) < (APART if d.uid in judged else UNJUDGED)]
    config = TrainingConfig(max_length=LENGTH)
    base = resolve_model(config.encoder, kind="encoder")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(UNTRAINED, students):
        place, model = folder / f"scores{number}.npz", folder / f"student{number}"
        if place.exists():
            continue
        if number != UNTRAINED:
            order = np.random.default_rng(number).permutation(len(taught))
            cut = len(taught) // 6
            train_bi_encoder(
                [taught[i] for i in order[cut:]],
                labels,
                build_targets(said, config),
                config,
                model,
                base=base,
                held_out=[taught[i] for i in order[:cut]],
                seed=number,
            )
        encoder = BiEncoder(base if number == UNTRAINED else model, max_length=LENGTH)
        texts = encoder.encode_documents([document.shown for document in apart])
        scores = texts @ encoder.encode_labels([label.title for label in labels]).T
        np.savez(place, scores=scores.astype(np.float32), uids=np.array([document.uid for document in apart]))


class World:
    """Documents no student learnt from, what each student scores them, and the teacher's answers.

    Args:
        folder: With the scores.
        students: How many.
        recorded_only: A document has its 14 recorded labels and no others, so that each answer is the
            teacher's own; else all 466, and an unrecorded pair gets the answer of a recorded one, drawn
            among the `NEAR` ones of the same gold status whose untrained cosine is nearest: an oracle.
    """

    def __init__(self, folder: Path, students: int, *, recorded_only: bool) -> None:
        self.labels = [row["uid"] for row in rows("labels_faceted.jsonl")]
        place = {uid: i for i, uid in enumerate(self.labels)}
        files = {i: np.load(folder / f"scores{i}.npz") for i in range(UNTRAINED, students)}
        every = files[UNTRAINED]["uids"].tolist()
        said = judgments()
        judged = {judgment.doc_uid for judgment in said}
        kept = [i for i, uid in enumerate(every) if uid in judged]
        self.uids = [every[i] for i in kept]
        row = {uid: i for i, uid in enumerate(self.uids)}
        self.scores = {i: file["scores"][kept].astype(np.float64) for i, file in files.items()}
        shape = len(self.uids), len(self.labels)
        self.gold = np.zeros(shape, dtype=bool)
        for line in (DEBTAGS / "qrels.tsv").read_text(encoding="utf-8").splitlines():
            document, label = line.split("\t")[:2]
            if document in row and label in place:
                self.gold[row[document], place[label]] = True
        self.odds = np.full(shape, np.nan)
        for one in said:
            if one.doc_uid in row:
                self.odds[row[one.doc_uid], place[one.label_uid]] = one.log_odds
        self.there = ~np.isnan(self.odds)
        if not recorded_only:
            self._answer_all()
            self.there[:] = True
        self.tops = {
            i: np.argsort(-np.where(self.there, scores, -np.inf), axis=1, kind="stable")
            for i, scores in self.scores.items()
        }
        self.candidates = int(self.there.sum(axis=1).min())

    def _answer_all(self) -> None:
        rng, cosines = np.random.default_rng(0), self.scores[UNTRAINED]
        known = self.there.copy()
        for status in (False, True):
            pool, asked = known & (self.gold == status), ~known & (self.gold == status)
            order = np.argsort(cosines[pool], kind="stable")
            near, answers = cosines[pool][order], self.odds[pool][order]
            size = min(NEAR, len(near))
            start = np.clip(np.searchsorted(near, cosines[asked]) - size // 2, 0, len(near) - size)
            self.odds[asked] = answers[start + rng.integers(size, size=len(start))]

    def predictions(self, student: int, documents: Sequence[int], k: int) -> list[Prediction]:
        found = []
        for i in documents:
            top = self.tops[student][i, :k]
            uids = tuple(self.labels[label] for label in top)
            found.append(Prediction(self.uids[i], uids, uids, tuple(self.scores[student][i, top].tolist())))
        return found

    def people(self, student: int, documents: Sequence[int], k: int) -> ReviewedPairs:
        """The gold tags as decisions on what a student ranks first."""
        return ReviewedPairs(
            {
                (self.uids[i], self.labels[label]): Answer.YES if self.gold[i, label] else Answer.NO
                for i in documents
                for label in self.tops[student][i, :k]
            }
        )

    def teacher(self, document: int, label: int) -> float:
        return float(expit(self.odds[document, label]))


def favours(world: World, students: int) -> None:
    """Two students of one law, each in the proposer's place in turn: what is left is the place's worth."""
    size = 4 if world.candidates < 20 else 7
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for one, other in permutations(range(students), 2):
        asked = [list(row[:size]) for row in world.tops[UNTRAINED]]
        for row, own in zip(asked, world.tops[one], strict=True):
            row += [label for label in own[: world.candidates] if label not in row][:size]
        both = [
            list(dict.fromkeys([*row, *a[:5], *b[:5]]))
            for row, a, b in zip(asked, world.tops[one], world.tops[other], strict=True)
        ]
        for name, pairs in {"the proposer's pairs": asked, "and both own first five": both}.items():
            gap = agreement(world, other, pairs) - agreement(world, one, pairs)
            found[name].append(gap)
        apart = np.abs(found["and both own first five"][-1].mean())
        found["(how far two such students are apart)"].append(np.full(len(asked), apart))
    for name, gaps in found.items():
        by_document = np.mean(gaps, axis=0)
        error = by_document.std() / np.sqrt(len(by_document))
        print(f"  {name}: {by_document.mean():+.4f} ± {error:.4f}, {len(by_document)} documents", flush=True)


def agreement(world: World, student: int, pairs: Sequence[Sequence[int]]) -> np.ndarray:
    """nDCG@5 by document, as a run compares students."""
    said = [
        Judgment("0" * 64, str(i), str(label), Status.OK, float(world.odds[i, label]), 1.0)
        for i, row in enumerate(pairs)
        for label in row
    ]
    values = np.zeros(len(pairs))
    for one in build_targets(said, TrainingConfig()).documents:
        i = int(one.doc_uid)
        own = world.scores[student][i, [int(label) for label in one.labels]]
        values[i] = ndcg(own, one.probabilities)
    return values


def verdicts(said: dict[tuple[str, str], float]) -> Verdict:
    return lambda doc, label: said.get((doc, label))


def calibrations(world: World, students: int) -> None:
    """A calibrator of a store the untrained encoder proposed, before and after asking what is missing."""
    depth, listed = (5, 7) if world.candidates < 20 else (10, 14)
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for student in range(students):
        for seed in range(SPLITS):
            order = np.random.default_rng(seed).permutation(len(world.uids))
            fitted, new = order[: len(order) // 2], order[len(order) // 2 :]
            predictions = world.predictions(student, fitted, depth)
            row = {world.uids[i]: i for i in fitted}
            place = {uid: i for i, uid in enumerate(world.labels)}
            stored = {
                (world.uids[i], world.labels[label])
                for i in fitted
                for label in world.tops[UNTRAINED][i, :listed]
            }
            fresh = np.take_along_axis(world.scores[student], world.tops[student], axis=1)[new, :depth]
            true = expit(np.take_along_axis(world.odds, world.tops[student], axis=1)[new, :depth])
            missing = unjudged(predictions, stored, depth)
            asked = stored | {(uid, label) for uid, labels in missing.items() for label in labels}
            for name, known in (("the store alone", stored), ("with what --missing asks", asked)):
                said = {pair: world.teacher(row[pair[0]], place[pair[1]]) for pair in known}
                verdict = verdicts(said)
                calibrator = fit_calibrator(predictions, verdict, target="teacher", k=depth)
                stated = calibrator.transform(fresh)
                error = float(np.mean([abs(stated[:, i].mean() - true[:, i].mean()) for i in range(depth)]))
                found[name].append((float(stated.mean()), float(true.mean()), error))
            missed = sum(map(len, missing.values())) / (depth * len(fitted))
            found["(share missing)"].append((missed, missed, 0))
    for name, values in found.items():
        stated, realised, error = np.mean(values, axis=0)
        print(
            f"  {name}: stated {stated:.3f}, realised {realised:.3f}, off by {error:.3f} at a rank",
            flush=True,
        )


def reviews(world: World, students: int) -> None:
    """People decided on the former student's top labels; a new one's are calibrated by them."""
    depth = 5 if world.candidates < 20 else 10
    place = {uid: i for i, uid in enumerate(world.labels)}
    row = {uid: i for i, uid in enumerate(world.uids)}
    gaps: dict[str, list[float]] = defaultdict(list)
    for former, student in permutations(range(students), 2):
        for seed in range(SPLITS):
            order = np.random.default_rng(seed).permutation(len(world.uids))
            seen, new = order[: len(order) // 2], order[len(order) // 2 :]
            predictions = world.predictions(student, seen, depth)

            fresh = np.take_along_axis(world.scores[student], world.tops[student], axis=1)[new, :depth]
            true = np.take_along_axis(world.gold, world.tops[student], axis=1)[new, :depth]
            teacher = lambda uid, label: world.teacher(row[uid], place[label])  # noqa: E731
            old = world.people(former, seen, depth).lists(predictions, depth)
            whole = world.people(student, seen, depth).lists(predictions, depth)
            for name, verdict in {
                "of the former student, decided pairs alone": old.verdict,
                "of the former student": completed(predictions, old, depth),
                "of the student's own lists": whole.verdict,
            }.items():
                alone = fit_calibrator(predictions, verdict, target="human", k=depth)
                few = fit_few_shot(predictions, teacher, verdict, k=depth)
                for kind, one in (("people alone", alone), ("people and teacher", few)):
                    gaps[f"{name}, {kind}"].append(float(one.transform(fresh).mean() - true.mean()))
            known = sum(len(one) for one in old.answers.values())
            gaps["(share decided)"].append(known / (depth * len(old.answers)))
            gaps["(lists used)"].append(len(old.answers))
    for name, values in gaps.items():
        print(f"  {name}: {np.mean(values):+.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--students", type=int, default=2)
    given = parser.parse_args()
    train(given.folder, given.students)
    for recorded_only in (True, False):
        world = World(given.folder, given.students, recorded_only=recorded_only)
        print("recorded labels only" if recorded_only else "all labels, an oracle for what nobody judged")
        favours(world, given.students)
        calibrations(world, given.students)
        reviews(world, given.students)


if __name__ == "__main__":
    main()
