"""AP tables carry their protocol, print in percent, and refuse what cannot be compared."""

import io

import pytest
from pydantic import ValidationError
from rich.console import Console

from yw_ray.evaluation.ap_table import ApTable, ClassAp, same_protocol, subset_metrics

PROTOCOL = {
    "style": "coco",
    "kind": "bbox",
    "split": "val",
    "images": 4952,
    "max_dets": 100,
    "engine": "hotcoco",
    "engine_version": "1.3.0",
    "text_encoder": "clip-vit-b32",
}


def row(name, category_id, ap, ap50, num_gt):
    return ClassAp.model_validate(
        {
            "class": name,
            "category_id": category_id,
            "AP": ap,
            "AP50": ap50,
            "AP75": ap,
            "num_gt": num_gt,
        }
    )


@pytest.fixture
def table():
    return ApTable(
        metrics={"AP": 0.4613, "AP50": 0.62, "AP75": -1.0, "AR100": 0.7, "novel/AP": 0.125},
        per_class=(
            row("cat", 1, 0.5, 0.8, 10),
            row("[dog]", 4, 0.25, 0.5, 30),
            row("bird", 9, -1, -1, 0),
        ),
        protocol=PROTOCOL,
    )


def shown(renderable):
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()


def test_json_keeps_everything_and_file_and_text_agree(table, tmp_path):
    path = tmp_path / "made" / "table.json"
    text = table.to_json(path)
    assert ApTable.from_json(text) == table == ApTable.from_json(path)
    assert '"class": "cat"' in text


def test_other_json_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="is no AP table: metrics") as caught:
        ApTable.from_json('{"per_class": []}')
    assert "\n" not in str(caught.value)
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(ValueError, match=r"a\.json is no AP table"):
        ApTable.from_json(tmp_path / "a.json")


def test_a_table_is_frozen(table):
    with pytest.raises(ValidationError):
        table.metrics = {}


def test_terminal_and_markdown_show_percent_with_one_decimal_and_the_protocol(table):
    for text in (shown(table.rich_table()), table.markdown()):
        for expected in ("46.1", "62.0", "–", "novel classes", "12.5", "kind bbox"):  # noqa: RUF001
            assert expected in text
        assert "AR100" not in text
    per_class = shown(table.rich_per_class())
    assert per_class.index("[dog]") < per_class.index("cat")  # most objects first
    assert "bird" not in per_class


def test_published_figures_stand_beside_with_their_difference(table):
    rows = table.compare({"bbox/AP": 46.1, "AP75": 50.0, "segm/AP": 20.0, "AP_ZS": 37.5})
    assert [r["metric"] for r in rows] == ["AP", "AP75"]
    assert rows[0]["difference"] == pytest.approx(0.03)
    assert rows[1]["measured"] is None and rows[1]["difference"] is None
    text = table.markdown({"AP": 46.1})
    assert "| published | 46.1 |" in text
    assert "| difference | +0.0 |" in text


def test_a_stand_in_text_encoder_is_said_and_never_compared(table):
    stand_in = table.with_protocol(text_encoder="hashed-words")
    assert stand_in.not_comparable()
    assert all(r["difference"] is None for r in stand_in.compare({"AP": 46.1}))
    for text in (stand_in.markdown({"AP": 46.1}), shown(stand_in.rich_table())):
        assert "stand-in text encoder hashed-words" in text
    assert "Not comparable with the published row" in stand_in.markdown({"AP": 46.1})


def test_tables_of_one_protocol_can_be_subtracted(table):
    better = table.model_copy(update={"metrics": {"AP": 0.5, "AP75": 0.6, "AP50": 0.63}})
    assert better - table == {"AP": pytest.approx(0.0387), "AP50": pytest.approx(0.01)}
    other_engine = better.with_protocol(engine="pycocotools", engine_version="2.0.11")
    assert same_protocol(other_engine, table) == ""


@pytest.mark.parametrize(
    "change, named",
    [({"split": "minival"}, "split is minival against val"), ({"tta": 1}, "tta is 1 against noth")],
)
def test_subtraction_across_protocols_names_the_difference(table, change, named):
    with pytest.raises(ValueError, match=named):
        table.with_protocol(**change) - table


def test_subset_is_the_mean_over_its_classes_that_have_ground_truth(table):
    assert subset_metrics(table, ["cat", "[dog]", "bird"]) == {
        "AP": pytest.approx(0.375),
        "AP50": pytest.approx(0.65),
        "AP75": pytest.approx(0.375),
    }
    assert subset_metrics(table, [4, 4])["AP"] == 0.25
    assert subset_metrics(table, ["bird"])["AP"] == -1
    with pytest.raises(ValueError, match="class 'horse' is not in the AP table"):
        subset_metrics(table, ["horse"])


def test_what_a_tracker_logs_are_the_defined_precisions(table):
    assert table.defined() == {"AP": 0.4613, "AP50": 0.62, "novel/AP": 0.125}
