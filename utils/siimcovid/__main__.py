"""`python -m siimcovid` is the command `siimcovid`."""

from siimcovid.apps.command_line import program

if __name__ == "__main__":
    raise SystemExit(program())
