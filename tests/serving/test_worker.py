"""What the process that computes does with adapters that cannot be read; the rest is in test_serving_server.py."""

from pathlib import Path

import pytest

pytest.importorskip("litserve", reason="litserve is not installed: pip install 'fl_lightning[serve]'")

from fl_lightning.errors import InputError
from fl_lightning.serving.worker import ChatAPI
from fl_lightning.storage.personal_models import MixtureSource


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


def test_an_adapter_of_several_mixtures_is_read_once(api):
    from fl_lightning.modeling.generation.adapter_bank import BankedAdapter

    read = []

    class CountingReader:
        def read(self, folder):
            read.append(folder.name)
            return BankedAdapter({}, f"fp_{folder.name}")

    api.answering = CountingReader()
    weights = {"hr/a+": (0.5, 0.3, 0.2), "hr/b+": (0.4, 0.3, 0.3)}
    api.load(
        {n: MixtureSource((Path(n[3]), Path("root"), None), w) for n, w in weights.items()} | {"hr": Path("hr")},
        strict=True,
    )
    assert read == ["a", "root", "b", "hr"]
    first, second = api.models["hr/a+"], api.models["hr/b+"]
    assert first.adapters[1] is second.adapters[1]
    assert first.weights == (0.5, 0.3, 0.2)
    assert first.adapters[2].fingerprint == "fp_base"
    assert len({first.fingerprint, second.fingerprint}) == 2
    api.load({"hr/a+": MixtureSource((Path("a"), Path("root"), None), (0.6, 0.2, 0.2))}, strict=True)
    assert api.models["hr/a+"].fingerprint != first.fingerprint  # other weights are another version


def test_one_broken_adapter_leaves_the_mixture_before(api):
    api.models["hr/a+"] = "old"
    api.load({"hr/a+": MixtureSource((Path("new"), Path("broken")), (0.5, 0.5)), "finance": Path("new")})
    assert (api.models["hr/a+"], api.models["finance"]) == ("old", "new")
