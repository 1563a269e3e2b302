"""PostgreSQL's frontend/backend protocol, version 3: messages, the client's side of a login, SCRAM.

Source: the PostgreSQL manual, chapter "Frontend/Backend Protocol". Not for queries: after a login the two streams are
joined unread.
"""
