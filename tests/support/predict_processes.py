"""What test_predict_command.py runs in processes of their own: `siimcovid predict`, as torchrun or a killer has it."""

import os
from collections.abc import Sequence


def predict(arguments: Sequence[str]) -> None:
    """The command in this process; ends with its exit code."""
    import torch

    from siimcovid.apps.command_line import main

    torch.set_num_threads(1)
    raise SystemExit(main(["predict", *arguments]))


def predict_as(rank: int, port: int, arguments: Sequence[str], part: int) -> None:
    """The command as one of two processes, with what torchrun would set, in parts of so many images."""
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({name: str(value) for name, value in settings.items()})
    from siimcovid.inference import predict_files

    predict_files.PART = part
    predict(arguments)


def predict_and_die(parts: int, arguments: Sequence[str], part: int) -> None:
    """The command in parts of so many images, killed when it has done `parts` of them and works on the next."""
    from siimcovid.inference import predict_files

    predict_files.PART = part

    work, done = predict_files._predict_part, []

    def spy(*given):
        if len(done) == parts:
            os.kill(os.getpid(), 9)
        done.append(given)
        return work(*given)

    predict_files._predict_part = spy
    predict(arguments)
