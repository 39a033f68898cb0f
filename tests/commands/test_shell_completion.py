import shutil
import subprocess

import pytest

from fl_lightning.commands import COMMANDS
from fl_lightning.commands.completion import help_texts
from fl_lightning.commands.shell_completion import SHELLS, options_in, script, values_in
from fl_lightning.config.shortcuts import SHORTCUTS
from fl_lightning.config.yaml_checks import known_keys


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder, texts = tmp_path_factory.mktemp("completion"), help_texts()
    for shell in SHELLS:
        (folder / shell).write_text(script(shell, texts))
    return folder


def complete(scripts, shell, *words):
    """What Tab offers after these words, the last of which is being written."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    line = " ".join(f"'{word}'" for word in ("fl-lightning", *words))
    code = f"source {scripts / shell}\n" + ("emulate -L sh\n" if shell == "zsh" else "")
    code += f"COMP_WORDS=({line}); COMP_CWORD={len(words)}\n_fl_lightning\n"
    code += '[ ${#COMPREPLY[@]} -eq 0 ] || printf "%s\\n" "${COMPREPLY[@]}"\n'
    argv = ["bash", "--norc", "-c", code] if shell == "bash" else ["zsh", "-f", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    # zsh's compgen gives all words and leaves those that do not begin so to the completion around it
    return [word for word in done.stdout.split() if shell == "bash" or word.startswith(words[-1])]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["par"], ["partition"]),
        (["co"], ["compare", "completion"]),
        (["partition", "pile.csv", "--client-s"], ["--client-scheme", "--client-sizes"]),
        (["partition", "pile.csv", "--scheme", ""], ["iid", "dirichlet", "shards", "sizes"]),
        (["partition", "pile.csv", "--scheme", "s"], ["shards", "sizes"]),
        (["init", "--method", "fedsa"], ["fedsa_lora"]),
        (["evaluate", "--run", ""], ["last"]),
        (["fit", "--federation.flora."], ["--federation.flora.momentum", "--federation.flora.use_residual"]),
        (["fit", "--config", ""], []),  # the shell's own file names
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_tab_offers_what_fits(scripts, shell, words, wanted):
    assert sorted(complete(scripts, shell, *words)) == sorted(wanted)


def test_every_command_is_offered_and_has_options(scripts):
    assert complete(scripts, "bash", "") == list(COMMANDS)
    for command, text in help_texts().items():
        assert options_in(text), command


def test_every_option_of_fit_is_offered(scripts):
    offered = set(complete(scripts, "bash", "fit", "-"))
    plain = {f"--{key}" for key, block in known_keys().items() if block is None}
    assert plain | set(SHORTCUTS) | {"--config", "--resume", "--print_config"} <= offered


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_without_fault_for_its_shell(scripts, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", scripts / shell], check=True, timeout=60)


def test_shell_registers_the_function(scripts):
    done = subprocess.run(
        ["bash", "--norc", "-c", f"source {scripts / 'bash'}; complete -p fl-lightning"], capture_output=True, text=True
    )
    assert done.stdout == "complete -o default -F _fl_lightning fl-lightning\n"


def test_values_of_options_without_choices_are_not_made_up():
    assert values_in("--seed N  --data DIR") == {}
