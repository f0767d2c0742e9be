//! A command line as its words, by a shell's rules of quoting and nothing else of a shell.

use anyhow::{Result, bail};

/// Splits at white space outside of quotes; `'…'` takes everything as it stands, `"…"` all but `\"` and `\\`, and
/// `\` outside of quotes the next character.
pub fn split(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => bail!("a quote {c} is opened and never closed"),
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' && matches!(chars.peek(), Some('"' | '\\')) => {
                            word.extend(chars.next())
                        }
                        Some(other) => word.push(other),
                    }
                }
            }
            '\\' => match chars.next() {
                None => bail!("it ends in a backslash"),
                Some(c) => word.get_or_insert_default().push(c),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match words.first() {
        None => bail!("it is empty: give a program and its arguments"),
        Some(_) => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let words = |text: &str| split(text).unwrap();
        assert_eq!(
            words(r#"python3 'my check.py'  --x="a \"b\" $HOME" c\ d '' e"f"'g'"#),
            ["python3", "my check.py", "--x=a \"b\" $HOME", "c d", "", "efg"]
        );
        assert_eq!(words("a; rm -rf *"), ["a;", "rm", "-rf", "*"]);
        for bad in ["", "  ", "'a", "a\\"] {
            assert!(split(bad).is_err(), "{bad:?}");
        }
    }
}
