"""Every claim measured beside what a user would do without dsmem."""
