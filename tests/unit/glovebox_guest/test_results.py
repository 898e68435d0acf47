"""What values become as results: MIME bundles, whole, within bounds, and in order."""

import base64

import pytest

PNG = b"\x89PNG"


async def test_values_are_main_results_and_displays_are_not(contexts):
    run = await contexts.run("display(1); 2")
    assert [event.get("is_main_result") for event in run.events] == [None, False, True]
    assert [bundle["text/plain"] for bundle in run.results] == ["1", "2"]


@pytest.mark.parametrize(
    ("code", "mime", "value"),
    [
        ("HTML('<b>x</b>')", "text/html", "<b>x</b>"),
        ("Markdown('# x')", "text/markdown", "# x"),
        (
            "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')",
            "image/svg+xml",
            '<svg xmlns="http://www.w3.org/2000/svg"/>',
        ),
        ("Latex('$x$')", "text/latex", "$x$"),
        ("Javascript('f()')", "application/javascript", "f()"),
        ("JSON({'a': [1]})", "application/json", {"a": [1]}),
        ("Image(b'\\x89PNG', format='png')", "image/png", base64.b64encode(PNG).decode()),
        ("Image(b'\\xff\\xd8', format='jpeg')", "image/jpeg", base64.b64encode(b"\xff\xd8").decode()),
    ],
)
async def test_rich_values(contexts, code, mime, value):
    run = await contexts.run(f"from IPython.display import *\n{code}")
    assert str(run.main[mime]).strip() == str(value)


async def test_own_representations(contexts):
    run = await contexts.run(
        "class Page:\n"
        "    def _repr_html_(self): return '<p>'\n"
        "    def _repr_mimebundle_(self, **_): return {'application/pdf': b'%PDF', 'x/own': 1}\n"
        "Page()"
    )
    assert run.main["text/html"] == "<p>"
    assert run.main["application/pdf"] == base64.b64encode(b"%PDF").decode()
    assert run.main["x/own"] == 1


async def test_a_raw_bundle_gets_no_invented_text(contexts):
    run = await contexts.run(r"display({'text/latex': r'\text{x}'}, raw=True)")
    assert run.results == [{"text/latex": r"\text{x}"}]


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("[1, 2.5, 'a', None, True, (3,)]", [1, 2.5, "a", None, True, [3]]),
        ("{'a': {'b': []}, 1: 2}", {"a": {"b": []}, "1": 2}),
    ],
)
async def test_lists_and_dicts_are_json_too(contexts, code, value):
    run = await contexts.run(code)
    assert run.main["application/json"] == value
    assert run.text


@pytest.mark.parametrize("code", ["[object()]", "[float('nan')]", "x = []; x.append(x); x", "list(range(300_000))"])
async def test_lists_that_are_not_json_are_text_only(contexts, code):
    run = await contexts.run(code)
    assert set(run.main) == {"text/plain"}
    assert run.stderr == ""


async def test_nothing_for_none_and_for_a_semicolon(contexts):
    assert (await contexts.run("None")).results == []
    assert (await contexts.run("1;")).results == []


async def test_a_representation_that_is_too_large_is_dropped_with_a_word(contexts):
    run = await contexts.run("display({'text/plain': 'small', 'text/html': 'x' * 40_000_000}, raw=True)")
    assert run.results == [{"text/plain": "small"}]
    assert "text/html is not shown" in run.stderr
    assert (await contexts.run("1")).text == "1"


async def test_a_large_result_arrives_whole(contexts):
    run = await contexts.run("display({'text/plain': 'x' * 20_000_000}, raw=True)")
    assert len(run.results[0]["text/plain"]) == 20_000_000


async def test_a_representation_that_is_no_json_is_dropped(contexts):
    run = await contexts.run("display({'text/plain': 'x', 'x/bad': object(), 'x/inf': float('inf')}, raw=True)")
    assert run.results == [{"text/plain": "x"}]


async def test_an_update_is_no_new_result_and_clearing_prints_nothing(contexts):
    run = await contexts.run(
        "from IPython.display import clear_output\nh = display(1, display_id=True); h.update(2); clear_output()"
    )
    assert [bundle["text/plain"] for bundle in run.results] == ["1"]
    assert run.stdout == run.stderr == ""


async def test_a_data_frame_is_data(warm_contexts):
    run = await warm_contexts.run(
        "import pandas as pd\n"
        "pd.DataFrame({'n': [1, 2], 'x': [0.5, None], 't': pd.to_datetime(['2020-01-02', None]), 's': ['a', 'b']})"
    )
    assert run.main["e2b/data"] == {
        "n": [1, 2],
        "x": [0.5, None],
        "t": ["2020-01-02T00:00:00", None],
        "s": ["a", "b"],
    }
    assert "<table" in run.main["text/html"]


async def test_a_huge_data_frame_is_shown_without_data(warm_contexts):
    run = await warm_contexts.run("import pandas as pd; pd.DataFrame({'n': range(200_000)})")
    assert set(run.main) == {"text/plain", "text/html"}


async def test_show_displays_and_closes_figures_in_order(warm_contexts):
    run = await warm_contexts.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n7")
    assert [sorted(bundle) for bundle in run.results] == [["e2b/chart", "image/png", "text/plain"], ["text/plain"]]
    assert base64.b64decode(run.results[0]["image/png"]).startswith(PNG)
    assert run.stderr == ""


async def test_figures_left_open_are_shown_at_the_end_of_the_cell(warm_contexts):
    run = await warm_contexts.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])")
    assert run.text.startswith("[<matplotlib.lines.Line2D")
    assert "image/png" in run.results[1]
    assert (await warm_contexts.run("plt.get_fignums()")).text == "[]"


async def test_matplotlib_imported_late_shows_figures_too(contexts):
    for setting in ("", "%matplotlib inline"):
        run = await contexts.run(f"{setting}\nimport matplotlib.pyplot as plt\nplt.bar(['a'], [1])\nNone")
        assert run.results[0]["e2b/chart"]["type"] == "bar"
        assert run.stderr == ""
    # Programs that the code starts have matplotlib as it is.
    assert (await contexts.run("import os; os.environ.get('MPLBACKEND')")).results == []


async def test_saving_a_figure_shows_it_only_once(warm_contexts, tmp_path):
    run = await warm_contexts.run(f"import matplotlib.pyplot as plt\nplt.plot([1])\nplt.savefig('{tmp_path}/f.png')")
    assert sum("image/png" in bundle for bundle in run.results) == 1


async def test_images_that_are_shown_or_saved_are_displayed(warm_contexts, tmp_path):
    code = "from PIL import Image; i = Image.new('RGB', (2, 2))\n"
    for use in ("i.show()", f"i.save('{tmp_path}/i.png')", "i"):
        run = await warm_contexts.run(code + use)
        assert base64.b64decode(run.results[0]["image/png"]).startswith(PNG)
        assert run.stdout == run.stderr == ""
    assert (await warm_contexts.run(f"{code}import io; i.save(io.BytesIO(), 'PNG')")).results == []
