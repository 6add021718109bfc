"""ApTable: average precisions together with the protocol they were measured under.

Place in the flow: `evaluation.coco.evaluate` and `evaluation.score.score_files` return one;
`tracking` logs it, reports print it. Imports neither torch nor an evaluator.
Source of the names: COCO and LVIS evaluation (pycocotools 2.0.11, lvis 0.5.3).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.table import Table
from rich.text import Text

AP_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
"""Fixed names and order of the precisions: table columns and MLflow metrics."""
PROVENANCE_KEYS = frozenset({"engine", "engine_version"})
"""Protocol entries that name the program, not the measure: the engines agree to the last digit."""
STAND_IN_ENCODERS = frozenset({"hashed-words"})
"""Text encoders that stand in for CLIP; figures made with them are never a published row."""

_FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
_UNDEFINED = -1.0
_ABSENT = "nothing"


class ClassAp(BaseModel):
    """Precision of one class; fractions, -1 where the class has no ground truth."""

    model_config = _FROZEN
    name: str = Field(alias="class")
    category_id: int
    """Of the annotation file; names of texts differ from its names where LVIS has underscores."""
    AP: float
    AP50: float
    AP75: float
    num_gt: int
    """Objects judged: crowd regions do not count."""
    frequency: str = ""
    """LVIS r, c or f; empty for COCO."""

    def row(self) -> dict[str, Any]:
        """As a plain dict; the class's name under the key `class`."""
        return self.model_dump(by_alias=True)


class ApTable(BaseModel):
    """Figures of one evaluation.

    metrics: name -> fraction in [0, 1], -1 where undefined (`AP_KEYS`, and the recalls AR...);
    per_class: in the order of the annotation file's category ids; protocol: what was measured,
    how, on what. Two tables may be subtracted only if their protocols agree.
    """

    model_config = _FROZEN
    metrics: dict[str, float]
    per_class: tuple[ClassAp, ...] = ()
    protocol: dict[str, str | int | float] = Field(default_factory=dict)

    def __getitem__(self, key: str) -> float:
        return self.metrics[key]

    def __sub__(self, other: "ApTable") -> dict[str, float]:
        """Differences of the metrics both define, fractions.

        Raises: ValueError naming the first difference of the protocols.
        """
        difference = same_protocol(self, other)
        if difference:
            raise ValueError(
                f"AP tables of different protocols cannot be subtracted: {difference}; "
                "evaluate both the same way"
            )
        return {
            key: value - other.metrics[key]
            for key, value in self.metrics.items()
            if is_defined(value) and is_defined(other.metrics.get(key, _UNDEFINED))
        }

    def precisions(self) -> dict[str, float]:
        """The AP metrics in fixed order, undefined ones included."""
        return {key: self.metrics[key] for key in AP_KEYS if key in self.metrics}

    def groups(self) -> dict[str, dict[str, float]]:
        """Precisions over parts of the classes: metrics `base/AP`, ... as {"base": {"AP": ...}}."""
        found: dict[str, dict[str, float]] = {}
        for name, value in self.metrics.items():
            part, _, key = name.rpartition("/")
            if part and key in AP_KEYS:
                found.setdefault(part, {})[key] = value
        return found

    def defined(self) -> dict[str, float]:
        """All precisions that are defined, those of parts included: what a tracker logs."""
        every = self.precisions()
        for part, values in self.groups().items():
            every.update({f"{part}/{key}": value for key, value in values.items()})
        return {key: value for key, value in every.items() if is_defined(value)}

    def with_protocol(self, **entries: str | int | float) -> Self:
        """The same figures with protocol entries added or replaced."""
        return self.model_copy(update={"protocol": {**self.protocol, **entries}})

    def caption(self) -> str:
        """The protocol on one line; a stand-in text encoder comes first, in plain words."""
        parts = [f"{key} {value}" for key, value in self.protocol.items()]
        encoder = str(self.protocol.get("text_encoder", ""))
        if encoder in STAND_IN_ENCODERS:
            parts.insert(0, f"stand-in text encoder {encoder}, never a published row")
        return " · ".join(parts)

    def to_json(self, path: Path | None = None) -> str:
        """JSON text, also written to `path` where one is given."""
        text = json.dumps(self.model_dump(by_alias=True), indent=1)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return text

    @classmethod
    def from_json(cls, source: Path | str) -> Self:
        """Read back what `to_json` wrote: a path or the text.

        Raises: ValueError in one line for something that is no AP table.
        """
        text = source.read_text() if isinstance(source, Path) else source
        name = str(source) if isinstance(source, Path) else "the given text"
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "top level"
            raise ValueError(
                f"{name} is no AP table: {where}: {first['msg']}; expected JSON with metrics, "
                "per_class and protocol"
            ) from error

    def markdown(self, published: Mapping[str, float] | None = None) -> str:
        """One row of percent figures, published values and differences below, then the protocol."""
        keys = list(self.precisions())
        lines = [
            "| |" + "".join(f" {key} |" for key in keys),
            "|---|" + "--:|" * len(keys),
            "| measured |" + "".join(f" {percent(self.metrics[key])} |" for key in keys),
        ]
        for part, values in self.groups().items():
            cells = "".join(f" {percent(values[k]) if k in values else ''} |" for k in keys)
            lines.append(f"| {part} classes |{cells}")
        if published:
            rows = {row["metric"]: row for row in self.compare(published)}
            shown = [rows.get(key, {}) for key in keys]
            lines.append(
                "| published |" + "".join(f" {_cell(r.get('published'))} |" for r in shown)
            )
            lines.append(
                "| difference |"
                + "".join(f" {_cell(r.get('difference'), '+.1f')} |" for r in shown)
            )
            reason = self.not_comparable()
            if reason:
                lines += ["", f"Not comparable with the published row: {reason}."]
        return "\n".join([*lines, "", self.caption()]) + "\n"

    def rich_table(
        self, title: str = "Average precision", published: Mapping[str, float] | None = None
    ) -> Table:
        """The same for a terminal, percent with one decimal."""
        table = Table(title=Text(title), caption=Text(self.caption()))
        table.add_column("")
        keys = list(self.precisions())
        for key in keys:
            table.add_column(key, justify="right")
        table.add_row("measured", *[percent(self.metrics[key]) for key in keys])
        for part, values in self.groups().items():
            cells = [percent(values[key]) if key in values else "" for key in keys]
            table.add_row(Text(f"{part} classes"), *cells)
        if published:
            rows = {row["metric"]: row for row in self.compare(published)}
            shown = [rows.get(key, {}) for key in keys]
            table.add_row("published", *[_cell(r.get("published")) for r in shown])
            table.add_row("difference", *[_cell(r.get("difference"), "+.1f") for r in shown])
        return table

    def rich_per_class(self, title: str = "Per class", limit: int | None = None) -> Table:
        """Classes with ground truth, most objects first; at most `limit` of them."""
        present = sorted((c for c in self.per_class if c.num_gt), key=lambda c: -c.num_gt)
        table = Table(title=Text(title))
        table.add_column("class")
        for heading in ("objects", "AP", "AP50", "AP75"):
            table.add_column(heading, justify="right")
        for entry in present[:limit]:
            figures = (percent(v) for v in (entry.AP, entry.AP50, entry.AP75))
            table.add_row(Text(entry.name), str(entry.num_gt), *figures)
        return table

    def not_comparable(self) -> str:
        """Why these figures are never a published row; empty where nothing known forbids it."""
        encoder = str(self.protocol.get("text_encoder", ""))
        return f"stand-in text encoder {encoder}" if encoder in STAND_IN_ENCODERS else ""

    def compare(self, published: Mapping[str, float]) -> list[dict[str, Any]]:
        """Beside published figures, percent.

        Args:
            published: name -> percent; names as in `AP_KEYS`, or `bbox/AP`, `segm/AP`, of which
                those of another kind than this table's are left out.
        Returns: one dict per metric: metric, measured, published, difference; measured and
            difference are None where undefined, difference also where `not_comparable` speaks.
        """
        kind = str(self.protocol.get("kind", ""))
        rows = []
        for name, target in published.items():
            prefix, _, key = name.rpartition("/")
            if key not in self.metrics or (prefix and prefix != kind):
                continue
            value = self.metrics[key]
            measured = 100 * value if is_defined(value) else None
            comparable = measured is not None and not self.not_comparable()
            difference = measured - target if comparable and measured is not None else None
            rows.append(
                {
                    "metric": key,
                    "measured": measured,
                    "published": float(target),
                    "difference": difference,
                }
            )
        return rows


def is_defined(value: float) -> bool:
    """Whether a figure exists: -1 stands for "no ground truth to judge by"."""
    return value > -0.5 and not math.isnan(value)


def percent(value: float) -> str:
    """A fraction as percent with one decimal; a dash where undefined."""
    return f"{100 * value:.1f}" if is_defined(value) else "–"  # noqa: RUF001


def same_protocol(a: ApTable, b: ApTable) -> str:
    """The first difference between two protocols in words; empty when they agree.

    The engine and its version are not compared: the engines give equal figures.
    """
    for key in sorted((a.protocol.keys() | b.protocol.keys()) - PROVENANCE_KEYS):
        left, right = a.protocol.get(key, _ABSENT), b.protocol.get(key, _ABSENT)
        if left != right:
            return f"{key} is {left!s} against {right!s}"
    return ""


def subset_metrics(table: ApTable, classes: Iterable[str] | Iterable[int]) -> dict[str, float]:
    """AP, AP50 and AP75 over some classes only, such as the base or the novel ones.

    Args:
        table: of an evaluation over all classes.
        classes: names or category ids as in the annotation file; LVIS names hold underscores and
            brackets where its texts do not, so ids are the safer choice there.
    Returns: means over those of the classes that have ground truth, fractions; -1 when none has.
    Raises: ValueError for a class the table does not hold.
    """
    known: dict[str | int, ClassAp] = {entry.name: entry for entry in table.per_class}
    known.update({entry.category_id: entry for entry in table.per_class})
    wanted: list[str | int] = list(dict.fromkeys(classes))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"class {unknown[0]!r} is not in the AP table ({len(table.per_class)} classes); "
            "use the names or category ids of the annotation file"
        )
    chosen = [known[name] for name in wanted if is_defined(known[name].AP)]
    return {
        "AP": _mean([entry.AP for entry in chosen]),
        "AP50": _mean([entry.AP50 for entry in chosen]),
        "AP75": _mean([entry.AP75 for entry in chosen]),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else _UNDEFINED


def _cell(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else format(value, form)
