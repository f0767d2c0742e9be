use std::fs;
use std::io::Write;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

use crate::{Conversation, DataError, Message};

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    Records::open(path, &[])?.map(|record| record.map(|(_, value)| value)).collect()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    file.write_all(text).unwrap();
    file.finish().unwrap()
}

/// Writes a column `messages` as dataset tools do: a list of structures, here with two turns per row.
fn write_parquet(path: &Path, rows: usize) {
    let schema =
        "message schema { required group messages (LIST) { repeated group list { required group element {
        required binary role (UTF8); required binary content (UTF8); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut levels = Vec::new();
    let (mut roles, mut contents) = (Vec::<ByteArray>::new(), Vec::<ByteArray>::new());
    for i in 0..rows {
        levels.extend([0i16, 1]);
        roles.extend(["user".into(), "assistant".into()]);
        contents.extend([format!("{i}?").into_bytes().into(), "é".into()]);
    }
    let definition = vec![1i16; levels.len()];
    for values in [roles, contents] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&definition), Some(&levels)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// Protects: records survive a round trip, and a file appears without temporary leftovers.
#[test]
fn jsonl_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/folder/chat.jsonl");
    let conversations =
        vec![Conversation::of([Message::user("a\n\"b\""), Message::assistant("ü")]), Conversation::of([])];
    write_jsonl(&path, &conversations).unwrap();
    assert_eq!(read::<Conversation>(&path).unwrap(), conversations);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

/// Protects: a broken line is named with its number, counted with empty lines, and says what is wrong.
#[test]
fn broken_lines_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = r#"{"messages": [], "extra": 1}"#;
    let message = |text: String| {
        let path = write(dir.path(), "x.jsonl", text);
        read::<Conversation>(&path).unwrap_err().to_string()
    };
    let m = message(format!("\u{feff}{good}\r\n\n{good}\n{{\"messages\": [}}\n"));
    assert!(m.contains("x.jsonl line 4: not a JSON object") && m.contains("(column 15)"), "{m}");
    let m = message(format!("{good}\n{{\"turns\": []}}"));
    assert!(m.contains("line 2") && m.contains("missing field `messages`"), "{m}");
    assert!(!m.contains("at line 1"), "{m}");
    let path = write(dir.path(), "bytes.jsonl", b"{\"messages\": [{\"role\": \"\xff\"}]}");
    assert!(read::<Conversation>(&path).unwrap_err().to_string().contains("line 1"));
    let deep = write(dir.path(), "deep.jsonl", "[".repeat(1_000_000));
    assert!(read::<serde_json::Value>(&deep).unwrap_err().to_string().contains("line 1"));
    let missing = read::<Conversation>(&dir.path().join("none")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot open "), "{missing}");
}

/// Protects: conversations in Parquet read as the same records.
#[test]
fn parquet_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write_parquet(&path, 3);
    let found = read::<Conversation>(&path).unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[2].messages, [Message::user("2?"), Message::assistant("é")]);
    let e = Records::<serde_json::Value>::open(&path, &["text"]).err().unwrap().to_string();
    assert!(e.contains("has no column `text`: its columns are messages"), "{e}");
    #[derive(Debug, serde::Deserialize)]
    struct Other {
        #[allow(dead_code, reason = "only its type matters here")]
        messages: u32,
    }
    let e = read::<Other>(&path).unwrap_err().to_string();
    assert!(e.contains("row 0: not of the expected form"), "{e}");
}

/// Protects: a byte order mark and gzip change nothing, however they come together.
#[test]
fn marks_and_gzip_are_taken_off() {
    let dir = tempfile::tempdir().unwrap();
    let plain = "{\"n\": 1}\n{\"n\": 2}\n";
    let marked = format!("\u{feff}{plain}");
    let (first, second) = plain.split_at(10);
    let parts = [gzip(first.as_bytes()), gzip(second.as_bytes())].concat();
    for (name, bytes) in [
        ("plain.jsonl", plain.as_bytes().to_vec()),
        ("marked.jsonl", marked.clone().into_bytes()),
        ("packed.jsonl.gz", gzip(plain.as_bytes())),
        ("marked.jsonl.gz", gzip(marked.as_bytes())),
        ("no-ending", gzip(plain.as_bytes())),
        ("parts.jsonl.gz", parts),
    ] {
        let found: Vec<serde_json::Value> = read(&write(dir.path(), name, bytes)).unwrap();
        assert_eq!(found, [serde_json::json!({"n": 1}), serde_json::json!({"n": 2})], "{name}");
    }
    let cut = &gzip(marked.as_bytes())[..20];
    assert!(read::<serde_json::Value>(&write(dir.path(), "cut.jsonl.gz", cut)).is_err());
    let bomb = gzip(&vec![b' '; 100 << 20]);
    let e = read::<serde_json::Value>(&write(dir.path(), "bomb.jsonl.gz", bomb)).unwrap_err().to_string();
    assert!(e.contains("bomb.jsonl.gz") && e.contains("more than 200 times its size"), "{e}");
}

/// Protects: what is not read is refused by its name, not by what it looks like as text.
#[test]
fn other_kinds_of_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (bytes, want) in [
        (&b"\x28\xb5\x2f\xfd...."[..], "zstd"),
        (b"\xfd7zXZ\0..", "xz"),
        (b"PK\x03\x04....", "ZIP"),
        (b"\xff\xfe{\0}\0", "UTF-16"),
        (b"PAR1", "Parquet"),
    ] {
        for bytes in [bytes.to_vec(), gzip(bytes)] {
            let e = read::<serde_json::Value>(&write(dir.path(), "x", bytes)).unwrap_err();
            assert!(matches!(&e, DataError::Foreign { found, .. } if found.contains(want)), "{e}");
        }
    }
}

/// Protects: columns of bytes are text, as many writers leave them, and what is no text is named with its column.
#[test]
fn binary_columns_are_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let schema = Arc::new(parse_message_type("message schema { required binary prompt; }").unwrap());
    let mut writer =
        SerializedFileWriter::new(fs::File::create(&path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = vec!["é".into(), b"\xff".to_vec().into()];
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let mut records = Records::<serde_json::Value>::open(&path, &[]).unwrap();
    assert_eq!(records.next().unwrap().unwrap().1, serde_json::json!({"prompt": "é"}));
    let e = records.next().unwrap().unwrap_err().to_string();
    assert!(e.contains("x.parquet row 1: column `prompt` holds bytes that are not UTF-8"), "{e}");
}

/// Protects: a long text that a dictionary repeats without end is not unpacked without end.
#[test]
fn a_dictionary_does_not_fill_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.parquet");
    let schema = Arc::new(parse_message_type("message schema { required binary text (UTF8); }").unwrap());
    let mut writer =
        SerializedFileWriter::new(fs::File::create(&path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values = vec![ByteArray::from("x".repeat(1 << 16).into_bytes()); 2000];
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 200_000, "the text is there once");
    let mut records = Records::<serde_json::Value>::open(&path, &["text"]).unwrap();
    let (read, error) = (records.by_ref().take_while(|r| r.is_ok()).count(), records.next());
    assert!((1000..1100).contains(&read) && error.is_none(), "{read}");
    let error = Records::<serde_json::Value>::open(&path, &[]).unwrap().find_map(|r| r.err()).unwrap();
    assert!(error.to_string().contains("more than 200 times its size"), "{error}");
}

/// Protects: a damaged Parquet file gives an error or rows, never a panic that leaves this crate.
#[test]
fn damaged_parquet_does_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write_parquet(&path, 20);
    let original = fs::read(&path).unwrap();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for at in 0..original.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = original.clone();
            bytes[at] ^= flip;
            fs::write(&path, &bytes).unwrap();
            let _ = read::<Conversation>(&path);
        }
        fs::write(&path, &original[..at]).unwrap();
        assert!(read::<Conversation>(&path).is_err(), "a file cut to {at} bytes was read");
    }
    std::panic::set_hook(hook);
}
