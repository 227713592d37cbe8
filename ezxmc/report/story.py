"""A run in a few sentences, each only where its facts are there; and numbers as people say them."""

from __future__ import annotations

import shlex
from pathlib import Path

from ezxmc.metrics import FEW
from ezxmc.report.model import EvaluationSummary, RunReport

HEADLINE = ("P@1", "P@5", "R@10")
_FAILED = 0.05  # of the judgments: more are worth a word
_READ = 0.95  # of the text: less is worth a word
_REVIEWED = 100  # documents that correct probabilities, see `ezxmc calibrate`


def story(data: RunReport) -> list[str]:
    """The run for someone who has never seen a metric.

    Args:
        data: What is known of it.

    Returns:
        What was done, what was gained, how far probabilities can be believed, what is doubtful, what
        to do next: a sentence or two each, best read as five short paragraphs.
    """
    warned = data.teacher.warning if data.teacher else ""
    place = data.config.get("run_dir")
    serve = shlex.join(["ezxmc", "serve", str(Path(place) / "bundle")]) if isinstance(place, str) else ""
    then = serve and f"Next, try it on texts of your own: `{serve}`"
    parts = (_done(data), _gained(data), _believed(data), warned, _doubtful(data), then)
    return [part for part in parts if part]


def headline(data: RunReport) -> tuple[EvaluationSummary | None, str]:
    """The figures the story tells, and of which documents they are: never trained on, where those suffice."""
    if data.held_out and (data.held_out.documents >= FEW or not data.evaluation):
        return data.held_out, "that people tagged and that were not trained on"
    return data.evaluation, "that people tagged"


def _done(data: RunReport) -> str:
    sentences = []
    if data.data:
        sentences.append(
            f"{number(data.data.documents.kept)} documents, {number(data.data.labels.kept)} possible tags, "
            "no annotated example used for training."
        )
    if data.teacher:
        seconds = data.teacher.seconds or 0.0
        within = f"in {duration(seconds)} " if seconds >= 1 else ""  # a recording takes no time
        answered = number(data.teacher.judgments - data.teacher.failures)
        said = (
            f"{within}{judge(data)} answered {answered} questions whether a tag fits a document; a small "
            "model, the student, learned from the answers."
        )
        sentences.append(said[0].upper() + said[1:])
    if data.cost and data.cost.seconds:
        sentences.append(f"The run took {duration(sum(data.cost.seconds.values()))}.")
    return " ".join(sentences)


def judge(data: RunReport) -> str:
    """The teacher by name."""
    description = data.teacher.description if data.teacher else {}
    if description.get("backend") == "replay":
        return "a recording of a teacher"
    name = str(description.get("model") or "").partition("@")[0]
    if name == "folder":
        config = data.config.get("teacher")
        name = Path(str(config.get("model"))).name if isinstance(config, dict) else ""
    return f"the LLM {name}, the teacher," if name else "the teacher"


def _gained(data: RunReport) -> str:
    found, which = headline(data)
    if found is None or "P@1" not in found.after:
        return _agreed(data)
    first = f"the student's first tag is right for {percent(found.after['P@1'], 0)}"
    beside = _beside(found, "P@1")
    sentences = [f"On the {number(found.documents)} documents {which}, {first}{beside}."]
    if "R@10" in found.after:
        among = f"Its first ten tags hold {percent(found.after['R@10'], 0)} of the tags people gave"
        sentences.append(f"{among}{_beside(found, 'R@10')}.")
    return " ".join(sentences)


def _beside(found: EvaluationSummary, metric: str) -> str:
    """What the untrained encoder and the most frequent tags reach, in brackets."""
    others = []
    if metric in found.before:
        others.append(f"{percent(found.before[metric], 0)} before training")
    if metric in found.constant:
        others.append(f"{percent(found.constant[metric], 0)} by always answering the most frequent tags")
    return f" ({', '.join(others)})" if others else ""


def _agreed(data: RunReport) -> str:
    """Without tags of people there is what the teacher says of documents never trained on."""
    # Reports of former releases do not tell which student is kept: it was the best, of equal ones the last.
    cycles = sorted(
        data.cycles, key=lambda cycle: (cycle.kept, max(cycle.held_out.values(), default=0.0), cycle.number)
    )
    last = cycles[-1].training if cycles else None
    if last is None or not last.selection:
        return ""
    said = (
        "There were no tags of people to compare with. On documents it was not trained on, the student "
        f"orders tags as the teacher does to {max(last.selection):.2f} of 1 (nDCG@5)"
    )
    if len(last.selection) == len(last.losses) + 1:
        said += f", {last.selection[0]:.2f} before this training"
    return said + "."


def _believed(data: RunReport) -> str:
    found, _ = headline(data)
    calibration = data.calibration
    if calibration is None:
        return "Its scores rank tags; they are no probabilities." if data.examples else ""
    if calibration.ece_cross_fitted is None:
        return ""
    by = "the LLM teacher" if calibration.target == "teacher" else "people"
    said = (
        f"Stated probabilities are off by {points(calibration.ece_cross_fitted)} on average, judged by {by}"
    )
    if calibration.target == "teacher" and found and "ECE@5" in found.after:
        said += f", and by {points(found.after['ECE@5'])} judged by people's tags, which rarely are complete"
    said += "."
    place = data.config.get("run_dir")
    if calibration.target == "teacher" and isinstance(place, str):
        said += (
            f" Before a decision depends on one, have {_REVIEWED} documents reviewed by people: "
            f"`ezxmc review export {shlex.quote(place)} --for calibration --count {_REVIEWED}`"
        )
    return said


def _doubtful(data: RunReport) -> str:
    found, which = headline(data)
    doubts = []
    if data.teacher and data.teacher.failures > _FAILED * data.teacher.judgments:
        failed, asked = number(data.teacher.failures), number(data.teacher.judgments)
        doubts.append(f"Of {asked} questions {failed} got no usable answer.")
    if found:
        beaten = [name for name in HEADLINE if found.after.get(name, 1.0) <= found.constant.get(name, 0.0)]
        if beaten:
            by = " and ".join(beaten)
            doubts.append(f"By {by} the student is no better than always answering the most frequent tags.")
        low, high = found.change_intervals.get("P@1", (1.0, 1.0))
        if high < 0:
            doubts.append("Its first tags are worse than before training.")
        elif low <= 0:
            doubts.append("The gain in first tags may be chance: its 95 % interval holds 0.")
        if found.documents < FEW:
            doubts.append(f"{number(found.documents)} documents {which} are few: all figures are rough.")
    if data.data and data.data.bad:
        doubts.append(f"{number(data.data.bad)} input rows were unusable and left out.")
    if data.data and data.data.repeats:
        doubts.append(f"{data.data.repeats}.")
    if data.data and data.data.read is not None and data.data.read < _READ:
        doubts.append(
            f"The student read {percent(data.data.read)} of the text: of a longer document it reads the "
            "beginning only (`training.max_length`)."
        )
    if data.skipped_cycles:
        done, planned = len(data.cycles), len(data.cycles) + data.skipped_cycles
        doubts.append(
            f"{done} of {planned} cycles were done: then the student no longer gained in agreement with "
            "the LLM teacher."
        )
    if data.budget:
        doubts.append(data.budget.line)
    return " ".join(doubts)


def percent(value: float, digits: int = 1) -> str:
    """0.514 as `51.4 %`."""
    return f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """A difference of 0.041 as `4.1 points`."""
    return f"{100 * value:.1f} points"


def number(value: float) -> str:
    """Thousands apart, at most three digits that matter after the point."""
    if isinstance(value, int) or (value == value and abs(value) >= 1000 and abs(value) != float("inf")):
        return f"{round(value):,}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 90:
        return f"{seconds:.1f} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def size(count: int) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
