"""Pictures and one self-contained HTML page of a run or of a data set.

In: the folder that a run of the kernel left, or an index. Out: matplotlib figures, and one HTML file.
"""
