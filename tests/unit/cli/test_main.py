from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from taskpass.cli import entry
from taskpass.cli.entry import FAST, main
from taskpass.cli.main import COMMANDS, root
from taskpass.core.errors import TaskpassError

PROGRAM = Path(sys.executable).with_name("taskpass")


def commands(group=None, path=()):
    group = group or root()
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield " ".join((*path, name)), found


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_says_what_it_does(path, command):
    assert command.get_short_help_str()
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.hidden or parameter.help


def test_every_fast_verb_is_in_the_tree():
    assert set(FAST) <= {path for path, _ in commands()}


def test_every_read_command_has_json():
    reading = {"check", "doctor", "status", "review", "version"} | {
        path for path, _ in commands() if path.split()[-1] in ("ls", "show", "verify", "explain", "check", "test")
    }
    for path, command in commands():
        if path in reading:
            assert "--json" in {name for parameter in command.params for name in parameter.opts}, path


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["exce"], "did you mean taskpass exec?"),
        (["task", "sho"], "did you mean taskpass task show?"),
        (["lease", "ls", "--nothing"], "see: taskpass lease ls --help"),
        (["completions", "tcsh"], "see: taskpass completions --help"),
        (["task", "show"], "see: taskpass task show --help"),
    ],
)
def test_a_mistyped_command_is_one_line_and_one_hint(words, hint, capfd):
    assert main(words) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("taskpass: ")
    assert first.endswith("[usage]")
    assert second == f"next: {hint}"


@pytest.mark.parametrize(
    "words",
    [
        ["init", "--postgres", "postgres://admin:hunter2@db/orders"],
        ["init", "--postgres", "--name=postgresql://admin:hunter2@db/orders"],
        ["init", "host=db user=admin password=hunter2"],
        ["check", "PASSWORD = hunter2"],
    ],
)
def test_a_password_in_the_command_line_is_refused_and_not_repeated(words, capfd):
    assert main(words) == 2
    said = "".join(capfd.readouterr())
    assert "hunter2" not in said
    assert "[password_in_argv]" in said


def test_a_defect_shows_its_kind_and_place_and_no_content(monkeypatch, capfd):
    def broken(words):
        raise RuntimeError("hunter2")

    monkeypatch.setattr(entry, "_run", broken)
    assert main([]) == 1
    said = capfd.readouterr().err
    assert "hunter2" not in said
    assert "RuntimeError at " in said


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (TaskpassError("x"), 1)])
def test_errors_end_in_an_exit_code(monkeypatch, error, code):
    def broken(words):
        raise error

    monkeypatch.setattr(entry, "_run", broken)
    assert main([]) == code


def test_version_as_json(capfd):
    assert main(["version", "--json"]) == 0
    assert set(json.loads(capfd.readouterr().out)) == {"version", "python", "platform"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_printed(shell, capfd):
    assert main(["completions", shell]) == 0
    assert "_TASKPASS_COMPLETE" in capfd.readouterr().out


def test_completion_offers_commands_and_options():
    environment = {
        "_TASKPASS_COMPLETE": "bash_complete",
        "COMP_WORDS": "taskpass task co",
        "COMP_CWORD": "2",
        "PATH": "",
    }
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == ["plain,complete"]


@pytest.mark.parametrize("verb", [*FAST, "exec --help"])
def test_agents_verbs_import_the_standard_library_only(verb, tmp_path):
    """The list of modules is read from the process that ran the verb."""
    script = (
        "import sys, taskpass.cli.entry as e; sys.argv = ['taskpass', *sys.argv[1:]]\n"
        "e.main(); print('\\n'.join(sorted({n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names))))"
    )
    words = [*verb.split(), *(["--resource", "x", "--", "true"] if verb == "exec" else ["x"])]
    environment = {"TASKPASS_SOCK": str(tmp_path / "absent.sock"), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=30,
        check=True,
    )
    loaded = set(done.stdout.split("\n")[-30:]) - {"", "__main__", "__mp_main__"}
    assert {name for name in loaded if name.isidentifier()} & {
        "click",
        "cryptography",
        "psycopg",
        "rfc8785",
        "sqlalchemy",
        "yaml",
        "rich",
    } == set()
    assert "taskpass" in loaded


def test_no_code_of_a_repository_runs_before_ours(tmp_path):
    """Everything that a checkout or its environment file can bring along, and none of it may run."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\n"
    for name in ("sitecustomize.py", "usercustomize.py", "json.py", "click.py"):
        (tmp_path / name).write_text(code)
    (tmp_path / "taskpass").mkdir()
    (tmp_path / "taskpass/__init__.py").write_text(code)
    for name in ("python", "python3", "readlink", "sh"):
        (tmp_path / name).write_text(f"#!/bin/sh\n: > {mark}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "sitecustomize.py"),
        "PYTHONUSERBASE": str(tmp_path),
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
    }
    for words in (["version"], ["review", "--directory", str(tmp_path)], ["status"]):
        subprocess.run([PROGRAM, *words], env=environment, cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert not mark.exists()


def test_the_program_works_through_a_link(tmp_path):
    (tmp_path / "taskpass").symlink_to(PROGRAM)
    done = subprocess.run([tmp_path / "taskpass", "version"], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.startswith("taskpass ")


def test_the_tree_has_a_module_for_every_command():
    def modules(tree):
        for found in tree.values():
            yield from modules(found) if not isinstance(found, str) else [found]

    for module in modules(COMMANDS):
        assert (Path(entry.__file__).parents[2] / (module.replace(".", "/") + ".py")).exists(), module
