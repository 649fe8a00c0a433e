"""The report: sentences say what metrics.json says, figures what they show, and the page is safe and whole."""

import copy
import json
import math
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim2real.calibration import Posterior
from sim2real.errors import ModelError
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.report import closed_loop, findings, page, write_report
from sim2real.report.notation import LOOKS, change, digits, few, figure_text, listed, look, percent, trimmed
from sim2real.report.parameter_table import parameter_rows, prior_range
from sim2real.report.run_page import drawn
from sim2real.report.stroboscope import FLASHES, corners, flashes, stroboscope
from sim2real.report.summary import by_cost, key_figures, moved, nrmse, pooled_rmse, recovered, worst_coverage

HOSTILE = '"><script>alert("x")</script><b>&amp;'
ERRORS = {
    "persistence": 1.0,
    "nominal_simulator": 0.3,
    "identified_simulator": 0.004,
    "pretrained_model": 0.02,
    "finetuned_model": 0.015,
}
# Axes that count things by name, and so have no unit.
NAMED = ("parameter", "predictor", "controller", "stage")


def scores(
    error: float, windows: int = 20, coverage: float = 0.85, joints: tuple[str, ...] = ("hinge",)
) -> dict[str, Any]:
    horizons = {
        h: {
            "rmse": dict.fromkeys(joints, error * float(h)),
            "nrmse": dict.fromkeys(joints, error),
            "median_error": dict.fromkeys(joints, error),
            "nll": 0.0,
            "crps": error / 2,
            "coverage": {"0.5": 0.5, "0.9": coverage, "0.95": 0.95},
            "coverage90_interval": [coverage - 0.1, coverage + 0.1],
            "width": {"0.5": 1.2 * error, "0.9": 3 * error, "0.95": 3.6 * error},
        }
        for h in ("0.1", "0.2", "0.5", "1")
    }
    pooled = {"coverage90": coverage, "coverage90_interval": [coverage - 0.1, coverage + 0.1], "crps": error / 2}
    return {"windows": windows, "mean_nrmse": error, **horizons, **pooled}


def parameter(nominal: float, mean: float, unit: str, prior: str, **more: Any) -> dict[str, Any]:
    return {
        "mean": mean,
        "interval90": [0.98 * mean, 1.02 * mean],
        "unit": unit,
        "prior": prior,
        "nominal": nominal,
        **more,
    }


def twin_metrics() -> dict[str, Any]:
    return {
        "name": "arm",
        "seed": 3,
        "robot": "arm",
        "joints": ["hinge"],
        "recorded_seconds": {"train": 15.0, "validation": 4.9, "test": 10.0},
        "scores": {
            "validation": {"log (validation part)": {n: scores(2 * e) for n, e in ERRORS.items()}},
            "test": {"test_log": {n: scores(e) for n, e in ERRORS.items()}},
        },
        "attribution": {
            "identified": 0.005,
            "nominal": 0.32,
            "parameters": {
                "dynamics.hinge.damping": 0.04,
                "execution.latency.delay": 0.21,
                "dynamics.payload.mass": 0.005,
            },
        },
        "parameters": {
            "dynamics.hinge.damping": parameter(0.02, 0.03, "N·m·s/rad", "=U(0, 0.2)", truth=0.0301),
            "execution.latency.delay": parameter(0.0, 0.034, "s", "=U(0, 0.08)", truth=0.034),
            "dynamics.payload.mass": parameter(0.55, 0.551, "kg", "=N(0.5, 0.1)", truth=0.55),
        },
        "identification": {"at_bound": []},
        "finetune": {"accepted": True, "reason": "accepted: CRPS on held-out recordings changed by -11.0 %"},
        "adaptation": {},
        "closed_loop": {"fallback": 0.1, "after": 0.7, "before": 0.5, "oracle": 0.9},
        "closed_loop_each": {"fallback": [0.1, 0.1], "after": [0.6, 0.8], "before": [0.2, 0.8], "oracle": [0.9, 0.9]},
        "closed_loop_not_applicable": None,
        "planning_milliseconds": {"fallback": 0.7, "after": 12.34, "before": 12.0, "oracle": 12.0},
        "seconds": {"identify": 12.0, "evaluate": 5.0, "control": 0.00001},
        "environment": {"sim2real": "0.1.0", "machine": "x86_64", "finished": "2030-01-02T03:04:05+00:00"},
    }


def shift_metrics() -> dict[str, Any]:
    metrics = twin_metrics()
    metrics["closed_loop"] = metrics["closed_loop_each"] = metrics["planning_milliseconds"] = None
    metrics["closed_loop_not_applicable"] = "recordings cannot answer a controller"
    metrics["scores"]["shift"] = {
        "heavier": {
            **{n: scores(10 * e) for n, e in ERRORS.items()},
            "adapted_simulator": scores(0.008),
            "adapted_model": scores(0.05),
        }
    }
    metrics["adaptation"] = {
        "heavier": {
            "moved": "dynamics.payload.mass",
            "was": 0.551,
            "errors": {"": 0.01, "dynamics.payload.mass": 0.002, "dynamics.hinge.damping": 0.007},
            "sentence": "dynamics.payload.mass moved from 0.551 to 1.1 kg.",
            "seconds": 2.0,
            "parameters": {"dynamics.payload.mass": parameter(0.55, 1.1, "kg", "=N(0.5, 0.1)")},
        }
    }
    for p in metrics["parameters"].values():
        del p["truth"]
    return metrics


def save_posterior(directory: Path, metrics: dict[str, Any]) -> None:
    names = list(metrics["parameters"])
    samples = np.random.default_rng(0).normal(1.0, 0.1, (50, len(names)))
    prior = ParameterSet.parse(
        {n: f"{metrics['parameters'][n]['prior']} {metrics['parameters'][n]['unit']}" for n in names},
        {n: metrics["parameters"][n]["unit"] for n in names},
    )
    Posterior(prior, samples.mean(0), samples, np.array([0.001])).save(directory)


def save_run(directory: Path, metrics: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "metrics.json").write_text(json.dumps(metrics))
    (directory / "recipe.yaml").write_text("name: arm\ncontrol: {limit: 3.0, target: 3.14}\n")
    save_posterior(directory / "posterior", metrics)
    if metrics["closed_loop"]:
        time = 0.02 * np.arange(101)
        arrays: dict[str, Any] = {}
        for name in metrics["closed_loop"]:
            arrays[f"{name}.states"] = np.cumsum(np.full((2, 101, 2), 0.04), 1)
            arrays[f"{name}.commands"] = np.zeros((2, 100, 1))
            arrays[f"{name}.milliseconds"] = np.linspace(10, 14, 100)
        np.savez(directory / "closed_loop.npz", time=time, **arrays)
    return directory


class Page(HTMLParser):
    """What a browser makes of a page: elements, their text, and the addresses that it loads or links to."""

    VOID = ("meta", "br", "rect", "circle", "path", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self.addresses: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not any(name.startswith("on") for name in found), f"an inline handler: {attrs}"
        self.addresses += [
            str(found[k]) for k in ("src", "href", "data-src", "action", "srcset", "poster") if k in found
        ]
        self.ids += [str(found["id"])] if "id" in found else []
        if tag == "script":
            self.scripts.append((found, ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data
        else:
            place = self.open[-1] if self.open else ""
            self.text[place] = self.text.get(place, "") + data

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        return {str(a["data-plot"]): json.loads(t) for a, t in self.scripts if "data-plot" in a}

    @property
    def words(self) -> str:
        return " ".join(t for place, t in self.text.items() if place != "style").replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plotly's four megabytes out of pages that are only read."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "/* plotly */")


def sentence(metrics: dict[str, Any], part: str) -> str:
    (found,) = [line for line in findings(metrics) if part in line]
    return found


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.85, "0.850"),
        (1234.0, "1230"),
        (0.00012345, "0.000123"),
        (2.1e-5, "2.10×10⁻⁵"),
        (1e7, "1.00×10⁷"),
        (0.9996, "1.00"),
        (-3.14159, "-3.14"),
        (0.0, "0"),
        (2.8e-34, "0"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_three_significant_digits(x: float | None, text: str) -> None:
    assert digits(x) == text


def test_notation() -> None:
    assert [trimmed(x) for x in (2.0, 0.05, 100.0, 1e-7)] == ["2", "0.05", "100", "1.00×10⁻⁷"]
    assert [percent(x) for x in (0.9, 0.999, 1.0, math.nan)] == ["90 %", "99.9 %", "100 %", "–"]
    assert [listed(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert few([*"abcdef"]) == "a, b, c, d, e and f"
    assert few([*"abcdefgh"]) == "a, b, c, d, e and 3 others"
    assert figure_text("<b>") == "&lt;b&gt;"
    assert figure_text("left_front_link14", 9) == "left…nk14"
    assert change(0.3, 0.004) == "75 times smaller"
    assert change(0.1, 0.13) == "30 % larger"
    assert change(0.1, 0.07) == "30 % smaller"
    assert change(0.1, 0.1) == "unchanged"
    assert change(math.nan, 0.1) == change(0.1, 0.0) == "not comparable"


def test_findings_say_what_the_metrics_say() -> None:
    metrics = twin_metrics()
    assert "test recordings is 0.300" in sentence(metrics, "nominal simulator's mean NRMSE")
    assert "RMSE 0.150 rad 0.5 s ahead" in sentence(metrics, "nominal simulator's mean NRMSE")
    now = sentence(metrics, "The identified simulator's is")
    assert "0.00400 (75 times smaller); RMSE 0.00200 rad 0.5 s ahead" in now
    assert "fine-tuned world model's is 0.0150 (20 times smaller); RMSE 0.00750 rad" in now
    assert "Fine-tuning was accepted: CRPS on held-out recordings changed by -11.0 %." in sentence(
        metrics, "Fine-tuning"
    )
    assert "from 0.0200 to 0.0150 (25 % smaller)" in sentence(metrics, "Fine-tuning")
    assert "hold 85 % of what happened on test_log, block-bootstrap interval 75 to 95 %" in sentence(
        metrics, "hold 85 %"
    )
    # (0.7 - 0.1) / (0.9 - 0.1) and (0.5 - 0.1) / (0.9 - 0.1)
    assert "75 % of the oracle's gain is recovered, 50 % before" in sentence(metrics, "Mean uprightness over 2 starts")
    assert sentence(metrics, "Changed robot").startswith("Changed robot: not applicable: ")


def test_parameters_are_told_in_the_order_of_what_they_cost() -> None:
    metrics = twin_metrics()
    assert by_cost(metrics) == ["execution.latency.delay", "dynamics.hinge.damping", "dynamics.payload.mass"]
    told = [line for line in findings(metrics) if " moved from " in line]
    assert told[0] == (
        "execution.latency.delay moved from 0 to 0.0340 s (90 % interval 0.0333 to 0.0347); left at nominal alone, "
        "NRMSE 0.210 instead of 0.00500."
    )
    assert "dynamics.hinge.damping moved from 0.02 to 0.0300 N·m·s/rad" in told[1]
    assert len(told) == 2
    assert "lies in the 90 % interval of dynamics.payload.mass" in sentence(metrics, "nominal value lies")


def test_without_attribution_the_furthest_comes_first_and_no_cost_is_told() -> None:
    metrics = twin_metrics()
    del metrics["attribution"]
    assert by_cost(metrics)[0] == "execution.latency.delay"
    assert not any("left at nominal" in line for line in findings(metrics))


def test_a_cheap_parameter_is_said_to_change_little() -> None:
    metrics = twin_metrics()
    metrics["attribution"]["parameters"]["dynamics.hinge.damping"] = 0.0051
    assert "which changes little" in sentence(metrics, "dynamics.hinge.damping moved")


def test_an_interval_that_begins_at_a_numerical_zero_holds_a_nominal_zero() -> None:
    assert not moved({"interval90": [3e-30, 0.015], "nominal": 0.0})
    assert moved({"interval90": [0.01, 0.015], "nominal": 0.0})


def test_shift_recordings_are_told() -> None:
    told = sentence(shift_metrics(), "heavier")
    assert told.startswith("heavier, adapted to its first 2 s: dynamics.payload.mass moved from 0.551 to 1.1 kg.")
    assert "from 0.0400 to 0.00800 (simulator, 5.0 times smaller)" in told
    assert "0.150 to 0.0500 (world model, 3.0 times smaller)" in told
    loop = sentence(shift_metrics(), "Closed loop")
    assert loop == "Closed loop: not applicable: recordings cannot answer a controller."


def test_a_refused_fine_tuning_is_said_wherever_it_counts() -> None:
    metrics = twin_metrics()
    metrics["finetune"] = {"accepted": False, "reason": "refused: CRPS went up; the pre-trained model stays"}
    assert "Fine-tuning was refused: CRPS went up" in sentence(metrics, "Fine-tuning was")
    assert "fine-tuning refused, so the pre-trained one" in sentence(metrics, "The identified simulator's is")


def test_without_test_recordings_the_validation_ones_stand_in_and_that_is_said() -> None:
    metrics = twin_metrics()
    del metrics["scores"]["test"]
    assert "choices were made" in sentence(metrics, "Test: not applicable")
    assert "on the validation recordings is 0.600" in sentence(metrics, "nominal simulator's mean NRMSE")


def test_without_any_scores_the_gap_is_not_applicable() -> None:
    metrics = twin_metrics() | {"scores": {}, "closed_loop": None}
    assert "Gap: not applicable: no recording was scored." in findings(metrics)
    assert [k.value for k in key_figures(metrics)[:4]] == ["not applicable"] * 4


def test_an_oracle_without_gain_gives_no_share() -> None:
    metrics = twin_metrics() | {"closed_loop": {"fallback": 0.5, "after": 0.6, "before": 0.5, "oracle": 0.5}}
    assert math.isnan(recovered(metrics["closed_loop"], "after"))
    assert "no recovered share" in sentence(metrics, "Mean uprightness")


def test_recordings_are_pooled_by_their_windows() -> None:
    rows = {"short": {"a": scores(0.1, 10, 0.88)}, "long": {"a": scores(0.2, 30, 0.7)}}
    assert nrmse(rows, "a") == pytest.approx(0.175)
    assert pooled_rmse(rows, "a", "0.5") == pytest.approx(math.sqrt((10 * 0.05**2 + 30 * 0.1**2) / 40))
    worst = worst_coverage(rows, "a")
    assert worst is not None
    assert worst[0] == "long"
    assert math.isnan(nrmse(rows, "absent"))


def test_key_figures() -> None:
    gap, coverage, swing, planning, used = key_figures(twin_metrics())
    assert gap.value == "0.300 → 0.00400"
    assert coverage.value == "85 %"
    assert "75 to 95 %" in coverage.detail
    assert swing.value == "75 %"
    assert planning.value == "12.3 ms"
    assert "2 robots together" in planning.detail
    assert used.value == "19.9 s"


def test_bars_of_parameters_lie_on_one_scale() -> None:
    delay = parameter_rows(twin_metrics())[0]
    assert (delay.ends, delay.prior.left, delay.prior.width) == ((0.0, 0.08), 0.0, 100.0)
    assert delay.marks == [("nominal", 0.0, 0.0), ("truth", 42.5, 0.034)]
    assert delay.posterior.left == pytest.approx(100 * 0.98 * 0.034 / 0.08, abs=0.01)
    low, high = prior_range("dynamics.payload.mass", "=N(0.5, 0.1)", "kg")
    assert low == pytest.approx(0.5 - 2.5758 * 0.1, abs=1e-4)
    assert high == pytest.approx(0.5 + 2.5758 * 0.1, abs=1e-4)
    mass = {r.name: r for r in parameter_rows(shift_metrics())}["dynamics.payload.mass"]
    assert mass.ends[1] == 1.1
    assert ("adapted", 100.0, 1.1) in mass.marks


@pytest.mark.parametrize("metrics", [twin_metrics(), shift_metrics()], ids=["twin", "shift"])
@pytest.mark.usefixtures("light")
def test_every_figure_names_its_axes_and_has_a_place(metrics: dict[str, Any], tmp_path: Path) -> None:
    found = Page(write_report(save_run(tmp_path, metrics)).read_text())
    assert len(found.figures) >= 9
    assert found.open == []
    assert len(set(found.ids)) == len(found.ids)
    for name, figure in found.figures.items():
        assert name in found.ids
        for axis in ("xaxis", "yaxis"):
            title = figure["layout"][axis]["title"]["text"]
            assert title.endswith("]") or title.startswith(NAMED), title
        assert figure["layout"]["showlegend"] is False


def test_every_marker_is_drawn_in_the_legend() -> None:
    template = resources.files("sim2real.report").joinpath("macros.html").read_text()
    drawn = set(re.findall(r'symbol == "([a-z-]+)"', template)) | {"x"}
    assert {one.symbol for one in LOOKS.values()} | {look("some new predictor").symbol} <= drawn


@pytest.mark.usefixtures("light")
def test_one_colour_a_predictor(tmp_path: Path) -> None:
    found = Page(write_report(save_run(tmp_path, shift_metrics())).read_text())
    colours: dict[str, set[str]] = {}
    for figure in found.figures.values():
        for trace in figure["data"]:
            if trace.get("name"):
                colours.setdefault(trace["name"], set()).add(trace.get("marker", trace.get("line"))["color"])
    assert {*ERRORS, "adapted_simulator", "adapted_model"} <= colours.keys()
    assert all(len(c) == 1 for c in colours.values()), colours
    assert len(set.union(*colours.values())) == len(colours)


def test_the_page_is_whole_offline_and_the_same_each_time(tmp_path: Path) -> None:
    path = write_report(save_run(tmp_path, twin_metrics()))
    first = path.read_bytes()
    assert write_report(tmp_path) == path == tmp_path / "report.html"
    assert path.read_bytes() == first
    assert not list(tmp_path.glob("*.partial"))
    found = Page(first.decode())
    assert found.open == []
    assert all(a.startswith("#") for a in found.addresses), found.addresses
    assert b"default-src 'none'" in first
    assert sum(len(text) > 1_000_000 for _, text in found.scripts) == 1
    assert b"@import" not in (Path(page.__file__).parent / "style.css").read_bytes()
    for line in findings(twin_metrics()):
        assert line.split(": not applicable: ")[-1] in found.words


@pytest.mark.usefixtures("light")
def test_hostile_names_are_text(tmp_path: Path) -> None:
    metrics = shift_metrics()
    clean = Page(write_report(save_run(tmp_path / "clean", metrics)).read_text())
    text = json.dumps(metrics).replace('"heavier"', json.dumps(HOSTILE)).replace('"test_log"', json.dumps(HOSTILE))
    hostile = json.loads(text) | {"name": HOSTILE, "robot": HOSTILE, "joints": [HOSTILE]}
    hostile["closed_loop_not_applicable"] = hostile["finetune"]["reason"] = HOSTILE
    directory = save_run(tmp_path / "hostile", hostile)
    (directory / "recipe.yaml").write_text(f"name: '{HOSTILE}</pre>'\n")
    raw = write_report(directory).read_text()
    found = Page(raw)
    assert "<script>alert" not in raw
    assert len(found.scripts) == len(clean.scripts)
    assert found.open == []
    assert HOSTILE in found.words
    for figure in found.figures.values():
        assert "<script" not in json.dumps(figure["layout"])


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("part", ["posterior/posterior.json", "closed_loop.npz", "recipe.yaml"])
def test_a_part_that_is_not_there_is_not_applicable(part: str, tmp_path: Path) -> None:
    directory = save_run(tmp_path, twin_metrics())
    (directory / part).unlink()
    assert Page(write_report(directory).read_text()).open == []


@pytest.mark.usefixtures("light")
def test_little_is_needed(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"name": "bare", "scores": {}, "parameters": {}}')
    found = Page(write_report(tmp_path).read_text())
    assert found.figures == {}
    assert found.words.count("not applicable") >= 10


@pytest.mark.usefixtures("light")
def test_numbers_that_are_not_finite_and_several_joints(tmp_path: Path) -> None:
    metrics = twin_metrics()
    metrics["joints"] = ["hip", "knee"]
    metrics["scores"]["test"]["test_log"] = {n: scores(e, joints=("hip", "knee")) for n, e in ERRORS.items()}
    metrics["scores"]["test"]["test_log"]["nominal_simulator"]["mean_nrmse"] = math.nan
    found = Page(write_report(save_run(tmp_path, metrics)).read_text())
    assert "over all joints" in found.words
    assert "not comparable" in sentence(metrics, "The identified simulator's is")


@pytest.mark.usefixtures("light")
def test_many_parameters_stay_readable(tmp_path: Path) -> None:
    metrics = copy.deepcopy(shift_metrics())
    for i in range(20):
        metrics["parameters"][f"dynamics.link{i}.mass"] = parameter(1.0, 2.0, "kg", "=U(0, 3)")
    del metrics["attribution"]
    found = Page(write_report(save_run(tmp_path, metrics)).read_text())
    (heat,) = [f for f in found.figures.values() if f["data"][0]["type"] == "heatmap"]
    assert len(heat["data"][0]["z"]) == 11
    assert sum(" moved from " in line and line.startswith("dynamics.link") for line in findings(metrics)) <= 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("{", "is damaged"),
        ("[]", "lacks name, scores, parameters"),
        ('{"name": 1}', "lacks scores"),
    ],
)
def test_a_directory_that_is_no_run_is_one_line(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ModelError, match=said) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.usefixtures("light")
def test_damaged_trajectories_are_one_line(tmp_path: Path) -> None:
    directory = save_run(tmp_path, twin_metrics())
    (directory / "closed_loop.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ModelError, match=r"closed_loop\.npz is damaged"):
        write_report(directory)


def test_a_stroboscope_draws_every_body_where_it_was() -> None:
    robot = RobotModel("cartpole").mj
    times = np.linspace(0, 1, 101)
    moving = np.stack([np.where(times < 0.5, 2 * times, 1.0), 0 * times], 1)  # the cart goes to the right and waits
    (panel,) = stroboscope(robot, times, moving, "Here.")
    still, *shown = panel.figure.data
    assert still.name == "stands still"
    assert len(shown) == FLASHES
    # the cart is 0.3 m wide, the rail it runs on stays
    first, last = (np.array([v for v in t.x if v is not None]) for t in (shown[0], shown[-1]))
    assert first.min() == pytest.approx(-0.15, abs=1e-3)
    assert first.max() == pytest.approx(0.15, abs=1e-3)
    np.testing.assert_allclose(np.sort(last), np.sort(first) + 1.0, atol=1e-3)
    assert max(v for v in still.x if v is not None) > 2.0
    at = times[flashes(moving)]
    assert (at < 0.5).sum() > 2 * (at >= 0.5).sum(), "more of them while it moves"
    assert len(flashes(0 * moving)) == FLASHES


@pytest.mark.parametrize("name", ["furuta", "double_pendulum", "servo_pendulum"])
def test_outlines_hold_the_geoms_that_they_are_of(name: str) -> None:
    mj = RobotModel(name).mj
    for g in range(mj.ngeom):
        if mj.geom_rbound[g] > 0:
            points = corners(mj, g)
            half = np.abs(points - mj.geom_aabb[g, :3]).max(0)
            np.testing.assert_allclose(half, mj.geom_aabb[g, 3:], rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(
    ("cost", "joint", "target", "turns"),
    [
        ([], 0, 3.0, True),
        ([{"cost": "upright", "joint": "hinge", "target": 1.0}], 1, 1.0, True),
        ([{"cost": "upright", "joint": 1}], 1, math.pi, True),
        ([{"cost": "quadratic", "goal": {"hinge": 0.5}}, {"cost": "bounds"}], 1, 0.5, False),
        ([{"cost": "quadratic", "goal": {"slider": 1, "hinge": 2}, "position": {"hinge": 1}}], 1, 2.0, False),
        ([{"cost": "reach", "goal": [0, 0, 1]}], 0, None, False),
        ("nonsense", 0, None, False),
    ],
)
def test_the_joint_that_has_a_goal_is_drawn(cost: Any, joint: int, target: float | None, turns: bool) -> None:
    robot = RobotModel("cartpole")
    found = drawn({"control": {"target": 3.0, "cost": cost}}, list(robot.joint_names), robot)
    assert (found.joint, found.target, found.turns) == (joint, target, turns)
    assert found.slides == (joint == 0)
    assert found.name == robot.joint_names[joint]


def test_targets_are_drawn_on_every_turn(tmp_path: Path) -> None:
    time = np.linspace(0, 4, 201)
    angle = {"after": np.stack([2 * time, -2 * time])[..., None]}
    panels = closed_loop.motion(closed_loop.Trajectories(time, angle, {}), closed_loop.Drawn(name="hinge"))
    figure = panels[0].figure
    targets = sorted(round(t.y[0] / math.pi) for t in figure.data if t.line.dash == "dot")
    assert targets == [-1, 1]
    assert len([t for t in figure.data if t.line.dash != "dot"]) == 2
    assert figure.layout.yaxis.title.text == "angle of hinge [rad]"
