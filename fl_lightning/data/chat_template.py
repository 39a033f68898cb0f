"""The chat template of a run: one text that holds everything that decides how a conversation reads.

`pin_chat_template` writes the run's choices (the ``data`` block's template, variables, date and treatment of system
turns) into the tokenizer's template. Training, ``chat``, ``serve``, ``evaluate`` and a merged model then render the
same text by a plain call of transformers' ``apply_chat_template``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from fl_lightning.config.data import DataConfig
from fl_lightning.data.records import Turn
from fl_lightning.errors import InputError, nearest

_CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>.*?)(?P=quote)\s*\)""")
_GENERATION = re.compile(r"{%[-+]?\s*(?:end)?generation\s*[-+]?%}")
_MERGE_SYSTEM = """\
{%- if messages and messages[0]['role'] in ('system', 'developer') -%}
{%- set merged = namespace(messages=[], system=messages[0]['content']) -%}
{%- for message in messages[1:] -%}
{%- if message['role'] == 'user' and merged.system -%}
{%- set message = dict(message, content=merged.system + '\n\n' + message['content']) -%}
{%- set merged.system = '' -%}
{%- endif -%}
{%- set merged.messages = merged.messages + [message] -%}
{%- endfor -%}
{%- set messages = merged.messages -%}
{%- endif %}
"""
_REFUSE_SYSTEM = """\
{%- for message in messages if message['role'] in ('system', 'developer') -%}
{{- raise_exception('data.system_turns is refuse, and there is a system turn') -}}
{%- endfor %}
"""
_PRELUDES = {"template": "", "merge": _MERGE_SYSTEM, "refuse": _REFUSE_SYSTEM}


def pin_chat_template(tokenizer: Any, data: DataConfig) -> None:
    """Write the choices of the ``data`` block into the tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer; its `chat_template` is replaced.
        data: with `chat_template`, `chat_template_kwargs`, `template_date` and `system_turns`. Without `template_date`
            the template keeps its clock.

    Raises:
        InputError: a template that is not one, a variable that it does not have, choices without a template, or a date
            that cannot be pinned.
    """
    if data.chat_template is not None:
        tokenizer.chat_template = data.chat_template
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        if type(tokenizer).__name__ == "MistralCommonBackend":  # it renders conversations without a template
            raise InputError(
                "model.name_or_path: the tokenizer is that of mistral-common, which has no chat template; expected "
                "tokenizer.json, which transformers reads in an environment without mistral-common"
            )
        if data.chat_template_kwargs or data.system_turns != "template":
            key = "chat_template_kwargs" if data.chat_template_kwargs else "system_turns"
            raise InputError(f"data.{key}: the tokenizer has no chat template; give one with data.chat_template")
        return
    source = "model.name_or_path: the tokenizer's chat template" if data.chat_template is None else "data.chat_template"
    named = template if isinstance(template, Mapping) else {"": template}
    variables = set().union(*(_variables(text, source) for text in named.values()))
    for name in data.chat_template_kwargs:
        if name not in variables:
            hint = nearest(name, variables)
            raise InputError(f"data.chat_template_kwargs: expected a variable of the chat template, got {name!r}{hint}")
    if isinstance(template, Mapping):  # templates by name: default, tool_use, rag
        tokenizer.chat_template = {name: _pinned(text, data) for name, text in template.items()}
    else:
        tokenizer.chat_template = _pinned(template, data)


def pin_date(data: DataConfig, tokenizer: Any) -> None:
    """Set `template_date` to today if it is not set and the chat template writes the date.

    The config of a run keeps it, so that a run that resumes on another day has the same tokens.
    """
    template = data.chat_template or str(getattr(tokenizer, "chat_template", None))
    if data.template_date is None and "strftime_now(" in template:
        data.template_date = date.today().isoformat()


def _variables(template: str, source: str) -> set[str]:
    """Names that a template expects from outside; those that it sets itself, or that are only text, are none."""
    try:
        environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701  (parses, never renders)
        tree = environment.parse(_GENERATION.sub("", template))
    except TemplateSyntaxError as error:
        reason = " ".join(str(error.message).split())[:200]
        raise InputError(
            f"{source}: expected a Jinja template, got a mistake in line {error.lineno} ({reason})"
        ) from error
    return find_undeclared_variables(tree)


def _pinned(template: str, data: DataConfig) -> str:
    if data.template_date is not None:
        today = date.fromisoformat(data.template_date)
        template = _CLOCK.sub(lambda call: json.dumps(today.strftime(call["format"]), ensure_ascii=False), template)
        if "strftime_now(" in template:
            raise InputError(
                "data.template_date: expected a chat template that calls strftime_now with a text, got another call; "
                "mend the template and give it as data.chat_template"
            )
    # transformers drops the line end behind a block, so nothing of this is in the text.
    variables = "".join(
        f"{{%- set {name} = {_literal(value)} %}}\n" for name, value in data.chat_template_kwargs.items()
    )
    return variables + _PRELUDES[data.system_turns] + template


def _literal(value: Any) -> str:
    """A JSON value in the syntax of Jinja."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def render(
    turns: Sequence[Turn],
    tokenizer: Any,
    location: str,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation by the tokenizer's chat template.

    A developer turn is read as a system turn by templates that do not know that role.

    Args:
        turns: in order, at least one.
        tokenizer: a transformers tokenizer with a chat template.
        location: of the conversation, for messages.
        tools: JSON schemas of functions.
        add_generation_prompt: whether the text ends where the assistant's answer begins.

    Raises:
        InputError: if the template refuses the turns.
    """
    messages = to_messages(turns, tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except Exception as error:  # a template can raise anything
        raise refusal(turns, error, location) from error


def has_answer_marks(tokenizer: Any, tools: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Whether the chat template marks what the assistant writes, by ``{% generation %}``."""
    template = tokenizer.get_chat_template(tools=list(tools) or None)
    return re.search(r"{%-?\s*generation\s*-?%}", template) is not None


def to_messages(turns: Sequence[Turn], tokenizer: Any) -> list[dict[str, Any]]:
    """The messages for `apply_chat_template`."""
    messages = [turn.as_message() for turn in turns]
    if any(turn.role == "developer" for turn in turns) and "developer" not in _own_text(tokenizer):
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    return messages


def refusal(turns: Sequence[Turn], error: Exception, location: str) -> InputError:
    """The error for turns that a chat template refuses."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    hint = "expected turns that it supports"
    if any(turn.role in ("system", "developer") for turn in turns):
        hint += "; data.system_turns: merge puts a system turn into the first user turn"
    elif turns and turns[0].role == "assistant":
        hint += "; it may expect the user to speak first"
    return InputError(f"{location}: the tokenizer's chat template refuses these turns ({reason}); {hint}")


def _own_text(tokenizer: Any) -> str:
    """The template without the preludes of this module."""
    template = tokenizer.chat_template
    text = "\n".join(template.values()) if isinstance(template, Mapping) else str(template)
    return text.replace(_MERGE_SYSTEM, "").replace(_REFUSE_SYSTEM, "")
