"""`siimcovid score RUN | SUBMISSION… --images CSV --studies CSV`: the official score, Table 1 and Table 2.

With a run's folder, every model of it against the answers beside its competition; with submissions, whoever made them,
against the truth that is named. Of several, each further one is compared with the first by a paired bootstrap over
patients (evaluation/paired_bootstrap.py).
"""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid score first.csv second.csv --images truth_images.csv --studies truth_studies.csv --index index.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("what", nargs="+", metavar="RUN|CSV", help="a run's folder, or submissions: FILE or NAME=FILE")
    parser.add_argument("--images", type=Path, help="the truth, as train_image_level.csv (or .csv.gz)")
    parser.add_argument("--studies", type=Path, help="the truth, as train_study_level.csv (or .csv.gz)")
    parser.add_argument("--ground-truth", type=Path, metavar="DIR", help="a run's answers that do not lie beside it")
    parser.add_argument("--index", type=Path, metavar="CSV", help="image_id, study_id, patient_id: draw patients")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap over patients (default %(default)s)")
    parser.add_argument("--subset", action="store_true", help="score only the ids submitted")
    parser.add_argument("--threshold", type=float, help="confidence from which boxes count (default 0.1)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the six average precisions and their mean (by model if several)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the tables as CSV and the curves as PNG")


def run(args: argparse.Namespace) -> int:
    """Print the scores and their companions; a class without truth is null in the JSON."""
    from siimcovid.core.files import check_writable, make_folder, nan_to_null, write_json
    from siimcovid.evaluation.report_tables import as_text, compared

    if args.json:
        check_writable(args.json)
    if args.out:
        make_folder(args.out)
    evaluations = _evaluations(args)
    print(as_text(evaluations[0]) if len(evaluations) == 1 else compared(evaluations))
    if len(args.what) > 1:
        print(_bootstrap(args))
    if args.json:
        scores = nan_to_null({e.name: e.scores for e in evaluations})
        write_json(args.json, scores if len(scores) > 1 else scores[evaluations[0].name])
    if args.out:
        _write(evaluations, args.out)
    return 0


def _evaluations(args: argparse.Namespace) -> list:
    from siimcovid.core.errors import InputError
    from siimcovid.core.labels import STUDY_COLUMNS
    from siimcovid.evaluation.report_tables import THRESHOLD, evaluate
    from siimcovid.evaluation.submission_csv import read_table
    from siimcovid.reporting.run_folder import evaluate_run, read_run

    threshold = THRESHOLD if args.threshold is None else args.threshold
    if len(args.what) == 1 and Path(args.what[0]).is_dir():
        folder = read_run(args.what[0], args.ground_truth)
        if folder.ground_truth is None:
            raise InputError(
                f"no answers beside the competition of {args.what[0]}: name their folder with --ground-truth"
            )
        if not folder.finished:
            raise InputError(f"{args.what[0]} has not come to its submissions: let the run finish")
        return evaluate_run(folder, threshold)
    if args.images is None or args.studies is None:
        raise InputError("name the truth of a submission with --images and --studies")
    images = read_table(args.images, ("id", "label"))
    studies = read_table(args.studies, ("id", *STUDY_COLUMNS))
    return [
        evaluate(name, read_table(file, ("id", "PredictionString")), images, studies, threshold, args.subset)
        for name, file in _named(args.what).items()
    ]


def _named(texts: list[str]) -> dict[str, Path]:
    """Name -> file of submissions given as FILE or NAME=FILE. Raises InputError for a name that stands there twice."""
    from siimcovid.core.errors import InputError

    named: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.rpartition("=")
        name = name or Path(file).name.removesuffix(".gz").removesuffix(".csv")
        if name in named:
            raise InputError(f"two submissions are called {name}: name them, as in first={file}")
        named[name] = Path(file)
    return named


def _bootstrap(args: argparse.Namespace) -> str:
    """Each further submission beside the first, by a paired bootstrap."""
    from siimcovid.core.labels import STUDY_COLUMNS
    from siimcovid.core.tables import read_csv
    from siimcovid.evaluation import paired_bootstrap
    from siimcovid.evaluation.submission_csv import read_table

    images = read_csv(args.images, ("id", "label"))
    studies = read_table(args.studies, ("id", *STUDY_COLUMNS))
    submissions = {name: read_table(file, ("id", "PredictionString")) for name, file in _named(args.what).items()}
    ids = [*studies["id"], *images["id"]]
    if args.subset:
        ids = [name for name in ids if name in set(next(iter(submissions.values()))["id"])]
    if args.index:
        index = read_csv(args.index, ("image_id", "study_id", "patient_id"))
        unit, groups = "patients", paired_bootstrap.group_by_index(ids, index)
    elif "StudyInstanceUID" not in images:
        return "\nwhich one is better is not tested: name the patients with --index"
    else:
        unit = "studies (no --index, so not over patients)"
        groups = paired_bootstrap.group_by_study(ids, images)
    of_id = dict(zip(ids, groups, strict=True))
    found = paired_bootstrap.paired_bootstrap(submissions, images, studies, of_id, args.draws, subset=args.subset)
    return "\n\n".join(["", *(paired_bootstrap.as_text(one, unit) for one in found)])


def _write(evaluations: list, folder: Path) -> None:
    """scores.csv, table1.csv, table2.csv, confusion.csv and .png, pr_curves.png, f1.png and calibration.png."""
    import pandas as pd

    from siimcovid.core.files import atomic_path, write_csv
    from siimcovid.core.labels import STUDY_LABELS
    from siimcovid.evaluation.report_tables import score_table, table_1, table_2
    from siimcovid.reporting import figures

    tables = {"scores": score_table(evaluations), "table1": table_1(evaluations), "table2": table_2(evaluations)}
    rows = {(e.name, STUDY_LABELS[i]): row for e in evaluations for i, row in enumerate(e.study_labels["confusion"])}
    confusion = pd.DataFrame(rows.values(), index=pd.MultiIndex.from_tuples(rows, names=["model", "truth"]))
    tables["confusion"] = confusion.set_axis(list(STUDY_LABELS), axis=1)
    pictures = {
        "pr_curves": figures.precision_recall(evaluations),
        "f1": figures.f1_curves(evaluations),
        "confusion": figures.confusion(
            evaluations[-1].study_labels["confusion"], f"Study labels: {evaluations[-1].name}"
        ),
        "calibration": figures.calibration(evaluations),
    }
    for name, table in tables.items():
        write_csv(table, folder / f"{name}.csv", index=True)
    for name, figure in pictures.items():
        with atomic_path(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=120, metadata={"Software": None})
    print(f"{folder}: " + ", ".join([*(f"{name}.csv" for name in tables), *(f"{name}.png" for name in pictures)]))
