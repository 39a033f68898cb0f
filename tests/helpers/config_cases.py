"""Reading configs in tests, and what is refused about them."""

import pytest

from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError


def refused(*arguments):
    """The one line with which arguments are refused."""
    with pytest.raises(InputError) as caught:
        parse_config(list(arguments))
    message = str(caught.value)
    assert "\n" not in message
    return message


def outcome(*arguments):
    """The config, or the message with which the arguments are refused."""
    try:
        return parse_config(list(arguments))
    except InputError as error:
        return str(error)


def nest(key, value):
    """{dotted key: value} as nested mappings."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value
