"""Text of tokens as they come: the same for every cut, in whole characters, and never past a stop."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_lightning.serving.detokenizer import TextStream

TEXT = "Grüße, naïve café: 你好世界 👩‍👩‍👧 🏳️‍🌈 — «ok» ﷽ \U0001f600!"
quick = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Letters:
    """A tokenizer whose tokens are the code points of characters."""

    def decode(self, tokens, **_):
        return "".join(map(chr, tokens))


def whole(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pieces(tokenizer, tokens, cuts, stops=()):
    """What comes of tokens that arrive cut at those places."""
    stream = TextStream(tokenizer, stops)
    ends = sorted({min(cut, len(tokens)) for cut in cuts} | {len(tokens)})
    out, start = [], 0
    for end in ends:
        out.append(stream.push(tokens[start:end], last=end == len(tokens)))
        start = end
    return out, stream


def letters(text, cuts, *stops):
    out, stream = pieces(Letters(), [ord(c) for c in text], cuts, stops)
    return "".join(out), stream.stopped


def test_a_character_of_several_tokens_comes_whole_or_not_at_all(tokenizer):
    tokens = tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 4  # the tiny vocabulary has no emoji: it is cut into bytes
    out, _ = pieces(tokenizer, tokens, range(len(tokens)))
    assert [piece for piece in out if piece] == ["a", "😀", "b"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_pieces_of_any_size_are_the_whole_text(tokenizer, size):
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert whole(tokenizer, tokens) == TEXT
    out, _ = pieces(tokenizer, tokens, range(size, len(tokens), size))
    assert "".join(out) == TEXT
    assert "\ufffd" not in "".join(out)


@quick
@given(text=st.text(max_size=20), cuts=st.lists(st.integers(0, 80), max_size=12))
def test_every_cut_of_every_text_gives_the_text(tokenizer, text, cuts):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, tokens, cuts)[0]) == whole(tokenizer, tokens)


@quick
@given(tokens=st.lists(st.integers(0, 4095), max_size=16), cuts=st.lists(st.integers(0, 16), max_size=16))
def test_every_cut_of_any_tokens_gives_what_they_are_together(tokenizer, tokens, cuts):
    # Tokens that no text gives, too: halves of characters, bytes that are none, special tokens.
    assert "".join(pieces(tokenizer, tokens, cuts)[0]) == whole(tokenizer, tokens)


def test_a_last_character_that_is_not_complete_is_shown_as_the_tokenizer_shows_it(tokenizer):
    tokens = tokenizer("x😀", add_special_tokens=False)["input_ids"][:-1]
    stream = TextStream(tokenizer)
    assert "".join(stream.push([token]) for token in tokens) == "x"
    assert stream.push([], last=True) == whole(tokenizer, tokens)[1:]
    assert whole(tokenizer, tokens)[1:].strip("\ufffd") == ""


def test_special_tokens_are_no_text(tokenizer):
    end = tokenizer.eos_token_id
    tokens = tokenizer("one two", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, [end, *tokens, end], range(9))[0]) == "one two"


def test_a_stop_over_several_tokens_is_left_out_with_all_that_follows(tokenizer):
    tokens = tokenizer("one two. END of three", add_special_tokens=False)["input_ids"]
    out, stream = pieces(tokenizer, tokens, range(len(tokens)), [". END"])
    assert "".join(out) == "one two"
    assert stream.stopped
    assert stream.push(tokens, last=True) == ""


def test_what_may_become_a_stop_is_held_back_until_it_is_certain():
    stream = TextStream(Letters(), ["###"])
    assert [stream.push([ord(c)]) for c in "a##b#"] == ["a", "", "", "##b", ""]
    assert not stream.stopped
    assert stream.push([], last=True) == "#"  # held to the last


def test_a_stop_that_begins_within_a_false_start_is_found():
    assert letters("xaaab!", range(9), "aab") == ("xa", True)


@pytest.mark.parametrize("cuts", [(), range(20), (3,)])
def test_a_stop_at_the_very_start_leaves_nothing(cuts):
    assert letters("stop here", cuts, "stop") == ("", True)


@pytest.mark.parametrize("cuts", [(), range(20), (2, 5)])
def test_of_two_stops_the_one_that_is_there_first_ends_the_text(cuts):
    assert letters("one, two. three", cuts, ".", ",") == ("one", True)
    assert letters("one, two. three", cuts, "three", "two") == ("one, ", True)


@pytest.mark.parametrize("cuts", [(), range(20), (3,), (4,)])
def test_a_stop_within_another_ends_the_text_however_the_tokens_came(cuts):
    assert letters("xabcd", cuts, "abcd", "c") == ("xab", True)
    assert letters("xabcd", cuts, "abcd", "cd") == ("x", True)  # both end here: the longer one began first


@quick
@given(
    text=st.text("ab.", max_size=12),
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=12),
)
def test_stops_end_the_text_at_the_same_place_for_every_cut(text, stops, cuts):
    wanted, ended = text, False
    for end in range(1, len(text) + 1):  # a letter at a time: the first end of a stop, of those the longest
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            wanted, ended = text[: end - max(map(len, found))], True
            break
    assert letters(text, cuts, *stops) == (wanted, ended)


def test_no_stop_is_no_stop():
    assert letters("abc", range(3)) == ("abc", False)
    assert letters("abc", range(3), "") == ("abc", False)
