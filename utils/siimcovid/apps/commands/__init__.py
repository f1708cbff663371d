"""One file per verb of the command line, each with `EXAMPLE`, `add_arguments(parser)` and `run(args)`.

The files are thin: they turn arguments into one call of the package and print what it returns. Heavy imports stand
inside `run`, so that `siimcovid --help` and `siimcovid VERB --help` answer at once.
"""
