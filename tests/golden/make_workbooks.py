"""Writes the workbooks that crates/data/src/workbook/tests.rs reads.

    pip install openpyxl==3.1.5 odfpy==1.4.1
    python tests/golden/make_workbooks.py crates/data/tests/workbooks
"""

import datetime
import sys
from pathlib import Path

import openpyxl
from odf.opendocument import OpenDocumentSpreadsheet
from odf.table import Table, TableCell, TableRow
from odf.text import P

ROWS = [
    ("Question", "Answer", "Note"),
    ("How much is 2 + 2?", 4, None),
    ("What is a half?", 0.5, "a number"),
    ("When was it, five days after 28 February 2025?", datetime.date(2025, 3, 5), None),
    ("Is it so?", True, "yes\nindeed"),
    ("Größer & kleiner <?", "1,234", ""),
]


def xlsx(path, sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for r, row in enumerate(rows, 3):  # not at the corner
            for c, value in enumerate(row, 2):
                sheet.cell(r, c, value)
    book.save(path)


def ods(path, sheets):
    book = OpenDocumentSpreadsheet()
    for name, rows in sheets.items():
        table = Table(name=name)
        for row in rows:
            line = TableRow()
            for value in row:
                if value is None or value == "":
                    cell = TableCell()
                elif isinstance(value, bool):
                    cell = TableCell(valuetype="boolean", booleanvalue=str(value).lower())
                elif isinstance(value, (int, float)):
                    cell = TableCell(valuetype="float", value=value)
                elif isinstance(value, datetime.date):
                    cell = TableCell(valuetype="date", datevalue=value.isoformat())
                else:
                    cell = TableCell(valuetype="string")
                    for part in value.split("\n"):
                        cell.addElement(P(text=part))
                line.addElement(cell)
            line.addElement(TableCell(numbercolumnsrepeated=1000))
            table.addElement(line)
        table.addElement(TableRow(numberrowsrepeated=1000000))
        table.childNodes[-1].addElement(TableCell(numbercolumnsrepeated=1003))
        book.spreadsheet.addElement(table)
    book.save(path)


out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
xlsx(out / "one.xlsx", {"Rows": ROWS, "Sheet2": []})
xlsx(out / "two.xlsx", {"Rows": ROWS, "Old rows": ROWS[:3]})
xlsx(out / "empty.xlsx", {"Sheet1": []})
ods(out / "one.ods", {"Rows": ROWS})
