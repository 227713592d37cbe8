"""Answer-token log-probabilities become one number or an honest status."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from ezxmc.records import Judgment, Status
from ezxmc.teacher.prompt import AnswerTokens
from ezxmc.teacher.scoring import judge

ANSWERS = AnswerTokens(yes=(3, 11), no=(5, 7, 2))


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


@settings(deadline=None)
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
    judgment = ask(given_back, AnswerTokens(tuple(yes), tuple(no)))
    assert judgment.status is Status.OK
    assert judgment.log_odds == pytest.approx(logsumexp(logprobs[yes]) - logsumexp(logprobs[no]), abs=1e-9)
    assert judgment.label_mass == pytest.approx(np.exp(logprobs[yes + no]).sum(), abs=1e-9)
    assert 0 <= judgment.label_mass <= 1


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
def test_a_value_that_is_no_log_probability_is_an_engine_error(token: int, value: float) -> None:
    judgment = ask(likely(**{f"_{token}": value}))
    assert judgment.status is Status.ENGINE_ERROR
    assert judgment.log_odds is None and judgment.label_mass is None


@pytest.mark.parametrize("token", [3, 11, 5, 7, 2])
def test_a_missing_token_is_an_engine_error(token: int) -> None:
    judgment = ask({t: v for t, v in likely().items() if t != token})
    assert judgment.status is Status.ENGINE_ERROR
    assert judgment.log_odds is None and judgment.label_mass is None


def test_no_answer_at_all_is_an_engine_error() -> None:
    assert ask({}).status is Status.ENGINE_ERROR


def test_rounding_above_probability_one_is_clipped() -> None:
    judgment = ask(likely(_3=1e-6))
    assert judgment.status is Status.OK and judgment.label_mass == 1.0


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([2, 3, 5, 7, 11, 13]), st.floats()))
def test_whatever_the_engine_says_there_is_no_sentinel(logprobs: dict[int, float]) -> None:
    judgment = ask(logprobs, min_label_mass=0.5)
    assert (judgment.log_odds is None) == (judgment.status is not Status.OK)
    if judgment.status is not Status.ENGINE_ERROR:
        assert all(math.isfinite(logprobs[t]) for t in (*ANSWERS.yes, *ANSWERS.no))
