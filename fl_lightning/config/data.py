"""The ``data`` block: the departments' records."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from fl_lightning.config.checks import Block, Interval, NonNegativeFloat, OpenFraction, PositiveInt, check
from fl_lightning.storage.files import read_text
from fl_lightning.storage.record_digest import is_digest, read_digests

EXAMPLE_DEPARTMENTS = "bundled:departments"
"""Name of the example data inside the package."""


@dataclass
class DataConfig(Block, key="data"):
    """The departments' records and how many of them are used."""

    root: str = EXAMPLE_DEPARTMENTS
    """A folder of departments, bundled:departments, or one table of all records: a JSONL or Parquet file, or a folder
    with a Hugging Face data set."""
    columns: list[str] = field(default_factory=lambda: ["department", "client"])
    """The columns of the department and of the client, if root is a table."""
    clients_per_dept: PositiveInt | Literal["all"] = 3
    """Use the first n clients of each department, in natural sort order; all uses every client, in departments of any
    size."""
    max_records: PositiveInt = 128
    """Use at most n training records of each client."""
    max_length: Annotated[int, Interval(8)] = 512
    """Tokens per record; longer records are cut, first at the beginning of the prompt."""
    eval_fraction: OpenFraction = 0.2
    """Share of the records held out for evaluation if a client is a single file without an eval split, in (0, 1)."""
    selection_fraction: NonNegativeFloat = 0.0
    """Share of each client's training records, or from 1 on their number, that do not train: personalize chooses each
    client's level by them; 0 for none."""
    chat_template: str | None = None
    """A file with a Jinja chat template, or its text; null uses the tokenizer's. The run keeps the text."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as {enable_thinking: false}; chat, serve and merged models use them too."""
    system_turns: Literal["template", "merge", "refuse"] = "template"
    """Who writes a system turn: the template; or merge puts it into the first user turn; refuse makes it an error."""
    template_date: str | None = None
    """YYYY-MM-DD, for a chat template that writes the date; null uses the day on which the run started."""
    exclude: list[str] = field(default_factory=list)
    """Clients, such as hr/client_1, and whole departments, such as hr, that are left out as if they had never been
    there; no other client takes their place."""
    exclude_records: list[str] | str = field(default_factory=list)
    """Records that are left out as if they had never been there: a file with a record or its digest in each line. The
    run keeps the digests."""
    token_store: str | None = "auto"
    """With more than 1,000 clients: a folder in which clients' tokens are kept for the next runs; auto is the user's
    folder of caches, null keeps none."""

    def __post_init__(self) -> None:
        """Check the ranges and read the file of the chat template."""
        super().__post_init__()
        ok = len(self.columns) == 2 and len(set(self.columns)) == 2
        check(ok, "data.columns", "two names, of the columns of department and client", self.columns)
        for name in self.exclude:
            ok = isinstance(name, str) and 0 < len(name.strip("/")) == len(name) and name.count("/") <= 1
            check(ok, "data.exclude", "clients (hr/client_0) and departments (hr)", name)
        if isinstance(self.exclude_records, str):
            self.exclude_records = read_digests(Path(self.exclude_records).expanduser())
        for digest in self.exclude_records:
            check(is_digest(digest), "data.exclude_records", "a file, or digests of 64 hexadecimal digits", digest)
        if self.chat_template is not None and not re.search(r"{[{%]", self.chat_template):
            self.chat_template = read_text(Path(self.chat_template).expanduser(), "data.chat_template: a Jinja file")
        if self.chat_template is not None:
            ok = re.search(r"{[{%]", self.chat_template) is not None
            check(ok, "data.chat_template", "a Jinja template with {{ }} or {% %}", self.chat_template[:80])
        for name in self.chat_template_kwargs:
            ok = name.isidentifier() and name not in ("messages", "tools", "documents", "add_generation_prompt")
            check(ok, "data.chat_template_kwargs", "names of variables of the chat template", name)
        ok = _is_json(self.chat_template_kwargs)
        check(ok, "data.chat_template_kwargs", "values of JSON, without NaN", self.chat_template_kwargs)
        if self.template_date is not None:
            check(_is_date(self.template_date), "data.template_date", "a date such as 2026-11-28", self.template_date)

    @property
    def max_clients(self) -> int | None:
        """`clients_per_dept` as a number; None for all."""
        return None if self.clients_per_dept == "all" else self.clients_per_dept


def _is_json(value: Any) -> bool:
    try:
        return bool(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError):
        return False


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
