"""What keeps a broker going: the sweeper, watched processes, run sockets, fitness of targets, health."""
