"""From answer-token log-probabilities to one number, or an honest status."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ezxmc.records import Judgment, Status
from ezxmc.teacher.prompt import AnswerTokens

SCORING_VERSION = 1
# A probability a little above 1 is rounding; far above it the engine did not
# give probabilities at all (logits, for one), and a score would be made up.
_ROUNDING = 0.01


def _log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def judge(
    key: str,
    doc_uid: str,
    label_uid: str,
    logprobs: Mapping[int, float],
    answers: AnswerTokens,
    *,
    min_label_mass: float,
    prompt_tokens: int,
    cached_tokens: int,
) -> Judgment:
    """Log-odds and label mass of one answer.

    log-odds = ln Σ_{t∈yes} p(t) − ln Σ_{t∈no} p(t);  mass = Σ_{t∈yes∪no} p(t).

    Args:
        key: Content key of the pair.
        doc_uid: The document's uid.
        label_uid: The label's uid.
        logprobs: Natural-log probabilities over the full vocabulary at the
            answer's position, by token id; every answer token must be there.
        answers: Which token ids mean yes and no.
        min_label_mass: Below this mass the model did not answer the question.
        prompt_tokens: Length of the prompt.
        cached_tokens: How many of them the prefix cache supplied.

    Returns:
        `ok` with the log-odds; `low_mass`; or `engine_error` when a token is
        missing or its value is no log-probability: no number is ever made up.
    """
    found = [logprobs.get(token, math.nan) for token in (*answers.yes, *answers.no)]
    if not all(math.isfinite(value) and value <= _ROUNDING for value in found):
        return Judgment(key, doc_uid, label_uid, Status.ENGINE_ERROR)
    yes, no = _log_sum_exp(found[: len(answers.yes)]), _log_sum_exp(found[len(answers.yes) :])
    mass = min(1.0, math.exp(yes) + math.exp(no))
    status = Status.OK if mass >= min_label_mass else Status.LOW_MASS
    return Judgment(
        key,
        doc_uid,
        label_uid,
        status,
        log_odds=yes - no if status is Status.OK else None,
        label_mass=mass,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
    )
