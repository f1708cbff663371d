"""What every program does first: old objects are looked through less often, and not as it ends."""

import json
import subprocess
import sys

from siimcovid.core import program_start

#: 400,000 objects that stay, some of which refer to each other; then how often the old ones were looked through, and
#: whether a cycle that is no longer needed still goes.
PROGRAM = """
import atexit, gc, json, sys, weakref
atexit.register(lambda: print(json.dumps([gc.get_stats()[2]["collections"], freed, gc.get_freeze_count()])))
if sys.argv[1] == "spared":
    from siimcovid.core.program_start import spare_old_objects
    spare_old_objects()
class Node:
    pass
stay = [[Node()] for _ in range(400_000)]
loop = Node()
loop.self, there = loop, weakref.ref(loop)
del loop
young = [[] for _ in range(50_000)]
freed = there() is None
"""


def looked_through(how: str) -> list:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_old_objects_are_spared_and_young_garbage_goes():
    plain, spared = looked_through("plain"), looked_through("spared")
    assert spared[0] < plain[0] / 3
    assert plain[1:] == [True, 0]
    assert spared[1] is True
    assert spared[2] > 400_000  # so the last look, as it ends, leaves them out


def test_the_command_begins_with_it():
    code = "import gc, runpy, sys; from contextlib import suppress; sys.argv[1:] = ['--version']\n"
    code += (
        "with suppress(SystemExit): runpy.run_module('siimcovid', run_name='__main__')\nprint(gc.get_threshold()[2])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == str(program_start.OLD_AFTER), done.stderr
