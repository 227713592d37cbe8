"""A student from feedback of your own: no teacher, no store.

python own_feedback.py [ENCODER]
"""

import sys

from datasets import Dataset

from ezxmc import Predictor, TrainingConfig, save_bundle, train_bi_encoder

documents = [
    {"uid": "t1", "text": "I was charged twice for the same invoice."},
    {"uid": "t2", "text": "The app closes whenever I open the camera."},
    {"uid": "t3", "text": "Please send me a receipt for last month."},
    {"uid": "t4", "text": "After the update my phone restarts all the time."},
]
labels = ["billing", "crash", "feature request"]
encoder = sys.argv[1] if len(sys.argv) > 1 else "all-MiniLM-L6-v2"
config = TrainingConfig(encoder=encoder, epochs=3, batch_size=2)

# (document, label, score): the document's uid or text, the label's uid or title, a probability from 0 to 1.
feedback = [
    ("t1", "billing", 0.97),
    ("t1", "crash", 0.02),
    ("t2", "crash", 0.95),
    ("t2", "feature request", 0.10),
    ("t3", "billing", 0.80),
    ("t3", "crash", 0.05),
    ("t4", "crash", 0.90),
    ("t4", "billing", 0.03),
]
train_bi_encoder(documents, labels, feedback, config, "student")

# The same as a data set. A language model's log-odds, ln p(yes) - ln p(no), go into `log_odds` instead.
rows = Dataset.from_list(
    [{"document": doc, "label": label, "score": score} for doc, label, score in feedback]
)
train_bi_encoder(documents, labels, rows, config, "student-of-rows")

save_bundle("bundle", "student", labels, max_length=config.max_length, k=1)
for one in Predictor.load("bundle").predict(["Why do I pay more than last year?"]):
    print(one.titles, one.scores)
