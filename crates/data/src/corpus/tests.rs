use super::*;

use std::sync::Arc;

use parquet::data_type::ByteArrayType;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn write_parquet(path: &Path, groups: &[&[&str]]) {
    let schema = "message schema { required int64 id; required binary text (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    for texts in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let ids: Vec<i64> = (0..texts.len() as i64).collect();
        column.typed::<parquet::data_type::Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<_> = texts.iter().map(|t| (*t).into()).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn gzip(text: &str) -> Vec<u8> {
    let mut file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    file.finish().unwrap()
}

fn texts(corpus: Corpus) -> Vec<String> {
    corpus.texts().collect::<Result<_>>().unwrap()
}

/// Protects: a folder gives every document of every kind once, in the order of the paths, and nothing else.
#[test]
fn a_folder_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    write(d, "b.jsonl", "{\"text\": \"b0\", \"id\": 1}\n\n{\"text\": \"\"}\n{\"text\": \"b3\"}\n");
    write_parquet(&d.join("c.PARQUET"), &[&["c0", "c1"], &[], &["c2"]]);
    write(d, "a/deep/er.txt", "\u{feff}a");
    write(d, "a/empty.txt", "");
    write(d, "d.py", "print()");
    write(d, "e.csv.gz", gzip("packed"));
    write(d, "image.png", b"\x89PNG");
    write(d, ".git/config.txt", "hidden");
    let all: Vec<TextDocument> = read_texts(d).unwrap().collect::<Result<_>>().unwrap();
    let found: Vec<&str> = all.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(found, ["a", "b0", "b3", "c0", "c1", "c2", "print()", "packed"]);
    assert_eq!((all[2].index, all[5].index), (2, 2));
    assert!(all[0].path.ends_with("a/deep/er.txt"));
    let some = read_texts_with(d, &[".PY".to_owned(), "jsonl".to_owned()]).unwrap();
    assert_eq!(some.files().len(), 2);
    assert_eq!(texts(some), ["b0", "b3", "print()"]);
    assert_eq!(texts(read_texts(&write(d, "README", "any name")).unwrap()), ["any name"]);
}

/// Protects: a corpus that holds nothing says so, whether it lacks files or text.
#[test]
fn empty_corpora_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let e = read_texts(dir.path()).err().unwrap().to_string();
    assert!(e.contains("holds no text") && e.contains("parquet"), "{e}");
    write(dir.path(), "a.txt", "");
    let all: Vec<_> = read_texts(dir.path()).unwrap().collect();
    assert!(matches!(all[..], [Err(DataError::EmptyCorpus { .. })]));
    let e = read_texts(&dir.path().join("nowhere")).err().unwrap().to_string();
    assert!(e.starts_with("cannot open "), "{e}");
}

/// Protects: what is wrong inside of a file is named by file and place, and the iterator ends there.
#[test]
fn broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fail = |path: &Path| -> DataError {
        let mut corpus = read_texts(path).unwrap();
        let e = corpus.find_map(|r| r.err()).unwrap();
        assert!(corpus.next().is_none());
        e
    };
    let e = fail(&write(dir.path(), "latin.txt", b"caf\xe9 au lait"));
    assert!(matches!(e, DataError::NotUtf8 { offset: 3, .. }), "{e}");
    let e = fail(&write(dir.path(), "a/packed.txt.zst", b"\x28\xb5\x2f\xfd...."));
    assert!(e.to_string().contains("packed.txt.zst is compressed with zstd"), "{e}");
    assert!(fail(&dir.path().join("a")).to_string().contains("zstd"), "not passed over in a folder either");
    let e = fail(&write(dir.path(), "cut.txt", b"caf\xc3"));
    assert!(matches!(e, DataError::NotUtf8 { offset: 3, .. }), "{e}");
    let e = fail(&write(dir.path(), "x.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n"));
    assert!(e.to_string().contains("line 2") && e.to_string().contains("missing field `text`"), "{e}");
    let e = read_texts(&write(dir.path(), "x.parquet", "PAR1 but not really PAR1")).unwrap().next();
    assert!(matches!(e, Some(Err(DataError::Parquet { .. }))));
}

/// Protects: a long file comes in pieces of bounded size, cut where readers would cut, and loses nothing, with
/// errors at their offset in the file.
#[test]
fn long_files_come_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let story = "Once upon a time — ünïcödé.\nThe end.\n\n".repeat(300_000);
    let path = write(dir.path(), "long.txt", &story);
    let pieces = texts(read_texts(&path).unwrap());
    assert!(pieces.len() > 2);
    assert!(
        pieces.iter().all(|p| p.len() <= PIECE_BYTES + 1 && p.starts_with("Once") && p.ends_with("end.\n\n"))
    );
    assert_eq!(pieces.concat(), story);

    let unbroken = "é".repeat(PIECE_BYTES);
    assert_eq!(texts(read_texts(&write(dir.path(), "one.txt", &unbroken)).unwrap()).concat(), unbroken);

    let mut bytes = story.into_bytes();
    let at = bytes.len() - 100;
    bytes[at] = 0xff;
    let e = read_texts(&write(dir.path(), "bad.txt", &bytes)).unwrap().find_map(|r| r.err()).unwrap();
    assert!(matches!(e, DataError::NotUtf8 { offset, .. } if offset == at as u64), "{e}");
}
