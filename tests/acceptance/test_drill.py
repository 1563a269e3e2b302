"""``taskpass drill`` on a real server: by hand, by itself, with a broken revoker, and killed in the middle."""

from __future__ import annotations

import json
import subprocess

import pytest

from taskpass.testing.postgres import available
from taskpass.testing.stage import TASKPASS
from tests.acceptance.actors import PROVEN, RESOURCE, Small, until
from tests.missing import missing

pytestmark = pytest.mark.service

KINDS = ["idle", "transaction", "cursor", "statement", "listening", "reconnecting", "prepared", "password"]
CLOSE = "SELECT pg_get_functiondef('taskpass.close'::regproc)"


@pytest.fixture(scope="module")
def stage():
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Small(durable=False) as made:
        made.prepare(options={"max_prepared_transactions": "5"}, serve=False)
        made.set_broker("drill_every = 3600")
        made.start_broker()
        yield made


def finished(stage):
    return [event for event in stage.events() if event["event"] == "drill.finished"]


def drill(stage, *words):
    done = stage.taskpass("drill", RESOURCE, "--json", *words, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def nothing_left(stage):
    return stage.roles() == [] and not stage.call("leases")["leases"]


def doctor_says(stage):
    return next(row for row in stage.doctor()[1] if row["check"] == f"drill {RESOURCE}")


def test_the_broker_plays_one_by_itself_when_it_is_due(stage):
    (found,) = until(lambda: finished(stage), what="the scheduled drill")
    assert (found["actor"], found["data"]["passed"]) == ("broker", True)
    assert doctor_says(stage)["state"] == "ok"


def test_a_drill_by_hand_passes_and_leaves_nothing(stage):
    code, view = drill(stage)
    assert code == 0, view
    assert [client["kind"] for client in view["clients"]] == KINDS
    assert all(client["ended"] for client in view["clients"])
    assert view["reads"].startswith("shop.")
    assert stage.call("show_lease", lease=view["lease"])["proof"]["answer"] == PROVEN
    assert nothing_left(stage)
    assert finished(stage)[-1]["data"] == view
    stage.verify()


def test_it_reads_for_people(stage):
    done = stage.taskpass("drill", RESOURCE)
    assert done.stdout.startswith(f"drill of {RESOURCE}: passed, proven ")
    assert "reconnecting  refused" in done.stdout


def test_an_unknown_resource_is_refused(stage):
    done = stage.taskpass("drill", "nowhere", check=False)
    assert (done.returncode, done.stdout) == (90, "")


def test_a_revoker_that_forgets_to_forbid_the_login_fails_the_drill_and_the_doctor(stage):
    with stage.server.connect("orders") as admin:
        (kit,) = admin.execute(CLOSE).fetchone()
        admin.execute(kit.replace(" NOLOGIN PASSWORD", " PASSWORD").encode())
        try:
            done = stage.taskpass("drill", RESOURCE, check=False)
            assert done.returncode == 3
            assert "[drill_not_proven]" in done.stderr
            assert "revoke" in done.stdout
            row = doctor_says(stage)
            assert (row["state"], row["fix"]) == ("weaker", f"taskpass drill {RESOURCE}")
        finally:
            admin.execute(kit.encode())
    until(lambda: nothing_left(stage), 70, what="the closing that was not proven")
    assert drill(stage)[0] == 0
    assert doctor_says(stage)["state"] == "ok"


def test_a_server_that_is_down_means_that_nothing_was_shown(stage):
    stage.server.stop()
    code, view = drill(stage)
    stage.server.start()
    assert code == 4
    assert [step["step"] for step in view["steps"]] == ["fit"]


def test_a_drill_whose_broker_is_killed_in_the_middle_leaves_nothing(stage):
    """Every session takes a second to start, so the broker is killed while the access is live and being used."""
    stage.server.configure(post_auth_delay="1")
    try:
        playing = subprocess.Popen(
            [*TASKPASS, "drill", RESOURCE], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=stage.environment(),
        )  # fmt: skip
        until(stage.usable, what="the drill's access")
        stage.stop_broker(kill=True)
    finally:
        stage.server.configure(post_auth_delay="0")
    assert playing.wait(30) != 0
    assert stage.usable()
    stage.start_broker()
    until(lambda: nothing_left(stage), what="the end of the drill's access")
    started = [event["subject"]["task"] for event in stage.events() if event["event"] == "drill.started"]
    assert stage.call("show_task", task=started[-1])["reason"] == "drill_broke_off"
    assert drill(stage)[0] == 0
    stage.verify()
