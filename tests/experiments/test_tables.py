"""A table says the same in each of its forms."""

import csv

from experiments.common.tables import Table

TABLE = Table(("arm", "gIoU", "note"), [["rings", "0.81", "a, b"], [" <small>", 7, ""]], "<><")


def test_text_is_aligned_and_has_no_trailing_blanks():
    assert TABLE.text("  ").splitlines() == ["  arm       gIoU  note", "  rings     0.81  a, b", "   <small>     7"]


def test_every_form_has_every_cell():
    assert list(csv.reader(TABLE.csv().splitlines()))[1:] == [["rings", "0.81", "a, b"], [" <small>", "7", ""]]
    assert TABLE.markdown().splitlines()[:3] == [
        "| arm | gIoU | note |",
        "| --- | --- | --- |",
        "| rings | 0.81 | a, b |",
    ]
    page = TABLE.html()
    assert '<td class="number">0.81</td>' in page and '<tr class="soft"><th> &lt;small&gt;</th>' in page
