"""The cycles of a run: a student proposes, the teacher judges, the next one learns from all judgments.

Students are compared on held-out documents by the teacher's judgments, all on
the same pairs, and each one's own first labels are among them: pairs that a
former student proposed show the mistakes of that one alone. Cycles that bring no
gain end the round. The last student is kept, unless another is better by more than chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezxmc.config import AUTO, RunConfig
from ezxmc.feedback.annotator import Annotator
from ezxmc.feedback.budget import JUDGED_TOP
from ezxmc.feedback.reviews import ReviewedPairs
from ezxmc.feedback.targets import Targets, context_documents, context_of, doubt
from ezxmc.files import remove_shards
from ezxmc.models import model_identity
from ezxmc.models.resolve import fitting_encoder
from ezxmc.pipeline.deliver import Delivery
from ezxmc.pipeline.findings import CycleResults
from ezxmc.pipeline.rundir import ENCODING, RunDir, reading
from ezxmc.progress import Progress, pulling
from ezxmc.records import Document, Judgment
from ezxmc.retrieval import BiEncoder, LabelIndex, candidate_row, shortlist
from ezxmc.retrieval.ray_encoder import open_encoder
from ezxmc.teacher.base import rest
from ezxmc.training import compared
from ezxmc.training.adapters import needed

_COMPARED = f"agreement, each student's first {JUDGED_TOP} labels judged"
_COMPARED_ONCE = "agreement over all judgments"  # in runs of releases that judged no student's own


@dataclass(frozen=True, slots=True)
class JudgedTops:
    """What several rankings put first on documents that select, judged.

    Attributes:
        documents: Positions of those of which nothing is left unjudged.
        judgments: All that is known of these.
        pairs: Asked beside what the cycles asked.
        whole: Whether nothing was left that another session might ask.
    """

    documents: list[int]
    judgments: list[Judgment]
    pairs: int
    whole: bool


def fitted(config: RunConfig, documents: Sequence[Document], watch: Progress) -> RunConfig:
    """The configuration with the encoder that suits the documents, where it leaves the choice."""
    if config.training.encoder != AUTO:
        return config
    texts = [document.shown for document in documents]
    return config.with_encoder(
        fitting_encoder(AUTO, texts, say=watch.say, progress=pulling(watch, "encoder"))
    )


class Cycles(Delivery):
    """The state of a run's cycles; they take what `Delivery` does, and two things more.

    Args:
        place: Where stages are kept.
        untrained: The encoder the first shortlists come from.

    Attributes:
        findings: One entry a cycle done.
        unasked_pairs: Candidates the budget cut off.
        asked: Label rows the cycles so far asked about, by document.
    """

    def __init__(
        self,
        config: RunConfig,
        place: RunDir,
        annotator: Annotator,
        untrained: Path | str,
        decided: ReviewedPairs,
        watch: Progress,
    ) -> None:
        super().__init__(config, annotator, decided, watch)
        self.place, self.budget, self.untrained = place, annotator.budget, untrained
        self.catalog_hash = self.catalog.hash
        self.findings: list[CycleResults] = []
        self.unasked_pairs = 0
        self._vectors = place.path / "vectors"
        self._students: list[Path] = []
        self._tops: dict[Path, NDArray[np.int64]] = {}
        self.asked: list[list[int]] = [[] for _ in self.catalog.documents]
        every = range(len(self.catalog.labels))
        drawn = context_documents(
            self.catalog.documents, self.catalog.to_train, self.budget.prior // len(every)
        )
        self._context = drawn, [every] * len(drawn)
        """Some documents, each with all labels: what the labels' priors are asked on."""

    def run(self) -> Path:
        """Do the cycles.

        Returns:
            The student that is kept: see `compared`.
        """
        students, scores, kept = self._students, [0.0], 0
        students.append(self._cycle(1, None))
        for number in range(2, self.config.cycles + 1):
            students.append(self._cycle(number, students[-1]))
            scores, kept = self._compare(number, students)
            idle = idle_cycles(scores, self.config.min_gain)
            if idle >= self.config.patience and number < self.config.cycles:
                self.watch.say(f"no gain since cycle {number - idle}: no further cycle")
                break
        if None not in (cycle.agreement for cycle in self.findings):
            plain = f"the student of cycle {kept + 1} agrees best with the teacher"
            self.watch.say(self.findings[-1].compared or plain)
        elif len(students) > 1:
            self.watch.say(
                f"the student of cycle {kept + 1} is kept: none was compared, for want of judgments"
            )
        self.findings[kept].kept = True
        return students[kept]

    def identity(self, student: Path | None) -> str:
        """Tells a student's weights from any others; `None`: the untrained encoder's."""
        if student:
            return model_identity(str(student))
        name = model_identity(self.config.training.encoder, self.config.training.revision)
        prompts = self.config.training.encoder_prompts
        return f"{name}{prompts.model_dump_json()}" if prompts else name

    def encoder(self, student: Path | None) -> BiEncoder:
        """A student, or the untrained encoder."""
        return open_encoder(
            student or self.untrained,
            self.config.cluster,
            self._vectors,
            max_length=self.config.training.max_length,
            prompts=None if student else self.config.training.encoder_prompts,
            say=self.watch.say,
        )

    def forget_vectors(self) -> None:
        """Delete what workers encoded, once what it was for is kept."""
        remove_shards(self._vectors)

    def _cycle(self, number: int, former: Path | None) -> Path:
        folder, name = self.place.cycle(number), f"cycle {number}/{self.config.cycles}"
        student = folder / "student"
        proposed, listed = self._shortlists(number, former, folder / "shortlist.jsonl", name)
        part = self.budget.allocate(number, listed)
        rows = part.rows
        if self._context[0]:
            self.annotator.ask(*self._context, f"{name}: teacher judges label priors")
        asked = self.annotator.ask(
            part.order, [rows[i] for i in part.order], f"{name}: teacher judges", number
        )
        self.unasked_pairs += part.unasked_pairs
        if asked.stopped:
            # What nobody judged may be proposed again.
            rows = [self.annotator.judged(document, row) for document, row in enumerate(rows)]
        self.asked = [[*old, *new] for old, new in zip(self.asked, rows, strict=True)]
        rest(self.annotator.teacher)  # training needs memory

        judgments, priors = self._judgments(), self._priors()
        if doubtful := doubt(judgments):
            self.watch.say(doubtful)
        trained = self.train(
            self.place,
            f"cycle-{number}-train",
            [
                self.catalog_hash,
                self.identity(None),
                self.identity(former),
                self.training,
                self.config.seed,
                self.content(judgments, priors),
            ],
            student,
            lambda: (
                self._targets(judgments, priors, former),
                self._targets(judgments, priors, None) if former else None,
            ),
            base=self.untrained,
            former=former,
            held_out=self.annotator.documents(self.catalog.to_select),
            title=f"{name}: training",
        )
        self.watch.say(
            f"{name}: {asked.asked:,} pairs judged now, {asked.known:,} known before; "
            f"trained at {trained['samples_per_second']:.0f} documents/s"
        )
        self.findings.append(CycleResults(proposed, listed, asked, trained))
        return student

    def _shortlists(
        self, number: int, former: Path | None, file: Path, name: str
    ) -> tuple[dict[str, Any], list[list[int]]]:
        """Results of the stage, and the candidates of every document."""
        chosen = self.budget.documents(number)
        config = self.config.shortlist
        if former is not None:
            # A student was trained on titles, and knows which labels are near everything (measured).
            config = config.model_copy(update={"descriptions": 0.0, "centre": 0.0})
        documents, labels = self.annotator.documents(chosen), self.catalog.labels

        def propose() -> dict[str, Any]:
            encoder = self.encoder(former)
            needed(encoder.runner)  # before the teacher is asked for what it shall learn
            found = shortlist(
                documents,
                labels,
                encoder.faster(),
                config,
                judged={
                    document.uid: {labels[row].uid for row in self.asked[i]}
                    for i, document in zip(chosen, documents, strict=True)
                },
                background=self.catalog.documents,
                seed=self.config.seed,
                progress=self.watch.stage(f"{name}: shortlist"),
            )
            self.place.write_lines(file, (candidate_row(candidates, labels) for candidates in found))
            return {
                "documents": len(found),
                "candidates": sum(len(candidates.labels) for candidates in found),
            }

        proposed = self.place.stage(
            f"cycle-{number}-shortlist",
            [
                self.catalog_hash,
                self.identity(former),
                config.model_dump(),
                self.config.training.max_length,
                self.config.seed,
                chosen,
                self.asked,
            ],
            [file],
            propose,
            libraries=ENCODING,
        )
        self.forget_vectors()
        rows: list[list[int]] = [[] for _ in self.catalog.documents]
        with reading(file) as lines:
            for i, line in zip(chosen, lines, strict=True):
                rows[i] = [self.row_of[uid] for uid in line["labels"]]
        return proposed, rows

    def _judgments(self) -> list[Judgment]:
        """What is known of the cycles' pairs; the calibration part is kept apart even from label priors."""
        apart = set(self.catalog.to_calibrate)
        mine = [i for i in range(len(self.asked)) if i not in apart]
        return self.annotator.answers(mine, [self.asked[i] for i in mine])

    def _priors(self) -> list[Judgment]:
        # A document that a budget cut short would tell of some labels only.
        return context_of(self.annotator.answers(*self._context), len(self.catalog.labels))

    def _targets(
        self, judgments: Sequence[Judgment], priors: Sequence[Judgment], former: Path | None
    ) -> Targets:
        """Fused with what the former student thinks; an untrained encoder's opinion adds nothing."""
        opened = self.encoder(former) if former is not None and self.config.training.fusion else None
        return self.targets(judgments, priors, opened, self.verdicts)

    def material(self, student: Path) -> tuple[list[Any], Callable[[bool], Targets]]:
        """What one of the cycles' students is made of, for what is made of the student.

        Returns:
            What the targets depend on; and a function that gives them, fused with the former student's
            opinion or the teacher's alone.
        """
        number = self._students.index(student)
        former = self._students[number - 1] if number else None
        judgments, priors = self._judgments(), self._priors()
        return self.content(judgments, priors), lambda fused: self._targets(
            judgments, priors, former if fused else None
        )

    def plain_targets(self, more: Sequence[Judgment]) -> Targets:
        """The teacher's opinion alone, from the cycles' judgments and `more`."""
        return self._targets([*self._judgments(), *more], self._priors(), None)

    def _compare(self, number: int, students: Sequence[Path]) -> tuple[list[float], int]:
        """How well each student agrees with the teacher on the selection part, and which is kept."""
        judgments, priors = self._judgments(), self._priors()

        def compare() -> dict[str, Any]:
            title = f"cycle {number}/{self.config.cycles}: teacher judges what students answer"
            found = self.judge_tops([self._top(student) for student in students], title, number)
            targets = self.plain_targets(found.judgments)
            documents = self.annotator.documents(found.documents)
            agreement, kept, told = compared(
                map(self.encoder, students), documents, self.catalog.labels, targets
            )
            return {
                "agreement": agreement,
                "best": told,
                "kept": kept,
                "documents": len(documents),
                "pairs": found.pairs,
                "whole": found.whole,
            }

        name = f"cycle-{number}-compare"
        made = self.place.stage(
            name,
            [
                self.catalog_hash,
                [self.identity(student) for student in students],
                self.training,
                self.config.seed,
                self.content(judgments, priors),
            ],
            [],
            compare,
            libraries=ENCODING,
        )
        if not made.get("whole", True):
            self.place.forget(name)
        agreements = made["agreement"]
        self.budget.compared = made.get("pairs", 0)
        for cycle, agreement in zip(self.findings, agreements, strict=True):
            cycle.agreement = agreement
            cycle.agreed = _COMPARED if "pairs" in made else _COMPARED_ONCE
        self.findings[-1].compared = made.get("best", "")
        # Without a held-out judgment there is nothing to choose or to stop by.
        scores = [float(number) if score is None else score for number, score in enumerate(agreements)]
        # Runs of former releases kept the best, of equal ones the last.
        best = max(range(len(scores)), key=lambda i: (scores[i], i))
        return scores, made.get("kept", best)

    def judge_tops(
        self, tops: Sequence[NDArray[np.int64]], title: str, cycle: int | None = None
    ) -> JudgedTops:
        """Have the teacher judge what several rankings put first on documents that select.

        Args:
            tops: Of each ranking, (N, K) label rows of the N documents `budget.selecting`.
            title: For the progress bar.
            cycle: After which the rankings' students are compared; `None`: after all.
        """
        first = {
            i: list(dict.fromkeys(np.concatenate([top[place] for top in tops]).tolist()))
            for place, i in enumerate(self.budget.selecting)
        }
        new = {i: [row for row in rows if row not in self.asked[i]] for i, rows in first.items()}
        documents = self.budget.to_compare([len(rows) for rows in new.values()], cycle)
        done, wanted = cycle or len(self.findings), [first[i] for i in documents]
        places = self.annotator.ask_whole(documents, wanted, title, done, compares=True)
        rest(self.annotator.teacher)
        whole = [documents[place] for place in places]
        return JudgedTops(
            whole,
            self.annotator.answers(whole, [[*self.asked[i], *new[i]] for i in whole]),
            sum(len(new[i]) for i in documents),
            len(whole) == len(documents),
        )

    def _top(self, student: Path) -> NDArray[np.int64]:
        """The label rows a student puts first, of each of `budget.selecting`."""
        if student not in self._tops:
            self._tops[student] = np.empty((0, 0), dtype=np.int64)
            if texts := [document.shown for document in self.annotator.documents(self.budget.selecting)]:
                encoder = self.encoder(student)
                queries = encoder.encode_documents(texts)
                titles = encoder.encode_labels([label.title for label in self.catalog.labels])
                self._tops[student] = LabelIndex.for_once(titles, queries).search(queries, JUDGED_TOP)[1]
        return self._tops[student]


def idle_cycles(scores: Sequence[float], min_gain: float) -> int:
    """How many of the last cycles did not gain.

    Args:
        scores: Of each cycle's student, first to last, at least one.
        min_gain: A cycle gains if its score is higher by more than this than at the last gain.
    """
    best, gained = scores[0], 0
    for place, score in enumerate(scores):
        if score > best + min_gain:
            best, gained = score, place
    return len(scores) - 1 - gained
