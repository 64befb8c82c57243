"""Result files, the numbers in them, and the report made of them."""

import base64
import json

import numpy as np
import pytest
from _kit import results
from _kit.options import Options
from _kit.report import (
    Result,
    Row,
    format_number,
    load_result,
    percentile_of,
    reduce,
    save_result,
    write_report,
)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_percentile_counts_ties_half():
    assert percentile_of(1.0, np.array([0.0, 1.0, 1.0, 2.0])) == 50
    assert percentile_of(0.0, np.array([1.0, 2.0])) == 0
    assert percentile_of(9.0, np.array([1.0, 2.0])) == 100


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (12.345, "12.3"), (99.96, "100.0"), (123456.0, "123456"),
     (1e7, "1.00e+07"), (-0.5, "-0.500"), (2.2e-16, "2.20e-16"), (np.inf, "inf"), (np.nan, "nan")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert format_number(value) == text


def test_options_exclude_each_other():
    assert [Options().scale, Options(full=True).scale] == ["default", "full"]
    with pytest.raises(ValueError, match="exclude each other"):
        Options(quick=True, full=True)


def test_results_do_not_go_into_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        Options(out=tmp_path / "file")


def make(out, name, **fields):
    (out / "figures").mkdir(exist_ok=True)
    (out / "figures" / "a.png").write_bytes(PNG)
    rows = [Row("CMAE <b>", paper="3.66e-15", ours="2 | 3", interval="[1, 4]", verdict="ok")]
    return save_result(Result(name, f"Title {name}", "A & B.", rows, **fields), out)


def test_result_file_says_where_its_numbers_come_from(tmp_path):
    values = {"array": np.arange(3), "path": tmp_path, 7: [np.float32("nan"), -np.inf, np.True_]}
    path = make(tmp_path, "first", values=values, config={"scale": "quick", "seed": 0})
    content = load_result(path)
    assert content["values"]["array"] == [0, 1, 2]
    assert content["values"]["7"] == [None, None, True]
    assert "NaN" not in path.read_text()  # which is no JSON
    assert content["config"]["seed"] == 0
    assert {"jax", "jaxlib", "numpy", "python", "device", "dtype"} <= set(content["provenance"])


def test_report_stands_alone(tmp_path):
    make(tmp_path, "first", figures={"a.png": "A <figure>"}, config={"scale": "quick"})
    make(tmp_path, "second")
    page, text = write_report(tmp_path, order=["second", "first", "third"], title="The <title>")
    html = page.read_text()
    assert html.index("Title second") < html.index("Title first")
    assert "CMAE &lt;b&gt;" in html
    assert "A &amp; B." in html
    assert base64.b64encode(PNG).decode() in html
    assert "Not run: third." in html
    assert "too small to be compared with the paper: first" in html
    assert "src='figures" not in html
    assert "<th>note</th>" not in html  # an empty column is left out
    markdown = text.read_text()
    assert "| CMAE <b> | 3.66e-15 | 2 \\| 3 | [1, 4] | ok |" in markdown


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names a missing figure: b.png"):
        save_result(Result("x", "X", "", figures={"b.png": ""}), tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not a result file"):
        load_result(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(ValueError, match="is not a result file"):
        write_report(tmp_path, order=["bad"], title="T")


def test_only_short_numbers_keep_to_one_line(tmp_path):
    sentence = "13 orders of magnitude worse above the threshold"
    row = Row("CMAE", paper=sentence, ours="5.7e-15", interval="1.0e-15 to 2.4e-14")
    save_result(Result("one", "One", "Text.", [row]), tmp_path)
    page = write_report(tmp_path, order=["one"], title="Report")[0].read_text()
    assert f"<td>{sentence}</td>" in page
    for number in ("5.7e-15", "1.0e-15 to 2.4e-14"):
        assert f"<td class='number'>{number}</td>" in page


def test_less_than_the_full_protocol_is_never_set_beside_the_paper(tmp_path):
    row = Row("CMAE", paper="3.66e-15", ours="2.1e-15", verdict="reproduced")
    own = Row("cells", ours="9 of 9", verdict="as derived")
    assert reduce([row, own], "") == [row, own]
    save_result(
        Result("one", "One", "Text.", reduce([row, own], "quick: 2 of 500 draws")), tmp_path
    )
    page, text = write_report(tmp_path, order=["one"], title="Report")
    for content in (page.read_text(), text.read_text()):
        assert "quick: 2 of 500 draws" in content
        assert "3.66e-15" not in content
        assert "reproduced" not in content
        assert "as derived" in content


def test_the_page_of_results_comes_from_the_committed_files():
    files = results.PAGE.parent / "results"
    assert results.PAGE.read_text() == results.make_page(files)
    for file in {*files.glob("*.json")} - {files / results.TIMES}:
        assert load_result(file)["config"]["scale"] != "quick"


def test_results_are_taken_without_what_every_draw_gave_and_never_of_a_quick_run(tmp_path):
    make(tmp_path, "remarks", values={"all": [1, 2]}, config={"scale": "default"})
    assert results.take(tmp_path, tmp_path / "docs") == ["remarks"]
    assert load_result(tmp_path / "docs" / "remarks.json")["values"] == {}
    make(tmp_path, "remarks", config={"scale": "quick"})
    with pytest.raises(ValueError, match="comes from a quick run"):
        results.take(tmp_path, tmp_path / "docs")
