"""Chat templates in the logic of public ones (tests/data/templates), and what a conversation may look like."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.data.records import Record, Turn
from fl_lightning.data.tokenization import encode
from fl_lightning.errors import InputError

FOLDER = Path(__file__).parents[1] / "data/templates"
BOS_EOS = {
    "alpaca": ("<s>", "</s>"), "chatml": (None, "<|im_end|>"), "chatml_marked": (None, "<|im_end|>"),
    "chatml_with_bos": ("<s>", "</s>"), "command_r": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek_r1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek_v3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "exaone": ("[BOS]", "[|endofturn|]"),
    "falcon": (None, "<|endoftext|>"), "gemma": ("<bos>", "<eos>"), "gemma3": ("<bos>", "<eos>"),
    "glm4": (None, "<|endoftext|>"), "gpt_oss": ("<|startoftext|>", "<|return|>"),
    "granite3": ("<|end_of_text|>", "<|end_of_text|>"), "granite3_2": ("<|end_of_text|>", "<|end_of_text|>"),
    "hermes": ("<s>", "<|im_end|>"), "llama2": ("<s>", "</s>"), "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "llama3_1": ("<|begin_of_text|>", "<|eot_id|>"), "llama3_2": ("<|begin_of_text|>", "<|eot_id|>"),
    "marked_without_end": (None, "</s>"), "minicpm": ("<s>", "</s>"), "mistral_v0_1": ("<s>", "</s>"),
    "mistral_v0_2": ("<s>", "</s>"), "mistral_v0_3": ("<s>", "</s>"), "nemotron": ("<s>", "</s>"),
    "olmo2": ("<|endoftext|>", "<|endoftext|>"), "openchat": ("<s>", "<|end_of_turn|>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "phi3_first": ("<s>", "<|endoftext|>"), "phi4": ("<|endoftext|>", "<|im_end|>"),
    "phi4_mini": ("<|endoftext|>", "<|endoftext|>"), "qwen2_5": (None, "<|endoftext|>"),
    "qwen3": (None, "<|endoftext|>"), "smollm3": (None, "<|im_end|>"), "solar": ("<s>", "</s>"),
    "starchat": ("<|endoftext|>", "<|endoftext|>"), "vicuna": ("<s>", "</s>"), "zephyr": ("<s>", "</s>"),
}  # fmt: skip
"""{template: (beginning, end token) of the tokenizers that come with it}; base models of Qwen and Llama 3 have another
end token than their templates write."""
SPECIAL = re.compile(
    r"<\|/?\w+\|>|<｜[\w▁]+｜>|</?s>|<(?:start|end)_of_turn>|\[/?[A-Z_]{4,}\]|\[gMASK\]|<sop>|<extra_id_\d>|<用户>|<AI>"
)
ROLES = ("system", "user", "assistant", "observation")

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]  # fmt: skip
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
TALK = [
    Turn("user", "Who was first?"), Turn("assistant", "Ann came first."),
    Turn("user", "And second?"), Turn("assistant", "Bob."),
]  # fmt: skip
KINDS = {
    "one turn": Record(TALK[:2]),
    "system": Record([Turn("system", "You are the desk."), *TALK]),
    "two turns": Record(TALK),
    "assistant first": Record([Turn("assistant", "Welcome, how can I help?"), *TALK[:2]]),
    "tools": Record(
        [
            Turn("user", "How warm is it in Oslo?"), Turn("assistant", "", (CALL,)),
            Turn("tool", "21 degrees", name="get_weather", tool_call_id="abcdefghi"), Turn("assistant", "It is warm."),
        ],
        TOOLS,
    ),
}  # fmt: skip


def names() -> list[str]:
    """All templates, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


_made: dict[str, Any] = {}


def with_template(tokenizer, name):
    """A copy of the bundled tokenizer with a template and the special tokens that go with it: read it only."""
    if name not in _made:
        _made[name] = _with_template(tokenizer, name)
    return _made[name]


def _with_template(tokenizer, name):
    changed = copy.deepcopy(tokenizer)
    marks, bos, eos = special_tokens(name)
    changed.add_special_tokens({"additional_special_tokens": marks})
    changed.bos_token, changed.eos_token = bos, eos
    changed.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return changed


def special_tokens(name):
    """(all special tokens, beginning token, end token) of a tokenizer with this template."""
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    bos, eos = BOS_EOS[name]
    roles = [f"{left}{role}{right}" for left, right in (("<|", "|>"), ("[|", "|]")) for role in ROLES]
    return sorted({*roles, *SPECIAL.findall(text), bos, eos} - {None}), bos, eos


def table(tokenizer):
    """The Markdown table of docs/models.md: what becomes of each kind of conversation."""
    lines = [f"| template | an answer ends with | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 2) + "|"]
    for name in names():
        used = with_template(tokenizer, name)
        end = used.convert_ids_to_tokens(find_end_tokens(used)[0]).replace("|", "\\|")
        cells = [outcome(used, record) for record in KINDS.values()]
        lines.append(f"| {name} | `{end}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def outcome(tokenizer, record):
    """``trains``, or why the record is refused."""
    try:
        encode([record], tokenizer, 4096)
    except InputError as error:
        reason = re.search(r"refuses these turns \((.*?)\)|(leaves out .*?)(?: \(\w+\))?;", str(error))
        return f"refused: {reason[1] or reason[2]}"
    return "trains"
