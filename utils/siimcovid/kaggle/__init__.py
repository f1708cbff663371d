"""What is uploaded to Kaggle, and how it is tried at home first.

    repository ──────── code.py ────> datasets/code/     siimcovid.zip: the package
    a weights folder ── weights.py ─> datasets/weights/  manifest.json and the files that it vouches for
    requirements.lock ─ wheels.py ──> datasets/wheels/   what Kaggle's Python lacks, with checksums
    notebook ────────── kernel.py ──> datasets/kernel/   the notebook and kernel-metadata.json, which names all three

`build.py` makes the four folders, `push.py` hands them to Kaggle's own client, `install.py` runs in the kernel's first
cell, and `check.py` executes them as Kaggle would: `image.py` is its Python, `sandbox.py` its machine, `recover.py` its
missing network, `trial.py` and `repack.py` give it inputs.
"""

#: The three datasets: folder name -> slug on Kaggle, which is also the folder name of the mount.
SLUGS = {"code": "siimcovid-code", "weights": "siimcovid-weights", "wheels": "siimcovid-wheels"}

#: The kernel's folder beside the three.
KERNEL = "kernel"

#: Stands for the owner in the kernel-metadata.json of the repository.
NOBODY = "your-kaggle-name"

#: The package in the code dataset. Kaggle unpacks it, into a folder of its name or into the dataset's own.
CODE_ARCHIVE = "siimcovid.zip"

#: The list of the wheels in their dataset, which is how the folder is known: a pinned line with checksums for each.
WHEEL_LIST = "siimcovid-wheels.txt"
