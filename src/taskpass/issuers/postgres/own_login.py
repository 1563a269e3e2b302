"""The broker's own login in a target: a new password for it, and which password the server takes now.

A role may change its own password, so nothing of the kit is needed. Not for the order of the steps, which is
``broker.rotate_login``'s, nor for files.
"""

from __future__ import annotations

import ssl

from psycopg import sql

from taskpass.core.clock import Entropy
from taskpass.core.errors import TargetUnavailable
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.issuers.postgres import scram
from taskpass.issuers.postgres.connection import Connections, driver_errors
from taskpass.issuers.postgres.probe import Place, converse
from taskpass.wire.postgres.login import Ready, Refused


class OwnLogin:
    """Raises ``TargetUnavailable`` wherever the server gives no answer that means anything."""

    def __init__(self, connections: Connections, target: Target, user: str, entropy: Entropy) -> None:
        self._connections = connections
        self._target = target
        self._user = user
        self._entropy = entropy

    @property
    def cluster(self) -> str:
        """Which servers know this password: logins belong to a cluster. Empty if it was never pinned."""
        return self._target.cluster

    def propose(self) -> Secret:
        return scram.new_secret(self._entropy)

    def others(self) -> int:
        """Sessions of this login that are not of this process: their broker would not learn of a new password."""
        with self._connections.use() as connection, driver_errors("looking who uses the broker's login"):
            row = connection.execute(_OTHERS).fetchone()
        return row[0] if row else 0

    def replace(self, secret: Secret) -> None:
        """Make ``secret`` the password. Only its verifier is sent, so the server's log can hold no password."""
        verifier = scram.verifier(secret, self._entropy, iterations=scram.BEARER_ITERATIONS)
        with self._connections.use() as connection, driver_errors("replacing the broker's password"):
            connection.execute(sql.SQL("ALTER ROLE CURRENT_USER PASSWORD {}").format(sql.Literal(verifier)))

    def accepts(self, secret: Secret) -> bool:
        """Whether the server takes ``secret`` for this login now: asked by a login that is closed at once."""
        place = Place(self._target.address, self._target.tls.get("ca", ""))
        try:
            outcome = converse(place, self._user, secret, self._entropy)
        except (OSError, ssl.SSLError, ValueError):
            raise TargetUnavailable("the server does not say whether it takes the broker's password") from None
        if isinstance(outcome, Ready) and outcome.sasl:
            return True
        if isinstance(outcome, Refused) and outcome.sqlstate == "28P01":
            return False
        raise TargetUnavailable("the server does not say whether it takes the broker's password")


_OTHERS = """
SELECT count(*) FROM pg_stat_activity a
 WHERE a.usesysid = (SELECT oid FROM pg_roles WHERE rolname = session_user)
   AND a.application_name <> current_setting('application_name')
"""
