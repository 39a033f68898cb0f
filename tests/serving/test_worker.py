"""What the process that computes does with adapters that cannot be read; the rest is in test_serving_server.py."""

from pathlib import Path

import pytest

pytest.importorskip("litserve", reason="litserve is not installed: pip install 'fl_lightning[serve]'")

from fl_lightning.errors import InputError
from fl_lightning.serving.worker import ChatAPI


class Reader:
    """Reads an adapter as its folder's name says."""

    def read(self, folder):
        """The name itself, or the error that it names."""
        errors = {"broken": InputError("half a file"), "huge": RuntimeError("out of memory")}
        if folder.name in errors:
            raise errors[folder.name]
        return folder.name


@pytest.fixture
def api():
    made = object.__new__(ChatAPI)
    made.answering, made.models = Reader(), {"hr": "old", "finance": "old"}
    return made


@pytest.mark.parametrize("place", ["broken", "huge"])
def test_what_cannot_be_read_leaves_the_adapter_before_and_the_others_are_read(api, place):
    api.load({"hr": Path(place), "finance": Path("new")})
    assert api.models == {"hr": "old", "finance": "new"}


@pytest.mark.parametrize("place", ["broken", "huge"])
def test_at_the_start_it_is_an_error(api, place):
    with pytest.raises((InputError, RuntimeError), match="half a file|out of memory"):
        api.load({"hr": Path(place)}, strict=True)
