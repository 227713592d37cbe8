"""Answer-token log-probabilities become one number or an honest status."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from ezxmc.records import Judgment, Status
from ezxmc.teacher.prompt import AnswerTokens, judge

ANSWERS = AnswerTokens((3, 11, 5, 7, 2), (1.0, 1.0, 0.0, 0.0, 0.0))


def ask(
    logprobs: dict[int, float], answers: AnswerTokens = ANSWERS, *, min_label_mass: float = 0.0
) -> Judgment:
    return judge(
        "k",
        "d",
        "l",
        logprobs,
        answers,
        min_label_mass=min_label_mass,
        prompt_tokens=90,
        cached_tokens=64,
    )


def likely(**changes: float) -> dict[int, float]:
    """p = .4 and .2 for yes, .1, .05 and .05 for no."""
    known = {3: 0.4, 11: 0.2, 5: 0.1, 7: 0.05, 2: 0.05}
    return {token: math.log(p) for token, p in known.items()} | {int(k[1:]): v for k, v in changes.items()}


@given(
    logits=st.lists(st.floats(-80, 80), min_size=4, max_size=40),
    split=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    order=st.randoms(use_true_random=False),
)
def test_log_odds_and_mass_are_those_of_scipy(logits, split, order) -> None:
    logprobs = log_softmax(np.asarray(logits))
    tokens = list(range(len(logits)))
    order.shuffle(tokens)
    yes = tokens[: 1 + split[0] % (len(tokens) - 2)]
    rest = tokens[len(yes) :]
    no = rest[: 1 + split[1] % len(rest)]
    given_back = {token: float(logprobs[token]) for token in tokens}
    judgment = ask(given_back, AnswerTokens((*yes, *no), (*[1.0] * len(yes), *[0.0] * len(no))))
    assert judgment.status is Status.OK
    assert judgment.log_odds == pytest.approx(logsumexp(logprobs[yes]) - logsumexp(logprobs[no]), abs=1e-9)
    assert judgment.label_mass == pytest.approx(np.exp(logprobs[yes + no]).sum(), abs=1e-9)
    assert 0 <= judgment.label_mass <= 1


@given(
    logits=st.lists(st.floats(-60, 60), min_size=8, max_size=40),
    spellings=st.lists(st.integers(1, 3), min_size=2, max_size=7),
    order=st.randoms(use_true_random=False),
)
def test_grades_give_the_logit_of_the_expected_relevance(logits, spellings, order) -> None:
    """Against probabilities in 200 digits: E = Σ p·g/m over the answers, log-odds = ln E/(1 − E)."""
    tokens = list(range(max(len(logits), sum(spellings))))
    logits = [*logits, *[0.0] * (len(tokens) - len(logits))]
    order.shuffle(tokens)
    logprobs = log_softmax(np.asarray(logits))
    grades = np.repeat(np.arange(len(spellings)), spellings)
    ids = tokens[: len(grades)]
    top = len(spellings) - 1
    judgment = ask(
        {t: float(logprobs[t]) for t in tokens}, AnswerTokens(tuple(ids), tuple((grades / top).tolist()))
    )
    assert judgment.status is Status.OK
    with localcontext(prec=200):
        given_up = [Decimal(float(logprobs[t])).exp() for t in ids]
        mass = sum(given_up)
        expected = sum(p * Decimal(int(g)) for p, g in zip(given_up, grades, strict=True)) / (top * mass)
        odds = float((expected / (1 - expected)).ln())
    assert judgment.log_odds == pytest.approx(odds, abs=1e-9)
    assert judgment.label_mass == pytest.approx(float(mass), abs=1e-9)


def test_two_grades_are_yes_and_no() -> None:
    logprobs = {t: math.log(p) for t, p in {1: 0.3, 2: 0.5}.items()}
    judgment = ask(logprobs, AnswerTokens((1, 2), (0.0, 1.0)))
    assert judgment.log_odds == pytest.approx(math.log(0.5 / 0.3))


def test_a_middle_grade_is_half_relevant() -> None:
    """All mass on grade 2 of 0..4: expected relevance 1/2, log-odds 0."""
    sure = {t: -800.0 for t in range(5)} | {2: 0.0}
    grades = AnswerTokens(tuple(range(5)), (0.0, 0.25, 0.5, 0.75, 1.0))
    assert ask(sure, grades).log_odds == pytest.approx(0.0, abs=1e-12)
    assert ask(sure | {2: -800.0, 3: 0.0}, grades).log_odds == pytest.approx(math.log(3))


def test_spellings_are_summed_and_other_tokens_left_out() -> None:
    judgment = ask(likely(_99=math.log(0.2)))
    assert judgment.log_odds == pytest.approx(math.log(0.6 / 0.2))
    assert judgment.label_mass == pytest.approx(0.8)


def test_the_record_says_what_was_asked_and_what_it_cost() -> None:
    judgment = ask(likely())
    assert (judgment.key, judgment.doc_uid, judgment.label_uid) == ("k", "d", "l")
    assert (judgment.prompt_tokens, judgment.cached_tokens) == (90, 64)


def test_very_unlikely_answers_still_have_exact_odds() -> None:
    """Probabilities of e^-1200 are 0 as floats; their ratio is not."""
    judgment = ask({3: -1200.0, 11: -1200.0, 5: -1203.0, 7: -1203.0, 2: -2000.0})
    assert judgment.log_odds == pytest.approx(3.0)
    assert judgment.label_mass == 0.0


@pytest.mark.parametrize(
    ("least", "status"), [(0.79, Status.OK), (0.81, Status.LOW_MASS), (1.0, Status.LOW_MASS)]
)
def test_a_model_that_did_not_answer_gives_no_number(least: float, status: Status) -> None:
    judgment = ask(likely(), min_label_mass=least)
    assert judgment.status is status
    assert (judgment.log_odds is None) == (status is Status.LOW_MASS)
    assert judgment.label_mass == pytest.approx(0.8), "how little it answered is kept"
    assert judgment.prompt_tokens == 90


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.0, 900.0])
@pytest.mark.parametrize("token", [3, 11, 5, 7, 2])
def test_a_value_that_is_no_log_probability_gives_no_number(token: int, value: float) -> None:
    judgment = ask(likely(**{f"_{token}": value}))
    assert judgment.status is Status.NOT_FINITE
    assert judgment.log_odds is None and judgment.label_mass is None


@pytest.mark.parametrize("token", [3, 11, 5, 7, 2])
def test_a_missing_token_gives_no_number(token: int) -> None:
    judgment = ask({t: v for t, v in likely().items() if t != token})
    assert judgment.status is Status.NO_LOGPROBS
    assert judgment.log_odds is None and judgment.label_mass is None


def test_no_answer_at_all_gives_no_number() -> None:
    assert ask({}).status is Status.NO_LOGPROBS


def test_rounding_above_probability_one_is_clipped() -> None:
    judgment = ask(likely(_3=1e-6))
    assert judgment.status is Status.OK and judgment.label_mass == 1.0


@given(st.dictionaries(st.sampled_from([2, 3, 5, 7, 11, 13]), st.floats()))
def test_whatever_the_engine_says_there_is_no_sentinel(logprobs: dict[int, float]) -> None:
    judgment = ask(logprobs, min_label_mass=0.5)
    assert (judgment.log_odds is None) == (judgment.status is not Status.OK)
    if judgment.status in (Status.OK, Status.LOW_MASS):
        assert all(math.isfinite(logprobs[t]) for t in ANSWERS.ids)
