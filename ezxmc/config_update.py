"""The part of a configuration that `ezxmc run --update` reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class UpdateConfig(BaseModel):
    """What an update of a finished run may cost, and when its student is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_pairs: int | None = Field(
        None, ge=1, description="judgments one update asks for at most; null: all it selects"
    )
    probe: int = Field(500, ge=0, description="pairs of random new documents that test for drift; 0: no test")
    check: int = Field(
        200,
        ge=1,
        description="old documents, never trained on, that compare both students and calibrate the new one",
    )
    false_alarms: float = Field(
        0.05, gt=0, lt=1, description="rate of updates that report drift where there is none"
    )
    accept_loss: bool = Field(
        False, description="take the new student even if it is significantly worse on old labels"
    )
