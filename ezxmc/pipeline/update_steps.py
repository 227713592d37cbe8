"""The steps of one update, each done once: select and ask, train, keep, tag.

Known judgments are all that the store has of the catalog as it is now, whatever uids it was asked under.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from ezxmc.bundle.labels import add_labels, remove_labels
from ezxmc.bundle.manifest import MANIFEST, check_bundle_place, holding, labels_of, own_files
from ezxmc.bundle.predict import Predictor, prediction_row
from ezxmc.config import RunConfig
from ezxmc.data import Catalog
from ezxmc.data.catalog import parts
from ezxmc.feedback.annotator import Annotator
from ezxmc.feedback.budget import in_hash_order
from ezxmc.feedback.reviews import ReviewedPairs
from ezxmc.feedback.store import FeedbackStore
from ezxmc.feedback.targets import Targets, context_of
from ezxmc.files import remove_own, whole_folder
from ezxmc.hashing import file_hash
from ezxmc.pipeline.deliver import Delivery
from ezxmc.pipeline.people import FORMER, LabelEdits, carry_over, outdated
from ezxmc.pipeline.rundir import BUNDLE, ENCODING, INDEXING, RunDir, reading
from ezxmc.pipeline.snapshot import Changes, Snapshot
from ezxmc.pipeline.update_pairs import Selection, pair_rows, read_pairs, select
from ezxmc.progress import Progress
from ezxmc.records import Document, Judgment, Label, Pair
from ezxmc.retrieval import BiEncoder
from ezxmc.teacher import Teacher
from ezxmc.teacher.base import rest

_Item = TypeVar("_Item", Document, Label)


def known_judgments(
    catalog: Catalog, now: Snapshot, teacher: Teacher, store: FeedbackStore
) -> Iterator[Judgment]:
    """Judgments that hold for texts and titles of the catalog, under their present uids.

    An edited document, a renamed or removed label takes its judgments out: the key tells. They stay in the
    store, and count again if the text comes back. The snapshot `now` knows what a text was called before.
    """
    documents = _by_name({document.uid: document for document in catalog.documents}, now.also)
    labels = _by_name({label.uid: label for label in catalog.labels}, now.labels_also)
    for judgment in store.judgments(teacher.fingerprint):
        for document in documents.get(judgment.doc_uid, ()):
            for label in labels.get(judgment.label_uid, ()):
                if teacher.key(Pair(document, label)) == judgment.key:
                    yield replace(judgment, doc_uid=document.uid, label_uid=label.uid)


def _by_name(items: Mapping[str, _Item], also: Mapping[str, tuple[str, ...]]) -> dict[str, list[_Item]]:
    """By every uid an item was ever asked under."""
    found: dict[str, list[_Item]] = defaultdict(list)
    for uid, item in items.items():
        found[uid].append(item)
        for other in also.get(uid, ()):
            found[other].append(item)
    return found


_MOST_PROBED, _MOST_CHECKED = 0.25, 0.25
"""Of a limit, what the probe and the calibration may take."""
_TRAINED, _KEPT = "trained", "kept"
_FEW_SHORTLISTS = 10  # as many shortlists may hold all labels


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """A catalog beside what the run saw of it.

    Attributes:
        former: What it saw.
        now: What there is.
        changes: What is not as it was.
    """

    former: Snapshot
    now: Snapshot
    changes: Changes

    @property
    def elsewhere(self) -> set[str]:
        """Uids whose text served, or serves, another part under another uid: it may have been trained on."""
        placed = {**self.former.placed_by, **self.now.placed_by}
        also = self.now.also
        uids = {*also, *(other for others in also.values() for other in others)}
        part_of = parts((placed.get(uid, uid) for uid in uids), self.now.held_out, self.now.seed)
        part = {uid: part_of[placed.get(uid, uid)] for uid in uids}
        return {uid for uid, others in also.items() if any(part[other] != part[uid] for other in others)}


class Update(Delivery):
    """The state of one update; it takes what `Delivery` does, and two things more.

    Args:
        student: The former bundle.
        grown: What has changed.
    """

    def __init__(
        self,
        config: RunConfig,
        student: Predictor,
        grown: CatalogChange,
        annotator: Annotator,
        decided: ReviewedPairs,
        watch: Progress,
    ) -> None:
        super().__init__(config, annotator, decided, watch)
        self.student, self.grown = student, grown
        self.notes: list[str] = []
        changes, uids = grown.changes, [document.uid for document in self.catalog.documents]
        self.elsewhere = grown.elsewhere
        """Documents of a text that served, or serves, another part under another uid."""
        apart = [i for i in self.catalog.to_calibrate if uids[i] not in self.elsewhere]
        unseen = set(changes.unseen)
        self.old_apart = in_hash_order(uids, (i for i in apart if i not in unseen))
        """Old documents no student has learnt from, in random order."""
        self.checked = self.old_apart[: config.update.check]
        """Those both students are compared on."""
        self.new_apart = in_hash_order(uids, (i for i in apart if i in unseen))[: config.budget.calibration]
        asked, said = {*self.checked, *self.new_apart}, {uid for uid, _ in decided.answers}
        self.reviewed = [i for i in apart if uids[i] in said and i not in asked]
        """Further ones that people decided on: they calibrate, and the teacher is not asked."""
        self.reviews = ""
        """What people's decisions gave the bundle that was calibrated last, in words."""
        drawn = config.update.probe // self.depth
        limit = config.update.max_pairs
        if limit is not None:
            drawn = min(drawn, int(limit * _MOST_PROBED) // self.depth)
        texts: dict[str, int] = {}
        for i in in_hash_order(uids, changes.unseen):
            texts.setdefault(self.catalog.documents[i].shown, i)
        self.probed = list(texts.values())[:drawn]
        """New documents that test for drift; of equal ones one, for the others would tell nothing more."""
        seen = student.bundle.rows().keys() - {self.catalog.labels[row].uid for row in changes.unseen_labels}
        self.seen = seen & self.row_of.keys()
        """Labels that are what they were."""

    @property
    def check_pairs(self) -> int:
        """Pairs that calibrate and compare, at most."""
        # Both students' best old labels may lie below the first tags.
        compared = len(self.checked) * 2 * self.config.inference.k
        return (len(self.checked) + len(self.new_apart)) * self.depth + compared

    @cached_property
    def _state(self) -> list[Any]:
        """What every stage depends on."""
        manifest = file_hash(self.student.bundle.path / MANIFEST)
        return [self.catalog.hash, self.grown.former.hash, manifest, self.config.seed]

    def rows(self, labels: Iterable[str], among: Collection[str]) -> list[int]:
        """Rows in the catalog of those labels that are `among`."""
        return [self.row_of[uid] for uid in labels if uid in among]

    def selection(self, drifting: Collection[str]) -> Selection:
        """What there is to ask, given labels that drifted."""
        limit = self.config.update.max_pairs
        if limit is not None:
            limit -= len(self.probed) * self.depth + min(self.check_pairs, int(limit * _MOST_CHECKED))
        return select(
            self.config,
            self.catalog,
            self.grown.changes,
            self.student.bundle.encoder,
            self.known(),
            set(self.rows(sorted(drifting), self.seen)),
            limit,
        )

    def known(self) -> list[Judgment]:
        """What the store holds of the catalog as it is."""
        annotator = self.annotator
        return list(known_judgments(self.catalog, self.grown.now, annotator.teacher, annotator.store))

    @staticmethod
    def check(place: RunDir) -> None:
        """Refuse, before anything is asked, where something else lies in the place of a bundle.

        Raises:
            ConfigError: As for `check_bundle_place`.
        """
        for name in (_TRAINED, _KEPT, BUNDLE):
            check_bundle_place(place.path / name)

    def ask(self, place: RunDir, drifting: Collection[str]) -> dict[str, int]:
        """Select and ask; returns how many pairs were selected, by why."""
        file = place.path / "pairs.jsonl"

        def make() -> dict[str, Any]:
            found = self.selection(drifting)
            place.write_lines(file, pair_rows(self.catalog, found.parts))
            return {"counts": found.counts(), "unasked": found.unasked}

        config = self.config
        parts = [part.model_dump() for part in (config.shortlist, config.inference, config.update)]
        inputs = [*self._state, *parts, config.budget.calibration, sorted(drifting)]
        done = place.stage("select", inputs, [file], make, libraries=ENCODING)
        with reading(file) as lines:
            selected = read_pairs(self.catalog, lines)
            if sum(map(len, chain(*selected.values()))) != sum(done["counts"].values()):
                raise ValueError("pairs are missing")
        uids = [document.uid for document in self.catalog.documents]
        for why, rows in selected.items():
            order = in_hash_order(uids, (i for i, row in enumerate(rows) if row))
            self.annotator.ask(order, [rows[i] for i in order], f"teacher judges: {why}")
        rest(self.annotator.teacher)  # training needs memory
        self.notes += [f"{done['unasked']:,} pairs were left out by the limit."] if done["unasked"] else []
        return dict(done["counts"])

    def learn(self, place: RunDir) -> tuple[Path, dict[str, Any]]:
        """Train on from the former weights, on all judgments; the bundle of it, and how training went."""
        student, bundle = place.path / "student", place.path / _TRAINED
        base = self.student.bundle.path / "student"
        judgments = self.learnt(self.known())
        self.notes += self.without_priors(judgments)
        select_on = [
            d for d in self.annotator.documents(self.catalog.to_select) if d.uid not in self.elsewhere
        ]

        def fused() -> Targets:
            former = self.student.bundle.encoder if self.config.training.fusion else None
            return self.taught(judgments, former, self.verdicts)

        inputs = [*self._state, self.training, self.content(judgments)]
        trained = self.train(
            place,
            "train",
            inputs,
            student,
            lambda: (fused(), self.taught(judgments, None, self.verdicts)),
            base=base,
            former=base,
            held_out=select_on,
        )
        origin = {**self.student.bundle.manifest.origin, "update": place.path.name}
        place.stage(
            "bundle",
            [*inputs, self.config.inference.model_dump()],
            [bundle / MANIFEST],
            lambda: self.save(bundle, student, origin, self.refine(fused)).model_dump(),
            libraries=INDEXING,
        )
        return bundle, trained

    def taught(
        self,
        judgments: Sequence[Judgment],
        former: BiEncoder | None = None,
        verdicts: Mapping[tuple[str, str], bool] = MappingProxyType({}),
    ) -> Targets:
        """`targets`; documents asked about all labels tell of the labels' priors alone."""
        labels = len(self.catalog.labels)
        context = context_of(judgments, labels)
        # Where labels are many, one such document would bring them all into its batch.
        apart = {j.doc_uid for j in context} if labels > _FEW_SHORTLISTS * self.config.shortlist.size else ()
        taught = [judgment for judgment in judgments if judgment.doc_uid not in apart]
        return self.targets(taught, context, former, verdicts)

    def without_priors(self, judgments: Sequence[Judgment]) -> list[str]:
        """What to tell where labels have no prior of their own, though others have."""
        if self.config.training.prior == "none":
            return []
        labels = self.catalog.labels
        new = {labels[row].uid for row in self.grown.changes.unseen_labels}
        former = context_of((j for j in judgments if j.label_uid not in new), len(labels) - len(new))
        without = len(labels) - len({judgment.label_uid for judgment in context_of(judgments, len(labels))})
        if not former or not without:
            return []
        return [
            f"{without:,} of {len(labels):,} labels have no prior of their own, for they were not asked "
            "about on the documents of the label priors: an update with a higher update.max_pairs, or a "
            "run without --update, asks."
        ]

    def learnt(self, judgments: Iterable[Judgment], also: Collection[int] = ()) -> list[Judgment]:
        """Those of documents that are not kept apart, or are among `also`."""
        apart = {self.catalog.documents[i].uid for i in set(self.catalog.to_calibrate) - set(also)}
        return [judgment for judgment in judgments if judgment.doc_uid not in apart]

    def edits(self, bundle: Path) -> LabelEdits:
        """What people changed in the labels of the run's bundle, or of a copy of it."""
        return LabelEdits.between(labels_of(bundle), self.grown.former, self.catalog.labels)

    def keep(self, place: RunDir) -> Path:
        """The former bundle with the labels there are now, new ones by their titles."""
        bundle, former = place.path / _KEPT, self.student.bundle.path
        with whole_folder(bundle, "bundle", own_files) as fresh, holding(former):
            shutil.copytree(former, fresh, ignore=shutil.ignore_patterns(".lock"), dirs_exist_ok=True)
        edits, there = self.edits(bundle), {label.uid for label in labels_of(bundle)}
        gone = there - self.row_of.keys() - {label.uid for label in edits.added}
        late = gone == there  # a bundle is never without a label
        if gone and not late:
            remove_labels(bundle, sorted(gone))
        labels = [label for label in self.catalog.labels if label.uid not in edits.others]
        add_labels(bundle, labels, progress=self.watch.stage("bundle: new labels"))
        if late:
            remove_labels(bundle, sorted(gone))
        self.tell_of_people(edits)
        return bundle

    def take_over(self, bundle: Path) -> None:
        """Give a new student's bundle what people changed in the former one; note what does not fit."""
        former = self.student.bundle.path
        edits = self.edits(former)
        edits.apply(bundle)
        carry_over(former, bundle, former.with_name(FORMER))
        self.notes += outdated(bundle, former.with_name(FORMER), named=former)
        self.tell_of_people(edits)

    def tell_of_people(self, edits: LabelEdits) -> None:
        """Note what stays of people's labels, once."""
        self.notes += [line for line in edits.lines() if line not in self.notes]

    def tag(self, bundle: Path, place: RunDir) -> None:
        """Tag every document; then the bundle is the update's."""
        tags = self.tags(Predictor(bundle), self.config.inference.k)
        place.write_lines(place.path / "predictions.jsonl", map(prediction_row, tags))
        target = place.path / BUNDLE
        check_bundle_place(target)
        remove_own(target, set(own_files(target) or ()).__contains__)
        bundle.rename(target)
