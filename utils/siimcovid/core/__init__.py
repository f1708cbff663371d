"""What every other folder builds on, without torch: labels, configuration, presets, files, tables, paths, processes.

In: nothing of this package. Out: the six classes, the dataclasses that hold every setting with their checked values,
atomic writes, CSV reading with errors that name the line, and functions run in processes that may crash.
"""
