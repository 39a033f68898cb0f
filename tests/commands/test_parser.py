import pytest

from fl_lightning.commands.parser import Parser, at_least, number_above
from fl_lightning.errors import InputError


@pytest.fixture
def parser():
    parser = Parser("deal", "Deal.")
    parser.add_argument("source")
    parser.add_argument("--parts", type=at_least(1), default=2)
    parser.add_argument("--share", type=number_above(0, 1), default=0.5)
    return parser


def test_options_are_read(parser):
    found = parser.read(["pile", "--parts", "3"])
    assert (found.source, found.parts, found.share) == ("pile", 3, 0.5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "source"),
        (["pile", "--prts", "3"], "unknown argument --prts; did you mean '--parts'?"),
        (["pile", "--part", "3"], "did you mean '--parts'?"),  # half an option is none
        (["pile", "more"], "unknown argument more; 'fl-lightning deal --help' lists the options"),
        (["pile", "--parts"], "--parts: expected a value, got none"),
        (["pile", "--parts", "0"], "--parts: expected an integer of at least 1, got '0'"),
        (["pile", "--parts", "x"], "--parts: expected an integer of at least 1, got 'x'"),
        (["pile", "--share", "1"], "--share: expected a number above 0 and below 1, got '1'"),
        (["pile", "--share", "nan"], "--share: expected a number above 0 and below 1, got 'nan'"),
    ],
)
def test_bad_options_are_one_line(parser, argv, words):
    with pytest.raises(InputError) as error:
        parser.read(argv)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
