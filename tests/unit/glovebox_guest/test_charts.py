"""What the numbers of a figure become, for figures that contexts really draw."""

import json

import pytest

IMPORTS = "import datetime, numpy as np, pandas as pd, matplotlib.pyplot as plt\n"


@pytest.fixture
def draw(warm_contexts):
    async def chart_of(code):
        run = await warm_contexts.run(f"{IMPORTS}{code}\nNone")
        assert run.error == {}, run.error
        (bundle,) = run.results
        assert "image/png" in bundle
        json.dumps(bundle["e2b/chart"], allow_nan=False)
        return bundle["e2b/chart"]

    return chart_of


async def test_lines_with_labels_units_and_ticks(draw):
    chart = await draw(
        "plt.plot([1, 2], [3, 4], label='speed'); plt.plot([1, 2], [5, np.nan]); plt.title('T')\n"
        "plt.xlabel('time (s)'); plt.ylabel('way [m]'); plt.grid(True); plt.axhline(3.5)"
    )
    assert (chart["type"], chart["title"]) == ("line", "T")
    assert (chart["x_label"], chart["x_unit"], chart["y_label"], chart["y_unit"]) == ("time (s)", "s", "way [m]", "m")
    assert (chart["x_scale"], chart["y_scale"]) == ("linear", "linear")
    assert chart["elements"] == [
        {"label": "speed", "points": [[1.0, 3.0], [2.0, 4.0]]},
        {"label": "Line 2", "points": [[1.0, 5.0], [2.0, None]]},
    ]
    assert all(isinstance(tick, float) for tick in chart["x_ticks"])
    assert len(chart["x_ticks"]) == len(chart["x_tick_labels"])


async def test_dates_categories_and_logarithms(draw):
    chart = await draw("plt.plot([datetime.date(2020, 1, day) for day in (1, 2)], [1, 10]); plt.yscale('log')")
    assert (chart["x_scale"], chart["y_scale"]) == ("datetime", "log")
    assert chart["elements"][0]["points"] == [["2020-01-01T00:00:00", 1.0], ["2020-01-02T00:00:00", 10.0]]
    assert chart["x_ticks"][0].startswith("20")
    assert chart["x_label"] is None


async def test_categories_along_y(draw):
    chart = await draw("plt.plot([1, 2], ['A', 'B'])")
    assert (chart["x_scale"], chart["y_scale"]) == ("linear", "categorical")
    assert chart["elements"][0]["points"] == [[1.0, "A"], [2.0, "B"]]


async def test_a_series_by_period(draw):
    chart = await draw("pd.Series([1, 2], index=pd.period_range('2020-01', periods=2, freq='M')).plot()")
    assert chart["x_scale"] == "datetime"
    assert chart["elements"][0]["points"] == [["2020-01-01T00:00:00", 1.0], ["2020-02-01T00:00:00", 2.0]]


async def test_a_scatter(draw):
    chart = await draw("plt.scatter([1, 2], [3, 4], label='dots')")
    assert chart["type"] == "scatter"
    assert chart["elements"] == [{"label": "dots", "points": [[1.0, 3.0], [2.0, 4.0]]}]


async def test_bars(draw):
    chart = await draw("plt.bar(['a', 'b'], [1, 2], label='sold'); plt.xlabel('x'); plt.ylabel('y')")
    assert (chart["type"], chart["x_label"], chart["y_label"]) == ("bar", "x", "y")
    assert chart["elements"] == [
        {"label": "a", "group": "sold", "value": 1.0},
        {"label": "b", "group": "sold", "value": 2.0},
    ]


async def test_horizontal_bars_swap_the_axes(draw):
    chart = await draw("plt.barh(['a', 'b'], [1, 2]); plt.xlabel('x (k)'); plt.ylabel('y')")
    assert (chart["x_label"], chart["x_unit"], chart["y_label"], chart["y_unit"]) == ("y", None, "x (k)", "k")
    assert [(bar["label"], bar["group"], bar["value"]) for bar in chart["elements"]] == [
        ("a", "Group 1", 1.0),
        ("b", "Group 1", 2.0),
    ]


async def test_grouped_bars_of_pandas(draw):
    chart = await draw("pd.DataFrame({'u': [1, 2], 'v': [3, 4]}, index=['p', 'q']).plot.bar()")
    assert {(bar["label"], bar["group"], bar["value"]) for bar in chart["elements"]} == {
        ("p", "u", 1.0),
        ("q", "u", 2.0),
        ("p", "v", 3.0),
        ("q", "v", 4.0),
    }


async def test_a_pie(draw):
    chart = await draw("plt.pie([90, 10], labels=['No', 'Yes'], autopct='%1.1f%%', startangle=90); plt.title('P')")
    assert chart == {
        "type": "pie",
        "title": "P",
        "elements": [{"label": "No", "angle": 324.0, "radius": 1.0}, {"label": "Yes", "angle": 36.0, "radius": 1.0}],
    }


@pytest.mark.parametrize("options", ["", "patch_artist=True", "notch=True", "orientation='horizontal'"])
async def test_boxes_and_whiskers(draw, options):
    chart = await draw(f"plt.boxplot([[1, 2, 3, 4, 20], [3, 4, 5, 6, 7]], tick_labels=['A', 'B'], {options})")
    assert chart["type"] == "box_and_whisker"
    first, second = chart["elements"]
    assert first == {
        "label": "A",
        "min": 1.0,
        "first_quartile": 2.0,
        "median": 3.0,
        "third_quartile": 4.0,
        "max": 4.0,
        "outliers": [20.0],
    }
    assert (second["label"], second["median"], second["outliers"]) == ("B", 5.0, [])


async def test_boxes_drawn_twice_count_once(draw):
    data = "[[1, 2, 3, 4], [3, 4, 5, 6]]"
    chart = await draw(f"plt.boxplot({data}); plt.boxplot({data}, patch_artist=True)")
    assert len(chart["elements"]) == 2


async def test_several_axes_are_a_superchart(draw):
    chart = await draw("f, (a, b) = plt.subplots(1, 2); f.suptitle('S'); a.plot([1, 2]); b.scatter([1], [2])")
    assert (chart["type"], chart["title"]) == ("superchart", "S")
    assert [part["type"] for part in chart["elements"]] == ["line", "scatter"]


async def test_an_image_with_its_colorbar_is_unknown(draw):
    chart = await draw("plt.imshow([[1, 2]]); plt.colorbar(); plt.title('I')")
    assert chart == {"type": "unknown", "title": "I", "elements": []}


async def test_a_blank_figure(draw):
    assert await draw("plt.subplots()") == {}


async def test_too_many_points_give_the_image_alone(warm_contexts):
    run = await warm_contexts.run(f"{IMPORTS}plt.plot(range(100_000)); None")
    assert set(run.results[0]) == {"text/plain", "image/png"}


async def test_the_client_library_understands_every_kind(draw):
    charts = pytest.importorskip("e2b_code_interpreter.charts", reason="a dependency of the project")
    cells = {
        "line": "plt.plot([1])",
        "scatter": "plt.scatter([1], [1])",
        "bar": "plt.bar(['a'], [1])",
        "pie": "plt.pie([1], labels=['a'])",
        "box_and_whisker": "plt.boxplot([1, 2, 3])",
        "superchart": "f, (a, b) = plt.subplots(2); a.plot([1]); b.plot([2])",
        "unknown": "plt.imshow([[1]])",
    }
    for kind, code in cells.items():
        understood = charts._deserialize_chart(await draw(code))
        assert understood is not None and understood.type.value == kind
