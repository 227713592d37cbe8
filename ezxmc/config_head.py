"""Settings of the sparse classifier head."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class HeadConfig(BaseModel):
    """A classifier with few weights per label, trained after the last cycle; worth it with many judgments."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    enabled: bool = Field(False, description="train a sparse head and fuse it with the bi-encoder")
    fine_tune: bool = Field(
        False, description="train the student on with the head; false: its document vectors stay as they are"
    )
    fan_in: int = Field(32, ge=1, description="weights per label")
    epochs: int = Field(10, ge=1, description="passes over the judged documents")
    start: Literal["vectors", "random"] = Field(
        "vectors", description="first weights: the largest of each label vector, or zeros at random places"
    )
    rewire: float = Field(
        0.3, ge=0, le=1, description="share of a label's weights replaced at first, falling to 0"
    )
    auxiliary: float = Field(
        0.4, ge=0, description="weight of predicting groups of labels at first, 0 from half of the steps on"
    )
    unjudged: float = Field(0.3, ge=0, le=1, description="weight of pairs nobody judged, taken as wrong")
    least_positives: int = Field(
        1, ge=1, description="positives a label needs; of others the bi-encoder alone decides"
    )
