"""The in-process vLLM teacher."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.hashing import json_hash, judgment_key
from ezxmc.models import model_identity, resolve_model
from ezxmc.models.resolve import load_tokenizer
from ezxmc.records import Judgment, Pair, Status
from ezxmc.teacher.prompt import Prompt, PromptRenderer
from ezxmc.teacher.scoring import SCORING_VERSION, judge
from ezxmc.teacher.vllm_engine import VllmEngine

_MAX_SUFFIX = 512


class VllmTeacher:
    """Scores pairs with an LLM run by vLLM.

    The engine starts at the first pair that has to be asked, so a job with
    nothing left to ask costs no start-up; the tokenizer loads at once.

    Args:
        config: Model, prompt, limits.
        progress: Passed to the model download, `(stage, done, total)`.

    Raises:
        TeacherError: vLLM is missing or the prompt does not fit the model.
        ModelError: The model cannot be resolved.
    """

    def __init__(self, config: VllmTeacherConfig, progress: Any = None) -> None:
        model = resolve_model(config.model, kind="llm", revision=config.revision, progress=progress)
        prompt = Prompt.load(config.prompt)
        self._min_label_mass = config.min_label_mass
        self.engine = VllmEngine(model, config)
        self.renderer = PromptRenderer(
            prompt,
            load_tokenizer(str(model), config.revision),
            block_size=self.engine.block,
            max_document_tokens=config.max_document_tokens,
        )
        block = self.engine.block
        self.engine.max_tokens = -(-(self.renderer.longest_prefix + _MAX_SUFFIX) // block) * block
        answers = self.renderer.answers
        self._description = {
            "backend": "vllm",
            "model": model_identity(config.model, config.revision),
            "prompt": f"{prompt.name}/{prompt.version}",
            "prompt_hash": prompt.hash,
            "answer_tokens": {str(t): w for t, w in zip(answers.ids, answers.weights, strict=True)},
            "max_document_tokens": config.max_document_tokens,
            "min_label_mass": config.min_label_mass,
            "block_size": block,
            "dtype": config.dtype,
            "scoring": SCORING_VERSION,
            "engine": self.engine.version,
        }
        self._fingerprint = json_hash(self._description)

    @property
    def fingerprint(self) -> str:
        """See `Teacher`."""
        return self._fingerprint

    @property
    def description(self) -> dict[str, Any]:
        """See `Teacher`."""
        return self._description

    @property
    def startup_seconds(self) -> float:
        """See `StartsEngine`."""
        return self.engine.startup_seconds

    def key(self, pair: Pair) -> str:
        """See `Teacher`."""
        return judgment_key(self._fingerprint, pair.doc.shown, pair.label.title)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """See `Teacher`."""
        refused: deque[Judgment] = deque()

        def fitting() -> Iterator[tuple[tuple[Pair, int], list[int]]]:
            for pair, ids in self.renderer.prompts(pairs):
                if len(ids) < self.engine.max_tokens:
                    yield (pair, len(ids)), ids
                else:
                    refused.append(
                        Judgment(self.key(pair), pair.doc.uid, pair.label.uid, Status.TRUNCATED_TOO_FAR)
                    )

        answers = self.renderer.answers
        outputs = self.engine.stream(fitting(), expected=expected, logprob_token_ids=list(answers.ids))
        for (pair, length), output in outputs:
            steps = output.outputs[0].logprobs
            yield judge(
                self.key(pair),
                pair.doc.uid,
                pair.label.uid,
                {token: entry.logprob for token, entry in steps[0].items()} if steps else {},
                answers,
                min_label_mass=self._min_label_mass,
                prompt_tokens=length,
                cached_tokens=output.num_cached_tokens or 0,
            )
            while refused:
                yield refused.popleft()
        yield from refused

    def rest(self) -> None:
        """See `Rests`."""
        self.engine.rest()

    def close(self) -> None:
        """See `Teacher`."""
        self.engine.close()
