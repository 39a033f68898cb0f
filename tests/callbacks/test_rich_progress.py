import io
import re

import pytest
from rich.console import Console

from fl_lightning import Evaluation, RichProgress


def make_console(*, terminal=False):
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)


@pytest.fixture
def script(state):
    return [
        {
            "hr/c0": (state((4, 0)), 1),
            "hr/c1": (state((float("nan"), 0)), 1),
            "it/c0": (state((2, 0)), 1),
        }
    ] * 2


def columns(text, name):
    line = next(line for line in text.splitlines() if re.search(rf"│ {name} ", line))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_table_shows_losses_cluster_bytes_and_who_was_left_out(play, script, plain_config):
    console = make_console()
    config = plain_config(rounds=2, enabled=True, mixing_ratio=0.0)
    play(script[:1] * 2, config, callbacks=[Evaluation(), RichProgress(console)])
    text = console.file.getvalue()
    # 20 bytes from one client of each department are 0.0 KiB
    assert columns(text, "hr") == ["hr", "1.0000", "4.0000", "0", "0.0", "c1"]
    assert columns(text, "it")[:3] == ["it", "1.0000", "2.0000"]
    assert columns(text, "mean")[:3] == ["mean", "1.0000", "3.0000"]


def test_every_round_has_its_table(play, script):
    console = make_console()
    play(script, callbacks=[Evaluation(), RichProgress(console)])
    assert re.findall(r"round (\d) of 2", console.file.getvalue()) == ["1", "2"]


def test_loss_before_a_round_is_the_loss_after_the_last_one(play, script):
    console = make_console()
    play(script, callbacks=[Evaluation(), RichProgress(console)])
    second = console.file.getvalue().split("round 2 of 2")[1]
    assert columns(second, "hr")[1:3] == ["4.0000", "4.0000"]


def test_without_evaluation_losses_are_dashes(play, script):
    console = make_console()
    play(script, callbacks=[RichProgress(console)])
    assert columns(console.file.getvalue(), "hr")[1:4] == ["–", "–", "–"]


def test_kib_sent_are_those_of_the_department(play, plain_config):
    import torch

    big = {"w.lora_A.weight": torch.ones(1, 512), "w.lora_B.weight": torch.zeros(512, 1)}  # 2 KiB each
    console = make_console()
    play([{"hr/c0": (big, 1), "hr/c1": (big, 1)}], callbacks=[RichProgress(console)], initial=big)
    assert columns(console.file.getvalue(), "hr")[4] == "8.0"


def test_bars_are_drawn_on_a_terminal_and_not_elsewhere(play, script):
    terminal, plain = make_console(terminal=True), make_console()
    play(script, callbacks=[RichProgress(terminal)])
    play(script, callbacks=[RichProgress(plain)])
    for bar in ("rounds", "departments", "clients", "steps"):
        assert re.search(rf"{bar} +[━╸╺]", terminal.file.getvalue())
        assert not re.search(rf"{bar} +[━╸╺]", plain.file.getvalue())


def test_end_says_where_everything_is(play, script, tmp_path):
    console = make_console()
    play(script, callbacks=[RichProgress(console)], run_folder=tmp_path)
    assert str(tmp_path) in console.file.getvalue().replace("\n", "")


def test_bars_are_taken_off_after_an_error_too(play, state):
    progress, errors = RichProgress(make_console(terminal=True)), []
    play([{"hr/c0": (state((2, 0)), 0)}], callbacks=[progress], on_error=errors.append)
    assert len(errors) == 1
    assert not progress._progress.live.is_started


def test_draws_on_standard_error_by_default():
    assert RichProgress().console.stderr
