"""What is the same for all runs here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.tinyworld import REFINED


@pytest.fixture(scope="module", autouse=True)
def _soon_refined() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ezxmc.training.label_vectors._STEPS", REFINED)
        yield
