"""The page: whole, self-contained, the same twice, and honest about what is missing."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup
from PIL import Image

from siimcovid.apps.command_line import main
from siimcovid.evaluation.report_tables import evaluate
from siimcovid.reporting import figures
from siimcovid.reporting.html import learning_curve_section
from siimcovid.reporting.html.error_section import ensemble_section, error_section
from siimcovid.reporting.html.example_gallery import Verdict, choose, verdicts
from siimcovid.reporting.html.html_report import render, run_page
from siimcovid.reporting.html.inline_svg import inline
from siimcovid.reporting.html.score_sections import result_sections
from siimcovid.reporting.run_folder import evaluate_run, read_run
from support.run_folder import IMAGES, write_run


class Parsed(HTMLParser):
    """Elements, ids, links and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, attribute):
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(run):
    """The page as the command writes it, in a process that orders sets and hashes in its own way."""
    code = "import sys; from siimcovid.apps.command_line import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, "report", str(run)], check=True, env=environment, capture_output=True)
    return (run / "report.html").read_text(encoding="utf-8")


def changed(run, tmp_path, **facts):
    """A copy of the run whose run.json says something else."""
    copy = shutil.copytree(run, tmp_path / "run")
    record = json.loads((copy / "run.json").read_text()) | facts
    (copy / "run.json").write_text(json.dumps(record))
    return copy


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their pictures, which take nearly all of the time."""
    for module in ("score_sections", "training_sections", "dataset_section"):
        monkeypatch.setattr(
            f"siimcovid.reporting.html.{module}.inline", lambda figure, name, alt: Markup("<i>{}</i>").format(alt)
        )


def text_of(run, *arguments):
    return Parsed(render(run_page(read_run(run, *arguments)))).text


def test_nothing_is_loaded_from_elsewhere(page):
    parsed = Parsed(page)
    assert not {tag for tag, _ in parsed.elements} & {"script", "iframe", "object", "embed"}
    links = [link for name in ("href", "src", "xlink:href") for link in parsed.all(name)]
    assert links
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_ids_are_one_of_a_kind_and_every_link_has_its_target(page):
    parsed = Parsed(page)
    ids = parsed.all("id")
    assert len(ids) == len(set(ids))
    wanted = {link[1:] for name in ("href", "xlink:href") for link in parsed.all(name) if link.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page)) | set(parsed.all("aria-labelledby"))
    assert wanted <= set(ids)


def test_every_picture_says_what_it_shows(page):
    parsed = Parsed(page)
    pictures = [attributes for tag, attributes in parsed.elements if tag == "svg" and "class" not in attributes]
    assert len(pictures) > 20
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 8 for picture in pictures)
    headings = [tag for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert headings.count("h1") == 1
    assert headings[0] == "h1"
    assert parsed.elements[0] == ("html", {"lang": "en"})


def test_contents_and_banners(page):
    parsed = Parsed(page)
    for title in (
        "Official score",
        "Worst errors",
        "Boxes",
        "Study labels",
        "Calibration",
        "Images",
        "Training",
        "Time",
        "Data",
        "Settings",
    ):
        assert parsed.words.count(title) >= 2  # in the contents and above its section
    assert "not for diagnosis" in parsed.text
    assert "The images are synthetic" in parsed.text


def test_figures_are_those_of_the_evaluation(run, page):
    text = Parsed(page).text
    evaluations = evaluate_run(read_run(run))
    assert [e.name for e in evaluations] == ["rcnn", "yolo", "ensemble"]
    first, yolo = evaluations[:2]
    # by hand: hits at .9 and .8, false at .7, a hit at .6 of five true boxes
    assert first.scores["opacity"] == pytest.approx((1 + 1 + 3 / 4) / 5)
    assert first.boxes == pytest.approx(
        {"mAP@.50": 0.55, "positives": 0.55, "F1": 6 / 10, "recall": 3 / 5, "precision": 3 / 5}
    )
    assert yolo.boxes["recall"] == pytest.approx(2 / 5)
    assert first.study_labels["accuracy"] == 0.5
    for evaluation in evaluations:
        for value in (*evaluation.scores.values(), *list(evaluation.boxes.values())):
            assert f"{value:.3f}" in text
    assert "0.669" in text  # the report's own, for comparison


def test_the_worst_errors_are_named(run, undrawn):
    """By hand: of `half` a box is missed, one found at .6, one false at .55, and the study label wrong by .9 - .03."""
    (section,) = error_section(read_run(run))
    (table,) = section.blocks
    assert [row[0] for row in table.rows] == ["half", "missed", "found"]
    assert table.rows[0][1:] == [
        f"{1 + 0.4 + 0.55 + 0.87:.2f}",
        "1 of 2 boxes missed; box found at 0.60 only; false box at 0.55; "
        "typical at 0.90 where indeterminate (0.03) is true",
    ]
    assert table.rows[1][1:] == [f"{1 + 0.7:.2f}", "1 of 1 boxes missed; false box at 0.70"]  # labels at .3 are equal
    assert table.rows[2][1:] == ["0.20", "box found at 0.80 only"]  # the other, at .9, is good enough
    assert error_section(replace(read_run(run), ground_truth=None)) == []


def test_how_the_models_were_combined_is_shown(run, tmp_path, undrawn):
    scores = {"none": 0.5, "opacity": 0.25, "mean": 0.375}
    facts = {
        "source": "siim, fold 0 that no model was trained on", "choice": "fitted", "images": 811, "left_out": ["yolo"],
        "choices": {"fitted": scores, "preset": {**scores, "mean": None}},
        "items": [{"item": "none", "gain": 0.0125, "kept": True}, {"item": "fusion", "gain": None, "kept": False}],
    }  # fmt: skip
    assert ensemble_section(read_run(run)) == []
    (section,) = ensemble_section(read_run(changed(run, tmp_path, ensemble=facts)))
    note, choices, items = section.blocks
    assert note.text == "The numbers that combine the models come from: siim, fold 0 that no model was trained on."
    assert choices.rows == [["fitted", *"––––", "0.500", "0.250", "0.375"], ["preset", *"––––", "0.500", "0.250", "–"]]
    assert "811 images" in choices.note
    assert "left out of the fusion: yolo" in choices.note
    assert items.rows == [["none", "+0.013", "kept"], ["fusion", "–", "left out"]]


def test_the_reports_own_figures_stand_beside_ours(run, undrawn):
    _, boxes, labels, *_ = result_sections(evaluate_run(read_run(run)))
    boxes, labels = boxes.blocks[0], labels.blocks[0].table
    assert boxes.head[1:] == [
        "Faster R-CNN", "YOLO", "ensemble", "Faster R-CNN, report", "YOLO, report", "ensemble, report",
    ]  # fmt: skip
    (row,) = (row for row in boxes.rows if row[0] == "mAP@.50, images with opacity")
    assert (row[1], row[4:]) == ("0.550", ["0.409", "0.345", "0.451"])
    assert labels.head[1:] == ["study model", "study model, report"]
    assert [row[2] for row in labels.rows] == ["0.669", "–", "–", "0.482", "0.405"]


def test_no_patient_is_named_and_no_folder(run, page):
    assert "secret" not in page
    assert str(run) not in page


def test_same_run_same_bytes(run, page, undrawn):
    """The page without its pictures, which `undrawn` leaves out, and three of the pictures."""
    without_pictures = re.sub(
        r'<svg xmlns.*?role="img" aria-label="(.*?)">.*?</svg>', r"<i>\1</i>", page, flags=re.DOTALL
    )
    assert without_pictures == render(run_page(read_run(run)))
    evaluations = evaluate_run(read_run(run))
    for figure, name in (
        (figures.f1_curves(evaluations), "f1"),
        (figures.precision_recall(evaluations, ["opacity"]), "pr-opacity"),
        (
            figures.confusion(evaluations[-1].study_labels["confusion"], "Confusion of the study labels"),
            "confusion-ensemble",
        ),
    ):
        drawn = inline(figure, name, "")
        assert drawn[drawn.index(">") :] in page


def test_what_went_wrong_is_said_and_escaped(run, tmp_path, undrawn):
    broken = changed(
        run,
        tmp_path,
        degraded=[
            {"step": "fit yolo", "reason": "<b>boom</b>", "fallback": "Faster R-CNN alone", "traceback": "line 1"}
        ],
        dropped=["test-time flips"],
        failures=[{"image_id": "f", "path": "/x/f.dcm", "reason": "truncated"}],
        problems=["a sample id without a file: 1 (q)"],
    )
    html = render(run_page(read_run(broken, run.parent / "competition.truth")))
    text = Parsed(html).text
    for said in (
        "fit yolo failed: <b>boom</b>. Instead: Faster R-CNN alone.",
        "line 1",
        "test-time flips",
        "truncated",
    ):
        assert said in text
    assert "Images that could not be read: 1" in text
    assert "<b>boom" not in html
    assert "Nothing: no step failed" not in text


def without(*names):
    def remove(run):
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def no_train_part(run):
    lines = (run / "index.csv").read_text().splitlines()
    (run / "index.csv").write_text("\n".join(line for line in lines if ",train," not in line) + "\n")


def bare(run):
    without(
        "detections.csv", "study_probabilities.csv", "submissions", "submission.csv", "weights", "cache", "index.csv"
    )(run)
    (run / "run.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "facts", "said"),
    [
        (lambda run: None, {"competition": "/nowhere"}, "No ground truth lies beside the competition"),
        (without("weights"), {"mode": "infer"}, "trained nothing"),
        (no_train_part, {}, "read no train part"),
        (without("cache"), {}, "The prepared images are gone"),
        (without("detections.csv"), {}, "detected nothing yet"),
        (without("submissions"), {"seconds": {"index": 1.0}}, "has not come to its submissions"),
        (without("submissions/yolo.csv", "study_probabilities.csv"), {}, "YOLO"),
        (bare, {}, "No step has finished yet"),
    ],
)
def test_a_run_that_lacks_something(run, tmp_path, damage, facts, said, undrawn):
    truth = run.parent / "competition.truth"
    broken = changed(run, tmp_path, **{"competition": str(truth.with_suffix("")), **facts})
    damage(broken)
    assert said in text_of(broken)


def test_answers_that_do_not_fit_are_a_sentence(run, tmp_path, undrawn):
    broken = changed(run, tmp_path, competition="/nowhere")
    table = (broken / "submission.csv").read_text().replace("clear_image", "other_image")
    (broken / "submission.csv").write_text(table)
    text = text_of(broken, run.parent / "competition.truth")
    assert "The submissions and the ground truth do not fit: 1 ids are submitted but not in the truth" in text


def test_recorded_scores_where_the_answers_are_gone(run, tmp_path, undrawn):
    gone = changed(run, tmp_path, competition="/nowhere")
    scores = dict.fromkeys(("negative", "typical", "indeterminate", "atypical", "none", "opacity", "mean"), 0.1234)
    (gone / "scores.json").write_text(json.dumps({"ensemble": scores | {"atypical": None}}))
    text = text_of(gone)
    assert "As the run recorded it" in text
    assert text.count("0.123") == 6


def test_examples_by_hand():
    """Quality is the mean confidence of the true boxes found, less the highest false one."""
    import pandas as pd

    found = pd.DataFrame(
        [(name, score, *box) for name, (_, _, said) in IMAGES.items() for score, box in said],
        columns=["image_id", "score", "x1", "y1", "x2", "y2"],
    )
    rows = verdicts(found, {name: boxes for name, (_, boxes, _) in IMAGES.items()})
    assert {row.image_id: pytest.approx(row.quality) for row in rows} == {
        "clear": -0.05,
        "found": 0.85,
        "half": 0.3 - 0.55,
        "missed": -0.7,
    }
    assert {row.image_id: row.false_alarm for row in rows} == {"clear": 0.05, "found": 0, "half": 0.55, "missed": 0.7}


def test_each_image_is_shown_once():
    rows = [Verdict(f"f{i}", quality=1 - i / 10, false_alarm=i / 10, true_boxes=1) for i in range(8)]
    rows.append(Verdict("clear", quality=-0.9, false_alarm=0.95, true_boxes=0))
    chosen = choose(rows, ["f7", "f3"])
    assert chosen == {
        "best": ["f0", "f1", "f2"],
        "worst": ["f7", "f6", "f5"],
        "false": ["clear", "f4", "f3"],
        "study_label": [],
    }


def test_threshold_of_table_1(run, tmp_path, undrawn):
    evaluations = evaluate_run(read_run(run), threshold=0.75)
    assert evaluations[-1].boxes["precision"] == 1.0
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out), "--threshold", "0.75"]) == 0
    assert "Boxes of confidence 0.75 and above" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "give a run's folder"), (["/nowhere"], "run.json"), (["--nih", "/nowhere"], "NIH")]
)
def test_bad_input_is_a_sentence(arguments, said, tmp_path, capsys):
    assert main(["report", *arguments, "--out", str(tmp_path / "page.html")]) == 2
    assert said in capsys.readouterr().err


def test_data_section_of_the_competition(real, tmp_path):
    """The figures that are published of the competition's own CSVs."""
    labels, out = real / "labels", tmp_path / "data.html"
    tables = [str(labels / f"{t}.csv.gz") for t in ("train_meta_patient_series", "image_sizes_train_test_meta")]
    arguments = ["--data", str(labels), "--headers", *tables, "--nih", str(real / "nih"), "--out", str(out)]
    assert main(["report", *arguments]) == 0
    text = Parsed(out.read_text(encoding="utf-8")).text
    for said in (
        *("images 6,334", "studies 6,054", "patients 3,261", "boxes 7,853"),
        *("1,676 (28%)", "2,855 (47%)", "1,049 (17%)", "474 (8%)"),  # Figure 4
        *("2,040", "973", "3,113", "183", "23"),  # Figure 5
        *("median 7.5 %", "90 % of them in 1.6 to 20.8 %"),  # Figure 6
        *("width 0.103 0.215 0.347", "height 0.137 0.362 0.653", "area 0.016 0.075 0.208", "0.516"),
        "1: 5,822, 2: 207, 3: 15, 4: 4, 5: 3, 6: 1, 7: 1, 9: 1",
        *("2336 x 2836", "3480 x 4240", "3480 x 4248", "3488 x 4256"),
        "findings on 782 images",
    ):
        assert said in text


@pytest.mark.browser
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium and chromedriver"
)
@pytest.mark.parametrize(("name", "width", "height"), [("report", 1100, 1600), ("report-phone", 390, 844)])
def test_fits_the_screen(page, tmp_path, name, width, height):
    """No sideways scrolling; SIIMCOVID_RUN=runs/demo SIIMCOVID_SCREENSHOTS=docs makes docs/report.png of that run."""
    from selenium import webdriver

    if chosen := os.environ.get("SIIMCOVID_RUN"):
        page = render(run_page(read_run(chosen)))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    screen = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1, "mobile": width < 500}}
    options.add_experimental_option("mobileEmulation", screen)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.get((tmp_path / "page.html").as_uri())
        wide = "return [document.documentElement.scrollWidth, document.querySelectorAll('.panel rect').length]"
        scrolled, boxes = browser.execute_script(wide)
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
        assert browser.get_log("browser") == []
    assert scrolled <= width
    assert boxes > 5
    assert picture.size == (width, height)
    if name == "report":
        target = Path(os.environ.get("SIIMCOVID_SCREENSHOTS", tmp_path), "report.png")
        picture.convert("RGB").save(target, optimize=True)


def test_boxes_are_drawn_where_they_are(page):
    """The true boxes of the image of 100 x 80 pixels, in its own units."""
    rectangles = {
        tuple(float(attributes[key]) for key in ("x", "y", "width", "height"))
        for tag, attributes in Parsed(page).elements
        if tag == "rect" and "opacity" in attributes
    }
    assert {(10, 16, 30, 40), (60, 16, 30, 40)} <= rectangles  # LEFT and RIGHT


def test_evaluation_needs_no_run(run):
    """Anybody's submission and truth do."""
    import pandas as pd

    truth = run.parent / "competition.truth"
    tables = [pd.read_csv(truth / f"test_{kind}_level.csv", dtype=str) for kind in ("image", "study")]
    answers = pd.read_csv(run / "submission.csv", dtype=str)
    assert evaluate("mine", answers, *tables).scores == evaluate_run(read_run(run))[-1].scores


def test_a_learning_curve_of_a_folder_of_runs(run, tmp_path, undrawn, monkeypatch):
    """Three annotated train images in the one, two in the other, in that order whatever their names."""
    monkeypatch.setattr(learning_curve_section, "inline", lambda figure, name, alt: Markup("<i>{}</i>").format(alt))
    scores = {"negative": 0.1, "typical": 0.2, "indeterminate": 0.3, "atypical": None, "none": 0.5, "opacity": 0.6}
    index = (run / "index.csv").read_text(encoding="utf-8")
    for name, text in (("a", index), ("b", re.sub(".*train2.*\n", "", index)), ("none", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps({"ensemble": scores | {"mean": 0.34}}))
        if text:
            (tmp_path / name / "index.csv").write_text(text, encoding="utf-8")
    (beside,) = learning_curve_section.learning_curve_section(tmp_path).blocks
    assert beside.table.rows == [
        ["b (2 images)", "0.200", "0.500", "0.600", "0.340"],
        ["a (3 images)", "0.200", "0.500", "0.600", "0.340"],
    ]
    (note,) = learning_curve_section.learning_curve_section(tmp_path / "a").blocks
    assert "no run with scores" in note.text
