use super::*;
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workbooks").join(name)
}

/// What tests/golden/make_workbooks.py wrote, by other programs' libraries.
#[test]
fn a_sheet_is_a_table() {
    for name in ["one.xlsx", "one.ods"] {
        let table = read_workbook(&file(name), None).expect(name);
        assert_eq!(table.columns, ["Question", "Answer", "Note"], "{name}");
        let cells: Vec<Vec<&str>> =
            table.rows.iter().map(|r| r.cells.iter().map(String::as_str).collect()).collect();
        let want = [
            ["How much is 2 + 2?", "4", ""],
            ["What is a half?", "0.5", "a number"],
            ["When was it, five days after 28 February 2025?", "2025-03-05", ""],
            ["Is it so?", "true", "yes\nindeed"],
            ["Größer & kleiner <?", "1,234", ""],
        ];
        assert_eq!(cells, want, "{name}");
    }
    let rows = read_workbook(&file("one.xlsx"), None).expect("a table").rows;
    assert_eq!(rows[0].number, 4, "the sheet's own row");
}

#[test]
fn of_several_sheets_one_has_to_be_named() {
    let said = |wanted| read_workbook(&file("two.xlsx"), wanted).map_err(|e| e.to_string());
    let error = said(None).unwrap_err();
    assert!(error.contains("the sheets \"Rows\", \"Old rows\": name one with --sheet"), "{error}");
    assert_eq!(said(Some("Old rows")).expect("a table").rows.len(), 2);
    assert!(said(Some("rows")).unwrap_err().contains("no sheet \"rows\""));
    assert_eq!(read_workbook(&file("empty.xlsx"), None).expect("a table"), Table::default());
}

/// A few hundred bytes that would unfold to terabytes are refused before anything reads them.
#[test]
fn what_unfolds_without_end_is_refused() {
    use std::io::Write;
    let dir = tempfile::tempdir().expect("a folder");
    let archive = |name: &str, part: &str, content: &dyn Fn(&mut dyn Write)| {
        let path = dir.path().join(name);
        let mut zip = zip::ZipWriter::new(File::create(&path).expect("a file"));
        zip.start_file(part, zip::write::SimpleFileOptions::default()).expect("a part");
        content(&mut zip);
        zip.finish().expect("an archive");
        read_workbook(&path, None).expect_err("refused").to_string()
    };
    let zeros = |out: &mut dyn Write| (0..80).for_each(|_| out.write_all(&[0; 1 << 20]).expect("written"));
    let said = archive("a.xlsx", "xl/workbook.xml", &zeros);
    assert!(said.contains("unpacks to more than"), "{said}");
    for promise in [
        "<sst uniqueCount=\"99999999999\">",
        "<x:sst uniqueCount = '0099999'>",
        "<sst uniqueCount=\"99999999999999999999\">",
    ] {
        let said = archive("b.xlsx", "xl/SharedStrings.xml", &|out| {
            out.write_all(promise.as_bytes()).expect("written")
        });
        assert!(said.contains("more texts than fit"), "{said}");
    }
    assert!(!promises_more(b"<sst uniqueCount=\"1\"><si><t>uniqueCount</t></si></sst>"));
    let cells = |out: &mut dyn Write| {
        let row = "<table:table-row table:number-rows-repeated='1000000'><table:table-cell a=\">\" \
                   table:number-columns-repeated=\"16000\" office:value=\"1\"/></table:table-row>";
        out.write_all(row.as_bytes()).expect("written");
    };
    let said = archive("a.ods", "content.xml", &cells);
    assert!(said.contains("unfold to more than"), "{said}");
    assert_eq!(unfolded_cells(b"<table:table-row table:number-rows-repeated='x'>"), None);
    assert_eq!(
        unfolded_cells(&"<table:table-row>".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()),
        None
    );
    let gaps = "<table:table-row><table:table-cell table:number-columns-repeated = '9'/><table:table-cell>x</table:table-cell>\
                <table:table-cell table:number-columns-repeated='99'/></table:table-row>\
                <table:table-row table:number-rows-repeated='5'><table:table-cell/></table:table-row>\
                <table:table-row><table:table-cell office:value='1'/></table:table-row>\
                <table:table-row table:number-rows-repeated='1000'/>";
    assert_eq!(unfolded_cells(gaps.as_bytes()), Some(7 * 10));
}

/// The reader of ODS waits for ever for the end of an element that has none.
#[test]
fn elements_without_an_end_are_refused() {
    assert!(is_closed("<?xml version='1'?><!-- <a> --><a b=\"x>y\"><c/><d ></d ><![CDATA[<e>]]></a>"));
    for broken in ["<a>", "<a></b>", "<a><b></a></b>", "</a>", "<a", "<a><!-- </a>", "<a><b/>"] {
        assert!(!is_closed(broken), "{broken}");
    }
}
