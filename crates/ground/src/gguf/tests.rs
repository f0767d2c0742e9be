use super::*;

fn example() -> Vec<u8> {
    let keys = [
        ("general.architecture", Value::Text("llama".into())),
        ("a.count", Value::Int(7)),
        ("a.negative", Value::Int(-7)),
        ("a.large", Value::Int(1 << 40)),
        ("a.eps", Value::Float(1e-5)),
        ("a.flag", Value::Bool(true)),
        ("a.ints", Value::Ints(vec![1, -2, 3])),
        ("a.floats", Value::Floats(vec![0.5, -1.5])),
        ("a.bools", Value::Bools(vec![true, false])),
        ("a.texts", Value::Texts(vec!["ä".into(), String::new()])),
    ]
    .map(|(k, v)| (k.to_owned(), v));
    let tensor = |name: &str, shape: &[usize]| Outline {
        name: name.into(),
        shape: shape.to_vec(),
        kind: 0,
        bytes: 4 * shape.iter().product::<usize>() as u64,
    };
    let tensors = [tensor("w", &[3, 5]), tensor("b", &[2])];
    let mut file = Vec::new();
    write(&mut file, &keys, &tensors, |i| vec![i as u8; tensors[i].bytes as usize]).unwrap();
    file
}

fn parse(file: &[u8]) -> Result<Gguf, Error> {
    read(&mut &file[..], file.len() as u64)
}

#[test]
fn what_is_written_is_read() {
    let file = example();
    let gguf = parse(&file).unwrap();
    assert_eq!(gguf.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.int("a.large").unwrap(), Some(1 << 40));
    assert_eq!(gguf.float("a.eps").unwrap(), Some(1e-5));
    assert_eq!(gguf.ints("a.ints").unwrap(), Some(&[1, -2, 3][..]));
    assert_eq!(gguf.get("a.bools"), Some(&Value::Bools(vec![true, false])));
    assert_eq!(gguf.texts("a.texts").unwrap().unwrap(), ["ä", ""]);
    assert_eq!(gguf.tensors[0].shape, [3, 5]);
    let at = gguf.tensors[1].begin as usize;
    assert_eq!(file[at..at + 8], [1; 8]);
    assert_eq!(
        gguf.int("a.flag").unwrap_err().to_string(),
        "its key `a.flag` is true, expected a whole number"
    );
}

/// Whatever a stranger writes, it is answered with an error and without memory beyond the file's own length.
#[test]
fn cut_or_changed_files_are_refused_or_read_and_never_panic() {
    let file = example();
    let head = parse(&file).unwrap().tensors[0].begin as usize;
    for end in 0..head - 32 {
        assert!(parse(&file[..end]).is_err(), "cut at {end}");
    }
    for at in 0..head {
        for bits in [0xff, 0x80, 0x01] {
            let mut changed = file.clone();
            changed[at] ^= bits;
            drop(parse(&changed));
        }
    }
}

#[test]
fn counts_that_lie_are_named() {
    let mut file = example();
    file[8..16].copy_from_slice(&(1u64 << 19).to_le_bytes());
    let error = parse(&file).unwrap_err().to_string();
    assert!(error.contains("its number of tensors, 524288, takes 16777216 bytes"), "{error}");
    file[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = parse(&file).unwrap_err().to_string();
    assert!(error.contains("expected at most 1048576"), "{error}");
    let error = parse(&[b"GGUF", &[1, 0, 0, 0][..]].concat()).unwrap_err().to_string();
    assert!(error.contains("version 1"), "{error}");
}
