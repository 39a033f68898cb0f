"""``inspect --data DIR``: what is in a folder of departments, and what is wrong with it."""

from __future__ import annotations

import json

from fl_lightning.commands.parser import Parser
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.errors import InputError

DESCRIPTION = """Look at every record of every client: counts, lengths in tokens, bad lines, unsafe names, records
that are there more than once, and held-out records that some client trains on.

Exit code 2 if 'fit' would refuse the folder, else 0, with warnings or without."""


def run(argv: list[str]) -> int:
    """Look at a folder."""
    parser = Parser("inspect", DESCRIPTION)
    parser.add_argument("--data", metavar="DIR", help="a folder of departments (default: data.root of the config)")
    parser.add_argument("--config", metavar="FILE", help="whose tokenizer, max_length, eval_fraction and seed count")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    args = parser.read(argv)
    config = parse_config(["--config", args.config] if args.config else [])
    root = args.data or config.data.root
    setup_logging()
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from fl_lightning.data.records import Record

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading the tokenizer", total=None)
        from fl_lightning.data.chat_template import pin_chat_template
        from fl_lightning.data.inspection import checks, report
        from fl_lightning.data.tokenization import RecordEncoder
        from fl_lightning.modeling.base_model import context_length, load_tokenizer

        silence_libraries()
        tokenizer = load_tokenizer(config.model)
        pin_chat_template(tokenizer, config.data)
        encoder = RecordEncoder(tokenizer)
        progress.update(task, description="records", completed=0)

        def measure(record: Record, where: str) -> tuple[int, int]:
            progress.advance(task)
            ids, marks = encoder(record, where)
            if not any(marks[1:]):
                raise InputError(f"{where}: no response tokens after tokenization; give a longer response")
            return len(ids), sum(marks[1:])

        data = config.data
        max_length = min(data.max_length, context_length(config.model) or data.max_length)
        found = checks.inspect_folder(
            root,
            measure,
            max_length=max_length,
            eval_fraction=data.eval_fraction,
            seed=config.seed,
            columns=data.columns,
            exclude=data.exclude,
            exclude_records=data.exclude_records,
        )
    found.canaries = config.audit.canaries
    if args.json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
    else:
        report.print_inspection(found, Console())
    if found.errors:
        count = len(found.errors)
        raise InputError(f"{root}: {count} error{'s' if count > 1 else ''}, see above; mend them before 'fit'")
    return 0
