"""Bad input gets one clear line, a stable code, the documented exit code, and leaves nothing lost or half-made.

And what somebody else wrote never repaints what a person reads: names in the database, branches, tickets, reasons.
Clocks that jump are played with a fake clock in the unit tests of the broker, not here.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import unicodedata

import pytest

from taskpass.core.errors import InvalidInput
from taskpass.testing.postgres import available
from taskpass.testing.stage import TASKPASS
from tests.acceptance.actors import RESOURCE, Small, one_line
from tests.missing import missing

pytestmark = pytest.mark.service

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x1b[31m"
BIDI = "\u202egnp.exe\u2066\u200b\u00ad"
FORGED = "x\nWhat the broker knows\n  resource    harmless in dev, level read\r\n\x08\x08"
TABLES = (
    'quote"quote',
    "dot.dot.dot",
    "semi; DROP ROLE postgres; --",
    "ä" * 31,
    "🐘 elephant",
    "select",
    "line\nbreak",
    f"esc{ESCAPES}",
    f"bidi{BIDI}",
    "%s $1 {} \\ ''",
    "  spaces  ",
    "CamelCase",
)
SCHEMA = 'we"ird.schema\x1b[1m'


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def demand_harmless(text):
    """Nothing but printable characters and newlines: no control, no escape, no direction, nothing invisible."""
    for character in text:
        assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"), repr(
            text[max(0, text.index(character) - 60) : text.index(character) + 20]
        )


# ---- what somebody else wrote ----


@pytest.fixture(scope="module")
def hostile():
    """A dev database full of hostile names, where a person has to approve."""
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Small(durable=False) as made:
        made.start_server(RESOURCE, 16, rows=20)
        with made.server.connect("orders") as connection:
            connection.execute(f"CREATE SCHEMA {quoted(SCHEMA)}".encode())
            for schema in ("shop", SCHEMA):
                for name in TABLES:
                    where = f"{quoted(schema)}.{quoted(name)}"
                    connection.execute(f"CREATE TABLE {where} (id integer, {quoted(name)} text)".encode())
        made.found("sam")
        made.set_broker("allow_root_agents = true")
        made.set_budgets()
        made.enrol(RESOURCE, environment="dev", exclude=["shop.customers"], more=["--table", "*.*"])
        policy = made.directory / "policy/dev.cedar"
        policy.write_text(policy.read_text().replace("@max_ttl(", '@approvers("dba")\n@quorum("1")\n@max_ttl('))
        for test in (made.directory / "policy/tests").glob("*"):
            test.unlink()
        made.start_broker()
        yield made


def test_hostile_names_and_words_are_shown_escaped_and_change_no_layout(hostile):
    stage = hostile
    job = {"repository": f"repo{ESCAPES}", "branch": f"main{BIDI}", "ticket": FORGED}
    reason = f"please{ESCAPES}{BIDI}{FORGED}"
    with stage.agent() as client:
        task = client.call("open_task", job)["task"]
        plain = client.call("open_task", {"repository": "plain", "branch": "main", "ticket": "T-1"})["task"]
        asked = client.call("request_access", {"resource": RESOURCE, "task": task, "reason": reason})
        usual = client.call("request_access", {"resource": RESOURCE, "task": plain, "reason": "please"})
        assert asked["state"] == usual["state"] == "pending"
        directory = ("--directory", str(stage.directory))
        card, ordinary = (stage.taskpass("review", x["request"], *directory).stdout for x in (asked, usual))
        demand_harmless(card)
        assert len(card.splitlines()) == len(ordinary.splitlines())
        assert card.splitlines().count("What the broker knows") == 1
        assert _outline(card) == _outline(ordinary)
        comment = f"yes{ESCAPES}{BIDI}{FORGED}"
        said = stage.review(asked["request"], stage.founder, "--approve", "--comment", comment)
        demand_harmless(said.stdout + said.stderr)
        lease = client.call("issue", {"request": asked["request"]})
        _reads_every_table(lease)
        for words in (
            ("review", *directory), ("task", "ls"), ("task", "show", task), ("lease", "ls"),
            ("lease", "show", lease["lease"]), ("status", "--task", task), ("audit", "show"), ("audit", "show", task),
            ("revoke", "--all", "--dry-run"), ("review", *directory, "--json"), ("task", "ls", "--json"),
            ("task", "show", task, "--json"), ("lease", "show", lease["lease"], "--json"), ("audit", "show", "--json"),
            ("audit", "export"), ("audit", "verify"),
        ):  # fmt: skip
            done = stage.taskpass(*words, check=False)
            demand_harmless(done.stdout + done.stderr)
            assert done.returncode == 0, words
        assert json.loads(stage.taskpass("task", "show", task, "--json").stdout)["ticket"]["value"] == FORGED
        no = stage.review(usual["request"], stage.founder, "--deny", "--comment", comment)
        demand_harmless(no.stdout + no.stderr)
        waited = stage.taskpass("exec", "--request", usual["request"], "--", "true", check=False)
        assert waited.returncode == 90
        demand_harmless(waited.stdout + waited.stderr)
        assert len(waited.stderr.splitlines()) <= 2
    ended = json.loads(stage.taskpass("revoke", "--ticket", FORGED, "--reason", comment, "--json").stdout)["leases"]
    assert [item["state"] for item in ended] == ["closed"]
    stage.verify()


def _outline(card):
    """The card without what people or programs wrote into it, and without its ids and times."""
    return [
        line[:14] for line in card.splitlines() if not line.startswith(("> repo", "> branch", "> ticket", "> reason"))
    ][1:]


def _reads_every_table(lease):
    from tests.acceptance.actors import connect

    connection = connect(lease)
    for schema in ("shop", SCHEMA):
        for name in TABLES:
            statement = f"SELECT {quoted(name)} FROM {quoted(schema)}.{quoted(name)}"
            assert connection.execute(statement.encode()).fetchall() == []


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("ticket", "a\0b", "NUL"),
        ("branch", "x" * 256, "too long: 256 bytes, at most 255"),
        ("repository", "🐘" * 64, "too long: 256 bytes"),
        ("ticket", "\ud800", "not valid Unicode"),
        ("reason", "r" * 5000, "too long: 5000 bytes, at most 2000"),
        ("reason", "a\0b", "NUL"),
        ("tables", ["shop.a\0b"], "NUL"),
        ("tables", ["orders"], "schema and table"),
        ("ticket", 7, "text"),
    ],
)
def test_text_that_cannot_be_kept_is_refused_and_nothing_is_recorded(hostile, field, value, said):
    before = len(hostile.call("requests")["requests"]), len(hostile.call("tasks", all=True)["tasks"])
    job = {"repository": "plain", "branch": "main", "ticket": "T-1"}
    more = {"resource": RESOURCE}
    with hostile.agent() as client:
        if field in job:
            method, params = "open_task", job | {field: value}
        else:
            method, params = "request_access", more | {field: value, "task": client.call("open_task", job)["task"]}
        with pytest.raises(InvalidInput) as told:
            client.call(method, params)
    assert said in told.value.message
    assert "\n" not in told.value.message
    assert (len(hostile.call("requests")["requests"]), len(hostile.call("tasks", all=True)["tasks"])) == before


def test_a_reason_that_is_too_long_is_one_line_on_the_command_line(hostile):
    done = hostile.taskpass("request", "--resource", RESOURCE, "--reason", "r" * 5000, check=False)
    one_line(done, "invalid_input", 2)


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("request", "--resource", "no-such"), "denied", 90),
        (("request", "--resource", RESOURCE, "--access", "write"), "invalid_input", 2),
        (("request", "--resource", RESOURCE, "--table", "shop.none"), "nothing_to_grant", 90),
        (("release", "lse_nonsense"), "invalid_input", 2),
        (("release", "lse_01m86z7ejqm3zvmxqcps0ncrre"), "not_found", 1),
        (("lease", "show", "lse_01m86z7ejqm3zvmxqcps0ncrre"), "not_found", 1),
        (("task", "complete", "tsk_01m86z7ejqm3zvmxqcps0ncrre"), "not_found", 1),
        (("revoke",), "usage", 2),
        (("revoke", "--all", "--ticket", "x"), "usage", 2),
        (("exec", "--resource", RESOURCE), "invalid_input", 2),
        (("exec", "--resorce", RESOURCE, "--", "true"), "invalid_input", 2),
        (("leese",), "usage", 2),
        (("audit", "show", "--last", "0"), "usage", 2),
    ],
)
def test_a_wrong_command_is_one_line_with_a_code(hostile, words, code, exit_code):
    one_line(hostile.taskpass(*words, check=False), code, exit_code)


# ---- the operator's files and places ----


@pytest.fixture
def stopped(stage):
    """The broker is stopped for the test; what the test changes must be undone by it."""
    stage.stop_broker()
    return stage


def test_an_unknown_key_names_the_nearest_known_one(stopped):
    path = stopped.directory / "taskpass.toml"
    good = path.read_text()
    path.write_text(good.replace("trust_domain", "trust_domian", 1))
    try:
        done = stopped.taskpass("up", check=False)
        one_line(done, "config_invalid", 2)
        assert 'unknown key "trust_domian"' in done.stderr
        assert 'did you mean "trust_domain"?' in done.stderr
        checked = stopped.taskpass("check", check=False)
        assert checked.returncode != 0
        assert "trust_domain" in checked.stdout + checked.stderr
    finally:
        path.write_text(good)


def test_a_second_broker_on_the_directory_is_refused_and_the_first_goes_on(stage):
    one_line(stage.taskpass("up", check=False), "broker_running", 1)
    assert stage.call("health")["pid"] == stage.broker.pid
    assert stage.taskpass("status").returncode == 0


def test_a_socket_path_that_is_a_file_is_left_alone_and_said(stopped):
    path = stopped.runtime / "line.sock"
    path.write_text("mine")
    one_line(stopped.taskpass("up", check=False), "config_invalid", 2)
    assert path.read_text() == "mine"
    path.unlink()


def test_a_socket_path_that_somebody_serves_is_left_alone_and_said(stopped):
    path = stopped.runtime / "line.sock"
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.bind(str(path))
        somebody.listen()
        one_line(stopped.taskpass("up", check=False), "broker_running", 1)
        assert path.exists()
    path.unlink()


def test_a_socket_path_that_is_too_long_is_refused_with_its_length(stopped):
    environment = stopped.environment() | {"TASKPASS_RUNTIME_DIR": str(stopped.root / ("r" * 100))}
    done = subprocess.run([*TASKPASS, "up"], env=environment, capture_output=True, text=True, check=False, timeout=30)
    one_line(done, "socket_path_too_long", 2)
    assert "at most 107" in done.stderr


@pytest.mark.parametrize("what", ["open", "foreign", "absent"])
def test_a_directory_that_others_could_have_changed_is_refused(stopped, what):
    place = stopped.directory
    environment = stopped.environment()
    if what == "open":
        place.chmod(0o777)
    elif what == "foreign":
        if os.getuid():
            pytest.skip("only root can give a directory away")
        os.chown(place, 1, 1)
    else:
        environment["TASKPASS_DIR"] = str(stopped.root / "nowhere")
    try:
        done = subprocess.run(
            [*TASKPASS, "up"], env=environment, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) <= 2
        assert done.stderr.splitlines()[0].endswith("]")
        assert not (stopped.root / "nowhere").exists()
    finally:
        os.chown(place, os.getuid(), os.getgid())
        place.chmod(0o700)


def test_an_account_without_the_rights_enrols_nothing_and_is_told_what_it_lacks(stage):
    with stage.server.connect("orders") as connection:
        connection.execute("CREATE ROLE ordinary LOGIN PASSWORD 'c4nary-ordinary'")
    before = (stage.directory / "taskpass.toml").read_bytes(), sorted(stage.directory.rglob("credentials/*"))
    dsn = f"postgresql://ordinary:c4nary-ordinary@{stage.server.address('orders')}"
    done = stage.taskpass("init", "--postgres", "--name", "mine", "--admin-dsn-stdin", stdin=dsn, check=False)
    assert done.returncode == 1
    assert "c4nary-ordinary" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert done.stderr.splitlines()[0].startswith("taskpass: ")
    assert ((stage.directory / "taskpass.toml").read_bytes(), sorted(stage.directory.rglob("credentials/*"))) == before
    with stage.server.connect("orders") as connection:
        connection.execute("DROP ROLE ordinary")


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root, to take a capability away")
def test_a_machine_that_forbids_namespaces_starts_no_agent_and_says_so(stage):
    bare = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run(
        [*bare, *TASKPASS, "run", "--", sys.executable, "-c", "print('ran')"],
        env=stage.environment(), capture_output=True, text=True, check=False, timeout=60, cwd=stage.root,
    )  # fmt: skip
    one_line(done, "sandbox_unavailable", 1)
    assert "ran" not in done.stdout
    assert list((stage.runtime / "runs").glob("*")) == []
    assert stage.call("tasks")["tasks"] == []
