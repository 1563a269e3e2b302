"""Wire protocols as pure values and state machines. Not for sockets, clocks or threads: bytes in, bytes out."""
