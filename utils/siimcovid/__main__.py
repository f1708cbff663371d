"""`python -m siimcovid` is the command `siimcovid`."""

from siimcovid.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
