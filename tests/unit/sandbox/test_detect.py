"""Which sandbox is chosen, and the words where none works."""

from __future__ import annotations

import os
import stat

import pytest

from taskpass.core.errors import Conflict, InvalidInput, SandboxUnavailable
from taskpass.sandbox import detect as module
from taskpass.sandbox import launch as launching
from taskpass.sandbox.detect import Kind, detect


@pytest.fixture
def programs(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PLACES", str(tmp_path))
    monkeypatch.setattr(module, "_SWITCHES", (("/proc/none", "0", "never"),))

    def make(name, code):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\nexit {code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def as_user(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_bubblewrap_comes_first_where_it_works(programs, monkeypatch):
    as_user(monkeypatch)
    wrap = programs("bwrap", 0)
    programs("unshare", 0)
    assert detect() == Kind("bubblewrap", wrap)


def test_a_bubblewrap_that_does_not_work_gives_way_to_unshare(programs, monkeypatch):
    as_user(monkeypatch)
    programs("bwrap", 1)
    plain = programs("unshare", 0)
    assert detect() == Kind("unshare", plain)


def test_root_needs_no_user_namespace(programs, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    programs("bwrap", 0)
    plain = programs("unshare", 0)
    assert detect() == Kind("root", plain)


def test_without_any_program_the_words_say_what_to_install(programs, monkeypatch):
    as_user(monkeypatch)
    with pytest.raises(SandboxUnavailable) as refused:
        detect()
    assert refused.value.code == "sandbox_missing"
    assert "bubblewrap" in refused.value.hint


def test_where_namespaces_are_forbidden_the_words_name_the_switch(programs, monkeypatch, tmp_path):
    as_user(monkeypatch)
    programs("bwrap", 1)
    programs("unshare", 1)
    (tmp_path / "switch").write_text("0\n")
    monkeypatch.setattr(module, "_SWITCHES", ((str(tmp_path / "switch"), "0", "sudo sysctl this=1"),))
    with pytest.raises(SandboxUnavailable) as refused:
        detect()
    assert (refused.value.code, refused.value.hint) == ("sandbox_unavailable", "sudo sysctl this=1")


def test_where_no_switch_explains_it_there_is_still_something_to_do(programs, monkeypatch):
    as_user(monkeypatch)
    programs("unshare", 1)
    with pytest.raises(SandboxUnavailable) as refused:
        detect()
    assert refused.value.hint


def test_the_persons_path_is_not_asked(programs, monkeypatch, tmp_path):
    as_user(monkeypatch)
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "bwrap").write_text("#!/bin/sh\nexit 0\n")
    (evil / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(evil))
    plain = programs("unshare", 0)
    assert detect() == Kind("unshare", plain)


def test_inside_a_run_no_other_is_started(monkeypatch):
    monkeypatch.setenv("TASKPASS_SOCK", "/x")
    with pytest.raises(Conflict) as refused:
        launching.refuse_nested()
    assert refused.value.code == "nested_run"


@pytest.mark.parametrize("uid", [0, -1])
def test_an_agent_is_never_started_as_root(monkeypatch, uid):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(InvalidInput):
        launching.agent_account(uid)


def test_the_default_account_of_roots_agents_is_not_the_overflow_uid(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with open("/proc/sys/kernel/overflowuid") as file:
        assert launching.agent_account().uid not in (0, int(file.read()))


def test_an_ordinary_user_starts_agents_under_the_own_account_only(monkeypatch):
    as_user(monkeypatch)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert launching.agent_account().uid == 1000
    with pytest.raises(InvalidInput):
        launching.agent_account(1001)
