import pytest

from fl_lightning.data.partition.columns import check_columns, folder_names, to_records, values_of
from fl_lightning.data.partition.reader import Row
from fl_lightning.errors import InputError


def rows(*values):
    return [Row(f"pile:{number}", value) for number, value in enumerate(values, start=1)]


def test_columns_called_as_the_keys_are_taken_and_others_left():
    row = {"instruction": "a", "input": None, "output": "b", "system": "s", "id": 7, "label": 3}
    assert to_records(rows(row), {}, ["label"]) == [{"instruction": "a", "output": "b", "system": "s"}]


def test_columns_that_could_change_what_is_learned_are_refused_unless_columns_are_named():
    row = {"prompt": "a", "completion": "b", "label": False}
    with pytest.raises(InputError, match="pile:1: key 'label'"):
        to_records(rows(row), {})
    columns = {"prompt": "prompt", "completion": "completion"}
    assert to_records(rows(row), columns) == [{"prompt": "a", "completion": "b"}]


def test_messages_win_and_lose_what_a_table_fills_in():
    messages = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": None}]
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert to_records(rows({"messages": messages, "text": "a b"}), {}) == [{"messages": plain}]
    assert to_records(rows({"chat": messages}), {"messages": "chat"}) == [{"messages": plain}]


def test_mapped_numbers_become_text():
    assert to_records(rows({"q": 1, "a": 2.5}), {"prompt": "q", "completion": "a"}) == [
        {"prompt": "1", "completion": "2.5"}
    ]


def test_rows_that_make_no_record_are_named():
    with pytest.raises(InputError, match=r"pile:2: no response: 'completion': expected text"):
        to_records(rows({"q": "a", "a": "b"}, {"q": "a"}), {"prompt": "q", "completion": "a"})
    with pytest.raises(InputError, match=r"pile:1: .*got keys .*--prompt"):
        to_records(rows({"q": "a"}), {})


def test_unknown_column_names_the_nearest():
    check_columns(rows({"area": 1}), {"--by": "area", "--label": None})
    with pytest.raises(InputError, match="--by: expected a column of the source, got 'aera'; did you mean 'area'?"):
        check_columns(rows({"area": 1}), {"--by": "aera"})
    with pytest.raises(InputError, match="it has area, q"):
        check_columns(rows({"area": 1, "q": 1}), {"--by": "kind"})


def test_values_are_text_and_none_is_missing():
    assert values_of(rows({"k": 1}, {"k": " b "}, {"k": True}), "k", "--by") == ["1", "b", "True"]
    for bad in (None, "  ", [1]):
        with pytest.raises(InputError, match=r"pile:1: 'k': expected a value for --by"):
            values_of(rows({"k": bad}), "k", "--by")


def test_folder_names_are_safe_and_distinct():
    assert folder_names(["Q&A / Help", "x", "../../etc"], "--by") == {
        "Q&A / Help": "Q_A_Help",
        "x": "x",
        "../../etc": "__.._etc",
    }
    with pytest.raises(InputError, match="'a b' and 'a/b' would share the folder 'a_b'"):
        folder_names(["a b", "a/b"], "--by")
    with pytest.raises(InputError, match="'HR' and 'hr' would share"):  # one folder where case does not count
        folder_names(["HR", "hr"], "--by")
    for name in ("人事", "..", "***"):
        with pytest.raises(InputError):
            folder_names([name], "--by")
