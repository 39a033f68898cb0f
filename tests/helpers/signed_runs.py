"""Small signed runs, which the tests of several folders share."""

import json
import shutil

import pytest
from run_files import SMALL
from shared_folder import make_once


@pytest.fixture(scope="session")
def ledger_small(cut_departments, micro_base, tmp_path_factory):
    """Arguments of a small run: two clients in each department, 4 training and 2 held-out records."""
    root = make_once(tmp_path_factory, "ledger_data", lambda folder: cut_departments(folder, 2, 4, 2))
    options = ["--model.name_or_path", micro_base, "--logging.samples", "0", "--logging.loggers=[]"]
    return [*SMALL, *options, "--data", str(root)]


@pytest.fixture(scope="session")
def operator_key(tmp_path_factory):
    """The path of an Ed25519 key; the public one is beside it."""
    pytest.importorskip("cryptography", reason="cryptography is not installed; the sign extra has it")
    from fl_lightning.provenance.signing import new_key

    return make_once(tmp_path_factory, "operator", lambda folder: new_key(folder / "key")) / "key"


@pytest.fixture(scope="session")
def signed_run(ledger_small, operator_key, tmp_path_factory):
    """A finished and signed run of three rounds. Read it; copy it before changing it."""
    from fl_lightning.cli import main

    def make(folder):
        argv = [*ledger_small, "--rounds", "3", "--output", str(folder), "--sign-key", str(operator_key)]
        assert main(["fit", *argv]) == 0

    return make_once(tmp_path_factory, "signed_run", make) / "version_0"


@pytest.fixture
def copied(signed_run, tmp_path):
    """A copy of the signed run, which a test may change."""
    return shutil.copytree(signed_run, tmp_path / "moved")


@pytest.fixture(scope="session")
def other_run(ledger_small, operator_key, tmp_path_factory):
    """The same with another seed. Read it only."""
    from fl_lightning.cli import main

    def make(folder):
        argv = [*ledger_small, "--rounds", "3", "--output", str(folder), "--sign-key", str(operator_key)]
        assert main(["fit", *argv, "--seed", "4"]) == 0

    return make_once(tmp_path_factory, "other_run", make) / "version_0"


def sign_as_sites(run_folder, known):
    """Write a run's ledger anew as if each client had been a site, and the file `known` of the sites' public keys.

    The keys are beside that file. The operator's signature is gone.
    """
    from fl_lightning.provenance.chain import LedgerFile, read_chain
    from fl_lightning.provenance.signing import key_at, load_public_key, sign
    from fl_lightning.provenance.site_signatures import signed_statement

    start, *rounds, end = read_chain(run_folder).lines
    paths = {name: known.parent / name.replace("/", ".") for line in rounds for name in line["clients"]}
    keys = {name: key_at(path) for name, path in paths.items()}
    public = {name: path.with_name(f"{path.name}.pub") for name, path in paths.items()}
    for line in rounds:
        for name, values in line["clients"].items():
            statement = signed_statement(start["run"], line["round"], name, values["update"])
            values["signature"] = sign(keys[name], statement)
    file = LedgerFile(run_folder / "ledger.jsonl")
    file.begin({**start, "sites": {name: load_public_key(path) for name, path in public.items()}})
    for line in (*rounds, {key: value for key, value in end.items() if key not in ("signature", "public_key")}):
        file.append(line)
    known.write_text("".join(f"{name} {path.read_text()}" for name, path in public.items()))
    return known


def forge(run, change):
    """Change the values of a ledger's lines and link them again, as somebody could who has no key."""
    from fl_lightning.provenance.digests import bytes_digest, canonical

    values = [json.loads(line) for line in (run / "ledger.jsonl").read_bytes().splitlines()]
    change(values)
    lines, previous = [], "0" * 64
    for value in values:
        unsigned = {key: part for key, part in value.items() if key not in ("signature", "public_key")}
        lines.append(canonical({**unsigned, "previous": previous}) + b"\n")
        previous = bytes_digest(lines[-1][:-1])
    (run / "ledger.jsonl").write_bytes(b"".join(lines))
