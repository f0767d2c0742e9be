//! Tables as people have them: CSV, TSV, lines of JSON, Parquet, sheets of workbooks.

use std::collections::BTreeMap;
use std::io::{BufRead, Cursor, Read};
use std::path::Path;

use serde_json::value::RawValue;

use crate::error::io_error;
use crate::input::open_text;
use crate::records::Records;
use crate::workbook::read_workbook;
use crate::{DataError, Result};

pub(crate) mod held;
use held::Held;
pub use held::{Row, Table};

/// Reads a table: `.csv` (commas, or semicolons where the first line has more of them) and `.tsv` with a line of names at the
/// top, `.jsonl` with an object in every line, each also in gzip; `.parquet`; of `.xlsx` and `.ods` the sheet of this name, or the
/// only one that is not empty.
///
/// # Errors
/// A file that cannot be read or is of another kind, a row with other cells than there are names, a table without
/// rows, one that is too large to hold, and of a workbook with several sheets none that is named.
pub fn read_table(path: &Path, sheet: Option<&str>) -> Result<Table> {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let ending = name.rsplit_once('.').map(|(_, e)| e);
    if sheet.is_some() && !matches!(ending, Some("xlsx" | "ods")) {
        let problem = "only workbooks (.xlsx, .ods) have sheets".to_owned();
        return Err(DataError::Table { path: path.to_owned(), problem });
    }
    let table = match ending {
        Some("csv") => delimited(path, None)?,
        Some("tsv") => delimited(path, Some(b'\t'))?,
        Some("jsonl" | "ndjson" | "parquet") => objects(path)?,
        Some("xlsx" | "ods") => read_workbook(path, sheet)?,
        Some("xls" | "xlsm" | "xlsb" | "numbers") => {
            let problem =
                "a workbook of a kind that is not read: save it as .xlsx or .ods, or the sheet as CSV"
                    .to_owned();
            return Err(DataError::Table { path: path.to_owned(), problem });
        }
        _ => {
            let problem =
                "not a table by its name: expected .csv, .tsv, .jsonl, .parquet, .xlsx or .ods".to_owned();
            return Err(DataError::Table { path: path.to_owned(), problem });
        }
    };
    if table.rows.is_empty() {
        return Err(DataError::Table { path: path.to_owned(), problem: "it has no rows".to_owned() });
    }
    Ok(table)
}

/// Bytes of the line of names by which the delimiter is told.
const LONGEST_NAMES: u64 = 1 << 16;

fn delimited(path: &Path, delimiter: Option<u8>) -> Result<Table> {
    let mut reader = open_text(path)?;
    let mut names = Vec::new();
    (&mut reader).take(LONGEST_NAMES).read_until(b'\n', &mut names).map_err(io_error("read", path))?;
    let count = |c: u8| names.iter().filter(|b| **b == c).count();
    let delimiter = delimiter.unwrap_or(if count(b';') > count(b',') { b';' } else { b',' });
    let reader = Cursor::new(names).chain(reader);
    let refused = |problem: String| DataError::Table { path: path.to_owned(), problem };
    // Programs of offices still write their country's letters in one byte each.
    let broken = |e: csv::Error| {
        let is_text = !matches!(e.kind(), csv::ErrorKind::Utf8 { .. });
        let row = e.position().map_or(0, csv::Position::record);
        refused(if is_text {
            e.to_string()
        } else {
            format!("row {row} is not UTF-8: save it as CSV in UTF-8")
        })
    };
    let mut csv = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(reader);
    let headers = csv.headers().map_err(broken)?;
    let columns: Vec<String> = headers.iter().map(|name| name.trim().to_owned()).collect();
    let mut table = Table { columns, rows: Vec::new() };
    let mut held = Held::default();
    for (number, record) in (1..).zip(csv.records()) {
        let record = record.map_err(broken)?;
        if record.iter().all(|cell| cell.trim().is_empty()) {
            continue;
        }
        if record.len() > table.columns.len() {
            let problem = format!(
                "row {number} has {} cells and the line of names {}: is a text with a comma in it not in quotes?",
                record.len(),
                table.columns.len()
            );
            return Err(refused(problem));
        }
        let mut cells: Vec<String> = record.iter().map(str::to_owned).collect();
        cells.resize(table.columns.len(), String::new());
        held.add(path, &cells, true)?;
        table.rows.push(Row { number, cells });
    }
    Ok(table)
}

fn objects(path: &Path) -> Result<Table> {
    let mut table = Table::default();
    let mut held = Held::default();
    // Numbers stay as they are written, to their last digit.
    for record in Records::<BTreeMap<String, Box<RawValue>>>::open(path, &[])? {
        let (place, object) = record?;
        let mut cells = vec![String::new(); table.columns.len()];
        for (key, value) in object {
            let at = table.columns.iter().position(|c| *c == key).unwrap_or_else(|| {
                table.columns.push(key);
                cells.push(String::new());
                cells.len() - 1
            });
            cells[at] = match value.get() {
                "null" => String::new(),
                text if text.starts_with('"') => {
                    serde_json::from_str(text).map_err(|e| place.error(e.to_string()))?
                }
                other => other.to_owned(),
            };
        }
        held.add(path, &cells, true)?;
        table.rows.push(Row { number: place.number(), cells });
    }
    let columns = table.columns.len();
    table.rows.iter_mut().for_each(|row| row.cells.resize(columns, String::new()));
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Table> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_table(&path, None)
    }

    fn cells(table: &Table) -> Vec<Vec<&str>> {
        table.rows.iter().map(|r| r.cells.iter().map(String::as_str).collect()).collect()
    }

    #[test]
    fn tables_are_read_whatever_their_kind() {
        let csv =
            read("a.csv", "\u{feff}Question, Answer\r\n\"2 + 2, please\",4\r\n\r\nx\n\"two\nlines\",7\n")
                .unwrap();
        assert_eq!(csv.columns, ["Question", "Answer"]);
        assert_eq!(cells(&csv), [["2 + 2, please", "4"], ["x", ""], ["two\nlines", "7"]]);
        assert_eq!(csv.rows.iter().map(|r| r.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(csv.column(" answer".trim()), Some(1));
        let semicolons = read("a.csv", "q;a\n1,5;2\n").unwrap();
        assert_eq!(cells(&semicolons), [["1,5", "2"]]);
        let tabs = read("a.tsv", "q\ta\n1\t2\n").unwrap();
        assert_eq!(cells(&tabs), [["1", "2"]]);
        let lines =
            read("a.jsonl", "{\"q\": \"x\", \"a\": 12345678901234567890123}\n{\"a\": null, \"b\": [1]}\n")
                .unwrap();
        assert_eq!(lines.columns, ["a", "q", "b"]);
        assert_eq!(cells(&lines), [["12345678901234567890123", "x", ""], ["", "", "[1]"]]);
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_name() {
        for (name, text, want) in [
            ("a.csv", "q,a\n1,2,3\n", "row 1 has 3 cells"),
            ("a.csv", "q,a\n", "no rows"),
            ("a.csv", "", "no rows"),
            ("a.xlsx", "PK", "no workbook"),
            ("a.ods", "", "no workbook"),
            ("a.xls", "x", "save it as .xlsx"),
            ("a.doc", "x", "expected .csv"),
            ("a.jsonl", "[1]\n", "line 1"),
        ] {
            let error = read(name, text).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains(name), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let latin = dir.path().join("latin.csv");
        std::fs::write(&latin, b"q,a\nx,1\nGr\xf6\xdfe,2\n").unwrap();
        assert!(read_table(&latin, None).unwrap_err().to_string().contains("row 2 is not UTF-8"));
    }
}
