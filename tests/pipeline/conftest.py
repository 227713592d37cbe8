"""What is the same for runs in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _soon_refined(request: pytest.FixtureRequest) -> Iterator[None]:
    """What refined label vectors are worth is tested beside them; here they need only be there.

    Files that compare with runs in processes of their own refine as those do.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem not in ("test_resume", "test_update", "test_termination"):
            patch.setattr("ezxmc.training.label_vectors._STEPS", 20)
        yield
