"""Judgments for sentence-transformers' own trainer: its losses, or ours.

python stock_trainer.py [ENCODER]
"""

import sys

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

from ezxmc import DistillationLoss, TrainingConfig, targets_dataset, targets_from_rows
from ezxmc.models import resolve_model

encoder = str(resolve_model(sys.argv[1] if len(sys.argv) > 1 else "all-MiniLM-L6-v2", kind="encoder"))
documents = ["A song for guitar and drums", "Soup with flour and spice", "A concert in the harbour"]
labels = ["music", "cooking", "sailing"]
rows = [(0, "music", 0.9), (0, "cooking", 0.1), (1, "cooking", 0.8), (1, "sailing", 0.1), (2, "sailing", 0.6)]
config = TrainingConfig(losses={"listwise_kl": 1, "decoupled_softmax": 1})
targets = targets_from_rows(rows, documents, labels, config)

arguments = SentenceTransformerTrainingArguments(
    output_dir="checkpoints",
    max_steps=2,
    per_device_train_batch_size=2,
    save_strategy="no",
    report_to="none",
)

# A loss of sentence-transformers: pairs with their probability.
model = SentenceTransformer(encoder)
pairs = targets_dataset(documents, labels, targets)
SentenceTransformerTrainer(model, arguments, train_dataset=pairs, loss=CoSENTLoss(model)).train()

# A loss of ezxmc: documents, each with all of its labels at once.
model = SentenceTransformer(encoder)
loss = DistillationLoss(model, documents, labels, targets, config)
whole = targets_dataset(documents, labels, targets, "documents")
SentenceTransformerTrainer(model, arguments, train_dataset=whole, loss=loss).train()
model.save("student")
