"""The bi-encoder: documents and labels in one space, compared by cosine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ezxmc.config import Backend, EncoderPrompts, Precision
from ezxmc.disk import disk_errors
from ezxmc.errors import InputTypeError, ModelError, instance_of, whole_number
from ezxmc.files import MANIFEST, Inputs, check_folder, sign, unchanged, whole_folder
from ezxmc.models.catalog import find
from ezxmc.models.resolve import hub_folder, resolve_model
from ezxmc.models.trust import check_encoder
from ezxmc.retrieval.backends import (
    Forward,
    TokenCache,
    choose_precision,
    open_converted,
    passes,
    to_bfloat16,
    tokens_per_pass,
)
from ezxmc.retrieval.bert import PlainBert, open_plain

OnProgress = Callable[[int, int], None]

# No tokenizer in use averages 16 characters a token over running text, so
# what is cut here could not have reached the model anyway.
_CHARACTERS_PER_TOKEN = 16
_TEXTS_AT_ONCE = 512
_UNBOUNDED = 8192  # tokens read by a model that sets no bound (static embeddings)

CARD = "README.md"
STUDENT = "student"  # what its manifest says it is
_LABEL = "label"  # in a student's prompts


def student_files(folder: Path) -> list[str] | None:
    """The files of a folder as `BiEncoder.save` wrote them; `None` if it wrote none."""
    return unchanged(folder, STUDENT)


def check_student_place(path: str | Path, inputs: Inputs = ()) -> None:
    """Whether a student may be saved in a folder, before it is trained; raises as `BiEncoder.save`."""
    check_folder(path, STUDENT, student_files, inputs=inputs)


class BiEncoder:
    """A sentence-transformers model shared by documents and labels.

    Give documents as `Document.shown` and labels as `Label.title`: label descriptions lower retrieval
    (measured on package tags).

    Args:
        source: A local sentence-transformers folder, a name of `ezxmc models list`, or a hub id.
        max_length: Tokens of a text the model reads, at most what its tokenizer allows; `None` keeps the
            length the folder was saved with.
        revision: Hub revision.
        device: Torch device; `None` chooses the best present.
        backend: What runs the model: torch, or ONNX Runtime or OpenVINO on the processor, for a folder that
            `convert` wrote the converted model into.
        prompts: What stands before documents and labels; `None`: what the folder says, see `own_prompts`.
        precision: Of the matrix products. torch and openvino: float32, bfloat16; onnx: float32, int8. auto:
            see `choose_precision`. A bi-encoder that is trained or saved computes in float32 with torch.

    Raises:
        ModelError: No sentence-transformers model can be loaded from there, or only by trusting who made it
            (see `ezxmc.models.trust`); or the backend is not installed, or has no converted model there.
        ConfigError: Backend and precision do not go together.

    Example:
        >>> BiEncoder("all-MiniLM-L6-v2").encode_documents(["A song for guitar"]).shape
        (1, 384)
    """

    def __init__(
        self,
        source: str | Path,
        *,
        max_length: int | None = None,
        revision: str | None = None,
        device: str | None = None,
        backend: Backend = "torch",
        precision: Precision = "float32",
        prompts: EncoderPrompts | None = None,
    ) -> None:
        cure = "give a folder, a name of `ezxmc models list` or a hub id"
        instance_of(source, (str, PathLike), "source", cure)
        if max_length is not None:
            max_length = whole_number(max_length, "max_length")
        if backend != "torch":
            device = "cpu"
        self.card: str | None = None
        """The model card (README.md): as it was in the folder, and written by `save`."""
        try:
            # What is checked is what is opened.
            if Path(source).is_dir():
                folder = Path(source)
            elif find(str(source)) and revision is None:
                folder = Path(resolve_model(str(source), kind="encoder"))
            else:
                folder = hub_folder(str(source), revision)
            check_encoder(folder)
            if (card := folder / CARD).is_file():
                self.card = card.read_text(encoding="utf-8", errors="replace")
            plain = open_plain(folder) if device in (None, "cpu") else None
            self._folder = folder
            self.runner: Any = plain or _open(folder, device)
            self.dimension = int(self.runner.get_embedding_dimension())
            self.prompts = own_prompts(folder) if prompts is None else prompts
            if prompts is not None:
                self.runner.default_prompt_name = None
            _check_pooling(self.runner, self.prompts)
        except ModelError:
            raise
        except Exception as error:  # the libraries below raise anything from OSError to KeyError
            raise ModelError(
                f"no sentence-transformers model could be loaded from {source}: {error}",
                "give a folder with modules.json, a name of `ezxmc models list`, or a hub id in reach",
            ) from error
        if max_length is not None:
            self.runner.max_seq_length = min(max_length, self.runner.tokenizer.model_max_length)
        self.max_length = int(min(self.runner.max_seq_length or 512, _UNBOUNDED))
        self.backend = backend
        self.precision = choose_precision(backend, precision, self.runner.device)
        self._converted: Forward | None = None
        if backend != "torch":
            self._converted = open_converted(folder, backend, self.precision)
        elif self.precision == "bfloat16":
            to_bfloat16(self.runner)

    @property
    def model(self) -> Any:
        """The `SentenceTransformer`; where a plain one ran the student, it takes its place from now on.

        Raises:
            ModelError: The folder has other contents by now than those that were read.
        """
        if isinstance(plain := self.runner, PlainBert):
            whole = _open(self._folder, "cpu")
            whole.max_seq_length = plain.max_seq_length
            if self.backend == "torch" and self.precision == "bfloat16":
                to_bfloat16(whole)
            _refuse_another(self._folder, plain, whole)
            self.runner = whole
        return self.runner

    @model.setter
    def model(self, model: Any) -> None:
        self.runner = model

    def encode_documents(
        self, texts: Sequence[str], *, progress: OnProgress | None = None
    ) -> NDArray[np.float32]:
        """Embed documents; those of like length share a pass through the model.

        Args:
            texts: N texts, of any length; only the first `max_length` tokens count.
            progress: Called with (done, total) texts.

        Returns:
            (N, D) float32, rows of unit length.

        Raises:
            InputTypeError: One text was given instead of several, or something else than texts.
        """
        return self.encode(prefixed(as_texts(texts), self.prompts.document), progress)

    def encode_labels(
        self, texts: Sequence[str], *, progress: OnProgress | None = None
    ) -> NDArray[np.float32]:
        """Embed label titles; arguments and result as in `encode_documents`."""
        return self.encode(prefixed(as_texts(texts), self.prompts.label), progress)

    def features(self, texts: Sequence[str]) -> dict[str, Any]:
        """Model inputs of a batch of texts, padded, on the model's device (for training)."""
        model = self.runner
        # What `SentenceTransformer.encode` puts before any text where it is told nothing else.
        prompt = model.prompts.get(model.default_prompt_name) or None
        inputs = model.preprocess([clipped(text, self.max_length) for text in texts], prompt=prompt)
        return {
            name: value.to(model.device) if hasattr(value, "to") else value for name, value in inputs.items()
        }

    def read_of(self, text: str) -> str:
        """The beginning of a document that the model reads; all of it where its tokenizer cannot tell."""
        before = self.prompts.document
        text, tokenizer = clipped(before + text, self.max_length), self.runner.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            return text[len(before) :]
        told = tokenizer(text, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        return text[len(before) : max((end for _, end in told["offset_mapping"]), default=0)]

    def save(self, path: str | Path) -> None:
        """Write a plain sentence-transformers folder, whole or not at all; with `card` as it is.

        A manifest in it (`ezxmc.json`) tells later that the folder may be replaced.

        Raises:
            ConfigError: Something is in its place that is no student, or was changed since it was saved.
            ModelError: The weights in memory are not those of the folder they were read from.
        """
        with whole_folder(path, STUDENT, student_files) as fresh:
            self.write(fresh)
            sign(fresh, STUDENT)

    def write(self, path: Path) -> None:
        """`save` into a new folder that is a part of something else; no manifest."""
        if self.backend == "torch" and self.precision == "bfloat16":
            raise ModelError("weights rounded to bfloat16 are not saved", "open the encoder in float32")
        if any(self.prompts.model_dump().values()) or any(self.model.prompts.values()):
            document, label = self.prompts.document, self.prompts.label
            # sentence-transformers knows the first two: of `encode_document` and `encode_query`.
            self.model.prompts = {"document": document, "query": label, _LABEL: label}
        with _without_bars(), disk_errors():
            self.model.save(str(path), create_model_card=False)
            if self.card is not None:
                (path / CARD).write_text(self.card, encoding="utf-8")

    def converted(self, folder: Path, backend: Backend, precision: Precision) -> BiEncoder:
        """The same encoder, its texts tokenised alike, run by the converted model in `folder`.

        Raises:
            ModelError: The backend is not installed, or has no model there.
            ConfigError: Backend and precision do not go together.
        """
        other = copy(self)
        other.backend = backend
        other.precision = choose_precision(backend, precision, self.runner.device)
        other._converted = open_converted(folder, backend, other.precision)
        return other

    def faster(self) -> BiEncoder:
        """The same encoder in bfloat16 where that is faster here, else itself; not to be trained or saved."""
        if self._converted or choose_precision(self.backend, "auto", self.runner.device) == self.precision:
            return self
        other = copy(self)
        other.precision, other.runner = "bfloat16", deepcopy(self.runner)
        to_bfloat16(other.runner)
        return other

    def encode(self, texts: Sequence[str], progress: OnProgress | None = None) -> NDArray[np.float32]:
        """Embed texts that have their prompts already; result as in `encode_documents`."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        budget = tokens_per_pass(self.runner.device)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = texts[start : start + _TEXTS_AT_ONCE]
            tokens = TokenCache(self, part)
            for rows in passes([tokens.length(text) for text in part], budget):
                vectors[start + rows] = self._unit_rows(tokens.features([part[row] for row in rows]))
            if progress:
                progress(start + len(part), len(texts))
        return vectors

    def _unit_rows(self, features: dict[str, Any]) -> NDArray[np.float32]:
        if self._converted:
            return self._converted(features)
        model = self.runner.eval()
        faster = self.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=faster):
            # A checkpoint may ask for its vectors to be cut.
            rows = model(features)["sentence_embedding"][:, : self.dimension].float()
            unit: NDArray[np.float32] = torch.nn.functional.normalize(rows, dim=1).cpu().numpy()
        return unit


def own_prompts(folder: Path) -> EncoderPrompts:
    """What an encoder was published with, or a student was trained with, before documents and labels.

    A checkpoint names its prompts as sentence-transformers has them: that of what is looked for ("query")
    goes before labels, that of what is looked through before documents. A student says it in so many words;
    one that does not was trained without. Where one prompt stands before every text (the default one),
    `BiEncoder.features` puts it there, and here is none.
    """
    file = folder / "config_sentence_transformers.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    named = told.get("prompts") or {}
    trained = (folder / MANIFEST).is_file() or (folder.parent / "manifest.json").is_file()
    if told.get("default_prompt_name") or (trained and _LABEL not in named):
        return EncoderPrompts()
    document = next((named[name] for name in ("document", "passage", "corpus") if named.get(name)), "")
    return EncoderPrompts(document=document, label=named.get(_LABEL, named.get("query")) or "")


def _check_pooling(model: Any, prompts: EncoderPrompts) -> None:
    kept = all(getattr(module, "include_prompt", True) for module in model.children())
    if not kept and any(prompts.model_dump().values()):
        raise ModelError(
            "the encoder's pooling leaves prompts out, which is done for one before every text alike only",
            "set training.encoder_prompts to {document: '', label: ''}",
        )


def prefixed(texts: Sequence[str], prompt: str) -> Sequence[str]:
    """The texts, each with the prompt before it."""
    return [prompt + text for text in texts] if prompt else texts


def clipped(text: str, max_length: int) -> str:
    """The beginning of a text, with all that so many tokens can hold, and without lone surrogates."""
    # Tokenizers refuse those, which JSON escapes can smuggle in.
    return text[: max_length * _CHARACTERS_PER_TOKEN].encode("utf-8", "replace").decode()


def _open(folder: Path, device: str | None) -> Any:
    """A checked folder by sentence-transformers, which takes seconds to import."""
    from sentence_transformers import SentenceTransformer

    with _without_bars():
        model = SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "weights_only": True},
        )
    _read_whole(model)
    _forget_code(model)
    return model


def _refuse_another(folder: Path, plain: PlainBert, whole: Any) -> None:
    weights = whole.transformers_model.state_dict()
    one, other = (model.tokenizer.backend_tokenizer.get_vocab() for model in (plain, whole))
    if one != other or not all(torch.equal(part, weights[name]) for name, part in plain.state_dict().items()):
        raise ModelError(f"{folder} was changed since it was read", "open it again")


def _read_whole(model: torch.nn.Module) -> None:
    """Copy weights that are mapped from a file: whoever writes over it would change them, or end us."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _forget_code(model: Any) -> None:
    """Drop the names of code that was not run, where transformers has its own: what is saved needs none."""
    config = getattr(model.transformers_model, "config", None)
    for settings in (vars(config) if config else {}, getattr(model.tokenizer, "init_kwargs", {})):
        settings.pop("auto_map", None)


def as_texts(values: Iterable[str]) -> list[str]:
    """A list of texts; a pandas Series has places of its own, and a text would fall into characters."""
    if isinstance(values, str):
        raise InputTypeError("one text was given in place of a list", "put the one text into brackets")
    try:
        texts = list(values)
    except TypeError:
        raise InputTypeError(f"no texts: {values!r}", "give a list of texts") from None
    for place, text in enumerate(texts):
        instance_of(text, str, f"texts[{place}]", "give texts, such as `Document.shown` or `Label.title`")
    return texts


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal; only the CLI draws there."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
