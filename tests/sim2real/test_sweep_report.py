"""The page of a sweep says what its files say, whatever came of the trials, and escapes what comes from outside."""

import html
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sim2real.errors import ModelError
from sim2real.report.notation import digits
from sim2real.report.sweep_page import ENOUGH, PAGE, Key, Scale, importance, read_sweep, write_sweep_report

HOSTILE = '</script><b>"&'
WINDOW, RATE, HIDDEN = "identify.window", "model.rate", "model.hidden"
KEYS = {WINDOW: "U(0.3, 0.8)", RATE: "LogU(1e-4, 1e-2)", HIDDEN: "choice([64, 64], [32, 32], big)"}
VALUES = {WINDOW: 0.5, RATE: 1e-3, HIDDEN: "[32, 32]"}


def trial(score: float, status: str = "finished", share: float = 1.0, **values: Any) -> dict[str, Any]:
    return {**VALUES, **values, "score": score, "status": status, "share": share, "seconds": 12.0}


def failed(reason: str, **values: Any) -> dict[str, Any]:
    return trial(math.nan, f"failed: {reason}", 0.0, **values)


def drawn(trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """Trials whose score depends on the learning rate alone."""
    draws, rows = np.random.default_rng(seed), [trial(0.5)]
    for _ in range(trials):
        window, rate = draws.uniform(0.3, 0.8), float(np.exp(draws.uniform(math.log(1e-4), math.log(1e-2))))
        score = 0.1 + abs(math.log(rate / 2e-3))
        rows.append(trial(score, **{WINDOW: window, RATE: rate, HIDDEN: str(draws.choice(["[32, 32]", "big"]))}))
    return rows


def kept(folder: Path, rows: list[dict[str, Any]], keys: dict[str, str] = KEYS, **told: Any) -> Path:
    """Write a directory of a sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*keys, "score", "status", "share", "seconds"]
    table = {"trial": list(range(len(rows))), **{name: [row[name] for row in rows] for name in names}}
    parquet.write_table(pa.table(table), folder / "results.parquet")
    document = {
        "objective": "identify",
        "measure": "NRMSE of the identified simulator",
        "better": "less",
        "keys": keys,
        "best_score": 0.0,
        "baseline_score": rows[0]["score"],
        "trials": len(rows) - 1,
        "concurrent": 2,
        "wall_seconds": 90.0,
        "busy_fraction": 0.87,
        "confirmed": None,
        **told,
    }
    (folder / "sweep.json").write_text(json.dumps(document))
    return folder


def page(folder: Path) -> str:
    """Return the page without plotly and the style."""
    path = write_sweep_report(folder)
    assert path == folder / PAGE
    return path.read_text()[path.read_text().index("<body>") :]


def words(text: str) -> str:
    """Return what a reader sees: no figures, no tags."""
    text = re.sub(r"<script.*?</script>", " ", text, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", " ", text.replace("<wbr>", "")))
    return " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())


def figures(text: str) -> dict[str, Any]:
    """Return the figures of a page by their titles."""
    found = re.findall(r'aria-label="([^"]*)"></div>\s*<script type="application/json"[^>]*>(.*?)</script>', text, re.S)
    return {html.unescape(title): json.loads(figure) for title, figure in found}


def strip(text: str) -> dict[str, tuple[str, str]]:
    """Return the key figures by their labels."""
    found = re.findall(
        r'<li[^>]*><span class="label">(.*?)</span><strong>(.*?)</strong><span class="detail">(.*?)</s', text
    )
    return {label: (words(figure), words(detail)) for label, figure, detail in found}


def named(figure: Any, name: str) -> Any:
    return next(trace for trace in figure["data"] if trace.get("name") == name)


def test_key_figures_and_values_are_those_of_the_data(tmp_path: Path) -> None:
    rows = [
        trial(0.5),
        trial(0.25, **{WINDOW: 0.612345, RATE: 2.5e-3, HIDDEN: "big"}),
        trial(0.4),
        trial(0.01, "stopped early", 1 / 3),
        failed("too short"),
    ]
    text = page(kept(tmp_path / "arm-sweep-0a1b", rows))
    found = strip(text)
    assert found["best score"] == ("0.250", "trial 1; unswept 0.500: 2.0 times smaller")
    assert [found[k][0] for k in ("finished", "stopped early", "failed")] == ["2", "1", "1"]
    assert found["stopped early"][1] == "scored with 33 % of the data"
    assert found["wall time"] == ("90 s", "2 at once; cores busy 87 % of it; trials and unswept together 60 s")
    assert "<h1>arm</h1>" in text
    table = words(text[text.index('aria-label="Values"') : text.index('id="parallel"')])
    for key, unswept, best in (
        ("window", "0.5", "0.612345"),
        ("rate", "0.001", "0.0025"),
        ("hidden", "[32, 32]", "big"),
    ):
        assert f"{key} {unswept} {best}" in table
    assert all(notation in table for notation in KEYS.values())


def test_scores_of_smaller_shares_are_never_the_best(tmp_path: Path) -> None:
    text = page(kept(tmp_path, [trial(0.5), trial(0.01, "stopped early", 1 / 3), trial(0.6)]))
    assert "None of 2 trials was better than the recipe as it was, which scores 0.500." in words(text)
    assert named(figures(text)["In the order of the trials"], "best so far")["y"] == [0.5, 0.5, 0.5]


def test_more_can_be_better(tmp_path: Path) -> None:
    text = page(kept(tmp_path, [trial(0.5), trial(0.75), trial(0.2)], better="more"))
    assert "The best of 2 trials scores 0.750, the recipe as it was 0.500: 50 % larger." in words(text)
    assert named(figures(text)["In the order of the trials"], "best so far")["y"] == [0.5, 0.75, 0.75, 0.75]


def test_every_finished_trial_is_drawn_where_its_values_are(tmp_path: Path) -> None:
    rows = drawn(30)
    drawing = figures(page(kept(tmp_path, rows)))
    best = min(range(31), key=lambda i: rows[i]["score"])
    others = [row for i, row in enumerate(rows) if i not in (0, best)]
    for key in (WINDOW, RATE):
        dots = named(drawing[key], "finished")
        assert dots["x"] == pytest.approx([row[key] for row in others])
        assert dots["y"] == pytest.approx([row["score"] for row in others])
        assert named(drawing[key], "after")["x"] == pytest.approx([rows[best][key]])
    assert drawing[RATE]["layout"]["xaxis"]["type"] == "log"
    assert "type" not in drawing[WINDOW]["layout"]["xaxis"]
    lines = [trace for trace in drawing["Parallel coordinates"]["data"] if "text" in trace]
    assert len(lines) == len(rows)
    assert sum(trace.get("name") == "after" for trace in lines) == 1
    line = named(drawing["Parallel coordinates"], "after")
    expected = [(rows[best][WINDOW] - 0.3) / 0.5, math.log10(rows[best][RATE] / 1e-4) / 2]
    assert line["x"][:2] == pytest.approx(expected)
    assert line["x"][-1] == pytest.approx(0.0)  # nothing is better


def test_the_path_of_one_that_was_stopped_ends_before_the_score(tmp_path: Path) -> None:
    text = page(kept(tmp_path, [trial(0.5), trial(0.4), trial(0.7, "stopped early", 1 / 3)]))
    lines = [trace for trace in figures(text)["Parallel coordinates"]["data"] if "text" in trace]
    assert sorted(len(trace["x"]) for trace in lines) == [3, 4, 4]


def test_failures_are_grouped_by_reason(tmp_path: Path) -> None:
    rows = [
        trial(0.5),
        *(failed("too short", **{WINDOW: 0.3 + k / 100}) for k in range(3)),
        failed(HOSTILE),
        trial(0.4),
    ]
    text = page(kept(tmp_path, rows))
    table = text[text.index('aria-label="Failed trials"') :]
    told = words(table)
    assert told.index("3 trials too short") < told.index(f"1 trial {HOSTILE}")
    assert all(f"{k} {0.3 + (k - 1) / 100:.6g} 0.001 [32, 32] 12.0" in told for k in (1, 2, 3))
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;") in table
    assert strip(text)["failed"] == ("4", "for 2 reasons, listed below")


def test_many_failures_of_one_reason_are_counted_not_listed(tmp_path: Path) -> None:
    told = words(page(kept(tmp_path, [trial(0.5), *(failed("no") for _ in range(50))])))
    assert "50 trials no 30 of them are in results.parquet alone." in told


def test_nothing_from_outside_is_taken_for_html(tmp_path: Path) -> None:
    keys = {HOSTILE: f"choice({HOSTILE}, b)", "identify.<i>": "U(0, 1)"}
    rows = [{**trial(s), HOSTILE: HOSTILE, "identify.<i>": s} for s in (0.5, 0.4, 0.3)] + [
        {**failed(HOSTILE), HOSTILE: "b", "identify.<i>": 0.1}
    ]
    confirmed = {"seeds": [HOSTILE], "default": [1.0], "best": [0.5]}
    text = page(kept(tmp_path, rows, keys, measure=HOSTILE, objective=HOSTILE, confirmed=confirmed))
    assert HOSTILE not in text
    assert "<b>" not in text
    assert "<i>" not in text.replace("</i>", "")
    # what plotly reads is escaped once more, for its labels know some HTML
    assert "<b>" not in json.dumps([d["layout"] for d in figures(text).values()])
    assert text.count("<script") == text.count("</script>")


@pytest.mark.parametrize(
    "rows", [[trial(0.5)], [trial(0.5), failed("no")], [trial(math.nan), failed("a"), failed("b")]]
)
def test_without_a_scored_trial_figures_say_so(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    text = page(kept(tmp_path, rows, wall_seconds=0.0, busy_fraction=None))
    assert not figures(text)
    assert words(text).count("not applicable no trial was scored.") == 3
    verdict = words(re.search(r'<p class="verdict">(.*?)</p>', text)[1])  # type: ignore[index]
    start = {1: "No trial was run", 2: "The only trial failed", 3: "All 2 trials failed"}[len(rows)]
    assert verdict == f"{start}; the recipe as it was scores {digits(rows[0]['score'])}."
    assert "cores busy" not in text


def test_a_finished_trial_without_a_finite_score_is_counted_but_not_drawn(tmp_path: Path) -> None:
    text = page(kept(tmp_path, [trial(0.5), trial(math.inf), trial(-math.inf), trial(math.nan), trial(0.4)]))
    assert strip(text)["finished"] == ("4", "of 4 trials, scored in full; 3 without a finite score")
    assert strip(text)["best score"][0] == "0.400"
    line = named(figures(text)["In the order of the trials"], "best so far")
    assert line["y"] == [0.5, 0.4, 0.4]


def test_one_far_worse_score_does_not_stretch_the_axes(tmp_path: Path) -> None:
    rows = [trial(s) for s in (-1.0, -1.1, -1.2, -1.3, -1.05, -1.15, -1.25, -0.9, -1e6)]
    text = page(kept(tmp_path, rows, better="more"))
    low, high = figures(text)[WINDOW]["layout"]["yaxis"]["range"]
    assert -3 < low < high < 0
    assert "1 far worse score is drawn at the edge of the axis." in words(text)
    assert "trial 8: -1.000×10⁶" in named(figures(text)[WINDOW], "finished")["text"][-1]


def test_twenty_keys_and_one(tmp_path: Path) -> None:
    keys = {f"parameters.dynamics.joint{k}.damping": "LogU(1e-4, 1e-2)" for k in range(20)}
    draws = np.random.default_rng(1)
    rows = [{**trial(float(draws.uniform())), **{k: float(draws.uniform(1e-4, 1e-2)) for k in keys}} for _ in range(6)]
    drawing = figures(page(kept(tmp_path / "twenty", rows, keys)))
    assert keys.keys() <= drawing.keys()
    labels = drawing["Parallel coordinates"]["layout"]["yaxis"]["ticktext"]
    assert len(set(labels)) == 21  # told apart although they are cut
    text = page(kept(tmp_path / "one", rows, dict([next(iter(keys.items()))])))
    assert "one key alone was swept, so there is nothing to compare it with." in words(text)


def test_importance_finds_the_key_that_matters(tmp_path: Path) -> None:
    found = importance(read_sweep(kept(tmp_path / "less", drawn(40))))
    assert isinstance(found, dict)
    assert sum(share for share, _ in found.values()) == pytest.approx(1.0)
    assert found[RATE][0] > max(0.5, found[RATE][1])
    assert all(found[key][0] < found[RATE][0] for key in (WINDOW, HIDDEN))
    # turned round, the same trials are the good ones
    turned = [{**row, "score": -row["score"]} for row in drawn(40)]
    again = importance(read_sweep(kept(tmp_path / "more", turned, better="more")))
    assert isinstance(again, dict)
    assert again[RATE] == pytest.approx(found[RATE])


def test_importance_of_chance_is_not_believed(tmp_path: Path) -> None:
    draws, believed = np.random.default_rng(4), 0
    for seed in range(8):
        rows = [{**row, "score": float(draws.uniform())} for row in drawn(30, seed)]
        found = importance(read_sweep(kept(tmp_path / str(seed), rows)))
        assert isinstance(found, dict)
        believed += sum(share > chance for share, chance in found.values())
    assert believed <= 6  # of 24; 1.2 are expected


def test_importance_says_why_it_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = page(kept(tmp_path / "few", drawn(ENOUGH - 1)))
    assert f"{ENOUGH} finished trials are needed to tell importance from noise, and there are 9." in words(few)
    same = page(kept(tmp_path / "same", [{**row, "score": 0.5} for row in drawn(20)]))
    assert "all finished trials have the same score." in words(same)
    monkeypatch.setitem(sys.modules, "optuna", None)
    absent = page(kept(tmp_path / "absent", drawn(20)))
    assert "Optuna is not installed; pip install 'sim2real-toolkit[tune]' brings it." in words(absent)
    assert all("What sets the best trials apart" not in figures(text) for text in (few, same, absent))


def test_seeds_that_agree_are_counted(tmp_path: Path) -> None:
    confirmed = {"seeds": [7, 8, 9, 10], "default": [0.4, 0.5, 0.3, None], "best": [0.3, 0.2, 0.35, 0.2]}
    text = page(kept(tmp_path, [trial(0.5), trial(0.25)], confirmed=confirmed))
    told = words(text)
    assert "With 2 of 3 other seeds the best recipe scores better than the recipe as it was." in told
    assert "The mean goes from 0.400 to 0.283. 1 seed without a score of both." in told
    drawing = figures(text)["Scored again"]
    assert named(drawing, "before")["y"] == confirmed["default"]
    assert named(drawing, "after")["y"] == confirmed["best"]
    assert drawing["layout"]["xaxis"]["ticktext"] == ["7", "8", "9", "10"]
    assert 'id="seeds"' not in page(kept(tmp_path, [trial(0.5), trial(0.25)]))


def test_seeds_of_more_is_better(tmp_path: Path) -> None:
    confirmed = {"seeds": [1, 2, 3], "default": [0.4, 0.5, 0.3], "best": [0.3, 0.6, 0.3]}
    text = page(kept(tmp_path, [trial(0.5), trial(0.75)], better="more", confirmed=confirmed))
    assert "With 1 of 3 other seeds the best recipe scores better than the recipe as it was, with 1 the same." in words(
        text
    )


@pytest.mark.parametrize("scores", [{"default": [None], "best": [None]}, {"default": [0.5], "best": [0.5]}])
def test_seeds_where_the_best_is_the_recipe_as_it_was(tmp_path: Path, scores: dict[str, Any]) -> None:
    text = page(kept(tmp_path, [trial(0.5), failed("no")], confirmed={"seeds": [1], **scores}))
    assert "No trial was better, so both recipes are the recipe as it was." in words(text)


def test_a_best_value_at_the_end_of_its_range_is_marked(tmp_path: Path) -> None:
    text = page(kept(tmp_path, [trial(0.5), trial(0.1, **{WINDOW: 0.799, RATE: 3e-3})]))
    assert text.count("at the end of its range</span>") == 1
    assert "identify.window at the end of its range 0.5 0.799" in words(text)


@pytest.mark.parametrize("missing", ["results.parquet", "sweep.json"])
def test_a_directory_that_is_not_whole_is_refused(tmp_path: Path, missing: str) -> None:
    kept(tmp_path, [trial(0.5)])
    (tmp_path / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        write_sweep_report(tmp_path)
    (tmp_path / missing).write_text("[]")
    with pytest.raises(ModelError, match=missing):
        write_sweep_report(tmp_path)


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    kept(tmp_path, [trial(0.5)])
    document = json.loads((tmp_path / "sweep.json").read_text())
    document["keys"]["control.horizon"] = "int(2, 6)"
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"no column control\.horizon"):
        write_sweep_report(tmp_path)


ENDS = st.tuples(st.floats(1e-6, 1e6), st.floats(1.01, 1e6)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@given(ends=ENDS, logarithmic=st.booleans(), value=st.floats(allow_nan=False))
def test_a_scale_keeps_order_and_moves_only_what_lies_outside(
    ends: tuple[float, float], logarithmic: bool, value: float
) -> None:
    scale = Scale(*ends, logarithmic)
    place = scale.place(value)
    assert place is not None
    assert (0 <= place <= 1) == (ends[0] <= value <= ends[1]) or value == pytest.approx(
        min(max(value, ends[0]), ends[1])
    )
    if ends[0] <= value <= ends[1]:
        assert scale.drawn(value) == pytest.approx(value, rel=1e-6, abs=1e-9 * ends[1])
    assert [at for at, _ in scale.ticks()] == sorted(at for at, _ in scale.ticks())


@given(low=st.integers(-50, 50), width=st.integers(1, 300))
def test_ticks_of_whole_numbers_are_whole_and_hold_both_ends(low: int, width: int) -> None:
    key = Key.of("k", f"int({low}, {low + width})", [low, low + width])
    told = [int(text) for _, text in key.ticks()]
    assert told[0] == low
    assert told[-1] == low + width
    assert told == sorted(set(told))


ODD = st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
SCORES, NUMBERS = (st.floats(-most, most) | ODD for most in (1e200, 1e9))
STATUS = st.sampled_from(["finished", "stopped early", "failed: no", "failed: \u2028 <b>"])


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(SCORES, STATUS, NUMBERS), min_size=1, max_size=9),
    option=st.text(min_size=1, max_size=90),
    notation=st.sampled_from(["U(0, 1)", "LogU(1e-3, 1)", "int(0, 7)", "U(3, 3)", "odd", "LogU(0, 1)"]),
    better=st.sampled_from(["less", "more"]),
)
def test_whatever_comes_the_page_is_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[float, str, float]],
    option: str,
    notation: str,
    better: str,
) -> None:
    keys = {"a.number": notation, "a.choice": f"choice({option}, b)"}
    table = [{**trial(s, status), "a.number": x, "a.choice": option} for s, status, x in rows]
    folder = kept(tmp_path_factory.mktemp("sweep"), table, keys, better=better)
    text = page(folder)
    compared = [s for k, (s, status, _) in enumerate(rows) if (k == 0 or status == "finished") and math.isfinite(s)]
    best = (min if better == "less" else max)(compared, default=math.nan)
    found = read_sweep(folder)
    assert found.score[found.best] == best or not compared
    counts = [sum(status.startswith(s) for _, status, _ in rows[1:]) for s in ("finished", "stopped", "failed")]
    assert [strip(text)[k][0] for k in ("finished", "stopped early", "failed")] == [str(n) for n in counts]
    for drawing in figures(text).values():
        assert "NaN" not in json.dumps(drawing)
