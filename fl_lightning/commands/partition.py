"""``partition SOURCE --output DIR``: divide records into folders of departments and clients."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_lightning.commands.parser import Parser, at_least, number_above
from fl_lightning.data.partition.strategies import SCHEMES, Scheme, SchemeName, deal, label_counts
from fl_lightning.errors import InputError

DESCRIPTION = """Divide records among departments and clients, in the folders that 'fit --data' reads:

  DIR/<department>/<client>/train.jsonl, eval.jsonl     partition.json and, with --label, partition.png say who got what

SOURCE is a file (.jsonl, .json, .csv, .tsv, .parquet), a folder with a Hugging Face data set, or a Hub id."""
RECORD = ("instruction", "input", "output_column", "prompt", "completion", "messages", "text")
DRAWING = "pip install 'fl_lightning[data]'"


def make_parser() -> Parser:
    """The options."""
    parser = Parser("partition", DESCRIPTION)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--output", metavar="DIR", help="a new folder")
    parser.add_argument("--split", metavar="NAME", help="of a Hugging Face data set (default: train, or the only one)")
    who = parser.add_argument_group("who gets what")
    who.add_argument("--by", metavar="COLUMN", help="a department for each value of this column")
    who.add_argument("--clients-by", metavar="COLUMN", help="a client for each value of this column")
    who.add_argument("--departments", metavar="N", type=at_least(1), help="number of departments, dealt by --scheme")
    who.add_argument("--clients-per-dept", metavar="M", type=at_least(1), help="clients in each (default: 3)")
    who.add_argument("--scheme", choices=SCHEMES, default="iid", help="how records are dealt (default: iid)")
    who.add_argument("--client-scheme", choices=SCHEMES, help="the same inside departments (default: as --scheme)")
    who.add_argument("--label", metavar="COLUMN", help="what dirichlet and shards deal by, and what is drawn")
    who.add_argument("--alpha", type=number_above(0), default=0.5, help="dirichlet: small is one-sided (default: 0.5)")
    who.add_argument("--shards", type=at_least(1), default=2, help="shards for each part (default: 2)")
    who.add_argument("--sizes", type=number_above(0), nargs="+", default=[], metavar="X", help="sizes: proportions")
    who.add_argument("--client-sizes", type=number_above(0), nargs="+", metavar="X", help="the same inside departments")
    who.add_argument("--min-records", type=at_least(2), default=2, help="of each part under dirichlet (default: 2)")
    who.add_argument("--eval-fraction", type=number_above(0, 1), default=0.2, help="held out (default: 0.2)")
    who.add_argument("--seed", type=at_least(0), default=1234, help="(default: 1234)")
    record = parser.add_argument_group("columns of a record (default: those that are called so)")
    for name in RECORD:
        record.add_argument(f"--{name.replace('_', '-')}", metavar="COLUMN")
    parser.add_argument("--dry-run", action="store_true", help="print who would get what, write nothing")
    return parser


def run(argv: list[str]) -> int:
    """Divide records."""
    args = make_parser().read(argv)
    columns = {name.removesuffix("_column"): getattr(args, name) for name in RECORD if getattr(args, name)}
    parts = _parts(args)
    from fl_lightning.data.partition import writer
    from fl_lightning.data.partition.columns import check_columns, to_records, values_of
    from fl_lightning.data.partition.reader import read_rows

    if args.output:
        writer.check_new(Path(args.output))
    rows = read_rows(args.source, args.split)
    options = {"--by": args.by, "--clients-by": args.clients_by, "--label": args.label}
    options |= {f"--{name.replace('_', '-')}": getattr(args, name) for name in RECORD}
    check_columns(rows, options)
    records = to_records(rows, columns, [column for column in (args.by, args.clients_by, args.label) if column])
    labels = values_of(rows, args.label, "--label") if args.label else None

    def scheme(name: SchemeName, sizes: list[float]) -> Scheme:
        return Scheme(name, args.alpha, args.shards, sizes, args.min_records)

    shares = deal(
        len(records),
        values_of(rows, args.by, "--by") if args.by else parts[0],
        values_of(rows, args.clients_by, "--clients-by") if args.clients_by else parts[1],
        scheme=scheme(args.scheme, args.sizes),
        client_scheme=scheme(args.client_scheme or args.scheme, args.client_sizes or args.sizes),
        labels=labels,
        seed=args.seed,
    )
    dealt = writer.split_clients(shares, args.eval_fraction, args.seed)
    counts = label_counts(shares, labels) if labels else None
    return _finish(args, records, dealt, counts)


def _parts(args: argparse.Namespace) -> tuple[int, int]:
    """(departments, clients in each) if no column assigns them."""
    if not args.dry_run and not args.output:
        raise InputError("partition: expected --output DIR for the federation, or --dry-run, got neither")
    if args.by and args.departments:
        raise InputError("--departments: expected only one of --departments and --by, got both")
    if args.clients_by and args.clients_per_dept:
        raise InputError("--clients-per-dept: expected only one of --clients-per-dept and --clients-by, got both")
    if not args.by and not args.departments:
        raise InputError("partition: expected --by COLUMN or --departments N, got neither")
    return args.departments or 0, args.clients_per_dept or 3


def _finish(args: argparse.Namespace, records: list[Any], dealt: Any, counts: Any) -> int:
    """Print the table, and write the folders unless it is a dry run."""
    from rich.console import Console

    from fl_lightning.data.partition import writer

    console = Console()
    title = args.source if args.dry_run else f"{args.source} → {args.output}"
    console.print(writer.make_table(dealt, counts, title))

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if args.dry_run:
        say("Nothing was written: --dry-run.")
        return 0
    picture = None
    if counts:
        try:
            picture = writer.draw_counts(counts, args.label)
        except ImportError:
            say(f"partition.png was not drawn: matplotlib is not installed; {DRAWING}")
    options = {key: value for key, value in vars(args).items() if value not in (None, []) and key != "dry_run"}
    clients = {
        client_id: {"train": len(train), "eval": len(held_out), **({"labels": counts[client_id]} if counts else {})}
        for client_id, (train, held_out) in dealt.items()
    }
    writer.write_federation(Path(args.output), records, dealt, {"options": options, "clients": clients}, picture)
    most = min(sum(c.startswith(f"{name}/") for c in dealt) for name in {c.split("/")[0] for c in dealt})
    say(f"Train on it: fl-lightning fit --data {args.output} --clients-per-dept {most}")
    return 0
