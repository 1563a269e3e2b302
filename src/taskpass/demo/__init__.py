"""``taskpass demo``: two real databases, a broker and one story, played by real processes over the public commands.

Nothing in here is used by the product. Each step of the story states a claim and checks it; one that does not hold
makes the demo fail.
"""

from __future__ import annotations

import os
import sys

from taskpass.core.errors import TaskpassError
from taskpass.demo.story import PRODUCTION, STAGING, Story
from taskpass.demo.timeline import Timeline
from taskpass.testing.stage import Person, Stage

SPONSOR, REVIEWER = "sam", "dana"
PERSONAL = "shop.customers"


def run(*, keep: bool = False) -> int:
    """Set the stage, play the story, tidy up (unless ``keep``). 0 if every claim held, else 1."""
    line = Timeline()
    line.title("Taskpass demo: an agent gets access for one task, and loses it again with proof")
    stage = Stage(demo=True, tied=not keep)
    stage.__enter__()
    try:
        reviewer = set_up(stage, line)
        Story(stage, reviewer, line).play()
    except (TaskpassError, RuntimeError) as error:
        line.claim("the story could be played to its end", holds=False, found=str(error))
    except BaseException:
        stage.close()
        raise
    return _finish(stage, line, keep=keep)


def set_up(stage: Stage, line: Timeline) -> Person:
    """Two servers with data, one installation with a second person, a running broker; the reviewer."""
    line.step("stage", "starting PostgreSQL 16 (staging) and 18 (production), with 100,000 orders each")
    stage.start_server(STAGING, 16)
    stage.start_server(PRODUCTION, 18)
    line.step("stage", "taskpass init, and init --postgres for each database")
    stage.found(SPONSOR)
    stage.enrol(STAGING, environment="staging", exclude=[PERSONAL])
    stage.enrol(PRODUCTION, environment="production", exclude=[PERSONAL])
    reviewer = stage.add_person(REVIEWER, "dba")
    stage.start_broker()
    line.step("stage", "taskpass up: the broker serves; the story begins")
    line.restart()
    return reviewer


def _finish(stage: Stage, line: Timeline, *, keep: bool) -> int:
    held = line.claims - len(line.broken)
    line.title(f"{held} of {line.claims} claims held" + ("." if not line.broken else ":"))
    for text in line.broken:
        line.detail(f"not: {text}")
    if keep:
        _how_to_go_on(stage, line)
    else:
        stage.close()
    return 1 if line.broken else 0


def _how_to_go_on(stage: Stage, line: Timeline) -> None:
    pids = [server.pid for server in stage.servers.values()]
    places = " ".join(str(server.directory) for server in stage.servers.values())
    broker = stage.broker.pid if stage.broker else 0
    line.title("Everything still runs. In a shell:")
    line.detail(
        f"export TASKPASS_DIR={stage.directory} TASKPASS_RUNTIME_DIR={stage.runtime}\n"
        f"alias taskpass='{sys.executable} -I -m taskpass'\n"
        "taskpass doctor\n"
        "taskpass lease ls --all\n"
        f"taskpass run -- {os.environ.get('SHELL', '/bin/sh')}\n"
        f"taskpass exec --resource {STAGING} --access read -- psql      # in that shell\n"
        "taskpass audit show\n"
        f"kill {broker} {' '.join(map(str, pids))} && sleep 2 && rm -rf {stage.root} {places}      # the end"
    )
