use std::fs;

use proptest::prelude::*;

use super::*;

fn write(dir: &Path, vocab_size: usize, docs: &[Vec<u32>]) {
    let mut writer = ShardWriter::create(dir, vocab_size).unwrap();
    for doc in docs {
        writer.push_document(doc).unwrap();
    }
    writer.finish().unwrap();
}

proptest! {
    /// Protects: documents come back as written, for both token widths, empty ones included.
    #[test]
    fn round_trip(
        docs in prop::collection::vec(prop::collection::vec(0u32..70_000, 0..50), 0..20),
        wide: bool,
    ) {
        let vocab = if wide { 70_000 } else { 65_536 };
        let docs: Vec<Vec<u32>> =
            docs.into_iter().map(|d| d.into_iter().map(|id| id % vocab as u32).collect()).collect();
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), vocab, &docs);
        let shards = Shards::open(dir.path()).unwrap();
        prop_assert_eq!(shards.len_documents(), docs.len() as u64);
        prop_assert_eq!(shards.len_tokens(), docs.iter().map(|d| d.len() as u64).sum::<u64>());
        prop_assert_eq!(shards.vocab_size(), vocab);
        for (i, doc) in docs.iter().enumerate() {
            prop_assert_eq!(&shards.document(i as u64).unwrap(), doc);
            prop_assert_eq!(shards.document_len(i as u64).unwrap(), doc.len());
        }
        prop_assert!(shards.document(docs.len() as u64).is_err());
    }
}

/// Protects: any single flipped bit and any truncation of a shard is refused.
#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 300, &[vec![1, 2, 3], vec![], vec![299; 5]]);
    let path = dir.path().join(FILE_NAME);
    let original = fs::read(&path).unwrap();
    for bit in 0..original.len() * 8 {
        let mut bytes = original.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        assert!(Shards::open(dir.path()).is_err(), "bit {bit} was flipped and not noticed");
    }
    for length in 0..original.len() {
        fs::write(&path, &original[..length]).unwrap();
        assert!(Shards::open(dir.path()).is_err(), "a file of {length} bytes was taken for whole");
    }
    fs::write(&path, [&original[..], &[0]].concat()).unwrap();
    assert!(Shards::open(dir.path()).is_err(), "a longer file was taken for whole");
}

/// Protects: a header with a right checksum and impossible counts is refused before memory is asked for.
#[test]
fn impossible_counts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = Header { width: 2, vocab_size: 300, tokens: 0, documents: 0, body_crc: 0 };
    for header in [
        Header { tokens: u64::MAX, ..good },
        Header { documents: u64::MAX, ..good },
        Header { documents: u64::MAX - 1, ..good },
        Header { tokens: 1 << 40, documents: 1 << 40, ..good },
        Header { width: 4, ..good },
        Header { width: 0, ..good },
        Header { vocab_size: u64::MAX, width: 4, tokens: 1 << 62, ..good },
    ] {
        fs::write(dir.path().join(FILE_NAME), [&header.to_bytes()[..], &[0; 64]].concat()).unwrap();
        assert!(Shards::open(dir.path()).is_err(), "{header:?}");
    }
}

/// Protects: checksums made for wrong contents do not make them right: ids and index are checked as well.
#[test]
fn forged_bodies_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let forge = |tokens: &[u16], starts: &[u64]| {
        let mut body: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        body.extend(starts.iter().flat_map(|s| s.to_le_bytes()));
        let header = Header {
            width: 2,
            vocab_size: 10,
            tokens: tokens.len() as u64,
            documents: starts.len() as u64 - 1,
            body_crc: crc32fast::hash(&body),
        };
        fs::write(dir.path().join(FILE_NAME), [&header.to_bytes()[..], &body].concat()).unwrap();
        Shards::open(dir.path()).map(|s| s.len_documents()).map_err(|e| e.to_string())
    };
    assert_eq!(forge(&[1, 2, 3], &[0, 1, 3]), Ok(2));
    assert!(forge(&[1, 10, 3], &[0, 1, 3]).unwrap_err().contains("largest token id is 10"));
    for starts in [[1, 1, 3], [0, 4, 3], [0, 1, 2], [0, u64::MAX, 3]] {
        assert!(forge(&[1, 2, 3], &starts).unwrap_err().contains("document index"));
    }
}

/// Protects: a shard that was never finished is not visible, does not harm the one before it, and leaves nothing.
#[test]
fn unfinished_shards_are_invisible() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 10, &[vec![1]]);
    let mut writer = ShardWriter::create(dir.path(), 10).unwrap();
    writer.push_document(&[2, 3]).unwrap();
    drop(writer);
    assert_eq!(Shards::open(dir.path()).unwrap().document(0).unwrap(), [1]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Protects: an id of another tokenizer is refused where it is written, with its place.
#[test]
fn foreign_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), 10).unwrap();
    writer.push_document(&[9]).unwrap();
    let e = writer.push_document(&[1, 10]).unwrap_err().to_string();
    assert!(e.contains("document 1") && e.contains("10 at position 1"), "{e}");
    writer.finish().unwrap();
    assert_eq!(Shards::open(dir.path()).unwrap().len_documents(), 1);
}

/// Protects: a file cut short while it is open gives an error, not a crash.
#[test]
fn a_file_cut_while_open_gives_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 10, &[vec![1; 100], vec![2; 100]]);
    let shards = Shards::open(dir.path()).unwrap();
    File::options().write(true).open(dir.path().join(FILE_NAME)).unwrap().set_len(100).unwrap();
    assert!(shards.document(1).is_err());
}
