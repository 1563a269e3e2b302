"""The data path of a lease: what serves a client that has no secret. Not for deciding who may have access."""
