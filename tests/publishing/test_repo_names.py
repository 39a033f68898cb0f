import pytest

from fl_lightning.config import ModelConfig
from fl_lightning.errors import InputError
from fl_lightning.publishing.repo_names import UNNAMED_BASE, check_licence, hub_id, public_base_name, repositories


@pytest.mark.parametrize(
    ("name", "known", "written"),
    [
        ("Qwen/Qwen1.5-1.8B", "Qwen/Qwen1.5-1.8B", "Qwen/Qwen1.5-1.8B"),
        ("gpt2", "gpt2", "gpt2"),
        ("bundled:tiny_base", None, "bundled:tiny_base"),
        ("/home/erna/models/qwen", None, UNNAMED_BASE),
        ("~/models/qwen", None, UNNAMED_BASE),
        ("./qwen", None, UNNAMED_BASE),
        ("models/qwen/base", None, UNNAMED_BASE),
        ("models/smol.Q4.gguf", None, UNNAMED_BASE),
        ("here/qwen", None, UNNAMED_BASE),  # a folder of this name is there
        ("mo dels/qwen", None, UNNAMED_BASE),
    ],
)
def test_base_is_named_where_it_is_on_the_hub_and_never_by_a_path(tmp_path, monkeypatch, name, known, written):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/qwen").mkdir(parents=True)
    model = ModelConfig(name_or_path=name)
    assert hub_id(model) == known
    assert public_base_name(model, known) == written
    assert hub_id(model, "acme/base") == public_base_name(model, "acme/base") == "acme/base"


def test_repositories_that_would_be_alike_are_refused():
    with pytest.raises(InputError, match="'hr/client_0' and 'hr-client_0' would share the name"):
        repositories("acme/bots", ["hr/client_0", "hr-client_0"])
    with pytest.raises(InputError, match="'HR' and 'hr' would share the name 'hr'"):
        repositories("acme/bots", ["HR", "hr"])
    with pytest.raises(InputError, match=r"repository of hr\.: expected an id of the Hub, got 'acme/bots-hr\.'"):
        repositories("acme/bots", ["hr."])


@pytest.mark.parametrize("licence", ["", "my own", "a" * 65, "mit\nbase_model: x", "-mit"])
def test_licence_that_is_no_identifier_is_refused(licence):
    with pytest.raises(InputError, match="expected an identifier such as apache-2.0"):
        check_licence(licence)
