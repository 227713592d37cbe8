"""Data cards: what a data set is and how it should look, as YAML front matter before prose.

A card is a Markdown file of `data_cards/` that begins with a line `---`; the front matter ends at the next
such line. Every published figure names its source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ezxmc.data.datasets import SplitStatistics, Statistics
from ezxmc.errors import ConfigError
from ezxmc.files import package_files
from ezxmc.records import Result

_CURE = "`ezxmc data show debtags` shows a card that is right"

_FENCE = "---\n"
_TOLERANCE = 0.005
"""Relative; papers give means with two or three digits."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sizes(_Part):
    """How many there are; null where it varies or nobody tells.

    Attributes:
        train: Training documents.
        test: Test documents.
        documents: All documents.
        labels: Labels of the list.
        pairs: Gold pairs of all documents.
        source: Of these figures and of the means below.
    """

    train: int | None = Field(None, ge=0)
    test: int | None = Field(None, ge=0)
    documents: int | None = Field(None, ge=0)
    labels: int | None = Field(None, ge=0)
    pairs: int | None = Field(None, ge=0)
    source: str


class Propensity(_Part):
    """Constants of 1/p_l = 1 + C·(N_l + b)^−a (Jain et al., KDD 2016)."""

    a: float
    b: float
    source: str


class Published(_Part):
    """A published result.

    Attributes:
        method: As its authors call it.
        setting: Whether it learned from gold labels.
        figures: By metric, in %.
        source: Paper and table.
    """

    method: str
    setting: Literal["zero-shot", "supervised"]
    figures: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(min_length=1)
    source: str


class DataCard(_Part):
    """One data set.

    Attributes:
        name: The file's name without `.md`.
        title: As the field calls it.
        source: Where the texts and labels come from.
        licence: Under which terms.
        get: How to come by it.
        sizes: How much of it.
        labels_per_document: Mean over the training documents (over all where there is no split).
        documents_per_label: The same documents' pairs over the number of labels.
        split: How train and test were parted.
        faults: What is known to be wrong with it.
        prompt: Name of the prompt to use: a shipped one, or one of `examples/benchmarks/prompts`.
        propensity: Constants for PSP@k.
        published: Results of others.
        prose: What stands below the front matter.
    """

    name: str
    title: str
    source: str
    licence: str
    get: str
    sizes: Sizes
    labels_per_document: float | None = Field(None, gt=0)
    documents_per_label: float | None = Field(None, gt=0)
    split: str
    faults: tuple[str, ...] = ()
    prompt: str
    propensity: Propensity
    published: tuple[Published, ...] = ()
    prose: str = ""

    @classmethod
    def load(cls, name: str | Path) -> DataCard:
        """Read a shipped card by name (case does not matter), or a card's file.

        Raises:
            ConfigError: There is no such card, or it does not follow the form.
        """
        path = card_path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no data card: {error}", _CURE) from None
        head, fence, prose = text.removeprefix(_FENCE).partition("\n" + _FENCE)
        try:
            if not text.startswith(_FENCE) or not fence:
                raise ValueError("the front matter must stand between two lines `---`")
            fields = yaml.safe_load(head)
            if not isinstance(fields, dict):
                raise ValueError("the front matter is no mapping")
            return cls.model_validate({"prose": prose.strip(), **fields})
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            detail = "; ".join(faults)
        except (ValueError, yaml.YAMLError) as error:
            detail = str(error)
        raise ConfigError(f"{path}: {detail}", _CURE)

    def compare(self, found: Statistics) -> list[Comparison]:
        """Each figure the card gives, beside the data set's; counts must be equal, means within 0.5 %."""
        return list(self._compared(found))

    def _compared(self, found: Statistics) -> Iterator[Comparison]:
        splits = found.splits
        basis = splits.get("train") or next(iter(splits.values()))
        counts: dict[str, tuple[int | None, int | None]] = {
            "training documents": (self.sizes.train, _documents(splits.get("train"))),
            "test documents": (self.sizes.test, _documents(splits.get("test"))),
            "documents": (self.sizes.documents, found.documents),
            "labels": (self.sizes.labels, found.labels),
            "gold pairs": (self.sizes.pairs, sum(split.pairs for split in splits.values())),
        }
        for figure, (card, here) in counts.items():
            if card is not None:
                yield Comparison(figure, card, here)
        means = {
            "labels per document": (self.labels_per_document, basis.labels_per_document),
            "documents per label": (self.documents_per_label, basis.documents_per_label),
        }
        for figure, (mean, spread) in means.items():
            if mean is not None:
                yield Comparison(figure, mean, spread.mean if spread else None)


@dataclass(frozen=True, slots=True)
class Comparison(Result):
    """A figure as the card has it, and as the data has it; `None`: the data has no such part."""

    figure: str
    card: float
    here: float | None

    @property
    def fits(self) -> bool:
        """Whether they agree."""
        if self.here is None:
            return False
        slack = 0.0 if isinstance(self.card, int) else _TOLERANCE * self.card
        return abs(self.here - self.card) <= slack


def card_path(name: str | Path) -> Path:
    """The file of a shipped card, by name (case does not matter), or of any other, by path.

    Raises:
        ConfigError: There is no such card.
    """
    shipped = {known.casefold(): path for known, path in card_files().items()}
    path = shipped.get(str(name).casefold()) or Path(name)
    if not path.is_file():
        raise ConfigError(f"no data card named {name}", f"shipped are: {', '.join(card_files())}")
    return path


def card_files() -> dict[str, Path]:
    """Shipped cards by name."""
    return {
        name: path for name, path in package_files("data_cards", "*.md").items() if _has_front_matter(path)
    }


def _has_front_matter(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return file.readline() == _FENCE


def _documents(split: SplitStatistics | None) -> int | None:
    return split.documents if split else None
