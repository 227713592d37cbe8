"""Push a student to the hub, its model card with it.

python share.py STUDENT OWNER/NAME
"""

import sys

from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

student, name = sys.argv[1:]
card = ModelCard.load(f"{student}/README.md")
print(card.data.license, card.data.base_model, card.text, sep="\n")  # read it before others do
SentenceTransformer(student).push_to_hub(name, private=True)
