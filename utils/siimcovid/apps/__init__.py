"""What people start: the command line, the web page, the doctor, the ablation and the benchmarks.

In: arguments of a command, uploads of a browser. Out: calls of the other folders; no logic of its own.
"""
