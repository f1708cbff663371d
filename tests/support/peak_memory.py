"""Peak memory of a run of the notebook, by the number of its test images; for test_memory.py and by hand.

    PYTHONPATH=tests python -m support.peak_memory 60 600 [--scale 0.3] [--side 256]

draws a few synthetic images at that share of a radiograph's size, repeats them until there are so many, and runs the
notebook with tiny weights on each count in a process of its own. Printed are megabytes: of the notebook's process, and
of the largest of the processes that prepare images.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

#: Different images; the others are links to them.
DRAWN = 12


def repeat_images(competition: Path, drawn: Path, images: int) -> None:
    """Lay out `competition` with so many test images, each in a study of its own, out of the images of `drawn`."""
    sources = sorted(drawn.glob("test/*/*/*.dcm"))
    for number in range(images):
        target = competition / "test" / f"{number:06x}study" / "series" / f"{number:06x}image.dcm"
        target.parent.mkdir(parents=True)
        os.link(sources[number % len(sources)], target)
    ids = [f"{n:06x}study_study" for n in range(images)] + [f"{n:06x}image_image" for n in range(images)]
    (competition / "sample_submission.csv").write_text("id,PredictionString\n" + "".join(f"{i},\n" for i in ids))


class Watch(threading.Thread):
    """Looks at the largest of this process's descendants ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest, self.over = 0, False
        self.start()

    def run(self) -> None:
        while not self.over:
            parents, peaks = {}, {}
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    facts = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
                except OSError:  # it has ended
                    continue
                pid = int(status.parent.name)
                parents[pid], peaks[pid] = int(facts["PPid"]), int(facts.get("VmHWM", "0 kB").split()[0])
            ours = {os.getpid()}
            for _ in range(3):
                ours |= {pid for pid, parent in parents.items() if parent in ours}
            self.largest = max([self.largest, *(peaks.get(pid, 0) for pid in ours - {os.getpid()})])
            time.sleep(0.1)


def measure(competition: str, weights: str, out: str, side: str) -> None:
    """Run the notebook and print its peak and that of its largest descendant, in megabytes."""
    from support.kernel_cells import draw_nothing, run_cells

    draw_nothing(setattr)
    watch = Watch()
    settings = {"cache_size": int(side), "fusion.hflip_tta": False}
    run = run_cells(
        COMPETITION_DIR=competition, WEIGHTS_DIR=weights, OUTPUT_DIR=out, PRESET="demo", OVERRIDES=settings
    )["run"]
    watch.over = True
    assert run.record.by_priors == 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"PEAK {len(run.test)} {peak / 1024:.0f} {watch.largest / 1024:.0f}")


def peaks(images: list[int], scale: float, side: int) -> dict[int, tuple[float, float]]:
    """Number of images -> megabytes of the notebook's process, and of the largest of its descendants."""
    from siimcovid.core.stage_names import SUBMISSION_STAGES
    from siimcovid.synthetic.demo_competition import write_competition
    from support.tiny_weights import write_weights

    found = {}
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        write_competition(top / "drawn", train_studies=1, test_studies=DRAWN, seed=0, scale=scale)
        write_weights(top / "weights", SUBMISSION_STAGES)
        program = "import sys; from support import peak_memory; peak_memory.measure(*sys.argv[1:])"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        for count in images:
            repeat_images(top / "competition", top / "drawn", count)
            arguments = [str(top / folder) for folder in ("competition", "weights", "out")]
            command = [sys.executable, "-c", program, *arguments, str(side)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            said = [line.split() for line in done.stdout.splitlines() if line.startswith("PEAK")]
            assert said, done.stderr[-3000:]
            found[count] = float(said[0][2]), float(said[0][3])
            for folder in ("competition", "out"):
                shutil.rmtree(top / folder)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int, nargs="+")
    parser.add_argument("--scale", type=float, default=0.3)
    parser.add_argument("--side", type=int, default=256)
    args = parser.parse_args()
    for count, (own, worker) in peaks(args.images, args.scale, args.side).items():
        print(f"{count} images: notebook {own:.0f} MB, preparation {worker:.0f} MB")
