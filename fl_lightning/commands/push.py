"""``push --run RUN --repo-prefix ORG/NAME``: a run's adapters and their model cards to the Hugging Face Hub."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from fl_lightning.commands.parser import Parser
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import format_bytes, setup_logging, silence_libraries
from fl_lightning.errors import InputError, RunError
from fl_lightning.signals import Stopped
from fl_lightning.storage.model_names import chosen_adapters
from fl_lightning.storage.run_folder import find_run_folder, locked
from fl_lightning.storage.run_layout import CONFIG

if TYPE_CHECKING:
    from fl_lightning.publishing.export_folder import ExportFolder, ExportSource

DESCRIPTION = """Upload the adapter of each department and group of a run to a separate repository on the Hugging
Face Hub, ORG/NAME-<department>, with a model card. Clients' own adapters go there only when they are named.

The token is that of HF_TOKEN or of 'hf auth login'. Only adapter_config.json, adapter_model.safetensors and README.md
are uploaded (with --merged: the merged model's files and README.md). After an interruption the same command goes on."""


def run(argv: list[str]) -> int:
    """Push."""
    if any(word.partition("=")[0] == "--token" for word in argv):
        raise InputError(
            "push: takes no --token, since others could read it; set HF_TOKEN, or run 'hf auth login' once"
        )
    args = _parser().read(argv)
    setup_logging()  # before the hub's own import, which reads what is to be setup_logging
    from fl_lightning.publishing import repo_names

    repo_names.check_prefix(args.repo_prefix)
    licence = None if args.licence is None else repo_names.check_licence(args.licence)
    folder = find_run_folder(args.run, Path(args.output))
    config = parse_config(["--config", str(folder / CONFIG)])
    adapters = chosen_adapters(folder, args.models)
    repositories = repo_names.repositories(args.repo_prefix, adapters)
    base = repo_names.hub_id(config.model, args.base_model)
    from fl_lightning.publishing.export_folder import ExportSource

    silence_libraries()
    sources = [
        ExportSource(folder, config, name, adapter, repositories[name], base, licence)
        for name, adapter in adapters.items()
    ]
    with locked(folder):
        return _dry_run(sources, args) if args.dry_run else _push(sources, args)


def _parser() -> Parser:
    parser = Parser("push", DESCRIPTION)
    parser.takes_run()
    parser.add_argument(
        "--repo-prefix", required=True, metavar="ORG/NAME", help="what the repositories' names begin with"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME",
        help="departments, groups, hr/client_0, hr/client_0+adapter (departments, groups)",
    )
    who = parser.add_mutually_exclusive_group()
    help_ = "for those with access (the default)"
    who.add_argument("--private", dest="public", action="store_false", default=False, help=help_)
    who.add_argument("--public", dest="public", action="store_true", help="for everybody")
    parser.add_argument("--licence", metavar="ID", help="for the card, such as apache-2.0")
    parser.add_argument(
        "--base-model", metavar="ID", help="the base's id on the Hub, where the config has a folder or file"
    )
    parser.add_argument("--merged", action="store_true", help="whole models in place of adapters, as merge makes them")
    help_ = "with --merged: of the weights; auto is as the base's own files have them"
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help=help_)
    parser.add_argument("--dry-run", action="store_true", help="write the folders, show them, and upload nothing")
    parser.add_argument("--to", metavar="DIR", help="where the folders go (RUN/publish)")
    return parser


def _build(sources: list[ExportSource], args: Namespace, number: int) -> ExportFolder:
    from fl_lightning.publishing.export_folder import build_export_folder

    source = sources[number]
    root = Path(args.to) if args.to else source.run_folder / "publish"
    place = root / source.repository.rpartition("/")[2]
    return build_export_folder(source, place, merged=args.merged, dtype=args.dtype, copies=len(sources) - number)


def _dry_run(sources: list[ExportSource], args: Namespace) -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    built = [_build(sources, args, number) for number in range(len(sources))]
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("repository", "files", "size", "loss"):
        table.add_column(column, overflow="fold", justify="left" if column == "repository" else "right")
    for one in built:
        loss = " → ".join(f"{f['loss']:.3f}" for f in (one.facts.base, one.facts.final) if "loss" in f)
        table.add_row(one.source.repository, str(len(one.files)), format_bytes(one.size), loss or "–")
    Console().print(table)
    source, visibility = sources[0], "public" if args.public else "private"
    print(f"each: {', '.join(built[0].files)}")
    print(f"visibility: {visibility} · base: {_base(source)} · licence: {source.licence or '–'}")
    print(f"Nothing was uploaded. The folders are in {built[0].folder.parent}")
    return 0


def _base(source: ExportSource) -> str:
    from fl_lightning.publishing.repo_names import UNNAMED_BASE, public_base_name

    said = public_base_name(source.config.model, source.base)
    return f"{said} (--base-model ID names it)" if said == UNNAMED_BASE else said


def _push(sources: list[ExportSource], args: Namespace) -> int:
    from fl_lightning.publishing import hub

    api = hub.connect()
    done: list[str] = []
    try:
        for number, source in enumerate(sources):
            built = _build(sources, args, number)
            result = hub.upload(api, built, private=not args.public)
            what = f"{format_bytes(built.size)} uploaded" if result.changed else "unchanged"
            print(f"{source.repository}: {what}, {result.url}", flush=True)
            done.append(source.repository)
    except (InputError, RunError) as error:
        raise type(error)(f"{error}{_so_far(sources, done)}") from error
    except Stopped as stop:
        stop.note = _so_far(sources, done).removeprefix("; ")
        raise
    return 0


def _so_far(sources: list[ExportSource], done: list[str]) -> str:
    """What was uploaded before something went wrong."""
    if len(sources) == 1:
        return ""
    left = [source.repository for source in sources if source.repository not in done]
    return f"; done: {', '.join(done) or 'none'}; not done: {', '.join(left)}; the same command goes on there"
