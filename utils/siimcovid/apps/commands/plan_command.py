"""`siimcovid plan PRESET`: which session on Kaggle trains what, on which GPU, for how long, and what to attach next."""

import argparse
from pathlib import Path

from siimcovid.core.presets import PRESETS

EXAMPLE = "siimcovid plan best --gpus 2 --hours 9 --sessions 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("preset", choices=list(PRESETS))
    parser.add_argument("--gpus", type=int, default=2, metavar="N", help="GPUs of a session (default 2)")
    parser.add_argument("--hours", type=float, default=9.0, help="of a session at most (default 9)")
    parser.add_argument("--sessions", type=int, default=4, metavar="N", help="with the one that submits (default 4)")
    parser.add_argument("--images", type=int, metavar="N", help="annotated images to train on (default: 6125)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="profile.json of the smoke kernel, not estimates")
    parser.add_argument(
        "--pretrained", action="store_true", help="the weights were trained on NIH and RSNA: no session for that"
    )


def run(args: argparse.Namespace) -> int:
    """Print the schedule; 1 where the training does not fit into the sessions."""
    from siimcovid.core.errors import InputError
    from siimcovid.core.presets import load_preset
    from siimcovid.kernel import gpu_throughput, week_schedule, week_table
    from siimcovid.kernel.session_jobs import ANNOTATED_IMAGES

    images = ANNOTATED_IMAGES if args.images is None else args.images
    if min(args.gpus, args.sessions, images) < 1 or not 0 < args.hours < float("inf"):
        raise InputError(
            f"--gpus {args.gpus}, --hours {args.hours:g}, --sessions {args.sessions} and --images {images}: give at "
            "least 1 of each, and hours above 0"
        )
    preset = load_preset(args.preset)
    speed = gpu_throughput.estimates(preset)
    if args.profile:
        speed = gpu_throughput.with_profile(speed, args.profile, preset)
    limits = week_schedule.Limits(args.gpus, args.hours, args.sessions, images, not args.pretrained)
    schedule = week_schedule.plan(preset, speed, limits)
    print("\n".join(week_table.schedule_lines(preset, limits, speed, schedule)))
    return int(schedule.left > 0)
