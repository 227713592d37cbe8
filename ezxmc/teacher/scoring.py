"""From answer-token log-probabilities to one number, or an honest status."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ezxmc.records import Judgment, Status
from ezxmc.teacher.prompt import AnswerTokens

# Of the rendering into tokens and of the rule below: part of every content key.
SCORING_VERSION = 2
# A probability a little above 1 is rounding; far above it the engine did not
# give probabilities at all (logits, for one), and a score would be made up.
_ROUNDING = 0.01


def _log_sum(logprobs: Sequence[float], weights: Sequence[float]) -> float:
    """Logarithm of Σ w·exp(logprob), over positive weights."""
    terms = [value + math.log(w) for value, w in zip(logprobs, weights, strict=True) if w > 0]
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))


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

    With w_t the relevance token t stands for (1 for yes, 0 for no, g/m for
    grade g of 0..m): log-odds = ln Σ_t p(t)·w_t − ln Σ_t p(t)·(1 − w_t), the
    logit of the expected relevance; mass = Σ_t p(t).

    Args:
        key: Content key of the pair.
        doc_uid: The document's uid.
        label_uid: The label's uid.
        logprobs: Natural-log probabilities over the full vocabulary at the
            answer's position, by token id; every answer token must be there.
        answers: Which token ids are answers, and what each says.
        min_label_mass: Below this mass the model did not answer the question.
        prompt_tokens: Length of the prompt.
        cached_tokens: How many of them the prefix cache supplied.

    Returns:
        `ok` with the log-odds; `low_mass`; `no_logprobs` when a token is
        missing; `not_finite` when a value is no log-probability: no number is
        ever made up.
    """
    given = [logprobs[token] for token in answers.ids if token in logprobs]
    if len(given) < len(answers.ids):
        return Judgment(key, doc_uid, label_uid, Status.NO_LOGPROBS)
    if not all(math.isfinite(value) and value <= _ROUNDING for value in given):
        return Judgment(key, doc_uid, label_uid, Status.NOT_FINITE)
    relevant = _log_sum(given, answers.weights)
    irrelevant = _log_sum(given, [1 - weight for weight in answers.weights])
    mass = min(1.0, math.exp(relevant) + math.exp(irrelevant))
    status = Status.OK if mass >= min_label_mass else Status.LOW_MASS
    return Judgment(
        key,
        doc_uid,
        label_uid,
        status,
        log_odds=relevant - irrelevant if status is Status.OK else None,
        label_mass=mass,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
    )
