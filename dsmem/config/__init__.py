"""What people configure: one file (dsmem.yaml), the environment, flags; and where each value came from."""
