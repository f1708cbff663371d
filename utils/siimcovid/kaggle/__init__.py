"""What is uploaded to Kaggle, and its rehearsal on this machine. In: the repository and a weights folder. Out: four
folders, the kernel on Kaggle, or the list of faults that a rehearsal found.

    repository ──────── code_dataset.py ────> datasets/code/     siimcovid.zip: the package
    a weights folder ── weights_dataset.py ─> datasets/weights/  manifest.json and the files that it vouches for
    requirements.lock ─ wheels_dataset.py ──> datasets/wheels/   what Kaggle's Python lacks, with checksums
    notebook ────────── kernel_folder.py ───> datasets/kernel/   the notebook and kernel-metadata.json, naming all three

`build_bundles.py` makes the four folders (kaggle_metadata.py knows Kaggle's rules, kaggle_account.py the owner).
`push_to_kaggle.py` uploads them, and `kernel_runs.py` follows the run: its status, output and submission, both through
Kaggle's own client (kaggle_client.py). In the kernel, `install_wheels.py` runs in the first cell; `smoke_test.py` is
the smoke kernel, and kernel/pretraining_session.py what a pretraining kernel calls. `rehearsal.py` executes the bundles
as Kaggle would, a run at a time (rehearsal_run.py): docker_image.py is Kaggle's Python (versions in docker_images/),
sandbox.py its machine, network_guard.py the missing network; rehearsal_inputs.py and repack_wheels.py give it inputs.
"""

#: The three datasets: folder name -> slug on Kaggle, which is also the folder name of the mount.
SLUGS = {"code": "siimcovid-code", "weights": "siimcovid-weights", "wheels": "siimcovid-wheels"}

#: The kernel's folder beside the three.
KERNEL = "kernel"

#: The file by which the notebook's first cell knows the package, seen from the folder that it puts on sys.path.
CODE_MARKER = "siimcovid/kernel/steps.py"

#: Stands for the owner in the kernel-metadata.json of the repository.
OWNER_PLACEHOLDER = "your-kaggle-name"

#: The package in the code dataset. Kaggle unpacks it, into a folder of its name or into the dataset's own.
CODE_ARCHIVE = "siimcovid.zip"

#: The list of the wheels in their dataset, which is how the folder is known: a pinned line with checksums for each.
WHEEL_LIST = "siimcovid-wheels.txt"
