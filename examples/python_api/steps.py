"""From documents and labels to a calibrated tagger, one step at a time.

python steps.py documents.jsonl labels.jsonl [ENCODER]
"""

import sys

from ezxmc import (
    BiEncoder,
    FeedbackStore,
    Pair,
    Predictor,
    TrainingConfig,
    annotate,
    build_targets,
    load_teacher,
    save_bundle,
    shortlist,
    train_bi_encoder,
)
from ezxmc.bundle import add_calibrator
from ezxmc.calibration import fit_calibrator
from ezxmc.config import DataConfig, ShortlistConfig, VllmTeacherConfig
from ezxmc.data import Catalog
from ezxmc.feedback.targets import teacher_verdicts

config = TrainingConfig(encoder=sys.argv[3] if len(sys.argv) > 3 else "all-MiniLM-L6-v2")
catalog = Catalog.load(DataConfig(documents=sys.argv[1], labels=sys.argv[2]), config.held_out, seed=0)
labels, title_of = catalog.labels, {label.uid: label for label in catalog.labels}
train, select, calibrate = (
    [catalog.documents[i] for i in part]
    for part in (catalog.to_train, catalog.to_select, catalog.to_calibrate)
)

# 1. Shortlist: which labels may fit which document.
asked = train + select
found = shortlist(asked, labels, BiEncoder(config.encoder), ShortlistConfig())
pairs = [Pair(doc, labels[row]) for doc, one in zip(asked, found, strict=True) for row in one.labels]

# 2. Teacher: a local language model. 3. Store: it keeps every answer, and nothing is asked twice.
teacher = load_teacher(VllmTeacherConfig())
store = FeedbackStore("feedback.sqlite")
annotate(lambda: pairs, teacher, store)

# 4. Targets: the answers as probabilities, positives and negatives. 5. Train.
targets = build_targets(store.judgments(teacher.fingerprint), config)
told = {"teacher": teacher.description}  # for the model card
summary = train_bi_encoder(train, labels, targets, config, "student", held_out=select, **told)

# 6. Index the labels: a bundle that tags.
save_bundle("bundle", "student", labels, max_length=config.max_length, k=5)

# 7. Calibrate: the teacher judges what the student answers on documents it was not trained on.
answers = Predictor("bundle").predict(calibrate, k=10)
own = [Pair(doc, title_of[uid]) for doc, one in zip(calibrate, answers, strict=True) for uid in one.labels]
annotate(lambda: own, teacher, store)
verdicts = teacher_verdicts(store.judgments(teacher.fingerprint))
add_calibrator("bundle", fit_calibrator(answers, verdicts, target="teacher", k=10))
teacher.close()
store.close()

# 8. Predict: from here on without the language model.
for document, one in zip(calibrate, Predictor.load("bundle").predict(calibrate, k=3), strict=True):
    tags = zip(one.titles, one.probabilities, strict=True)
    print(document.title, *(f"{title} {probability:.2f}" for title, probability in tags), sep="\t")
print(f"agreement with the teacher: {summary.selection[0]:.2f} before, {max(summary.selection):.2f} now")
