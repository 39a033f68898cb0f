def test_script_is_printed(command):
    code, text, errors = command("completion", "bash")
    assert (code, errors) == (0, "")
    assert text.endswith("complete -o default -F _fl_lightning fl-lightning\n")


def test_other_shells_are_bad_input(command):
    code, _, errors = command("completion", "fish")
    assert code == 2
    assert "expected bash or zsh, got 'fish'" in errors
