"""The help of every command, and the completion of the shell that is made from it."""

import shutil
import subprocess

import pytest

from scdataloader.commands.completion import help_of, script
from scdataloader.commands.main import COMMANDS, main

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def helps():
    # validate and test have the parser of predict, but for --out
    return {name: help_of(place) for name, (place, _) in COMMANDS.items() if name not in {"validate", "test"}}


def test_the_help_of_a_command_has_an_example(helps):
    for name, text in helps.items():
        assert f"Example: scdataloader {name} " in " ".join(text.split())


def test_the_help_of_fit_begins_with_our_options(helps):
    places = [helps["fit"].index(f" {option} ") for option in ("--data.labels", "--model", "--trainer.accelerator")]
    assert places == sorted(places)


@pytest.mark.skipif(BASH is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ins", ["inspect", "instance"]),
        ("inspect --sch", ["--scheme"]),
        ("fit --data.batch", ["--data.batch_size"]),
        ("convert --lay", ["--layers", "--layout"]),
    ],
)
def test_bash_completes_commands_and_options(helps, words, expected):
    code = f"{script(helps)}\nCOMP_WORDS=(scdataloader {words}); COMP_CWORD={len(words.split())}\n"
    code += 'COMPREPLY=(); _scdataloader; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run([BASH, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == expected


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "must be bash or zsh" in capsys.readouterr().err


def test_the_help_of_bench_lists_the_options_of_the_data(helps):
    assert all(f"  --data.{name} " in helps["bench"] for name in ("labels", "batch_size", "collate", "seed"))
