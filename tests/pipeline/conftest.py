"""What is the same for all runs here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _soon_refined() -> Iterator[None]:
    """What refined label vectors are worth is tested beside them; here they need only be there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ezxmc.training.label_vectors._STEPS", 20)
        yield
