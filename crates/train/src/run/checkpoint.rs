//! Checkpoints: everything a stage needs to go on as if it had never stopped.
//!
//! One file: a magic number, the length of a JSON header, the header, then raw little-endian f32 sections. The header
//! holds the stage's own state and the length and CRC-32 of each section, and is itself followed by a CRC. Files
//! are written under a temporary name, synced and renamed; the last two are kept, and loading takes the newest one
//! that is whole. An anchor is a checkpoint whose step does not depend on the clock; the newest of them is kept too, so that
//! going back to it is the same whenever it happens.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use ground::atomic;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::RunError;

const MAGIC: &[u8; 8] = b"SHOECKP1";
/// The longest header that is read.
const MAX_HEADER: u64 = 64 << 20;
/// Files that are kept.
const KEEP: usize = 2;

#[derive(Serialize, Deserialize)]
struct Header<S> {
    step: u64,
    state: S,
    sections: Vec<Section>,
}

#[derive(Serialize, Deserialize)]
struct Section {
    values: u64,
    crc32: u32,
}

/// A checkpoint that was read.
#[derive(Serialize, Deserialize)]
pub struct Loaded<S> {
    /// The step after which it was written.
    pub step: u64,
    /// What the stage said of itself.
    pub state: S,
    /// Older files that were found damaged and passed over.
    pub passed_over: Vec<PathBuf>,
}

const ANCHOR: &str = "-anchor.bin";

fn path_of(dir: &Path, step: u64, anchor: bool) -> PathBuf {
    dir.join(format!("checkpoint-{step:09}{}", if anchor { ANCHOR } else { ".bin" }))
}

fn is_anchor(path: &Path) -> bool {
    path.to_string_lossy().ends_with(ANCHOR)
}

/// The checkpoints in a folder, the newest first.
fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let is = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("checkpoint-") && name.ends_with(".bin")
    };
    let mut found: Vec<PathBuf> = entries.filter(is).collect();
    found.sort();
    found.reverse();
    found
}

fn bytes(x: &[f32]) -> impl Iterator<Item = Vec<u8>> {
    x.chunks(1 << 16).map(|c| c.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Writes a checkpoint and removes those that are no longer needed.
pub fn save(
    dir: &Path,
    step: u64,
    anchor: bool,
    state: &impl Serialize,
    sections: &[&[f32]],
) -> Result<(), RunError> {
    fs::create_dir_all(dir).map_err(RunError::io("create", dir))?;
    let path = path_of(dir, step, anchor);
    let described = sections.iter().map(|s| {
        let mut crc = crc32fast::Hasher::new();
        bytes(s).for_each(|b| crc.update(&b));
        Section { values: s.len() as u64, crc32: crc.finalize() }
    });
    let header = Header { step, state, sections: described.collect() };
    let header = serde_json::to_vec(&header).expect("a header is plain JSON");
    let write = |file: &mut File| -> std::io::Result<()> {
        file.write_all(MAGIC)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        file.write_all(&crc32fast::hash(&header).to_le_bytes())?;
        sections.iter().flat_map(|s| bytes(s)).try_for_each(|b| file.write_all(&b))
    };
    atomic::replace_with(&path, write).map_err(RunError::io("write", &path))?;
    let all = list(dir);
    let newest = all.iter().find(|p| is_anchor(p));
    for old in all.iter().skip(KEEP).filter(|p| Some(*p) != newest) {
        let _ = fs::remove_file(old);
    }
    Ok(())
}

/// Reads the newest whole checkpoint, or the newest whole anchor, into `sections`; `None` where there is none.
pub fn load<S: DeserializeOwned>(
    dir: &Path,
    anchors: bool,
    sections: &mut [&mut [f32]],
) -> Result<Option<Loaded<S>>, RunError> {
    let mut passed_over = Vec::new();
    let mut found = list(dir);
    found.retain(|p| !anchors || is_anchor(p));
    for path in &found {
        match read(path, sections) {
            Ok(header) => return Ok(Some(Loaded { step: header.step, state: header.state, passed_over })),
            Err(_) => passed_over.push(path.clone()),
        }
    }
    match passed_over.first() {
        None => Ok(None),
        Some(path) => {
            let message = read::<S>(path, sections).err().unwrap_or_default();
            Err(RunError::Damaged { path: path.clone(), message })
        }
    }
}

fn read<S: DeserializeOwned>(path: &Path, sections: &mut [&mut [f32]]) -> Result<Header<S>, String> {
    let say = |e: std::io::Error| e.to_string();
    let file = File::open(path).map_err(say)?;
    let size = file.metadata().map_err(say)?.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut word = [0u8; 8];
    file.read_exact(&mut word).map_err(say)?;
    if &word != MAGIC {
        return Err("it is no checkpoint".into());
    }
    file.read_exact(&mut word).map_err(say)?;
    let length = u64::from_le_bytes(word);
    if length > MAX_HEADER || length + 20 > size {
        return Err(format!("its header claims {length} bytes"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(say)?;
    let mut crc = [0u8; 4];
    file.read_exact(&mut crc).map_err(say)?;
    if crc32fast::hash(&header) != u32::from_le_bytes(crc) {
        return Err("its header's checksum is wrong".into());
    }
    let header: Header<S> = serde_json::from_slice(&header).map_err(|e| e.to_string())?;
    let body: u64 = sections.iter().map(|s| 4 * s.len() as u64).sum();
    let lengths = header.sections.iter().map(|s| s.values).eq(sections.iter().map(|s| s.len() as u64));
    if !lengths || size != 20 + length + body {
        return Err("its sections have other lengths than this model's".into());
    }
    let mut buffer = vec![0u8; 1 << 18];
    for (section, values) in header.sections.iter().zip(sections) {
        let mut hasher = crc32fast::Hasher::new();
        for chunk in values.chunks_mut(1 << 16) {
            let buffer = &mut buffer[..4 * chunk.len()];
            file.read_exact(buffer).map_err(say)?;
            hasher.update(buffer);
            for (v, b) in chunk.iter_mut().zip(buffer.chunks_exact(4)) {
                *v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        if hasher.finalize() != section.crc32 {
            return Err("a section's checksum is wrong".into());
        }
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn damage_anywhere_is_found_and_the_checkpoint_before_is_used() {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, b) = (vec![1.0f32, -2.5, 3.0], vec![4.0f32; 5]);
        for step in [10, 20, 30] {
            save(dir.path(), step, false, &json!({"cursor": step}), &[&a, &b]).expect("saved");
        }
        assert_eq!(list(dir.path()).len(), KEEP);
        let whole = fs::read(path_of(dir.path(), 30, false)).expect("bytes");
        let (mut x, mut y) = (vec![0.0f32; 3], vec![0.0f32; 5]);
        for at in 0..=whole.len() {
            let mut bad = whole.clone();
            if at < whole.len() {
                bad[at] ^= 1;
            } else {
                bad.pop();
            }
            fs::write(path_of(dir.path(), 30, false), &bad).expect("written");
            let got =
                load::<Value>(dir.path(), false, &mut [&mut x, &mut y]).expect("the older one").expect("one");
            assert_eq!((got.step, got.passed_over.len()), (20, 1), "flipped byte {at}");
            assert_eq!((&x, &y), (&a, &b));
        }
        fs::write(path_of(dir.path(), 30, false), &whole).expect("written");
        let got = load::<Value>(dir.path(), false, &mut [&mut x, &mut y]).expect("whole").expect("one");
        assert_eq!((got.step, got.state["cursor"].as_u64()), (30, Some(30)));
        fs::write(path_of(dir.path(), 20, false), b"x").expect("written");
        fs::write(path_of(dir.path(), 30, false), b"x").expect("written");
        assert!(matches!(
            load::<Value>(dir.path(), false, &mut [&mut x, &mut y]),
            Err(RunError::Damaged { .. })
        ));
    }

    #[test]
    fn the_newest_anchor_is_kept_whatever_comes_after_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, mut x) = (vec![1.0f32], vec![0.0f32]);
        for step in 1..=9 {
            save(dir.path(), step, step % 3 == 0 && step < 9, &json!({}), &[&a]).expect("saved");
        }
        let mut at =
            |anchors| load::<Value>(dir.path(), anchors, &mut [&mut x]).expect("whole").expect("one").step;
        assert_eq!((at(true), at(false)), (6, 9));
        assert_eq!(list(dir.path()).len(), KEEP + 1);
    }
}
