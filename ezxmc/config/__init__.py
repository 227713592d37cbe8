"""The configuration of a run: one YAML file, validated, frozen into the run directory."""

from __future__ import annotations

import glob
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ezxmc.cluster import RayConfig
from ezxmc.config.teacher import HttpTeacherConfig, Part, TeacherConfig, VllmTeacherConfig
from ezxmc.errors import ConfigError, instance_of


class HeadConfig(BaseModel):
    """A classifier with few weights per label, trained after the last cycle; worth it with many judgments."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    enabled: bool = Field(False, description="train a sparse head and fuse it with the bi-encoder")
    fine_tune: bool = Field(
        False, description="train the student on with the head; false: its document vectors stay as they are"
    )
    fan_in: int = Field(32, ge=1, description="weights per label")
    epochs: int = Field(10, ge=1, description="passes over the judged documents")
    start: Literal["vectors", "random"] = Field(
        "vectors", description="first weights: the largest of each label vector, or zeros at random places"
    )
    rewire: float = Field(
        0.3, ge=0, le=1, description="share of a label's weights replaced at first, falling to 0"
    )
    auxiliary: float = Field(
        0.4, ge=0, description="weight of predicting groups of labels at first, 0 from half of the steps on"
    )
    unjudged: float = Field(0.3, ge=0, le=1, description="weight of pairs nobody judged, taken as wrong")
    least_positives: int = Field(
        1, ge=1, description="positives a label needs; of others the bi-encoder alone decides"
    )


class UpdateConfig(BaseModel):
    """What an update of a finished run may cost, and when its student is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_pairs: int | None = Field(
        None, ge=1, description="judgments one update asks for at most; null: all it selects"
    )
    probe: int = Field(500, ge=0, description="pairs of random new documents that test for drift; 0: no test")
    check: int = Field(
        200,
        ge=1,
        description="old documents, never trained on, that compare both students and calibrate the new one",
    )
    false_alarms: float = Field(
        0.05, gt=0, lt=1, description="rate of updates that report drift where there is none"
    )
    accept_loss: bool = Field(
        False, description="take the new student even if it is significantly worse on old labels"
    )


AUTO = "auto"
Backend = Literal["torch", "onnx", "openvino", "static"]
"""What runs an encoder."""
Precision = Literal["auto", "float32", "bfloat16", "int8"]
"""What it computes in."""


class DataConfig(Part):
    """Where the catalog is. Relative paths are relative to the config file."""

    documents: str = Field(description="documents: JSONL, CSV, Parquet, a `datasets` folder or hub id")
    labels: str = Field(description="labels: the same formats")
    gold: str | None = Field(None, description="gold pairs (TSV or JSONL), for evaluation only")
    strict: bool = Field(False, description="stop at the first bad row instead of reporting it and going on")
    columns: dict[str, str] = Field(
        {},
        description="columns by what they serve as, where names are unusual, such as "
        "{text: message, labels.title: tag name}",
    )


class BudgetConfig(Part):
    """What the teacher may cost, over all cycles and sessions of a run."""

    max_pairs: int | None = Field(None, ge=1, description="judgments at most; null: all the shortlists ask")
    max_hours: float | None = Field(None, gt=0, description="hours of judging at most; null: no limit")
    documents: int | None = Field(
        None, ge=1, description="documents a cycle asks about at most, drawn at random; null: all"
    )
    fresh_documents: bool = Field(
        True, description="with `documents`: each cycle takes others, as long as there are some"
    )
    calibration: int | None = Field(
        150,
        ge=1,
        description="documents that calibrate at most, drawn at random (300 are no better, measured), for a "
        "third of the pairs the cycles ask at most; twice as many select; null: all of held_out",
    )
    cycle_parts: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="parts of max_pairs or max_hours by cycle, such as [1, 3]; null: even ones"
    )


class ShortlistConfig(Part):
    """Which candidate labels the teacher is asked about."""

    size: int = Field(7, ge=1, description="candidates per document and cycle")
    lexical: bool = Field(True, description="fuse BM25 with the bi-encoder by reciprocal rank")
    lexical_weight: float = Field(0.3, ge=0, description="weight of BM25's ranks beside the dense ones (1.0)")
    explore: int = Field(1, ge=0, description="of `size`, how many are drawn from deeper ranks")
    centre: float = Field(
        0.5,
        ge=0,
        le=1,
        description="untrained encoder: share of a label's mean cosine over the catalog that is taken off",
    )
    descriptions: float = Field(
        0.5,
        ge=0,
        description="untrained encoder: weight of the cosine with title, aliases and description together, "
        "beside the title's (1.0)",
    )


class EncoderPrompts(Part):
    """What stands before every document and every label, for encoders that were trained so."""

    document: str = Field("", description="before a document, such as 'passage: '")
    label: str = Field("", description="before a label, such as 'query: '")


class TrainingConfig(Part):
    """One distillation round of the student.

    Example:
        >>> TrainingConfig(losses={"listwise_kl": 1.0}, epochs=2).epochs
        2
    """

    former: ClassVar[dict[str, Any]] = {"confidence": False}

    encoder: str = Field(
        "auto",
        description="sentence-transformers checkpoint to start from; auto: all-MiniLM-L6-v2, for documents "
        "that are not in English multilingual-e5-small",
    )
    revision: str | None = Field(
        None, description="its hub revision; a pinned one keeps stages of the run valid"
    )
    encoder_prompts: EncoderPrompts | None = Field(
        None,
        description="put before texts, such as {document: 'passage: ', label: 'query: '}; "
        "null: what the encoder was published with",
    )
    epochs: int | None = Field(
        None, ge=1, description="passes over the documents, the best of them is kept; null: by data size"
    )
    batch_size: int | None = Field(None, ge=2, description="documents in one step; null: by data size")
    learning_rate: float | None = Field(None, gt=0, description="peak, after warm-up; null: by data size")
    losses: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        min_length=1,
        description="weight of each loss, such as {decoupled_softmax: 1, bce: 0.1}; null: decoupled_softmax",
    )
    negatives: Literal["in_batch", "all"] = Field(
        "in_batch",
        description="in_batch: the batch's other positives and judged negatives; all: every label",
    )
    matryoshka: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="also train these shorter prefixes of the vectors, such as [64, 128]"
    )
    label_vectors: Literal["refined", "titles"] = Field(
        "refined", description="of the bundle: refined by the judgments, or the titles' as they are encoded"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the student's passes; auto: bfloat16 where the machine is faster with it"
    )
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="processes that share each step, with a GPU each; auto: as many as there are GPUs"
    )
    temperature: float = Field(0.05, gt=0, description="tau of the softmax over cosines")
    max_length: int = Field(256, ge=8, description="tokens of a document the student reads")
    prior: Literal["auto", "contextual", "estimated", "none"] = Field(
        "auto",
        description="each label's prior: contextual asks about all labels on some random documents; "
        "estimated takes the shortlists' judgments; auto: contextual if that adds at most half as many "
        "pairs, and at most 200,000",
    )
    prior_documents: int = Field(8, ge=1, description="random documents for the contextual prior")
    prior_alpha: float = Field(0.5, ge=0, le=1, description="share of each label's prior taken off")
    positives: int = Field(5, ge=1, description="at most this many positives per document")
    positive_share: float = Field(
        0.25, gt=0, lt=1, description="where few labels are judged: the share expected to be positive"
    )
    target_temperature: float = Field(
        1.0, gt=0, description="T of p = sigmoid((log-odds - zero) / T); below 1: surer targets"
    )
    fusion: float = Field(
        4.0, ge=0, description="nats per unit of cosine of the proposing encoder, added to the log-odds"
    )
    average: bool = Field(
        True, description="average a student's weights with the former student's and the encoder's"
    )
    negative_below: float = Field(0.2, ge=0, le=1, description="judged labels under this p are negatives")
    held_out: float = Field(
        0.15, gt=0, lt=0.9, description="share of documents never trained on: selection and calibration"
    )


class InferenceConfig(Part):
    """What the bundle answers by default."""

    k: int = Field(5, ge=1, description="labels per document")
    calibration_depth: int = Field(10, ge=1, description="top ranks the calibrator is fitted on")


class RunConfig(Part):
    """Everything `ezxmc run` needs. Unknown keys are refused.

    Example:
        >>> data = DataConfig(documents="documents.jsonl", labels="labels.jsonl")
        >>> RunConfig(data=data).training.encoder
        'auto'
    """

    former: ClassVar[dict[str, Any]] = {"start": "initial"}

    run_dir: str = Field(
        "runs/default", validate_default=True, description="where everything the run makes is kept"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of splits, exploration and training")
    cycles: int = Field(2, ge=1, description="shortlist -> annotate -> train rounds at most")
    patience: int = Field(
        1,
        ge=1,
        description="stop after so many cycles in a row without a gain; the last student is kept, unless "
        "another is better by more than chance",
    )
    min_gain: float = Field(
        0.0, ge=0, description="a gain is more than this, in held-out agreement with the teacher (nDCG@5)"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="who asks and encodes: local, this machine; ray, the workers of a Ray cluster"
    )
    ray: RayConfig = RayConfig()
    data: DataConfig
    teacher: TeacherConfig = VllmTeacherConfig()
    budget: BudgetConfig = BudgetConfig()
    shortlist: ShortlistConfig = ShortlistConfig()
    training: TrainingConfig = TrainingConfig()
    head: HeadConfig = HeadConfig()
    inference: InferenceConfig = InferenceConfig()
    update: UpdateConfig = UpdateConfig()

    @property
    def cluster(self) -> RayConfig | None:
        """The cluster that works; `None`: this process."""
        return self.ray if self.engine == "ray" else None

    @field_validator("teacher", mode="before")
    @classmethod
    def _vllm_by_default(cls, value: Any) -> Any:
        # A discriminated union refuses a mapping without its tag.
        return {"kind": "vllm", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _a_part_for_each_cycle(self) -> RunConfig:
        parts = self.budget.cycle_parts
        if parts is not None and len(parts) != self.cycles:
            raise ValueError(f"budget.cycle_parts has {len(parts)} parts for {self.cycles} cycles")
        return self

    @model_validator(mode="after")
    def _replicas_as_the_teacher(self) -> RunConfig:
        if isinstance(self.teacher, HttpTeacherConfig):
            for url in self.ray.servers:
                HttpTeacherConfig(**{**self.teacher.model_dump(), "base_url": url})
        return self

    def with_encoder(self, name: str) -> RunConfig:
        """The configuration with this encoder."""
        return self.model_copy(update={"training": self.training.model_copy(update={"encoder": name})})

    def as_begun(self) -> RunConfig:
        """The configuration, with `budget.calibration` and the encoder as the run's first session had them.

        Only where nobody set them: so a run keeps what it was done with, and its stages
        stay done, when the default changes or is new, or the documents grow by other languages.

        Raises:
            ConfigError: The run directory's own configuration is damaged.
        """
        frozen = Path(self.run_dir, "config.yaml")
        if not frozen.exists():
            return self
        try:
            raw = yaml.safe_load(frozen.read_text(encoding="utf-8"))
            former, encoder = raw.get("budget", {}).get("calibration"), raw.get("training", {}).get("encoder")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
            raise ConfigError(f"{frozen} is damaged: {error}", "delete it: the run goes on without") from None
        begun = self.with_encoder(encoder) if self.training.encoder == AUTO and encoder else self
        if "calibration" in self.budget.model_fields_set:
            return begun
        budget = BudgetConfig(**{**self.budget.model_dump(exclude_unset=True), "calibration": former})
        return begun.model_copy(update={"budget": budget})

    @field_validator("run_dir")
    @classmethod
    def _absolute_run_dir(cls, value: str, info: ValidationInfo) -> str:
        base = (info.context or {}).get("base")
        return str(Path(base, value).resolve()) if base else value

    @classmethod
    def load(cls, path: str | Path) -> RunConfig:
        """Read and check a YAML config; relative input paths are made absolute.

        Args:
            path: The YAML file.

        Raises:
            ConfigError: The file is missing, is no YAML mapping, or a key or
                value is wrong; the message names the key.
        """
        instance_of(path, (str, PathLike), "path", "give the path of a YAML file")
        path = Path(path)
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no config file at {path}", "write one with `ezxmc init`") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} is not readable YAML: {error}", "compare with `ezxmc init`") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} holds no settings", "write a commented one with `ezxmc init`")
        base = path.resolve().parent
        _resolve_inputs(raw, base)
        try:
            return cls.model_validate(raw, context={"base": base})
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()
            )
            raise ConfigError(f"{path}: {faults}", "`ezxmc init` lists every key with its meaning") from None

    def dump(self) -> str:
        """The config as YAML; `load` of it gives an equal config."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def _resolve_inputs(raw: dict[str, Any], base: Path) -> None:
    """Make the paths in `raw` absolute where such a file exists beside the config.

    A value that names no file there is left alone: it may be a hub id.
    """
    places = {
        "data": ("documents", "labels", "gold"),
        "teacher": ("model", "tokenizer", "prompt", "judgments"),
        "training": ("encoder",),
    }
    for section, keys in places.items():
        part: Any = raw.get(section)
        for key in keys if isinstance(part, dict) else ():
            value = part.get(key)
            if not isinstance(value, str):
                continue
            # A pattern of files is as good as a file.
            if (base / value).exists() or (glob.has_magic(value) and glob.glob(str(base / value))):  # noqa: PTH207
                part[key] = str((base / value).resolve())
