//! Event files that TensorBoard reads: protobuf messages in TFRecord frames, written by hand.
//!
//! Only what a run needs: scalars, texts and the session start that makes TensorBoard forget what it had
//! loaded of an interrupted run. Field numbers are those of TensorFlow's `event.proto`, `summary.proto` and
//! `tensor.proto`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Appends events to one file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// Begins an event file in a folder that exists. TensorBoard shows a folder as one run, and reads its
    /// files in the order of their names, which begin with the time.
    pub fn create(dir: &Path, wall_time: f64) -> io::Result<Self> {
        let name = format!("events.out.tfevents.{:010}.shoestring", wall_time.max(0.0) as u64);
        let mut writer = EventWriter { file: File::create(dir.join(name))? };
        writer.event(wall_time, 0, |event| event.string(3, "brain.Event:2"))?;
        // Event.session_log (7) { status (1): START (1) }
        writer.event(wall_time, 0, |event| event.message(7, |log| log.varint(1, 1)))?;
        Ok(writer)
    }

    /// Adds numbers under their names.
    pub fn scalars<'a>(
        &mut self,
        wall_time: f64,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> io::Result<()> {
        self.event(wall_time, step, |event| {
            // Event.summary (5), Summary.value (1) { tag (1), simple_value (2) }
            event.message(5, |summary| {
                for (tag, value) in values {
                    summary.message(1, |entry| {
                        entry.string(1, tag);
                        entry.float(2, value as f32);
                    });
                }
            });
        })
    }

    /// Adds a text, which TensorBoard shows as Markdown.
    pub fn text(&mut self, wall_time: f64, step: u64, tag: &str, text: &str) -> io::Result<()> {
        self.event(wall_time, step, |event| {
            event.message(5, |summary| {
                summary.message(1, |entry| {
                    entry.string(1, tag);
                    // tensor (8) { dtype (1): DT_STRING (7), tensor_shape (2) { dim (2) { size (1): 1 } }, string_val (8) }
                    entry.message(8, |tensor| {
                        tensor.varint(1, 7);
                        tensor.message(2, |shape| shape.message(2, |dim| dim.varint(1, 1)));
                        tensor.string(8, text);
                    });
                    // metadata (9) { plugin_data (1) { plugin_name (1) } }
                    entry.message(9, |metadata| metadata.message(1, |plugin| plugin.string(1, "text")));
                });
            });
        })
    }

    /// Waits until everything is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn event(&mut self, wall_time: f64, step: u64, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        let mut event = Message::default();
        event.double(1, wall_time);
        event.varint(2, step);
        fill(&mut event);
        // One write, so that a killed process leaves at most one broken record, at the end.
        self.file.write_all(&record(&event.0))
    }
}

/// A TFRecord: length, its checksum, the data, its checksum, all little-endian.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(data);
    record.extend(masked(crc32c(data)).to_le_bytes());
    record
}

/// TensorFlow's masking: a checksum of data that holds its own checksum would be weak.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The checksum of iSCSI (RFC 3720), polynomial 0x1EDC6F41, bits reflected.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

/// A protobuf message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.raw_varint(u64::from(field << 3 | wire_type));
    }

    fn varint(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn string(&mut self, field: u32, text: &str) {
        self.key(field, 2);
        self.raw_varint(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.key(field, 2);
        self.raw_varint(inner.0.len() as u64);
        self.0.extend(inner.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the customary check value.
    #[test]
    fn crc32c_vectors() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(&(0..32).rev().collect::<Vec<u8>>()), 0x113f_db5c);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The bytes of a file that the `tensorboard` package (2.21) was seen to read: a slip in a field number or
    /// in the framing makes TensorBoard show nothing, without an error.
    #[test]
    fn the_bytes_that_tensorboard_reads() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), 1.0).unwrap();
        writer.scalars(2.0, 300, [("loss", 0.5)]).unwrap();
        writer.text(3.0, 1, "sample", "hi").unwrap();
        let path = dir.path().join("events.out.tfevents.0000000001.shoestring");
        let bytes = std::fs::read(path).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let records = [
            "1a00000000000000129bd82d09000000000000f03f10001a0d627261696e2e4576656e743a32cc314e92",
            "0f000000000000006d532b0909000000000000f03f10003a020801dd7256d4",
            "1b000000000000001a0d9e1309000000000000004010ac022a0d0a0b0a046c6f7373150000003fdfc52b60",
            "2f000000000000006d5d1d5009000000000000084010012a220a200a0673616d706c65420c08071204120208\
             01420268694a080a060a047465787469cfa15f",
        ];
        assert_eq!(hex, records.concat());
    }
}
