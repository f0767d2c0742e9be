//! ZIP archives of parts as they are, for parsers of what lies in one.

/// The mark before a part's name, at the beginning of a line.
const MARK: &[u8] = b"=== ";

/// A text's parts, each behind a line with [`MARK`] and its name, as an archive that packs nothing and whose checksums are right.
pub fn of_parts(text: &[u8]) -> Vec<u8> {
    let (mut out, mut list, mut count) = (Vec::new(), Vec::new(), 0u16);
    for (name, content) in parts(text) {
        let begin = out.len() as u32;
        let [crc, size, name_len] = [crc32fast::hash(content), content.len() as u32, name.len() as u32];
        // Version, flags, no compression, time and date; what both headers say.
        let mut common: Vec<u8> = [20, 0, 0, 0, 0x21].iter().flat_map(|n: &u16| n.to_le_bytes()).collect();
        common.extend([crc, size, size, name_len].iter().flat_map(|n| n.to_le_bytes()));
        out.extend([&b"PK\x03\x04"[..], &common, name, content].concat());
        list.extend([&b"PK\x01\x02\x14\x00"[..], &common, &[0; 10], &begin.to_le_bytes(), name].concat());
        count += 1;
    }
    let begin = out.len() as u32;
    let (entries, length, at) = (count.to_le_bytes(), (list.len() as u32).to_le_bytes(), begin.to_le_bytes());
    out.extend(&list);
    out.extend([&b"PK\x05\x06\0\0\0\0"[..], &entries, &entries, &length, &at, &[0, 0]].concat());
    out
}

/// Names and contents.
fn parts(text: &[u8]) -> Vec<(&[u8], &[u8])> {
    let starts = |at: &usize| text[*at..].starts_with(MARK) && (*at == 0 || text[at - 1] == b'\n');
    let marks: Vec<usize> = (0..text.len()).filter(starts).take(64).collect();
    let ends = marks.iter().skip(1).copied().chain([text.len()]);
    let part = |(begin, end): (usize, usize)| {
        let part = &text[begin + MARK.len()..end];
        let line = part.iter().position(|b| *b == b'\n').unwrap_or(part.len());
        (&part[..line.min(200)], part.get(line + 1..).unwrap_or_default())
    };
    marks.iter().copied().zip(ends).map(part).collect()
}
