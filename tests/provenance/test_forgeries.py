"""Ledgers made anew by somebody without the key: what is found all the same; no form of a line gives a traceback."""

import contextlib
import random
import shutil

import pytest
from signed_runs import forge

from fl_lightning.provenance.chain import ChainError
from fl_lightning.provenance.inclusion import find_inclusion
from fl_lightning.provenance.signing import load_public_key
from fl_lightning.runs.verify import verify_chain, verify_run


def test_a_ledger_made_anew_is_found_with_the_public_key_only(copied, operator_key):
    forge(copied, lambda lines: lines[1]["clients"]["hr/client_0"].update(weight=0.75))
    assert verify_run(copied).public_key is None
    with pytest.raises(ChainError, match="ledger.jsonl:5: unsigned"):
        verify_run(copied, load_public_key(operator_key.with_name("key.pub")))


def test_states_of_a_line_must_be_those_in_its_checkpoint(copied):
    forge(copied, lambda lines: lines[3]["states"]["departments"].update(hr="0" * 64))
    with pytest.raises(ChainError, match="round_3: changed: hr does not have the state of line 4 in ledger.jsonl"):
        verify_run(copied)


def test_a_ledger_names_files_of_its_run_only(copied):
    forge(copied, lambda lines: lines[-1]["files"].update({"../outside": "0" * 64}))
    with pytest.raises(ChainError, match="expected paths in the run"):
        verify_run(copied)


def test_lines_of_any_form_are_found_and_give_no_traceback(copied):
    original = (copied / "ledger.jsonl").read_bytes()
    shutil.rmtree(copied / "client_exports")  # the check of files would come to the same end more slowly
    for number in range(100):
        draw = random.Random(number)

        def change(lines, draw=draw):
            line = draw.choice(lines)
            place, key = line, draw.choice(sorted(set(line) - {"kind", "previous", "signature", "public_key"}))
            while isinstance(place[key], dict) and place[key] and draw.random() < 0.6:
                place, key = place[key], draw.choice(sorted(place[key]))
            place[key] = draw.choice([None, 7, "x", [], {}, {"a": 1}, [1], True, {"a": {"b": "c"}}])

        forge(copied, change)
        with pytest.raises(ChainError):
            verify_run(copied)
        with contextlib.suppress(ChainError):
            find_inclusion(verify_chain(copied).chain, "hr/client_0", "ab", ["01"])
        (copied / "ledger.jsonl").write_bytes(original)
