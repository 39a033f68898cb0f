import io

from rich.console import Console

from fl_lightning.data.inspection.checks import ClientSummary, Inspection, TokenLengths
from fl_lightning.data.inspection.report import MAX_LINES, print_inspection


def shown(found, width=80):
    console = Console(width=width, file=io.StringIO())
    print_inspection(found, console)
    return console.file.getvalue()


def test_departments_sum_their_clients():
    clients = [
        ClientSummary("hr/ann", 10, 2, TokenLengths(20.0, 20, 30, 0.5, 0), 1, 0, 0, 0),
        ClientSummary("hr/bob", 30, 6, TokenLengths(40.0, 40, 99, 0.5, 0), 0, 2, 3, 4),
        ClientSummary("it/cy", 0, 0, None, 0, 0, 0, 0),
    ]
    rows = [line.split() for line in shown(Inspection("data", "data", clients)).splitlines()]
    assert ["hr", "40", "8", "35", "99", "1", "2", "3", "4"] in rows  # (12 · 20 + 36 · 40) / 48 tokens
    assert ["ann", "10", "2", "20", "30", "1", "0", "0", "0"] in rows
    assert ["cy", "0", "0", "–", "–", "0", "0", "0", "0"] in rows


def test_long_lists_are_cut_and_paths_are_of_the_folder():
    found = Inspection(
        "data", "/place/data", errors=[f"/place/data/hr/a.jsonl:{n}: [bad]" for n in range(MAX_LINES + 3)]
    )
    text = shown(found)
    assert f"errors ({MAX_LINES + 3})" in text
    assert "\n  hr/a.jsonl:0: [bad]\n" in text
    assert "and 3 more, see --json" in text


def test_leaks_of_records_and_prompts_stand_apart():
    leaks = [{"eval": "e:1", "train": ["t:1", "t:2", "t:3", "t:4"], "what": "record"}]
    leaks.append({"eval": "e:2", "train": ["t:1"], "what": "prompt"})
    text = shown(Inspection("d", "d", leaks=leaks, warnings=["w"]))
    assert "held out and trained on (1)\n  e:1 = t:1 = t:2 = t:3 and 1 more" in text
    assert "prompt held out and trained on (1)\n  e:2 = t:1" in text


def test_nothing_wrong_is_said():
    assert "Nothing is wrong." in shown(Inspection("d", "d"))


def test_canaries_are_counted_beside_the_records():
    text = shown(Inspection("d", "d", canaries=8))
    assert "canaries: fit makes 8 for each client, about half of which become training records" in text
    assert "canaries" not in shown(Inspection("d", "d"))
