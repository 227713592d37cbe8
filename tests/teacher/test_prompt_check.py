"""`ezxmc prompts`: what it shows, and that it finds what breaks a prompt on a model."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from support.toytokens import CHATML, sentencepiece, tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ezxmc.cli import app as program
from ezxmc.errors import ModelError
from ezxmc.models import resolve as loading
from ezxmc.models.resolve import load_tokenizer
from ezxmc.teacher import check as prompt_check
from ezxmc.teacher.check import Finding, check_file, check_prompt, cost, readable, renderer_for
from ezxmc.teacher.prompt import Graded, Prompt, YesNo, prompt_files

TOKENIZER = tokenizer()
PROMPT = Prompt(
    name="test",
    version=1,
    domain="none",
    system="Answer Yes or No.",
    user="Entry: {document}\nTag: {label}",
    answer=YesNo(yes=("Yes", " Yes", "yes"), no=("No", " No", "no")),
)

# Realistic templates of models that are not at hand.
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}\
{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
LLAMA = """{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}\
{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}\
{%- endif %}{%- endif %}{%- if messages[0]['role'] == 'system' %}\
{%- set system_message = messages[0]['content'] | trim %}\
{%- set messages = messages[1:] %}{%- else %}{%- set system_message = "" %}{%- endif %}\
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}{{- "Cutting Knowledge Date: December 2023\n" }}\
{{- "Today Date: " + date_string + "\n\n" }}{{- system_message }}{{- "<|eot_id|>" }}\
{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' \
+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}\
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
QWEN3 = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
# Opens a thought whatever it is told, as Qwen3-Thinking and DeepSeek-R1 do.
THINKS = CHATML + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
INST = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]\n' }}{% endfor %}"
SHOUTS = CHATML.replace("m['content']", "m['content'] | upper")
NO_SYSTEM = CHATML.replace("in messages %}", "in messages if m['role'] != 'system' %}")


def changed(**fields: Any) -> Prompt:
    return Prompt.model_validate({**PROMPT.model_dump(), **fields})


def codes(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in findings]


def found(prompt: Prompt = PROMPT, tok: Any = TOKENIZER) -> list[tuple[str, str]]:
    return codes(check_prompt(prompt, tok))


def test_a_good_prompt_on_an_ordinary_model_has_nothing_to_mend() -> None:
    assert check_prompt(PROMPT, TOKENIZER) == []
    assert found(changed(user="Entry: {document}", assistant="Tag: {label}\nAnswer:")) == []


@pytest.mark.parametrize(
    ("change", "expected", "says"),
    [
        ({"system": "Say <|im_end|>"}, ("error", "control_token"), r"<\|im_end\|>"),
        ({"user": "<|im_start|>{document} {label}"}, ("error", "control_token"), r"<\|im_start\|>"),
        ({"system": "Use <tool_call>."}, ("warning", "control_token"), "<tool_call>"),
        ({"system": "Judge {label}."}, ("warning", "placeholder"), "{label}"),
        ({"user": "{document}\n{label}\nDoes it apply?"}, ("warning", "tail"), r"\d+ tokens of your own"),
        (
            {"user": "{document}", "assistant": "{label} is a tag that, in short, surely applies:"},
            ("warning", "tail"),
            "every pair",
        ),
        ({"user": "{document}\n{label}\n"}, ("warning", "whitespace"), "user ends in white space"),
        ({"user": "{document}\nTag:  {label}"}, ("warning", "whitespace"), "several blanks"),
        (
            {"answer": {"scheme": "yes_no", "yes": ["Undoubtedly"], "no": ["No"]}},
            ("error", "render"),
            "single",
        ),
        (
            {"answer": {"scheme": "graded", "grades": [["0"], ["1"], ["1", "2"]]}},
            ("error", "render"),
            "'2' shares a token",
        ),
    ],
)
def test_a_fault_of_the_file_is_found(change: dict[str, Any], expected: tuple[str, str], says: str) -> None:
    findings = check_prompt(changed(**change), TOKENIZER)
    hits = [f for f in findings if (f.severity, f.code) == expected and re.search(says, f.problem)]
    assert hits, findings
    assert all(hit.cure for hit in hits)


def test_an_answer_after_a_space_is_found() -> None:
    """The tokens of `Answer: ` + `Yes` are `Answer:` + ` Yes`: the prompt's own last token is gone."""
    prompt = changed(user="{document}", assistant="{label} Answer: ")
    assert found(prompt) == [("warning", "whitespace")] + [("warning", "answer_place")] * 2
    only = changed(
        user="{document}",
        assistant="{label} Answer: ",
        answer={"scheme": "yes_no", "yes": ["Yes"], "no": ["No"]},
    )
    assert found(only)[0] == ("error", "answer_place")


def test_a_file_that_is_no_prompt_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name="x"\nversion=1\ndomain="d"\nsystem="s"\nuser="{label} {document}"\n'
        '[answer]\nscheme="yes_no"\nyes=["Yes"]\nno=["No"]\n'
    )
    (finding,) = check_file(str(path), TOKENIZER)
    assert (finding.severity, finding.code) == ("error", "file")
    assert "before {label}, or nothing can be shared" in finding.problem and finding.cure


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (GEMMA, [("note", "system_turn")]),
        (NO_SYSTEM, [("note", "system_turn")]),
        (LLAMA, [("note", "template_words"), ("note", "date")]),
        (QWEN3, []),
        (THINKS, [("error", "thinking")]),
        (INST, [("note", "turn_text")]),
        (SHOUTS, [("error", "rewritten")]),
        (CHATML.replace("m['content']", "'...'"), [("error", "render")]),
        (CHATML.replace("in messages %}", "in messages[::-1] %}"), [("error", "render")]),
        (None, []),
    ],
    ids=["gemma", "drops", "llama", "qwen3", "thinks", "inst", "shouts", "loses", "reverses", "base"],
)
def test_what_a_template_does_is_found(template: str | None, expected: list[tuple[str, str]]) -> None:
    marks = ("<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tok = tokenizer(template)
    tok.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": list(marks)})
    assert found(tok=tok) == expected


def test_the_cure_of_an_open_thought_cures_it() -> None:
    tok = tokenizer(THINKS)
    (finding,) = check_prompt(PROMPT, tok)
    assert "</think>" in finding.cure
    tok.add_tokens(["<think>", "</think>"])
    assert found(changed(assistant="</think>\n\n"), tok) == []


def test_the_words_a_template_adds_are_quoted_and_the_date_among_them_is_fixed() -> None:
    (added, _, date) = check_prompt(PROMPT, tokenizer(LLAMA.replace("<|", "<").replace("bos_token", "''")))
    assert "Cutting Knowledge Date: December 2023 Today Date: 01 Jan 2025" in added.problem
    assert "always prints the same day" in date.problem


def test_a_model_that_expects_a_start_token_and_gets_none_is_found() -> None:
    tok = tokenizer(None)
    tok.add_special_tokens({"bos_token": "<bos>"})
    from tokenizers.processors import TemplateProcessing

    start = ("<bos>", tok.convert_tokens_to_ids("<bos>"))
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[start])
    assert found(tok=tok) == [("warning", "no_start")]
    tok.chat_template = "{{ bos_token }}" + CHATML
    assert found(tok=tok) == []


def test_words_that_join_the_label_are_found() -> None:
    """`("Purpose` is one token where the tokenizer has seen it so."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=262, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(['"P'] * 100 + ["Yes", "No"] * 50, trainer)
    tok = PreTrainedTokenizerFast(tokenizer_object=bpe)
    quoted = changed(user='{document}\nTag:"{label}')
    assert ("warning", "seam") in found(quoted, tok)
    assert ("warning", "seam") not in found(changed(user="{document}\nTag:\n{label}"), tok)


def test_a_tokenizer_that_adds_blanks_is_found() -> None:
    assert ("warning", "reading") in found(tok=sentencepiece())


def test_a_tokenizer_that_loses_words_is_found() -> None:
    from tokenizers import normalizers

    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Lowercase()
    prompt = changed(answer={"scheme": "yes_no", "yes": ["yes"], "no": ["no"]})
    assert ("error", "reading") in found(prompt, tok)


def test_the_worst_comes_first() -> None:
    bad = changed(system="<|im_end|> {label}", user="{document}\n{label}\nWell?")
    severities = [finding.severity for finding in check_prompt(bad, tokenizer(NO_SYSTEM))]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert set(severities) == {"error", "warning", "note"}


def test_cost_is_counted_by_who_pays() -> None:
    renderer = renderer_for(PROMPT, TOKENIZER, 32)
    one = cost(renderer, "a document", "a label")
    assert one.prefix == len(renderer.prefix("a document")) and one.prefix % 32 == 0
    assert one.per_pair == len(renderer.suffix("a label"))
    assert cost(renderer, "a document " * 9, "a label").per_pair == one.per_pair


def test_control_tokens_are_told_from_text_that_looks_like_them() -> None:
    parts = renderer_for(PROMPT, TOKENIZER, 32).sections("<|im_end|> 🦆", "x")
    assert readable(TOKENIZER, parts.document) == "<|im_end|> 🦆"
    assert readable(TOKENIZER, parts.tail) == "⟦<|im_end|>⟧↵\n⟦<|im_start|>⟧assistant↵\n"
    newline = TOKENIZER("\n")["input_ids"]
    assert readable(TOKENIZER, newline * 9) == "↵ × 9\n"


# ------------------------------------------------------------ command line

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ezxmc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program with the toy tokenizer in place of any model's."""
    monkeypatch.setattr("ezxmc.models.resolve.load_tokenizer", lambda name, **_: TOKENIZER)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ezxmc", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            program.main()
        shown = capsys.readouterr()
        code = left.value.code
        return (code if isinstance(code, int) else 0), shown.out, shown.err

    return run


def test_list(ezxmc: Run) -> None:
    code, out, _ = ezxmc("prompts", "list", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["name"] for row in rows] == list(prompt_files())
    assert all(row["hash"] == Prompt.load(row["name"]).hash for row in rows)
    assert {row["scheme"] for row in rows} <= {"yes_no", "graded"}
    _, drawn, _ = ezxmc("prompts", "list")
    assert all(row["name"] in drawn and row["hash"][:12] in drawn for row in rows)


def test_show_prints_the_file(ezxmc: Run, tmp_path: Path) -> None:
    code, out, _ = ezxmc("prompts", "show", "legal")
    assert code == 0 and out == prompt_files()["legal"].read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(out)
    assert ezxmc("prompts", "show", mine)[1] == out
    assert json.loads(ezxmc("prompts", "show", mine, "--json")[1])["text"] == out


def test_show_renders_a_sample(ezxmc: Run) -> None:
    words = ("--document", "My own <|im_end|> text", "--label", "My label", "--block", 16)
    code, out, _ = ezxmc("prompts", "show", "software", "--model", "toy", *words)
    assert code == 0
    shared, paid = out.split("the shared prefix ends")
    assert "My own <|im_end|> text" in shared and "My label" not in shared
    assert "My label" in paid and "⟦<|im_start|>⟧assistant" in paid and "blocks of 16" in paid
    shown = json.loads(ezxmc("prompts", "show", "software", "--model", "toy", *words, "--json")[1])
    rendered = shown["rendered"]
    tokens = rendered["tokens"]
    assert tokens["prefix"] % 16 == 0 and tokens["per_pair"] == tokens["label"] + tokens["tail"]
    assert rendered["parts"]["label"] == " My label"
    assert {a["text"]: a["relevance"] for a in rendered["answers"]}.items() >= {"Yes": 1.0, "No": 0.0}.items()


def test_show_names_an_unknown_prompt(ezxmc: Run) -> None:
    code, _, err = ezxmc("prompts", "show", "softwear")
    assert code == 2 and "'softwear'" in err and "software" in err


def test_check_passes_all_shipped_prompts(ezxmc: Run) -> None:
    code, out, _ = ezxmc("prompts", "check", "all", "--model", "toy", "--json")
    assert code == 0
    assert json.loads(out) == [{"prompt": name, "findings": []} for name in prompt_files()]
    assert "ticket: nothing to mend" in ezxmc("prompts", "check", "all", "--model", "toy")[1]


def test_check_fails_on_an_error_and_names_the_cure(ezxmc: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    text = prompt_files()["generic"].read_text()
    mine.write_text(text.replace("You check", "<|im_end|> You check"))
    code, out, _ = ezxmc("prompts", "check", mine, "--model", "toy")
    assert code == 1 and "error: system holds <|im_end|>" in out and "cure: " in out
    mine.write_text(text.replace("{label}", "{label}\nDoes it apply?"))
    code, out, _ = ezxmc("prompts", "check", mine, "--model", "toy")
    assert code == 0 and "warning: " in out
    mine.write_text("no prompt at all")
    code, out, _ = ezxmc("prompts", "check", mine, "--model", "toy", "--json")
    assert code == 1 and json.loads(out)[0]["findings"][0]["code"] == "file"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match=f"{tmp_path.name} holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ModelError, match=f"{tmp_path.name} cannot be loaded"):
        load_tokenizer(str(tmp_path))


def tekken(folder: Path, version: str) -> Path:
    """A model's folder with a tokenizer in Mistral's own format: bytes, and the words of the answers."""
    control = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
    control += [
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
    ]
    control += ["[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
    control += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"] if version == "v7" else []
    control += [f"<SPECIAL_{rank}>" for rank in range(len(control), 1000)]
    words = [bytes([byte]) for byte in range(256)] + [b"Ye", b"Yes", b"No", b" Y", b" N", b" No", b" Yes"]
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?[\p{L}]+|\p{N}|[^\s\p{L}\p{N}]+|\s+",
        "num_vocab_tokens": len(words),
        "default_vocab_size": len(control) + len(words),
        "default_num_special_tokens": len(control),
        "version": version,
    }
    content = {
        "config": config,
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
            for rank, word in enumerate(words)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(control)
        ],
        "version": 1,
        "type": "Tekken",
    }
    (folder / "tekken.json").write_text(json.dumps(content))
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    return folder


@pytest.mark.parametrize("version", ["v3", "v7"])
def test_mistrals_own_tokenizer_asks_in_the_turns_of_its_version(tmp_path: Path, version: str) -> None:
    """Token by token as mistral-common writes them; and its control tokens in a text stay text."""
    pytest.importorskip("mistral_common")
    tok = load_tokenizer(str(tekken(tmp_path, version)))
    assert check_prompt(PROMPT, tok) in ([], [Finding("note", "system_turn", ANY)])
    made = renderer_for(PROMPT, tok, 1)
    sections = made.sections("nano [/INST] </s>", "[INST] Editing")
    turns = [
        {"role": "system", "content": PROMPT.system},
        {"role": "user", "content": "Entry: nano [/INST] </s>\nTag: [INST] Editing"},
    ]
    if version == "v3":
        turns = [{"role": "user", "content": f"{PROMPT.system}\n\n{turns[1]['content']}"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        turns, tokenize=True, return_dict=False
    )
    assert [token for section in sections for token in section] == theirs
    assert made.turn_marks == ()


def test_without_mistral_common_its_model_is_not_asked_without_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What transformers takes there instead: every token, and no turns.
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", PreTrainedTokenizerFast.from_pretrained)
    with pytest.raises(ModelError, match=r"turns of [\s\S]*cure: pip install mistral-common"):
        load_tokenizer(str(tekken(tmp_path, "v7")))


def test_another_tokenizer_in_a_mistral_folder_is_taken_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mistral_common")
    tekken(tmp_path, "v7")
    monkeypatch.setattr(loading, "_MISTRAL_TURNS", "{{ messages[-1]['content'] }}")
    with pytest.raises(ModelError, match=r"own format only; read otherwise[\s\S]*cure: .*tokenizer.json"):
        load_tokenizer(str(tmp_path))
    TOKENIZER.save_pretrained(tmp_path)
    assert found(tok=load_tokenizer(str(tmp_path))) == []


# ------------------------------------------------------------- real models


@pytest.mark.llm
@pytest.mark.parametrize("model", ["SmolLM2-135M-Instruct", "Qwen2.5-Coder-1.5B-Instruct"])
def test_shipped_prompts_fit_real_models(model: str) -> None:
    if model != "SmolLM2-135M-Instruct":
        from ezxmc.models import catalog, store

        entry = catalog.find(model)
        if entry is None or not store.is_pulled(entry):
            pytest.skip(f"{model} is not in the model cache")
    tok = load_tokenizer(model)
    for name in prompt_files():
        assert check_file(name, tok) == []
        one = cost(renderer_for(Prompt.load(name), tok, 32))
        # A label of three tokens, and the turn's end.
        assert one.per_pair <= 9 and one.prefix % 32 == 0
    graded = changed(answer=Graded(scheme="graded", grades=tuple((str(g),) for g in range(5))))
    assert check_prompt(graded, tok) == []
    assert codes(check_prompt(changed(system="a <|im_end|>"), tok)) == [("error", "control_token")]
    for template, expected in [(GEMMA, "system_turn"), (LLAMA, "date"), (THINKS, "thinking")]:
        tok.chat_template = template.replace("bos_token", "''")
        assert expected in [code for _, code in found(tok=tok)]


def test_the_sample_is_short_enough_to_show() -> None:
    assert len(prompt_check.SAMPLE_DOCUMENT) < 200 and prompt_check.SAMPLE_LABEL
