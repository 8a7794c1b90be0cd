"""Objects, refs and leases: who owns what in shared memory, and for how long."""
