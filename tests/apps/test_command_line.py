"""The command line: every verb explains itself at once, bad input is one sentence, exit codes hold."""

import argparse
import importlib
import subprocess
import sys

import pytest

from siimcovid.apps.command_line import VERBS, main


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "usage" in printed
    assert f"example:\n  siimcovid {verb} " in printed


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_is_one_that_the_verb_takes(verb):
    command = importlib.import_module(f"siimcovid.apps.commands.{verb.replace('-', '_')}_command")
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.add_arguments(parser)
    program, name, *arguments = command.EXAMPLE.split()
    assert (program, name) == ("siimcovid", verb)
    parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "/nowhere", "--out", "/tmp/never"], "/nowhere"),
        (["weights", "import", "vgg", "--out", "/tmp/never"], "vgg"),
        (["scoreboard", "/nowhere"], "/nowhere"),
        (["index", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_a_sentence(arguments, said, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "--help"], ["train", "--help"], ["--version"]])
def test_answers_without_heavy_imports(arguments):
    """torch, pandas and numpy take seconds to import, and no help text needs them: a help takes less than .3 s of the
    processor, from the start of Python on."""
    code = (
        "import sys, time; from siimcovid.apps.command_line import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print(time.process_time(), *(m for m in ('torch', 'pandas', 'numpy') if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = done.stderr.split()
    assert heavy == []
    assert float(seconds) < 0.3
