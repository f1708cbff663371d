"""`siimcovid kaggle build|check|push|status|output|submit`: the bundles for Kaggle, rehearsed, uploaded, followed."""

import argparse
import tempfile
import time
from pathlib import Path

OUT = Path("datasets")
TRAINED = Path("runs/demo/weights")
IMAGES = Path("runs/kaggle-images")
DOWNLOADS = Path("runs/kaggle")

EXAMPLE = "siimcovid kaggle build --owner your-kaggle-name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build the three datasets and a kernel's folder")
    build.add_argument("--owner", help="your Kaggle name; asked for once, then remembered")
    build.add_argument(
        "--weights",
        type=Path,
        help=f"folder with manifest.json (default: {TRAINED} where it exists, else ImageNet weights to fine-tune from)",
    )
    build.add_argument("--preset", help="preset of the kernel (default: that of the weights; best with --pretrain)")
    which = build.add_mutually_exclusive_group()
    which.add_argument(
        "--session", type=int, metavar="N", help="the kernel of training session N, and the one that submits after it"
    )
    which.add_argument(
        "--pretrain",
        type=int,
        metavar="N",
        help="the kernel of session N of pretraining on NIH ChestX-ray14 and the RSNA challenge",
    )
    which.add_argument("--smoke", action="store_true", help="the smoke kernel: what the machine is, in five minutes")
    build.add_argument("--sessions", type=int, metavar="N", help="how many sessions are planned (default: 2, or more)")
    _add_check_arguments(actions.add_parser("check", help="execute the built bundles as Kaggle would"))
    push = actions.add_parser("push", help="upload the bundles and push a kernel with Kaggle's own client")
    status = actions.add_parser("status", help="how far the pushed kernel's run is")
    status.add_argument("--wait", action="store_true", help="wait until it has ended")
    output = actions.add_parser("output", help="download what the run left")
    output.add_argument("--to", type=Path, metavar="FOLDER", help=f"default {DOWNLOADS}/<kernel>")
    submit = actions.add_parser("submit", help="submit the finished run to the competition")
    submit.add_argument("--message", default="siimcovid", help="what the list of submissions shows")
    submit.add_argument("--version", type=int, help="version of the kernel (default: the one pushed last)")
    for action in (push, status, output, submit):
        action.add_argument(
            "--kernel",
            default="",
            metavar="ENDING",
            help="which kernel: 1, 2 … for a session, submit, smoke, pre-1 … (default: the one without ending)",
        )
    for action in actions.choices.values():
        action.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="the bundles (default %(default)s)")


def _add_check_arguments(check: argparse.ArgumentParser) -> None:
    check.add_argument(
        "--image",
        action="append",
        metavar="DATE",
        help="imitate Kaggle's image of that date (2026, 2025-09), or `here`: this environment; may be repeated "
        "(default: the newest and the oldest image whose Python is installed)",
    )
    check.add_argument(
        "--images", type=Path, default=IMAGES, metavar="FOLDER", help="their environments (default %(default)s)"
    )
    check.add_argument("--gpus", type=int, default=0, metavar="N", help="train in N processes on the CPU, with gloo")
    check.add_argument(
        "--minutes", type=float, default=30, help="the longest that a run may take (default %(default)s)"
    )
    check.add_argument("--keep", type=Path, metavar="FOLDER", help="keep everything that was made on the way here")


def run(args: argparse.Namespace) -> int:
    """Run the action; 1 if the check found a fault, or the kernel's run failed."""
    actions = {
        "build": _build,
        "check": _check,
        "push": _push,
        "status": _status,
        "output": _output,
        "submit": _submit,
    }
    return actions[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from siimcovid.core.paths import is_weights
    from siimcovid.kaggle.build_bundles import build
    from siimcovid.kaggle.kaggle_account import find_owner
    from siimcovid.kaggle.kernel_folder import SMOKE, Kernel, built_pretraining, pretraining_kernel, session_kernels
    from siimcovid.kaggle.weights_dataset import kernel_parameters
    from siimcovid.models.published_weights import import_weights

    owner = find_owner(args.out, args.owner)
    kernels = (Kernel(SMOKE if args.smoke else ""),)
    if args.session is not None:
        kernels = session_kernels(args.session, args.sessions, built_pretraining(args.out))
    elif args.pretrain is not None:
        kernels = (pretraining_kernel(args.pretrain),)
    preset = args.preset or ("best" if args.pretrain else None)
    given = {"PRESET": preset} if preset else {}
    with tempfile.TemporaryDirectory() as scratch:
        weights = args.weights or (TRAINED if is_weights(TRAINED) else None)
        if weights is None:
            weights = import_weights("efficientnet_lite0", None, Path(scratch)).parent
        if args.pretrain is not None:
            from siimcovid.core.presets import load_preset
            from siimcovid.kernel.pretraining_session import check_starts

            check_starts(load_preset(preset), weights)
        print("\n".join(build(args.out, owner, weights, kernels=kernels, parameters=given)))
        parameters = {**kernel_parameters(weights), **given}
    for kernel in kernels:
        settings = " ".join(f"{key}={value}" for key, value in {**parameters, **kernel.parameters}.items())
        mounts = f", with the output of {', '.join(kernel.earlier)}" if kernel.earlier else ""
        what = "the smoke test" if args.smoke else "pretraining" if args.pretrain else settings
        print(f"{kernel.folder} of {owner}: {what}{mounts}")
    print("`make kaggle-check` tries what is built, `make push` uploads it.")
    return 0


def _check(args: argparse.Namespace) -> int:
    from siimcovid.core.errors import InputError
    from siimcovid.core.files import make_folder
    from siimcovid.kaggle.docker_image import find_image, find_python, images
    from siimcovid.kaggle.rehearsal import check

    begin, failed = time.monotonic(), False
    names = args.image or list(dict.fromkeys((images()[-1].name, images()[0].name)))
    chosen, left_out = [], []
    for name in names:
        image = None if name == "here" else find_image(name)
        try:
            chosen.append((image, image and find_python(image.python)))
        except InputError as error:
            if args.image:
                raise
            left_out.append(f"not run: the image of {name}: {error}")
    for number, (image, _) in enumerate(chosen or [(None, None)]):
        kept = args.keep / (image.name if image else "here") if args.keep else None
        if kept:
            if kept.exists():
                raise InputError(f"{kept} is there already: name a new folder")
            make_folder(kept)
        with tempfile.TemporaryDirectory(prefix="siimcovid-kaggle-") as scratch:
            verdicts = check(
                args.out,
                kept.absolute() if kept else Path(scratch),
                minutes=args.minutes,
                image=image,
                images=args.images,
                ranks=args.gpus,
                all_layouts=number == 0,
            )
        failed = failed or any(verdict.faults for verdict in verdicts)
    ran = ", ".join(f"the image of {image.name}" if image else "this environment" for image, _ in chosen or [(None, 0)])
    print(*left_out, sep="\n", end="\n" if left_out else "")
    print(f"kaggle-check {'FAILED' if failed else 'passed'} in {time.monotonic() - begin:.0f} s on {ran}")
    return int(failed)


def _push(args: argparse.Namespace) -> int:
    from siimcovid.kaggle.push_to_kaggle import push

    push(args.out, args.kernel)
    return 0


def _status(args: argparse.Namespace) -> int:
    from siimcovid.kaggle.kernel_runs import kernel_id, kernel_status, wait_until_done

    kernel = kernel_id(args.out, args.kernel)
    state, reason = wait_until_done(kernel) if args.wait else kernel_status(kernel)
    print(f"{kernel}: {state}{f': {reason}' if reason else ''}")
    return int(state == "error")


def _output(args: argparse.Namespace) -> int:
    from siimcovid.kaggle.kernel_runs import download_output, kernel_id

    kernel = kernel_id(args.out, args.kernel)
    download_output(kernel, args.to or DOWNLOADS / kernel.partition("/")[2])
    return 0


def _submit(args: argparse.Namespace) -> int:
    from siimcovid.kaggle.kernel_runs import submit

    print(submit(args.out, args.kernel, args.message, args.version))
    return 0
