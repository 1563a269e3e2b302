"""The plan as a pure function: what is hidden, what is read-only, what comes back into view, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskpass.core.errors import InvalidInput
from taskpass.sandbox.plan import Account, Mount, Show, Surroundings, hidden_paths, make_plan

USER = Account(1000, 1000)


def around(**changed):
    found = {
        "broker_directory": Path("/home/u/.local/share/taskpass"),
        "runtime_directory": Path("/run/user/1000/taskpass"),
        "home": Path("/home/u"),
        "shared": (Path("/tmp"), Path("/dev/shm")),
        "others": (Path("/run"),),
        "program": (Path("/home/u/venv"),),
        "profiles": (Path("/home/u/.bashrc"),),
        "resolver": (Path("/run/systemd/resolve"),),
    }
    return Surroundings(**{**found, **changed})


def plan(surroundings, *, worktree="/home/u/work", run=None, account=USER):
    return make_plan(
        surroundings,
        run_directory=run or surroundings.runtime_directory / "runs/r",
        worktree=Path(worktree),
        directory=Path(worktree),
        account=account,
    )


def shows(found):
    return {str(mount.path): mount.show.value for mount in found.mounts}


def test_the_ordinary_laptop():
    assert shows(plan(around())) == {
        "/run": "hidden",
        "/tmp": "hidden",
        "/dev/shm": "hidden",
        "/home/u/venv": "read",
        "/home/u/.bashrc": "read",
        "/run/systemd/resolve": "read",
        "/home/u/.local/share/taskpass": "hidden",
        "/run/user/1000/taskpass/runs/r": "open",
    }


def test_parents_come_before_what_lies_in_them():
    paths = [mount.path for mount in plan(around(), worktree="/tmp/w").mounts]
    for position, path in enumerate(paths):
        assert not any(later in path.parents for later in paths[position:])


def test_a_worktree_in_something_hidden_comes_back_into_view():
    assert shows(plan(around(), worktree="/tmp/a/w"))["/tmp/a/w"] == "open"


def test_a_worktree_that_holds_the_brokers_directory_still_hides_it():
    found = plan(around(broker_directory=Path("/tmp/w/.taskpass")), worktree="/tmp/w")
    assert (shows(found)["/tmp/w"], shows(found)["/tmp/w/.taskpass"]) == ("open", "hidden")


def test_a_home_as_the_worktree_leaves_the_brokers_directory_hidden():
    assert Path("/home/u/.local/share/taskpass") in hidden_paths(plan(around(), worktree="/home/u"))


@pytest.mark.parametrize("inside", ["", "/policy", "/a/b"])
def test_a_worktree_in_the_brokers_directory_is_refused(inside):
    with pytest.raises(InvalidInput):
        plan(around(), worktree=f"/home/u/.local/share/taskpass{inside}")
    with pytest.raises(InvalidInput):
        plan(around(), worktree=f"/run/user/1000/taskpass{inside}")


def test_hiding_wins_over_showing_the_same_path():
    assert (
        shows(plan(around(profiles=(Path("/home/u/.local/share/taskpass"),))))["/home/u/.local/share/taskpass"]
        == "hidden"
    )


def test_a_program_in_the_worktree_stays_read_only():
    assert shows(plan(around(program=(Path("/tmp/w/.venv"),)), worktree="/tmp/w"))["/tmp/w/.venv"] == "read"


def test_other_directories_of_the_broker_are_hidden_too():
    assert Path("/var/lib/taskpass") in hidden_paths(plan(around(others=(Path("/var/lib/taskpass"),))))


def test_for_an_agent_of_root_the_home_is_empty_and_the_interpreter_is_back_in_it():
    root = around(
        home=Path("/root"),
        broker_directory=Path("/root/.local/share/taskpass"),
        runtime_directory=Path("/run/taskpass"),
        program=(Path("/root/python/3.12"), Path("/srv/venv")),
        profiles=(),
    )
    found = plan(root, account=Account(65533, 65533))
    assert Mount(Path("/root"), Show.HIDDEN, 0o755, owned=True) in found.mounts
    assert shows(found)["/root/python/3.12"] == "read"
    assert "/root/.local/share/taskpass" not in shows(found)


def test_the_home_of_an_ordinary_person_stays():
    assert Path("/home/u") not in hidden_paths(plan(around()))


def test_the_socket_is_the_runs_own():
    assert plan(around()).socket == Path("/run/user/1000/taskpass/runs/r/line.sock")
