"""Faults in one of the two processes that train a stage: what becomes of it, and what the submission holds.

The notebook runs in MODE finetune; the study model is trained by two processes (gloo), the detectors are given.
"""

import functools
import json

import pytest

from siimcovid.kernel import step_profile
from siimcovid.kernel.step_forecast import Profile
from siimcovid.training import multi_gpu
from support import two_process_faults
from support.fault_scenes import check, copied_training
from support.two_process_faults import FAULTS

pytestmark = pytest.mark.slow

OVERRIDES = {"cache_size": 64, "fusion.hflip_tta": False, "study.size": 64, "study.infer_size": 64, "study.views": 0}
OVERRIDES |= {"study.training.epochs": 2, "study.training.batch": 4}


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    two_process_faults.prepare_server()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_in_one_of_two_processes(fault, scene):
    set_to, fit, copied = scene.patch.setattr, multi_gpu.fit, copied_training(scene.weights)
    scene.patch.setenv("SIIMCOVID_PROCESSES", "2")
    scene.patch.setenv("GLOO_SOCKET_IFNAME", "lo")
    set_to(multi_gpu, "fit", lambda stage, *rest, **named: (fit if stage == "study" else copied)(stage, *rest, **named))
    set_to(multi_gpu.subprocess, "run", functools.partial(two_process_faults.launch, fault.name))
    set_to(step_profile, "measure", lambda run: Profile())
    scene.parameters |= {"MODE": "finetune", "OVERRIDES": OVERRIDES}
    scene.execute()
    assert (scene.out / "weights" / "fired").is_file()
    assert fault.named in scene.report()
    assert bool(scene.run.degraded) == bool(fault.named), scene.run.degraded
    check(scene)
    trained = scene.out / "weights" / "study.json"
    facts = json.loads(trained.read_text(encoding="utf-8")) if trained.is_file() else {}
    assert len(facts.get("epochs", ())) == fault.epochs
