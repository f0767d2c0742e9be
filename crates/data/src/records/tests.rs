use std::fs;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
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
    let conversations = vec![
        Conversation { messages: vec![Message::user("a\n\"b\""), Message::assistant("ü")] },
        Conversation { messages: vec![] },
    ];
    write_jsonl(&path, &conversations).unwrap();
    assert_eq!(read_conversations(&path).unwrap(), conversations);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

/// Protects: a broken line is named with its number, counted with empty lines, and says what is wrong.
#[test]
fn broken_lines_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = r#"{"messages": [], "extra": 1}"#;
    let message = |text: String| {
        let path = write(dir.path(), "x.jsonl", text);
        read_conversations(&path).unwrap_err().to_string()
    };
    let m = message(format!("\u{feff}{good}\r\n\n{good}\n{{\"messages\": [}}\n"));
    assert!(m.contains("x.jsonl line 4: not a JSON object") && m.contains("(column 15)"), "{m}");
    let m = message(format!("{good}\n{{\"turns\": []}}"));
    assert!(m.contains("line 2") && m.contains("missing field `messages`"), "{m}");
    assert!(!m.contains("at line 1"), "{m}");
    let path = write(dir.path(), "bytes.jsonl", b"{\"messages\": [{\"role\": \"\xff\"}]}");
    assert!(read_conversations(&path).unwrap_err().to_string().contains("line 1"));
    let deep = write(dir.path(), "deep.jsonl", "[".repeat(1_000_000));
    assert!(read_jsonl::<serde_json::Value>(&deep).unwrap_err().to_string().contains("line 1"));
    let missing = read_conversations(&dir.path().join("none")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot open "), "{missing}");
}

/// Protects: conversations in Parquet read as the same records.
#[test]
fn parquet_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write_parquet(&path, 3);
    let read = read_conversations(&path).unwrap();
    assert_eq!(read.len(), 3);
    assert_eq!(read[2].messages, [Message::user("2?"), Message::assistant("é")]);
    let e = read_parquet::<serde_json::Value>(&path, &["text"]).unwrap_err().to_string();
    assert!(e.contains("has no column `text`: its columns are messages"), "{e}");
    #[derive(Debug, Deserialize)]
    struct Other {
        #[allow(dead_code)]
        messages: u32,
    }
    let e = read_parquet::<Other>(&path, &[]).unwrap_err().to_string();
    assert!(e.contains("row 0: not of the expected form"), "{e}");
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
            let _ = read_conversations(&path);
        }
        fs::write(&path, &original[..at]).unwrap();
        assert!(read_conversations(&path).is_err(), "a file cut to {at} bytes was read");
    }
    std::panic::set_hook(hook);
}
