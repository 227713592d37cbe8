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
from ezxmc.bundle.bundle import add_calibrator
from ezxmc.calibration import fit_calibrator
from ezxmc.config import DataConfig, ShortlistConfig
from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.data import Catalog
from ezxmc.feedback.targets import teacher_verdicts

config = TrainingConfig(encoder=sys.argv[3] if len(sys.argv) > 3 else "all-MiniLM-L6-v2")
catalog = Catalog.load(DataConfig(documents=sys.argv[1], labels=sys.argv[2]), config.held_out, seed=0)
docs, labels = catalog.documents, catalog.labels
train, select, rest = (
    [docs[i] for i in p] for p in (catalog.to_train, catalog.to_select, catalog.to_calibrate)
)

# 1. Shortlist: which labels may fit which document.
found = shortlist(train + select, labels, BiEncoder(config.encoder), ShortlistConfig())
pairs = [Pair(doc, labels[i]) for doc, one in zip(train + select, found, strict=True) for i in one.labels]

# 2. Teacher: a local language model. 3. Store: it keeps every answer, and nothing is asked twice.
teacher, store = load_teacher(VllmTeacherConfig()), FeedbackStore("feedback.sqlite")
annotate(lambda: pairs, teacher, store)

# 4. Targets: the answers as probabilities, positives and negatives. 5. Train.
targets = build_targets(store.judgments(teacher.fingerprint), config)
train_bi_encoder(train, labels, targets, config, "student", held_out=select, teacher=teacher.description)

# 6. Index the labels: a bundle that tags.
save_bundle("bundle", "student", labels, max_length=config.max_length, k=5)

# 7. Calibrate: the teacher judges what the student answers on documents it was not trained on.
answers, named = Predictor("bundle").predict(rest, k=10), {label.uid: label for label in labels}
own = [Pair(doc, named[uid]) for doc, one in zip(rest, answers, strict=True) for uid in one.labels]
annotate(lambda: own, teacher, store)
verdicts = teacher_verdicts(store.judgments(teacher.fingerprint))
add_calibrator("bundle", fit_calibrator(answers, verdicts, target="teacher", k=10))
teacher.close()
store.close()

# 8. Predict: from here on without the language model.
for one in Predictor.load("bundle").predict(rest, k=3):
    print(one.uid, one.titles, one.probabilities)
