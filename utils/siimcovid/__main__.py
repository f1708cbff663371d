"""`python -m siimcovid` is the command `siimcovid`."""

from siimcovid.apps.command_line import main

if __name__ == "__main__":
    raise SystemExit(main())
