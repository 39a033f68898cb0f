"""Two hundred random changes of a signed run: each is found, and the message names the place."""

import json
import os
import random
import re
import shutil

import pytest
from run_files import restore

from fl_lightning.provenance.chain import ChainError
from fl_lightning.provenance.digests import bytes_digest, canonical
from fl_lightning.provenance.run_files import FILES
from fl_lightning.provenance.signing import load_public_key
from fl_lightning.runs.verify import verify_run

TIMES = 10
"""Changes of each kind."""
NOT_COVERED = ("client_runs/", "metrics.csv", "hparams.yaml", ".lock")


def lines_of(run):
    return (run / "ledger.jsonl").read_bytes().splitlines()


def write(run, lines):
    (run / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def covered(run):
    """Paths of all files whose bytes count, without the ledger."""
    names = (path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if path.is_file())
    return [name for name in names if name != "ledger.jsonl" and not name.startswith(NOT_COVERED)]


def at_line(number):
    """What names a line of the ledger, counted from 1."""
    return rf"ledger.jsonl:{number}:|[Ll]ine {number}\b"


def at_file(name):
    """What names a file: its path, or the folder that has one digest."""
    parts = name.split("/")
    depth = {"adapters": 2, "client_exports": 3, "checkpoints": 2}.get(parts[0], len(parts))
    return re.escape("/".join(parts[:depth]))


def flip(data, draw):
    """The bytes with one other bit."""
    position = draw.randrange(len(data))
    return data[:position] + bytes([data[position] ^ 1 << draw.randrange(8)]) + data[position + 1 :]


# Changes of the ledger: each takes the run, another run and a source of random numbers, and returns a pattern of the
# place that the message must name


def a_bit_of_the_ledger(run, other, draw):
    data = (run / "ledger.jsonl").read_bytes()
    position = draw.randrange(len(data))
    changed = bytes([data[position] ^ 1 << draw.randrange(8)])
    (run / "ledger.jsonl").write_bytes(data[:position] + changed + data[position + 1 :])
    return at_line(data[:position].count(b"\n") + 1)


def a_line_is_dropped(run, other, draw):
    lines = lines_of(run)
    index = draw.randrange(len(lines))
    write(run, [*lines[:index], *lines[index + 1 :]])
    return at_line(index + 1)


def a_line_is_repeated(run, other, draw):
    lines = lines_of(run)
    index, place = draw.randrange(len(lines)), draw.randrange(len(lines) + 1)
    write(run, [*lines[:place], lines[index], *lines[place:]])
    return f"{at_line(place + 1)}|{at_line(place + 2)}|{at_line(place)}"


def lines_change_places(run, other, draw):
    lines = lines_of(run)
    first, second = sorted(draw.sample(range(len(lines)), 2))
    lines[first], lines[second] = lines[second], lines[first]
    write(run, lines)
    return at_line(first + 1)


def a_line_is_written_in_another_way(run, other, draw):
    lines = lines_of(run)
    index = draw.randrange(len(lines))
    value = json.loads(lines[index])
    items = draw.sample(sorted(value.items()), len(value))
    ways = [json.dumps(value, sort_keys=True), json.dumps(dict(items), separators=(",", ":"))]
    ways += [lines[index].decode() + " ", lines[index].decode().replace("e", "\\u0065", 1)]
    changed = draw.choice([way.encode() for way in ways if way.encode() != lines[index]])
    write(run, [*lines[:index], changed, *lines[index + 1 :]])
    return at_line(index + 1)


def a_value_is_changed(run, other, draw):
    lines = lines_of(run)
    index = draw.randrange(len(lines))
    value = json.loads(lines[index])
    change_a_value(value, draw)
    write(run, [*lines[:index], canonical(value), *lines[index + 1 :]])
    return at_line(index + 1)


def a_key_is_added(run, other, draw):
    lines = lines_of(run)
    index = draw.randrange(len(lines))
    value = {**json.loads(lines[index]), "note": draw.random()}
    write(run, [*lines[:index], canonical(value), *lines[index + 1 :]])
    return at_line(index + 1)


def a_round_is_another_runs(run, other, draw):
    lines = lines_of(run)
    index = draw.randrange(len(lines))
    write(run, [*lines[:index], lines_of(other)[index], *lines[index + 1 :]])
    return f"{at_line(index + 1)}|{at_line(index)}"  # no link says on which side of it the stranger is


def a_value_is_changed_and_all_lines_linked_again(run, other, draw):
    values = [json.loads(line) for line in lines_of(run)]
    change_a_value(draw.choice(values[:-1]), draw, but=("kind", "round", "previous"))
    previous = "0" * 64
    lines = []
    for value in values:
        lines.append(canonical({**value, "previous": previous}))
        previous = bytes_digest(lines[-1])
    write(run, lines)
    return at_line(len(lines))  # the signature, which alone is left to say so


def the_end_is_cut_off(run, other, draw):
    data = (run / "ledger.jsonl").read_bytes()
    length = draw.randrange(len(data))
    (run / "ledger.jsonl").write_bytes(data[:length])
    return at_line(data[:length].count(b"\n") + 1)


def the_signature_is_changed(run, other, draw):
    lines = lines_of(run)
    end = json.loads(lines[-1])
    signature = end["signature"]
    ways = [signature.upper(), signature[:-1], flip(bytes.fromhex(signature), draw).hex()]
    ways += [json.loads(lines_of(other)[-1])["signature"], " " + signature]
    end["signature"] = draw.choice(ways)
    if draw.random() < 0.2:
        del end["signature"], end["public_key"]
    write(run, [*lines[:-1], canonical(end)])
    return at_line(len(lines))


def change_a_value(value, draw, but=("kind",)):
    """Change one value somewhere in a line, in place; at the top not those of some keys."""
    places = []

    def collect(container, keys):
        for key in keys:
            if isinstance(container[key], dict) and container[key]:
                collect(container[key], list(container[key]))
            else:
                places.append((container, key))

    collect(value, [key for key in value if key not in but])
    container, key = draw.choice(places)
    old = container[key]
    if isinstance(old, str) and old:
        position = draw.randrange(len(old))
        container[key] = old[:position] + ("0" if old[position] != "0" else "1") + old[position + 1 :]
    else:
        container[key] = draw.choice([v for v in (0, 1, 2.5, None, True, "x", ["x"]) if v != old])


# Changes of files


def a_bit_of_a_file(run, other, draw):
    name = draw.choice([name for name in covered(run) if (run / name).stat().st_size])
    (run / name).write_bytes(flip((run / name).read_bytes(), draw))
    return at_file(name)


def a_file_is_written_in_another_way(run, other, draw):
    name = draw.choice([name for name in covered(run) if name.endswith(".json")])
    value = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(value, indent=3))
    return at_file(name)


def a_file_is_removed(run, other, draw):
    name = draw.choice([name for name in covered(run) if name != "ledger_secret"])
    (run / name).unlink()
    return at_file(name)


def a_file_is_cut_off(run, other, draw):
    name = draw.choice([name for name in covered(run) if (run / name).stat().st_size])
    data = (run / name).read_bytes()
    (run / name).write_bytes(data[: draw.randrange(len(data))])
    return at_file(name)


def a_folder_is_removed(run, other, draw):
    patterns = ("adapters/*", "client_exports/*/*", "cluster_metadata", "checkpoints/round_*")
    path = draw.choice(sorted(path for pattern in patterns for path in run.glob(pattern)))
    shutil.rmtree(path)
    return at_file(path.relative_to(run).as_posix())


def a_file_is_added(run, other, draw):
    folders = [*run.glob("adapters/*"), *run.glob("client_exports/*/*"), *run.glob("checkpoints/round_*")]
    paths = [folder / "added.json" for folder in sorted(folders)]
    paths += [run / name for name in FILES if not (run / name).exists()]
    paths += [run / "cluster_metadata" / "round_9_aggregation.json", run / "checkpoints" / "round_4_journal" / "hr.bin"]
    paths += [run / "adapters" / "more" / "adapter_config.json", run / "mixture_levels" / "root" / "a.json"]
    path = draw.choice(paths)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw.randbytes(9))
    name = path.relative_to(run).as_posix()
    return at_file(name) if not name.startswith("mixture_levels") else "mixture_levels"


def a_file_is_another_runs(run, other, draw):
    both = [name for name in covered(run) if (other / name).is_file()]
    name = draw.choice([name for name in both if (other / name).read_bytes() != (run / name).read_bytes()])
    shutil.copy(other / name, run / name)
    return at_file(name)


def a_round_of_files_is_another_runs(run, other, draw):
    number = draw.choice((2, 3))
    name = draw.choice([f"checkpoints/round_{number}", f"client_exports/hr/round_{number}_client_1"])
    shutil.rmtree(run / name)
    shutil.copytree(other / name, run / name)
    return at_file(name)


def files_change_places(run, other, draw):
    first, second = draw.sample(sorted(run.glob("client_exports/*/*/*.safetensors")), 2)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    return "|".join(at_file(path.relative_to(run).as_posix()) for path in (first, second))


KINDS = [
    a_bit_of_the_ledger, a_line_is_dropped, a_line_is_repeated, lines_change_places, a_line_is_written_in_another_way,
    a_value_is_changed, a_key_is_added, a_round_is_another_runs, a_value_is_changed_and_all_lines_linked_again,
    the_end_is_cut_off, the_signature_is_changed,
    a_bit_of_a_file, a_file_is_written_in_another_way, a_file_is_removed, a_file_is_cut_off, a_folder_is_removed,
    a_file_is_added, a_file_is_another_runs, a_round_of_files_is_another_runs, files_change_places,
]  # fmt: skip


def test_there_are_two_hundred():
    assert len(KINDS) * TIMES == 200


@pytest.mark.parametrize("tamper", KINDS, ids=lambda kind: kind.__name__)
def test_every_change_is_found_and_its_place_is_named(tamper, signed_run, other_run, copied, operator_key):
    key = load_public_key(operator_key.with_name("key.pub"))
    for number in range(TIMES):
        draw = random.Random(f"{tamper.__name__} {number}")
        place = tamper(copied, other_run, draw)
        with pytest.raises(ChainError) as caught:
            verify_run(copied, key)
        assert re.search(place, str(caught.value)), (number, place, str(caught.value))
        restore(signed_run, copied)
    assert verify_run(copied, key).public_key == key  # as it was


def test_dates_of_files_and_what_holds_clock_times_may_change(copied, operator_key):
    for path in copied.rglob("*"):
        os.utime(path, (0, 0))
    (copied / "metrics.csv").write_text("step\n")
    shutil.rmtree(copied / "client_runs")
    shutil.rmtree(copied / "checkpoints")  # as a whole: whoever is to check a run need not be able to continue it
    verify_run(copied, load_public_key(operator_key.with_name("key.pub")))
