"""Tables loaded once per machine: the daemon that loads them, and the clients that map what it has loaded."""
