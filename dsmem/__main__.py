"""`python -m dsmem` is the same as `dsmem`."""

from dsmem.cli.app import main

if __name__ == "__main__":
    main()
