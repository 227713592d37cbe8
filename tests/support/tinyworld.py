"""A whole small world for tests: a catalog about a few topics, and an encoder that runs in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ezxmc.records import Pair

TOPICS = {
    "music": ["guitar", "melody", "drums", "concert", "singer"],
    "cooking": ["recipe", "oven", "flour", "soup", "spice"],
    "sailing": ["boat", "harbour", "wind", "anchor", "mast"],
    "gardening": ["seed", "soil", "rose", "hedge", "compost"],
    "astronomy": ["star", "planet", "comet", "telescope", "orbit"],
}
REFINED = 20
"""Steps by which label vectors are refined where they need only be there."""
TOPIC_OF = {word: topic for topic, words in TOPICS.items() for word in words}
_FILLER = ["the", "a", "about", "and", "of", "great", "old", "new", "small", "story"]


def document(number: int) -> dict[str, str]:
    """Document `number`: three words of its topic between fillers, none of them a label's title."""
    topic = list(TOPICS)[number % len(TOPICS)]
    words = [TOPICS[topic][(number // len(TOPICS) + step) % 5] for step in range(3)]
    filler = [_FILLER[(number * 3 + step) % len(_FILLER)] for step in range(3)]
    text = " ".join(word for pair in zip(filler, words, strict=True) for word in pair)
    return {"uid": f"d{number}", "title": f"{words[0]} {number}", "text": f"{text} {topic}"}


def label_rows() -> list[dict[str, str]]:
    return [{"uid": f"l-{word}", "title": word} for word in TOPIC_OF]


def topical(pair: Pair) -> float:
    """The rule of the tests' teacher: a label fits a document that names the label's topic."""
    fits = TOPIC_OF[pair.label.title] in pair.doc.shown
    # A little variety, so that no two labels of a document tie.
    return (3.0 if fits else -3.0) + len(pair.label.title) / 20


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_catalog(folder: Path, encoder: Path, *, documents: int = 60, **changes: Any) -> Path:
    """Documents, labels, gold and a configuration; returns the configuration's path.

    Args:
        folder: Made if absent.
        encoder: The encoder's folder.
        documents: How many.
        changes: Settings by dotted name with `__` for the dot, such as `training__epochs=1`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [document(number) for number in range(documents)]
    write_rows(folder / "documents.jsonl", rows)
    write_rows(folder / "labels.jsonl", label_rows())
    gold = [
        f"{row['uid']}\tl-{word}\n"
        for row in rows
        for word, topic in TOPIC_OF.items()
        if topic in row["text"].split()
    ]
    (folder / "gold.tsv").write_text("".join(gold), encoding="utf-8")
    config: dict[str, Any] = {
        "run_dir": "run",
        "cycles": 2,
        "data": {"documents": "documents.jsonl", "labels": "labels.jsonl", "gold": "gold.tsv"},
        "shortlist": {"size": 4, "explore": 1},
        "training": {
            "encoder": str(encoder),
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "max_length": 32,
            "held_out": 0.4,
            "positives": 3,
            # Of so few labels eight documents would hold nearly all pairs.
            "prior": "estimated",
        },
        "inference": {"k": 3, "calibration_depth": 6},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        part = config
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def build_encoder(folder: Path) -> Path:
    """A random one-layer BERT over the world's words and single characters: mean pooling, unit length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertModel

    bert = _bert(folder / "bert", BertModel, 0)
    modules = [Transformer(str(bert)), Pooling(32), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "st"), create_model_card=False)
    return folder / "st"


def build_cross_encoder(folder: Path, seed: int) -> Path:
    """A random BERT of the same kind that gives a pair of texts one logit."""
    from transformers import BertForSequenceClassification

    return _bert(folder, BertForSequenceClassification, seed, num_labels=1, initializer_range=0.5)


def _bert(folder: Path, kind: Any, seed: int, **settings: Any) -> Path:
    import torch
    from transformers import BertConfig, BertTokenizerFast

    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TOPICS, *TOPIC_OF, *_FILLER]
    vocabulary += [char for char in characters if char not in vocabulary]
    vocabulary += [f"##{char}" for char in characters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert = kind(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
                **settings,
            )
        )
    bert.save_pretrained(folder)
    BertTokenizerFast(str(folder.parent / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder
