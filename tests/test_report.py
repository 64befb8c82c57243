"""Result files, the numbers in them, and the report made of them."""

import base64
import json

import numpy as np
import pytest
from scipy import stats

from perfalign_jax.report import (
    Options,
    Result,
    Row,
    format_number,
    interval_of_mean,
    load_result,
    percentile_of,
    save_result,
    write_report,
)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_interval_is_scipy_s(rng):
    values = rng.normal(size=12)
    mean, low, high = interval_of_mean(values)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((wanted.low, wanted.high))
    assert mean == pytest.approx(values.mean())
    assert interval_of_mean(np.array([2.0])) == (2.0, -np.inf, np.inf)
    with pytest.raises(ValueError, match="at least one number"):
        interval_of_mean(np.array([]))


def test_interval_covers_as_often_as_it_says(rng):
    covered = [
        low <= 0 <= high
        for _, low, high in (interval_of_mean(rng.normal(size=5)) for _ in range(2000))
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # three standard errors


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
