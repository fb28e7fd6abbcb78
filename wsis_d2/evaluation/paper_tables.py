# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The paper's tables 1 to 6 as data: its numbers, and which of our runs stands beside each."""

from dataclasses import dataclass

VOC, CITYSCAPES = "voc", "cityscapes"


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        paper: the paper's number, None where it has none.
        recipes: our runs that measure it, the first that was run counts; empty: never ours.
        task, metric: where in such a run of ``results.json`` it is.
        percent_of: for FS%: the two cells (weak, full) it is computed from.
    """

    paper: float | None = None
    recipes: tuple[str, ...] = ()
    task: str = ""
    metric: str = ""
    percent_of: "tuple[Cell, Cell] | None" = None


@dataclass(frozen=True)
class Table:
    """One table: ``rows`` are (label, cells), as many cells as ``columns``.

    Attributes:
        name: short name, the CSV's too.
        title: what it shows.
        family: ``"voc"`` or ``"cityscapes"``, the set our runs must be evaluated on.
        columns: headings of the numbers.
        rows: the rows.
    """

    name: str
    title: str
    family: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def _others(*numbers: float | None) -> tuple[Cell, ...]:
    return tuple(Cell(number) for number in numbers)


def _cells(
    papers: tuple[float | None, ...],
    recipes: tuple[str, ...],
    keys: tuple[tuple[str, str], ...],
) -> tuple[Cell, ...]:
    return tuple(
        Cell(paper, recipes, task, metric)
        for paper, (task, metric) in zip(papers, keys, strict=True)
    )


def _weak_full(
    papers: tuple[float, float, float],
    weak: tuple[str, ...],
    full: tuple[str, ...],
    metric: str,
) -> tuple[Cell, Cell, Cell]:
    first = Cell(papers[0], weak, "sem_seg", metric)
    second = Cell(papers[1], full, "sem_seg", metric)
    return first, second, Cell(papers[2], percent_of=(first, second))


def paper_tables(backbone: str = "R_101") -> tuple[Table, ...]:
    """Return tables 1 to 6, tables 2 and 5 in both rankings of things.

    AP^r ranks things by the score of their detection: the paper's text says so (4.3), and by it is
    table 5, whose things are those of table 6's first row. The authors' code for VOC ranks them by
    mean segment confidence; which of the two table 2 shows is not told, so its numbers stand in
    both.

    Args:
        backbone: which recipes are ours, the paper's ``R_101``, or ``R_50`` or ``R_18``.
    """
    return (
        _table_1(backbone), _table_2(backbone), _table_2(backbone, _CONFIDENCE),
        _end_to_end(backbone), _table_3(backbone), _table_4(backbone), _table_5(backbone),
        _table_5(backbone, _CONFIDENCE), _table_6(backbone),
    )  # fmt: skip


_CONFIDENCE = "mean_confidence"


def _ranked(
    keys: tuple[tuple[str, str], ...], ranking: str
) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """Return the keys of another ranking, and what it adds to a table's name and title."""
    if not ranking:
        return keys, "", ""
    groups = {"APr_vol_th": "APr_vol_th", "APr_vol_st": "APr_vol_st", "APr_vol": "APr_vol_all"}
    named = tuple(
        (task, f"{groups.get(key, key)}-by-{ranking}" if task == "apr" else key)
        for task, key in keys
    )
    return named, f"_by_{ranking}", f", things ranked by {ranking.replace('_', ' ')}"


def _voc(backbone: str, coco: str | None, voc: str) -> str:
    part = f"coco_{coco}_voc_{voc}" if coco else voc
    return f"{backbone}_{part}"


def _semantic_of(name: str) -> tuple[str, str]:
    # The paper reports the semantic subnetwork; the panoptic run's own sem_seg stands in for it.
    return f"semantic_{name}", f"panoptic_{name}"


def _table_1(backbone: str) -> Table:
    def ours(coco: tuple[str, str] | None, val: tuple, test: tuple) -> tuple[Cell, ...]:
        weak, full = (
            _semantic_of(_voc(backbone, coco[k] if coco else None, voc))
            for k, voc in enumerate(("weak", "full"))
        )
        return (*_weak_full(val, weak, full, "mIoU"), *_others(*test))

    return Table(
        "table_1",
        "Semantic segmentation on Pascal VOC 2012, mean IoU (test: evaluation server)",
        VOC,
        ("val weak", "val full", "val FS%", "test weak", "test full", "test FS%"),
        (
            ("BoxSup, without COCO", _others(62.0, 63.8, 97.2, 64.6, None, None)),
            ("Deeplab WSSL, without COCO", _others(60.6, 67.6, 89.6, 62.2, 70.3, 88.5)),
            ("SDI, without COCO", _others(69.4, 74.5, 93.2, None, None, None)),
            ("Ours, without COCO", ours(None, (74.3, 77.3, 96.1), (75.5, 78.6, 96.3))),
            ("SDI, with COCO", _others(74.2, 77.7, 95.5, None, None, None)),
            ("Ours, with COCO", ours(("weak", "full"), (75.7, 79.0, 95.8), (76.7, 79.4, 96.6))),
        ),
    )


_APR_TH = tuple(("apr", f"APr_{t}_th") for t in (50, 60, 70, 80, 90))
_VOC_KEYS = (*_APR_TH, ("apr", "APr_vol_th"), ("panoptic_seg", "PQ_th"))


def _table_2(backbone: str, ranking: str = "") -> Table:
    keys, suffix, told = _ranked(_VOC_KEYS, ranking)

    def ours(coco: str | None, voc: str, *papers: float) -> tuple[Cell, ...]:
        return _cells(papers, (f"panoptic_{_voc(backbone, coco, voc)}",), keys)

    none = None
    return Table(
        f"table_2{suffix}",
        f"Instance segmentation on Pascal VOC 2012 val, AP^r and PQ of the 20 things{told}",
        VOC,
        ("AP^r 0.5", "0.6", "0.7", "0.8", "0.9", "AP^r vol", "PQ"),
        (
            ("SDI, weak without COCO", _others(44.8, none, none, none, none, none, none)),
            (
                "Ours, weak without COCO",
                ours(None, "weak", 60.5, 55.2, 47.8, 37.6, 21.6, 55.6, 59.0),
            ),
            ("SDS, full without COCO", _others(43.8, 34.5, 21.3, 8.7, 0.9, none, none)),
            ("Chen et al., full without COCO", _others(46.3, 38.2, 27.0, 13.5, 2.6, none, none)),
            ("PFN, full without COCO", _others(58.7, 51.3, 42.5, 31.2, 15.7, 52.3, none)),
            (
                "Ours, full without COCO",
                ours(None, "full", 63.6, 59.5, 53.8, 44.7, 30.2, 59.2, 62.7),
            ),
            ("SDI, weak with COCO", _others(46.4, none, none, none, none, none, none)),
            (
                "Ours, weak with COCO",
                ours("weak", "weak", 60.9, 55.9, 48.0, 37.2, 21.7, 55.5, 59.5),
            ),
            ("Arnab et al. 2016, full, COCO", _others(58.3, 52.4, 45.4, 34.9, 20.1, 53.1, none)),
            ("MPA, full with COCO", _others(62.1, 56.6, 47.4, 36.1, 18.5, 56.5, none)),
            ("Arnab et al. 2017, full, COCO", _others(61.7, 55.5, 48.6, 39.5, 25.1, 57.5, none)),
            ("SGN, full with COCO", _others(61.4, 55.9, 49.9, 42.1, 26.9, none, none)),
            (
                "Ours, full with COCO",
                ours("full", "full", 63.9, 59.3, 54.3, 45.4, 30.2, 59.5, 63.1),
            ),
        ),
    )  # fmt: skip


def _end_to_end(backbone: str) -> Table:
    keys = (("apr", "APr_vol_th"),)
    rows = []
    for label, name, piecewise, end_to_end in (
        ("Weak without COCO", _voc(backbone, None, "weak"), 51.7, 55.6),
        ("Weak with COCO", _voc(backbone, "weak", "weak"), 53.3, 55.5),
    ):
        rows.append(
            (
                label,
                (
                    *_cells((piecewise,), (f"panoptic_{name}_piecewise",), keys),
                    *_cells((end_to_end,), (f"panoptic_{name}",), keys),
                ),
            )
        )
    return Table(
        "section_4_2",
        "Piecewise and end-to-end training on Pascal VOC 2012 val, AP^r vol of the 20 things",
        VOC,
        ("piecewise", "end to end"),
        tuple(rows),
    )


def _table_3(backbone: str) -> Table:
    rows = []
    for voc, coco, iou, vol, quality in (
        ("weak", "weak", 75.7, 55.5, 59.5),
        ("weak", "full", 75.8, 56.1, 59.8),
        ("full", "weak", 77.5, 58.9, 62.7),
        ("full", "full", 79.0, 59.5, 63.1),
    ):
        name = _voc(backbone, coco, voc)
        cells = (
            Cell(iou, _semantic_of(name), "sem_seg", "mIoU"),
            *_cells((vol, quality), (f"panoptic_{name}",), _VOC_KEYS[-2:]),
        )
        rows.append((f"VOC {voc}, COCO {coco}", cells))
    return Table(
        "table_3",
        "Levels of supervision of Pascal VOC and COCO, on Pascal VOC 2012 val",
        VOC,
        ("IoU", "AP^r vol", "PQ"),
        tuple(rows),
    )


def _table_4(backbone: str) -> Table:
    weak = (f"semantic_{backbone}_weak_round_5", f"panoptic_{backbone}_weak")
    full = _semantic_of(f"{backbone}_full")
    return Table(
        "table_4",
        "Semantic segmentation on Cityscapes val, mean IoU",
        CITYSCAPES,
        ("weak", "full", "FS%"),
        (
            ("Ours, things", _weak_full((68.2, 70.4, 96.9), weak, full, "mIoU_th")),
            ("Ours, stuff", _weak_full((60.2, 72.4, 83.1), weak, full, "mIoU_st")),
            ("Ours, overall", _weak_full((63.6, 71.6, 88.8), weak, full, "mIoU")),
        ),
    )


_CITY_KEYS = (
    ("apr", "APr_vol_th"), ("apr", "APr_vol_st"), ("apr", "APr_vol"),
    ("panoptic_seg", "PQ_th"), ("panoptic_seg", "PQ_st"), ("panoptic_seg", "PQ"),
)  # fmt: skip


def _table_5(backbone: str, ranking: str = "") -> Table:
    keys, suffix, told = _ranked(_CITY_KEYS, ranking)

    def ours(recipe: str, *papers: float) -> tuple[Cell, ...]:
        shown: tuple[float | None, ...] = papers[:-1]
        if ranking:  # table 6 has the weak row's, no table the others'
            shown = (14.6 if recipe == "weak" else None, papers[1], None, *papers[3:-1])
        cells = _cells(shown, (f"panoptic_{backbone}_{recipe}",), keys)
        return (*cells, Cell(None if ranking else papers[-1]))

    def others(vol: float | None, test: float) -> tuple[Cell, ...]:
        return _others(vol, None, None, None, None, None, test)

    return Table(
        f"table_5{suffix}",
        f"Instance segmentation on Cityscapes val (test: evaluation server){told}",
        CITYSCAPES,
        ("AP^r vol th", "AP^r vol st", "AP^r vol", "PQ th", "PQ st", "PQ", "test AP th"),
        (
            ("Ours, weak, ImageNet", ours("weak", 17.0, 33.1, 26.3, 35.8, 43.9, 40.5, 12.8)),
            ("Ours, full, ImageNet", ours("full", 24.3, 42.6, 34.9, 39.6, 52.9, 47.3, 18.8)),
            (
                "Ours, full, PSPNet",
                ours("full_pspnet_init", 28.6, 52.6, 42.5, 42.5, 62.1, 53.8, 23.4),
            ),
            ("Pixel Encoding", others(9.9, 8.9)),
            ("RecAttend", others(None, 9.5)),
            ("InstanceCut", others(None, 13.0)),
            ("DWT", others(21.2, 19.4)),
            ("SGN", others(29.2, 25.0)),
        ),
    )


def _table_6(backbone: str) -> Table:
    rows = []
    for label, mode, *papers in (
        ("Detection score", "detection", 17.0, 26.7, 40.5),
        ("Mean segment confidence", "mean_confidence", 14.6, 33.1, 40.5),
        ("Oracle", "oracle", 21.6, 37.0, 40.5),
    ):
        keys = (
            ("apr", f"APr_vol_th-by-{mode}"),
            ("apr", f"APr_vol_st-by-{mode}"),
            ("panoptic_seg", "PQ"),
        )
        rows.append((label, _cells(tuple(papers), (f"panoptic_{backbone}_weak",), keys)))
    return Table(
        "table_6",
        "Ways of ranking, weak model on Cityscapes val",
        CITYSCAPES,
        ("AP^r vol th", "AP^r vol st", "PQ"),
        tuple(rows),
    )


# Figure 6: what each panel shows, with the paper's value after the last round (tables 4 and 5).
FIGURE_6 = (
    (
        "Semantic segmentation (IoU)",
        (
            ("things", "sem_seg", "mIoU_th", 68.2),
            ("stuff", "sem_seg", "mIoU_st", 60.2),
            ("all", "sem_seg", "mIoU", 63.6),
        ),
    ),
    (
        "Instance segmentation (PQ)",
        (
            ("things", "panoptic_seg", "PQ_th", 35.8),
            ("stuff", "panoptic_seg", "PQ_st", 43.9),
            ("all", "panoptic_seg", "PQ", 40.5),
        ),
    ),
)
