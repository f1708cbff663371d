"""Every command that writes says in one sentence that a file stands in the way, before it works for long."""

import pytest

from siimcovid.apps.command_line import main

DATA = ("--data", "absent")

#: Arguments, OUT for what is to be written.
COMMANDS = [
    ("synthetic", "OUT"),
    ("synthetic", "OUT", "--layout", "rsna"),
    ("synthetic", "OUT", "--layout", "nih"),
    ("weights", "import", "efficientnet_lite0", "--out", "OUT"),
    ("train", "study", *DATA, "--out", "OUT"),
    ("crossval", *DATA, "--out", "OUT"),
    ("search", "study", "study", *DATA, "--out", "OUT"),
    ("ablate", "--out", "OUT"),
    ("fit-ensemble", *DATA, "--crossval", "absent", "--out", "OUT"),
    ("score", "absent.csv", "--out", "OUT"),
    ("score", "absent.csv", "--json", "OUT"),
    ("report", "absent", "--out", "OUT"),
    ("bench", "--only", "absent", "--out", "OUT"),
]


@pytest.mark.parametrize("where", ["file/out", "file/a/b/out"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_file_stands_in_the_way(command, where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([where if word == "OUT" else word for word in command]) == 2
    message = capsys.readouterr().err
    assert "file is a file, not a folder: name another place, or move the file away" in message
    assert message.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", COMMANDS[:9], ids=" ".join)
def test_a_file_is_the_folder(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    assert main(["file" if word == "OUT" else word for word in command]) == 2
    assert "file is a file, not a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
