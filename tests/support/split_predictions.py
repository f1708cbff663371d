"""What test_predictor.py runs in one process and in two: every model on a few images."""

import os
from pathlib import Path


def work(folder: Path, out: Path) -> None:
    """Write the tables of every model on FOLDER/index.csv and FOLDER/cache, in each process a copy of its own."""
    import torch

    from siimcovid.core import stage_names
    from siimcovid.data.competition import read_index
    from siimcovid.inference.predictor import predict_table
    from siimcovid.models import checkpoints

    torch.set_num_threads(1)
    images, rank = read_index(folder / "index.csv"), os.environ.get("RANK", "0")
    for stage in stage_names.SUBMISSION_STAGES:
        for hflip in (False, True) if stage in stage_names.DETECTORS else (False,):
            _, config, model = checkpoints.load(folder / "weights" / f"{stage}.safetensors")
            table = predict_table(stage, config, model, images, folder / "cache", hflip)
            table.to_csv(out / f"{stage}-{hflip}-{rank}.csv", index=False)


def work_as(rank: int, port: int, folder: Path, out: Path) -> None:
    """One of two processes, with what torchrun would tell it."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({name: str(value) for name, value in told.items()})
    work(folder, out)
