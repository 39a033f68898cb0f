"""A conversation with adapters on the bundled base, against transformers' own generation."""

import copy
import io
import json
import shutil

import pytest
import torch
from peft import PeftModel
from rich.console import Console

from fl_lightning.config.parsing import parse_config
from fl_lightning.data.records import Turn
from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.errors import InputError
from fl_lightning.modeling.generation.generate import generate
from fl_lightning.modeling.lora import load_adapter_model
from fl_lightning.serving.chat import Conversation, talk
from fl_lightning.storage.model_names import all_models
from fl_lightning.storage.run_adapters import client_adapters, shared_adapters


@pytest.fixture(scope="module")
def folders(adapter_run):
    return shared_adapters(adapter_run) | {name: place for name, (_, place) in client_adapters(adapter_run).items()}


@pytest.fixture(scope="module")
def start(adapter_run, folders):
    def start(model="hr", **options):
        config = parse_config(["--config", str(adapter_run / "config.yaml")])
        return Conversation(config, folders, model, max_new_tokens=8, **options)

    return start


@pytest.fixture(scope="module")
def shared(start):
    return start()


@pytest.fixture
def conversation(shared):
    """One with hr, of which nothing was said."""
    shared.turns = []
    shared.switch("hr")
    return shared


@pytest.fixture(scope="module")
def reference(loaded_tiny_base, folders):
    """The greedy answer of a model with a folder's adapter on it, as PEFT loads it."""
    base, tokenizer = loaded_tiny_base
    models = {name: load_adapter_model(copy.deepcopy(base), folder) for name, folder in folders.items()}
    models["base"] = base

    def answer(model, *turns):
        said = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(turns)]
        prompt = torch.tensor(encode_prompt(said, tokenizer))
        (got,) = generate(models[model], [prompt], max_new_tokens=8, ends=[tokenizer.eos_token_id])
        return tokenizer.decode(got, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return answer


@pytest.mark.parametrize("model", ["hr", "finance", "hr/client_0", "base"])
def test_a_greedy_answer_is_that_of_the_adapter(conversation, reference, model):
    conversation.switch(model)
    assert "".join(conversation.say("How do I file a claim?")) == reference(model, "How do I file a claim?")


QUESTIONS = ("How do I file a claim?", "What is due?", "Who takes leave?", "List three colours")


@pytest.fixture(scope="module")
def personal_run(adapter_run, tmp_path_factory):
    """The run after `personalize`: three adapters and the base are the levels of hr/client_0."""
    folder = shutil.copytree(adapter_run, tmp_path_factory.mktemp("personal") / "version_0")
    shutil.copytree(folder / "adapters/finance", folder / "personal/adapters/hr/client_0")
    levels = {
        "own": "client_exports/hr/round_1_client_0",
        "department": "adapters/hr",
        "root": "adapters/finance",
    }
    values = {"chosen": "own", "weights": {"own": 0.4, "department": 0.3, "root": 0.2, "base": 0.1}, "adapters": levels}
    evaluation = {"choose": "mixture", "clients": {"hr/client_0": values}}
    (folder / "personal_eval.json").write_text(json.dumps(evaluation))
    return folder


def test_a_mixture_answers_as_probabilities_mixed_by_hand_do(personal_run, loaded_tiny_base):
    """The reference loads each level by PEFT and reads the whole text again for every token."""
    base, tokenizer = loaded_tiny_base
    values = json.loads((personal_run / "personal_eval.json").read_text())["clients"]["hr/client_0"]
    models = {
        level: PeftModel.from_pretrained(copy.deepcopy(base), personal_run / folder).eval()
        for level, folder in values["adapters"].items()
    } | {"base": base}

    def by_hand(question):
        prompt = encode_prompt([Turn("user", question)], tokenizer)
        ids = list(prompt)
        while len(ids) < len(prompt) + 8 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                logits = {level: model(input_ids=torch.tensor([ids])).logits[0, -1] for level, model in models.items()}
            probs = sum(values["weights"][level] * logits[level].double().softmax(-1) for level in models)
            ids.append(int(probs.argmax()))
        return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    config = parse_config(["--config", str(personal_run / "config.yaml")])
    conversation = Conversation(config, all_models(personal_run, "hr/client_0+"), "hr/client_0+", max_new_tokens=8)
    for question in QUESTIONS:
        conversation.turns = []
        pieces = [piece for piece in conversation.say(question) if piece]
        assert "".join(pieces) == by_hand(question)
        assert len(pieces) > 2
    conversation.turns = []
    conversation.switch("hr/client_0")
    assert "".join(conversation.say(QUESTIONS[0])) != by_hand(QUESTIONS[0])


def test_a_mixture_of_an_unknown_client_is_refused(personal_run):
    config = parse_config(["--config", str(personal_run / "config.yaml")])
    with pytest.raises(InputError, match=r"model 'hr/client_7\+': not in this run; did you mean 'hr/client_0\+'"):
        Conversation(config, all_models(personal_run, "hr/client_7+"), "hr/client_7+")


def test_the_models_answer_differently(reference):
    assert len({reference(name, "How do I file a claim?") for name in ("hr", "finance", "hr/client_0", "base")}) == 4


def test_what_was_said_is_kept_and_answered_with_the_next(conversation, reference):
    first = "".join(conversation.say("One?"))
    assert conversation.turns == [Turn("user", "One?"), Turn("assistant", first)]
    second = "".join(conversation.say("Two?"))
    assert second == reference("hr", "One?", first, "Two?")
    conversation.switch("finance")  # what was said stays
    assert "".join(conversation.say("Three?")) == reference("finance", "One?", first, "Two?", second, "Three?")


def test_an_answer_comes_in_pieces(conversation):
    assert len([piece for piece in conversation.say("How do I file a claim?") if piece]) > 2


def test_what_is_too_long_is_refused_and_not_kept(conversation):
    answer = "".join(conversation.say("One?"))
    before = list(conversation.turns)
    with pytest.raises(InputError, match=r"expected fewer than 2048 tokens, got \d+; /clear forgets them"):
        list(conversation.say("word " * 3000))
    assert conversation.turns == before == [Turn("user", "One?"), Turn("assistant", answer)]


def test_a_token_beyond_the_embedding_is_refused(conversation, monkeypatch):
    from fl_lightning.serving import chat

    monkeypatch.setattr(chat, "encode_prompt", lambda *_, **__: [5, 4096])
    with pytest.raises(InputError, match="token ids below 4096, .* got 4096"):
        list(conversation.say("One?"))


def test_an_answer_ends_where_the_model_has_no_more_positions(conversation, monkeypatch, tokenizer):
    prompt = len(encode_prompt([Turn("user", "One?")], tokenizer))
    monkeypatch.setattr(conversation, "_context", prompt + 2)
    text = "".join(conversation.say("One?"))
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 2
    monkeypatch.setattr(conversation, "_context", prompt)
    conversation.turns = []
    with pytest.raises(InputError, match="expected fewer"):
        list(conversation.say("One?"))


def test_an_unknown_model_is_refused_and_the_one_before_stays(conversation, start):
    wanted = (
        r"model 'finanse': not in this run; did you mean 'finance'\?; expected one of finance, hr, hr/client_0, base"
    )
    with pytest.raises(InputError, match=wanted):
        conversation.switch("finanse")
    assert conversation.model == "hr"
    with pytest.raises(InputError, match="not in this run"):
        start("legal")


def test_draws_are_those_of_the_seed(start):
    def said(seed):
        return "".join(start(temperature=1.5, seed=seed).say("Tell me something"))

    assert said(1) == said(1) != said(2)


def talked(conversation, monkeypatch, text, by_hand=True):
    typed = io.StringIO(text)
    typed.isatty = lambda: by_hand
    monkeypatch.setattr("sys.stdin", typed)
    shown = io.StringIO()
    talk(conversation, Console(file=shown, highlight=False, soft_wrap=True, width=80))
    return shown.getvalue()


def test_by_hand_the_next_message_is_answered_with_all_before(conversation, monkeypatch, reference, capsys):
    shown = talked(conversation, monkeypatch, "One?\n\n  Two?  \n")
    assert capsys.readouterr().out == "> > > > "  # three lines, and the end
    first = reference("hr", "One?")
    second = reference("hr", "One?", first, "Two?")
    assert shown == f"talking to hr; /model NAME, /clear, /exit\n{first}\n{second}\n"


def test_clear_forgets_and_exit_ends(conversation, monkeypatch, reference):
    shown = talked(conversation, monkeypatch, "One?\n/clear\nTwo?\n/exit\nThree?\n")
    assert shown.endswith(f"{reference('hr', 'Two?')}\n")
    assert [turn.content for turn in conversation.turns] == ["Two?", reference("hr", "Two?")]


def test_model_goes_on_with_another_and_errors_are_said_and_gone_past(conversation, monkeypatch, reference):
    shown = talked(conversation, monkeypatch, "/model legal\n/model\n/model base\nOne?\n" + "word " * 3000 + "\n")
    lines = shown.split("\n")
    assert lines[1].startswith("model 'legal': not in this run")
    assert lines[2].startswith("model '': not in this run")
    assert lines[3:5] == ["talking to base", reference("base", "One?")]
    assert "/clear forgets them" in lines[-2]
    assert conversation.model == "base"


def test_a_message_that_begins_like_a_command_is_a_message(conversation, monkeypatch, reference):
    shown = talked(conversation, monkeypatch, "/modelling is fun\n", by_hand=False)
    assert shown == f"{reference('hr', '/modelling is fun')}\n"


def test_lines_of_a_pipe_are_conversations_of_their_own(conversation, monkeypatch, reference):
    shown = talked(conversation, monkeypatch, "One?\nTwo?\n", by_hand=False)
    assert shown == f"{reference('hr', 'One?')}\n{reference('hr', 'Two?')}\n"


def test_in_a_pipe_an_error_ends_it(conversation, monkeypatch):
    with pytest.raises(InputError, match="not in this run"):
        talked(conversation, monkeypatch, "/model legal\nOne?\n", by_hand=False)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_what_is_no_text_is_refused(conversation, monkeypatch, errors):
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", typed)
    with pytest.raises(InputError, match="expected UTF-8"):
        talk(conversation, Console(file=io.StringIO()))


def test_markup_in_an_answer_is_shown_as_it_is(conversation, monkeypatch):
    monkeypatch.setattr(conversation, "say", lambda text: iter(["[bold]a[/bold] ", ":smile: [/x]"]))
    assert talked(conversation, monkeypatch, "x\n", by_hand=False) == "[bold]a[/bold] :smile: [/x]\n"


def test_what_a_terminal_would_take_for_commands_is_left_out(conversation, monkeypatch):
    monkeypatch.setattr(conversation, "say", lambda text: iter(["a\x1b]0;owned\x07", "\x1b[2Jb\nü\r"]))
    assert talked(conversation, monkeypatch, "x\n", by_hand=False) == "a]0;owned[2Jb\nü\n"
