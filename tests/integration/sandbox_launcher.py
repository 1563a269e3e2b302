"""One run with a small broker of its own, started by the sandbox tests as the account that they want to try.

Argument: JSON with ``base`` (an empty directory of this account), ``kind``, ``command``, and what a test wants changed.
The broker attests everybody for real and writes what it found to ``<base>/broker/log``, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from taskpass.core.errors import NotAuthenticated, TaskpassError
from taskpass.core.ids import RunId
from taskpass.identity.local import LocalAttestor, RunBinding
from taskpass.identity.process import Process
from taskpass.sandbox.detect import Kind
from taskpass.sandbox.launch import HELLO, Call, agent_account, launch, surroundings
from taskpass.sandbox.plan import Mount, Show, make_plan
from taskpass.server.line import Line, LineServers
from taskpass.server.sockets import private_directory

RUN = RunId("run_01j00000000000000000000000")


def serve(base, run, launcher, account, refusing):
    log = (base / "broker/log").open("a", buffering=1)

    def write(**found):
        log.write(json.dumps(found) + "\n")

    def attest(connection, way, *rest):
        try:
            return way(connection, *rest)
        except TaskpassError as error:
            write(refused=error.code)
            raise

    def handler(method, _params, peer):
        caller = peer.caller
        write(
            method=method,
            pid=caller.pid,
            uid=caller.uid,
            namespace=caller.namespace,
            separation=caller.separation.word,
            run=caller.run,
            init_pid=peer.init_pid,
        )
        if method == refusing:
            raise NotAuthenticated("not you\033[2J", code="run_ended", hint="start anew")
        return {"task": "tsk_1"}

    async def main():
        servers = LineServers(asyncio.get_running_loop(), ThreadPoolExecutor(4))
        attestor = LocalAttestor((base / "broker").resolve())
        binding = RunBinding(RUN, account.uid, Process.hold(launcher), None, "")
        private_directory(run, reader_uid=account.uid)
        await servers.start(Line(base / "runtime/line.sock", handler, lambda one: attest(one, attestor.outside)))
        in_run = Line(run / "line.sock", handler, lambda one: attest(one, attestor.of_run, binding), uid=account.uid)
        await servers.start(in_run)
        write(ready=True)
        while os.getppid() == launcher or not binding.ended():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        write(ended=True)

    asyncio.run(main())


def main():
    wish = json.loads(sys.argv[1])
    base = Path(wish["base"]).resolve()
    account = agent_account(wish.get("uid"))
    for name in ("broker", "runtime", "runtime/runs"):
        private_directory(base / name)
    run = base / "runtime/runs/r"
    launcher = os.getpid()
    if os.fork() == 0:
        os.close(1)
        serve(base, run, launcher, account, wish.get("refusing"))
        os._exit(0)
    deadline = time.monotonic() + 30
    while not (base / "broker/log").exists() or "ready" not in (base / "broker/log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    work = Path(wish["work"]).resolve()
    plan = make_plan(
        surroundings(base / "broker", base / "runtime"),
        run_directory=run,
        worktree=work,
        directory=work,
        account=account,
    )
    unhidden = [Path(path) for path in wish.get("unhidden", [])]
    shown = [Mount(Path(path), Show.OPEN) for path in wish.get("shown", [])]
    mounts = [one for one in plan.mounts if one.path not in unhidden]
    plan = replace(plan, mounts=tuple(sorted([*mounts, *shown], key=lambda one: len(one.path.parts))))
    leaked = os.open(base / "broker", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    (base / "launcher").write_text(str(launcher))
    kind = Kind(wish["kind"], wish["program"])
    try:
        code = launch(
            plan,
            wish["command"],
            {**os.environ, "TASKPASS_DIR": str(base / "broker")},
            calls=(HELLO, Call("open_task", {"ticket": "T-1"}, {"TASKPASS_TASK": "task"})),
            kind=kind,
        )
    except TaskpassError as error:
        print(f"taskpass: {error.code}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
