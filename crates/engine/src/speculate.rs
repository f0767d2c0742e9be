//! Guesses at the tokens to come, to be checked by the model in one pass: where they are right, several tokens come of one
//! step. Since a draw is a function of the place and the logits alone, every token is that of plain decoding, sampled ones
//! too.

/// Tokens at the end of a sequence that are looked for earlier in it.
const NGRAM: usize = 3;
/// How far back is looked.
const WINDOW: usize = 4096;

/// How many tokens to guess ahead for each of `decoding` sequences: weights are read once a step for all rows, so that more
/// rows are cheap only where there are few.
pub(crate) fn worth(wanted: usize, decoding: usize) -> usize {
    if decoding > 4 { 0 } else { wanted }
}

/// What followed the last time that the sequence held its last three tokens: at most `most` tokens.
pub(crate) fn lookup(tokens: &[u32], most: usize) -> Vec<u32> {
    let n = tokens.len();
    if most == 0 || n <= NGRAM {
        return Vec::new();
    }
    let (start, end) = (n.saturating_sub(WINDOW), &tokens[n - NGRAM..]);
    let found = tokens[start..n - 1].windows(NGRAM).rposition(|w| w == end);
    let Some(at) = found.map(|at| start + at + NGRAM) else { return Vec::new() };
    tokens[at..(at + most).min(n)].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_guessed() {
        let text = [1, 2, 3, 4, 5, 9, 1, 2, 3];
        assert_eq!(lookup(&text, 3), [4, 5, 9]);
        assert_eq!(lookup(&text, 9), [4, 5, 9, 1, 2, 3]);
        assert_eq!(lookup(&text, 0), [0; 0]);
        assert_eq!(lookup(&[7, 7, 7, 7], 2), [7], "the latest place");
        assert_eq!(lookup(&[1, 2, 3], 2), [0; 0]);
    }
}
