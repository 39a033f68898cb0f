import io

import pytest

from fl_lightning.commands import chat


@pytest.fixture
def piped(command, monkeypatch):
    """Run `chat` with that on its standard input."""

    def call(text, *argv):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return command("chat", *argv)

    return call


def test_lines_are_answered_each_on_its_own(piped, adapter_run):
    run = ("--run", adapter_run, "--model", "hr/client_0", "--max-new-tokens", 6)
    code, both, _ = piped("One?\nTwo?\n", *run)
    assert code == 0
    alone = [piped(text, *run)[1] for text in ("One?", "Two?\n")]
    assert both == "".join(alone)
    assert all(answer.strip() for answer in alone)


def test_the_first_department_answers_where_none_is_named(piped, adapter_run):
    run = ("--run", adapter_run, "--max-new-tokens", 6)
    assert piped("One?\n", *run)[1] == piped("One?\n", *run, "--model", "finance")[1]


def test_a_run_is_found_by_last(piped, adapter_run):
    code, answer, _ = piped("x\n", "--run", "last", "--output", adapter_run.parent, "--max-new-tokens", 1)
    assert (code, answer.count("\n")) == (0, 1)


def test_an_answer_has_at_most_so_many_tokens(piped, adapter_run, tokenizer):
    _, answer, _ = piped("Tell me\n", "--run", adapter_run, "--max-new-tokens", 3)
    assert len(tokenizer(answer.removesuffix("\n"), add_special_tokens=False)["input_ids"]) <= 3


def test_draws_are_those_of_the_seed(piped, adapter_run):
    def said(seed):
        options = ("--temperature", "1.5", "--seed", seed, "--max-new-tokens", 8)
        return piped("Tell me\n", "--run", adapter_run, *options)[1]

    assert said(1) == said(1) != said(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "expected a value for --run"),
        (("--run", "RUN", "--modle", "hr"), "unknown argument --modle; did you mean '--model'?"),
        (("--run", "RUN", "--model"), "--model: expected a value, got none"),
        (("--run", "nowhere"), "run 'nowhere': no config.yaml in it"),
        (("--run", "RUN", "--temperature", "hot"), "--temperature: expected a number from 0 to 2, got 'hot'"),
        (("--run", "RUN", "--temperature", "-1"), "--temperature: expected a number from 0 to 2, got '-1'"),
        (("--run", "RUN", "--temperature", "2.1"), "--temperature: expected a number from 0 to 2, got '2.1'"),
        (("--run", "RUN", "--temperature", "nan"), "--temperature: expected a number from 0 to 2, got 'nan'"),
        (("--run", "RUN", "--max-new-tokens", "0"), "--max-new-tokens: expected an integer of at least 1, got '0'"),
        (("--run", "RUN", "--seed", "-1"), "--seed: expected an integer of at least 0, got '-1'"),
        (("--run", "RUN", "--seed", "9" * 5000), "--seed: expected an integer of at least 0, got '999"),
        (("--run", "RUN", "--model", "finanse"), "model 'finanse': not in this run; did you mean 'finance'?"),
    ],
)
def test_a_wrong_option_is_one_line(piped, adapter_run, options, said):
    code, out, err = piped("x\n", *(adapter_run if option == "RUN" else option for option in options))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("text", "said"), [("/model legal\n", "not in this run"), ("word " * 3000, "/clear forgets")])
def test_a_line_that_cannot_be_answered_ends_it_with_one_line(piped, adapter_run, text, said):
    code, _, err = piped(text, "--run", adapter_run)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line and "Loading" not in line]  # a bar of this process's own
    assert line.startswith("error: ")
    assert said in line


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        chat.run(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--run", "--model", "--output", "--max-new-tokens", "--temperature", "--seed", "/clear", "/exit"):
        assert option in out
