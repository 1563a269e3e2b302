from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpass.config import credentials, snapshot, write
from taskpass.config.load import parse
from taskpass.config.model import Access, Human, Resource
from taskpass.core.errors import ConfigInvalid
from taskpass.core.ids import HumanId
from taskpass.core.scope import Level, Verb
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment

KEY = "a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2U="
SALT = "c2FsdHNhbHRzYWx0c2FsdA=="

names = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=20)


def a_resource(tables=("public.*",), database="orders") -> Resource:
    return Resource(
        name="orders",
        issuer="postgres",
        environment=Environment.DEV,
        address=f"/run/pg:5432/{database}",
        nodes=(),
        tls={},
        login={"file": "orders.cred"},
        cluster="7412",
        database=5,
        shared_cluster=False,
        access={
            "read": Access("read", Level.READ, tables, ("public.pii",)),
            "write": Access("write", Level.WRITE, tables, verbs=frozenset({Verb.SELECT, Verb.UPDATE})),
        },
    )


def test_what_is_written_is_read_back_as_the_same():
    human = Human(HumanId("ana@acme.example"), ("ana",), KEY, SALT)
    text = (
        write.render_new("acme.example")
        + write.render_resource(a_resource())
        + write.render_human(human)
        + write.render_groups({"dba": frozenset({human.id})})
    )
    config, problems = parse(text.encode(), Path("/srv/taskpass"))
    assert problems == []
    assert config.resources["orders"] == a_resource()
    assert config.people.humans == {human.id: human}
    assert config.people.groups == {"dba": frozenset({human.id})}


@given(schema=names, table=names)
def test_hostile_names_survive_the_writing(schema, table):
    pattern = f"{schema.replace('.', '') or 's'}.{table}"
    if not pattern.strip():
        return
    text = write.render_new("acme.example") + write.render_resource(a_resource((pattern,)))
    config, problems = parse(text.encode(), Path("/srv/taskpass"))
    assert problems == []
    assert config.resources["orders"].access["read"].tables == (pattern,)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "taskpass.toml"
    write.write_new(path, b"old")

    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr(write.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write.write_new(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["taskpass.toml"]


def test_what_is_written_is_readable_by_the_owner_alone(tmp_path):
    write.write_new(tmp_path / "x", b"")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_a_credential_comes_back_and_shows_itself_nowhere(tmp_path):
    tmp_path.chmod(0o700)
    credentials.write_credential(tmp_path, "orders.cred", credentials.Credential("tp_broker", Secret("hunter2")))
    found = credentials.read_credential(tmp_path, {"file": "orders.cred"})
    assert (found.user, found.password.reveal()) == ("tp_broker", "hunter2")
    assert "hunter2" not in repr(found)


def test_a_credential_that_others_can_read_is_refused(tmp_path):
    tmp_path.chmod(0o700)
    credentials.write_credential(tmp_path, "orders.cred", credentials.Credential("tp_broker", Secret("hunter2")))
    (tmp_path / "credentials/orders.cred").chmod(0o640)
    with pytest.raises(ConfigInvalid, match="read by others"):
        credentials.read_credential(tmp_path, {"file": "orders.cred"})


@pytest.mark.parametrize("content", ["hunter2", '{"user": "x", "password": 5, "was": "hunter2"}', '["hunter2"]', ""])
def test_a_malformed_credential_is_refused_without_being_shown(tmp_path, content):
    tmp_path.chmod(0o700)
    credentials.write_credential(tmp_path, "x", credentials.Credential("u", Secret("p")))
    (tmp_path / "credentials/x").write_text(content)
    with pytest.raises(ConfigInvalid) as caught:
        credentials.read_credential(tmp_path, {"file": "x"})
    assert "hunter2" not in caught.value.message + caught.value.hint
    assert caught.value.__context__ is None or "hunter2" not in repr(caught.value.__context__.args)


def test_a_command_prints_the_credential_and_sees_none_of_our_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", "hunter2")
    script = tmp_path / "get"
    script.write_text('#!/bin/sh\nprintf \'{"user": "u%s", "password": "p"}\' "$CANARY"\n')
    script.chmod(0o700)
    assert credentials.read_credential(tmp_path, {"command": str(script)}).user == "u"


def test_a_command_that_fails_says_nothing_of_what_it_printed(tmp_path):
    script = tmp_path / "get"
    script.write_text("#!/bin/sh\necho hunter2; echo hunter2 >&2; exit 1\n")
    script.chmod(0o700)
    with pytest.raises(ConfigInvalid) as caught:
        credentials.read_credential(tmp_path, {"command": str(script)})
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_the_snapshot_changes_with_any_file_and_says_which(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "policy").mkdir(mode=0o700)
    write.write_new(tmp_path / "taskpass.toml", b"x")
    write.write_new(tmp_path / "policy/a.cedar", b"x")
    before = snapshot.take(tmp_path)
    assert snapshot.take(tmp_path) == before
    write.write_new(tmp_path / "policy/a.cedar", b"y")
    write.write_new(tmp_path / "policy/b.cedar", b"y")
    after = snapshot.take(tmp_path)
    assert after.digest != before.digest
    assert snapshot.differences(before, after) == ["policy/a.cedar was changed", "policy/b.cedar was added"]


def test_a_person_is_added_without_touching_what_an_operator_wrote():
    ana, ben = Human(HumanId("ana"), ("ana",)), Human(HumanId("ben@acme.example"), ("ben",), KEY, SALT)
    old = (
        write.render_new("acme.example")
        + "# a word of the operator\n"
        + write.render_human(ana)
        + write.render_groups({"dba": frozenset({"ana"}), "on-call": frozenset({"ana"})})
        + write.render_resource(a_resource())
    )
    text = write.join_groups(write.insert_human(old, ben), ben.id, ["dba"])
    config, problems = parse(text.encode(), Path("/srv/taskpass"))
    assert problems == []
    assert config.people.humans == {ana.id: ana, ben.id: ben}
    assert config.people.groups == {"dba": frozenset({ana.id, ben.id}), "on-call": frozenset({ana.id})}
    assert "# a word of the operator" in text
    assert config.resources["orders"] == a_resource()


def test_a_group_that_cannot_be_found_is_left_to_a_person():
    with pytest.raises(ConfigInvalid, match="cannot be found"):
        write.join_groups(write.render_new("acme.example"), "ben", ["dba"])


OLD = """\
# Ours.
[broker]   # the broker
trust_domain = "acme.example"
store = "sqlite:////srv/taskpass.db"
  store_login = { file = "old" }
# store_tls is not needed
drill_every = 86400

[people.groups]
store = ["ana"]
"""
NEW = write.render_store("postgresql://db.example:5432/records", {"file": "store"}, {"ca": "system"})


def test_the_lines_that_name_the_store_are_replaced_and_nothing_else() -> None:
    text = write.replace_store(OLD, NEW)
    assert text.count("postgresql://") == 1
    assert "srv" not in text
    assert "old" not in text
    for kept in ("# Ours.", "[broker]   # the broker", "# store_tls is not needed", "drill_every = 86400"):
        assert kept in text
    assert 'store = ["ana"]' in text
    assert write.replace_store(text, NEW) == text


def test_a_configuration_without_a_store_gets_the_lines_and_one_without_a_broker_is_left_to_a_person() -> None:
    assert write.replace_store('[broker]\ntrust_domain = "a"', NEW) == f'[broker]\n{NEW}trust_domain = "a"'
    with pytest.raises(ConfigInvalid):
        write.replace_store('broker = { trust_domain = "a" }\n', NEW)
