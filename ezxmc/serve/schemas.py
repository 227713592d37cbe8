"""What comes in and goes out over HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ezxmc.bundle.predict import MOST_PARTS
from ezxmc.data import RowError, unfit_character
from ezxmc.data.documents import document_of, row_uid
from ezxmc.data.matching import trim
from ezxmc.records import Label

MOST_LABELS = 1_000
"""Labels asked for at once: per document, or per page of the label list."""


def _fit(text: str) -> str:
    if unfit := unfit_character(text):
        raise ValueError(f"{unfit} is no text")
    return text


Text = Annotated[str, AfterValidator(_fit)]
"""What a file may hold as well: neither half a character nor NUL."""


def _uid(value: Any) -> Any:
    """As files: numbers are taken, outer spaces are not part of it."""
    if value is None:
        return None
    try:
        uid = row_uid(value, "uid")
    except RowError as error:
        raise ValueError(error.detail) from None
    if not uid:
        raise ValueError("is blank: fill it or leave it out")
    return uid


def _cell(column: str) -> BeforeValidator:
    """As files: null is an empty cell."""

    def read(value: Any) -> str:
        cells = {"uid": "-", "title": "-", "text": "-", column: value}
        try:
            return str(getattr(document_of(cells), column))
        except RowError as error:
            raise ValueError(error.detail) from None

    return BeforeValidator(read, json_schema_input_type=str | None)


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("is true or false: give a number")
    return value


_Number = BeforeValidator(_no_boolean)
"""Without it, true counts as 1."""
Uid = Annotated[Text | None, BeforeValidator(_uid, json_schema_input_type=str | int | float | None)]
"""None where there is none; the same thing in a file gives the same uid."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DocumentIn(_Body):
    """A document: title, text or both."""

    uid: Uid = Field(None, description="Comes back with the tags; its position if absent.")
    title: Annotated[str, _cell("title")] = ""
    text: Annotated[str, _cell("text")] = ""


def _document(value: Any) -> Any:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ValueError("should be a text, or an object with uid, title and text")
    return value


class PredictIn(_Body):
    """Documents to tag, and how."""

    documents: list[
        Annotated[DocumentIn, BeforeValidator(_document, json_schema_input_type=str | DocumentIn)]
    ] = Field(min_length=1, description="Texts, or title and text.")
    k: Annotated[int | None, _Number] = Field(
        None, ge=1, le=MOST_LABELS, description="Tags per document; the bundle's default if absent."
    )
    threshold: Annotated[float | None, _Number] = Field(
        None, ge=0, le=1, description="Leave out tags less probable than this."
    )
    decision: bool = Field(False, description="Keep what the bundle's decision keeps; no k, no threshold.")
    explain: bool = Field(
        False,
        description="Say which sentence speaks most for each tag: the one without which its score falls "
        "most. A document is then tagged once more without each of its sentences, and counts as "
        f"{1 + MOST_PARTS} documents against the limits.",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.decision and (self.k is not None or self.threshold is not None):
            raise ValueError("a decision chooses how many tags a document gets: leave out k and threshold")
        return self


class EvidenceOut(BaseModel):
    """What in a document speaks most for a tag."""

    model_config = ConfigDict(from_attributes=True)
    text: str = Field(description="A sentence; of a single sentence, a clause or the words.")
    drop: float = Field(description="How much lower the tag's score is without it.")


class Tag(BaseModel):
    """A label of a document."""

    label: str
    title: str
    score: float
    probability: float | None = Field(description="Null where the bundle has no calibrator.")
    evidence: EvidenceOut | None = Field(
        None, description="Given with `explain`; null where no part alone matters."
    )


class Tagged(BaseModel):
    """A document's tags, best first."""

    uid: str
    tags: list[Tag]


class PredictOut(BaseModel):
    """Predictions in the order of the documents."""

    predictions: list[Tagged]
    bundle: str = Field(description="Version of the bundle that answered.")


class LabelIn(_Body):
    """A label to add, or to change if its uid is there."""

    uid: Uid = Field(None, description="The title if absent.")
    title: Annotated[Text, Field(min_length=1, max_length=10_000)]
    text: Annotated[str, _cell("text")] = ""
    aliases: list[Text] = []
    parent: Uid = None
    count: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    def label(self) -> Label:
        """As a record."""
        title = trim(self.title)
        uid = title if self.uid is None else trim(self.uid)
        return Label(uid, title, self.text, tuple(self.aliases), self.parent, self.count)


class LabelsIn(_Body):
    """Labels to add or change."""

    labels: list[LabelIn] = Field(min_length=1)


class LabelOut(BaseModel):
    """A label of the bundle."""

    model_config = ConfigDict(from_attributes=True)
    uid: str
    title: str
    text: str
    aliases: list[str]
    parent: str | None
    count: float | None


class LabelPage(BaseModel):
    """Some of the labels that fit the search."""

    total: int = Field(description="How many fit.")
    offset: int
    labels: list[LabelOut]


class ChangeOut(BaseModel):
    """What became of the labels."""

    added: int
    changed: int
    removed: int
    total: int = Field(description="Labels there are now.")
    bundle: str = Field(description="Version of the bundle that is served now.")
    decision: str | None = Field(description="What its decision guarantees of these labels, in words.")


class BundleOut(BaseModel):
    """The bundle in service."""

    version: str
    loaded: str = Field(description="When, UTC.")
    labels: int
    k: int
    calibrated: bool
    decision: str | None = Field(description="What its decision guarantees, in words.")


class Health(BaseModel):
    """Whether and what the service serves."""

    status: str = Field(description="`ok`, or `stale` where a newer bundle was refused.")
    bundle: BundleOut | None = Field(description="Told to those who may use the service.")
    refused: str | None = Field(description="Why the bundle on disk is not the one served.")


class Problem(BaseModel):
    """What was wrong, and what helps."""

    detail: str
    cure: str = ""
