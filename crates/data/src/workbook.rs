//! Sheets of workbooks (XLSX, ODS) as tables, through `calamine`.
//!
//! A workbook is a ZIP archive of XML, and both can be made to unfold without end: so everything is unpacked once against a
//! limit before it is read; of ODS, whose reader unfolds repeated cells, the repeats are counted first, and of XLSX, whose reader
//! makes room for as many texts as the file says it has, that number is checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use calamine::{Data, DataRef, ExcelDateTime, Ods, Reader, Sheets, Xlsx, open_workbook};

use crate::error::io_error;
use crate::input::{most_bytes, unpacks_to_too_much};
use crate::table::held::{Held, Row, Table};
use crate::{DataError, Result};

/// Cells of a sheet, empty ones between others included.
const MOST_CELLS: u64 = 20_000_000;

/// Reads a sheet: the one of this name, or the only one that is not empty. Its first row that is not empty has the names.
pub(crate) fn read_workbook(path: &Path, wanted: Option<&str>) -> Result<Table> {
    let refuse = |problem: String| DataError::Table { path: path.to_owned(), problem };
    let is_ods = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("ods"));
    unfolds(path, is_ods)?;
    let broken = |e: String| refuse(format!("it cannot be read as a workbook: {e}"));
    let mut book = match is_ods {
        true => Sheets::Ods(open_workbook::<Ods<_>, _>(path).map_err(|e| broken(e.to_string()))?),
        false => Sheets::Xlsx(open_workbook::<Xlsx<_>, _>(path).map_err(|e| broken(e.to_string()))?),
    };
    let names = book.sheet_names();
    if let Some(name) = wanted {
        if !names.iter().any(|n| n == name) {
            return Err(refuse(format!("there is no sheet {name:?}, but {}", listed(&names))));
        }
        return sheet(path, &mut book, name);
    }
    let mut found: Vec<(&String, Table)> = Vec::new();
    for name in &names {
        let table = sheet(path, &mut book, name)?;
        if !table.columns.is_empty() {
            found.push((name, table));
        }
    }
    if found.len() > 1 {
        let names: Vec<String> = found.into_iter().map(|(name, _)| name.clone()).collect();
        return Err(refuse(format!("it has {}: name one with --sheet", listed(&names))));
    }
    Ok(found.pop().map(|(_, table)| table).unwrap_or_default())
}

fn listed(names: &[String]) -> String {
    let names: Vec<String> = names.iter().take(10).map(|n| format!("{n:?}")).collect();
    format!("the sheet{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

fn sheet(path: &Path, book: &mut Sheets<BufReader<File>>, name: &str) -> Result<Table> {
    let broken =
        |e: String| DataError::Table { path: path.to_owned(), problem: format!("sheet {name:?}: {e}") };
    let mut rows = Rows::default();
    match book {
        // Cell by cell: a sheet with one at each end of it is not laid out in full.
        Sheets::Xlsx(book) => {
            let mut cells = book.worksheet_cells_reader(name).map_err(|e| broken(e.to_string()))?;
            while let Some(cell) = cells.next_cell().map_err(|e| broken(e.to_string()))? {
                let text = text(&Data::from(match cell.get_value() {
                    DataRef::Empty => continue,
                    value => value.clone(),
                }));
                rows.add(path, cell.get_position(), text)?;
            }
        }
        other => {
            let range = other.worksheet_range(name).map_err(|e| broken(e.to_string()))?;
            let (top, left) = range.start().unwrap_or_default();
            for (row, column, value) in range.used_cells() {
                rows.add(path, (top + row as u32, left + column as u32), text(value))?;
            }
        }
    }
    Ok(rows.table())
}

/// The cells of a sheet that say something.
#[derive(Default)]
struct Rows {
    rows: BTreeMap<u32, Vec<(u32, String)>>,
    held: Held,
}

impl Rows {
    fn add(&mut self, path: &Path, (row, column): (u32, u32), text: String) -> Result<()> {
        if !text.trim().is_empty() {
            self.held.add(path, std::slice::from_ref(&text), !self.rows.contains_key(&row))?;
            self.rows.entry(row).or_default().push((column, text));
        }
        Ok(())
    }

    fn table(self) -> Table {
        let mut rows = self.rows.into_iter();
        let Some((_, names)) = rows.next() else { return Table::default() };
        let columns: BTreeMap<u32, String> = names.into_iter().collect();
        let places: BTreeMap<u32, usize> = columns.keys().copied().zip(0..).collect();
        let row = |(number, cells): (u32, Vec<(u32, String)>)| {
            let mut all = vec![String::new(); places.len()];
            for (column, text) in cells {
                if let Some(&at) = places.get(&column) {
                    all[at] = text;
                }
            }
            Row { number: u64::from(number) + 1, cells: all }
        };
        let rows: Vec<Row> = rows.map(row).filter(|r| r.cells.iter().any(|c| !c.is_empty())).collect();
        Table { columns: columns.into_values().map(|name| name.trim().to_owned()).collect(), rows }
    }
}

/// A cell as one would write it.
fn text(value: &Data) -> String {
    match value {
        Data::Empty | Data::Error(_) => String::new(),
        Data::String(text) | Data::DateTimeIso(text) | Data::DurationIso(text) => text.clone(),
        Data::Int(n) => n.to_string(),
        Data::Float(x) => x.to_string(),
        Data::Bool(yes) => yes.to_string(),
        Data::DateTime(time) => date(time),
    }
}

/// As ISO 8601 has it; a time of day or a duration alone as hours, minutes and seconds.
fn date(time: &ExcelDateTime) -> String {
    let days = time.as_f64();
    if time.is_duration() || days < 1.0 {
        let seconds = (days * 86_400.0).round() as i64;
        return format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    }
    let (year, month, day, hour, minute, second, _) = time.to_ymd_hms_milli();
    let date = format!("{year:04}-{month:02}-{day:02}");
    if (hour, minute, second) == (0, 0, 0) {
        date
    } else {
        format!("{date} {hour:02}:{minute:02}:{second:02}")
    }
}

/// Unpacks all of an archive against a limit, and counts what the cells of an ODS file unfold to.
fn unfolds(path: &Path, is_ods: bool) -> Result<()> {
    let refuse = |problem: String| DataError::Table { path: path.to_owned(), problem };
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut left = most_bytes(file.metadata().map_err(io_error("read", path))?.len());
    let no_zip = |e| {
        refuse(format!(
            "it is no workbook ({e}): expected .xlsx or .ods without a password, or save the sheet as CSV"
        ))
    };
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(no_zip)?;
    for i in 0..archive.len() {
        let part = archive.by_index(i).map_err(no_zip)?;
        let name = part.name().map_err(no_zip)?.to_ascii_lowercase();
        let is_content = is_ods && name == "content.xml";
        let is_texts = !is_ods && name.ends_with("sharedstrings.xml");
        let mut content = Vec::new();
        let mut part = part.take(left + 1);
        let read = match is_content || is_texts {
            true => part.read_to_end(&mut content).map(|n| n as u64),
            false => std::io::copy(&mut part, &mut std::io::sink()),
        };
        let read = read.map_err(|e| refuse(format!("it is damaged: {e}")))?;
        left = left.checked_sub(read).ok_or_else(|| refuse(unpacks_to_too_much()))?;
        if is_texts && promises_more(&content) {
            return Err(refuse("it says that it has more texts than fit it".into()));
        }
        if is_content {
            if !std::str::from_utf8(&content).is_ok_and(is_closed) {
                return Err(refuse("its content.xml is broken: an element does not end".into()));
            }
            let cells =
                unfolded_cells(&content).ok_or_else(|| refuse("its content.xml is not plain".into()))?;
            if cells > MOST_CELLS {
                return Err(refuse(format!("its cells unfold to more than {MOST_CELLS}")));
            }
        }
    }
    Ok(())
}

/// Whether shared texts are said to be more than there are bytes, or are not in UTF-8, so that nothing hides.
fn promises_more(texts: &[u8]) -> bool {
    let Some(text) = std::str::from_utf8(texts).ok().filter(|text| !text.contains('\0')) else { return true };
    text.match_indices("uniqueCount").any(|(at, key)| {
        let value = text[at + key.len()..].trim_start().strip_prefix('=').map_or("", str::trim_start);
        let digits = value.trim_start_matches(['"', '\'']).trim_start_matches(['+', '0']);
        let digits = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        !digits.is_empty() && digits.parse::<u64>().map_or(true, |n| n > texts.len() as u64)
    })
}

/// Rows times the widest of them, over all sheets: never fewer cells than a reader unfolds. `None` where a repeat is no plain
/// number or the text is not UTF-8, so that nothing hides.
fn unfolded_cells(content: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(content).ok().filter(|text| !text.contains('\0'))?;
    let (mut rows, mut widest) = (0u64, 0u64);
    // Of this row: its repeats, its cells up to the last that says something, and the empty ones behind that.
    let (mut repeats, mut width, mut behind) = (0u64, 0u64, 0u64);
    // Rows without anything, which count once something follows.
    let mut blank = 0u64;
    let mut end_row = |repeats: &mut u64, width: &mut u64, behind: &mut u64| {
        if *width > 0 {
            rows = rows.saturating_add(std::mem::take(&mut blank)).saturating_add(*repeats);
            widest = widest.max(*width);
        } else {
            blank = blank.saturating_add(*repeats);
        }
        (*repeats, *width, *behind) = (0, 0, 0);
    };
    for (at, _) in text.match_indices("<table:") {
        let tag = tag(&text[at..])?;
        let named = |name: &str| {
            tag.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_whitespace() || "/>".contains(c)))
        };
        if named("<table:table-row") {
            end_row(&mut repeats, &mut width, &mut behind);
            repeats = repeated(tag, "table:number-rows-repeated")?;
        } else if named("<table:table-cell") || named("<table:covered-table-cell") {
            let n = repeated(tag, "table:number-columns-repeated")?;
            if tag.ends_with("/>") && !tag.contains("office:") && !tag.contains("formula") {
                behind = behind.saturating_add(n);
            } else {
                width = width.saturating_add(std::mem::take(&mut behind)).saturating_add(n);
            }
        }
    }
    end_row(&mut repeats, &mut width, &mut behind);
    Some(rows.saturating_mul(widest))
}

/// Whether all elements of a text end, in their order: at the end of a text without, the reader of ODS waits for ever.
fn is_closed(text: &str) -> bool {
    let (mut open, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        let apart = [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>")];
        if let Some((begin, end)) = apart.iter().find(|(begin, _)| rest.starts_with(begin)) {
            let Some(at) = rest[begin.len()..].find(end) else { return false };
            rest = &rest[begin.len() + at + end.len()..];
            continue;
        }
        let Some(tag) = tag(rest) else { return false };
        rest = &rest[tag.len()..];
        let inside = &tag[1..tag.len() - 1];
        if let Some(name) = inside.strip_prefix('/') {
            if open.pop() != Some(name.trim_end()) {
                return false;
            }
        } else if !inside.ends_with('/') && !inside.starts_with('!') {
            open.push(inside.split(char::is_whitespace).next().unwrap_or_default());
        }
    }
    open.is_empty()
}

/// A tag up to its end, whatever stands in quotes.
fn tag(text: &str) -> Option<&str> {
    let mut quote = None;
    for (i, c) in text.bytes().enumerate() {
        match (quote, c) {
            (None, b'>') => return Some(&text[..=i]),
            (None, b'"' | b'\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

/// How often a tag says that it is repeated; once if it says nothing.
fn repeated(tag: &str, key: &str) -> Option<u64> {
    let Some((_, rest)) = tag.split_once(key) else { return Some(1) };
    let value = rest.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|c| "\"'".contains(*c))?;
    value[1..].split(quote).next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
