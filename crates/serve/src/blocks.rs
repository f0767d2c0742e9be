//! An answer as a list of blocks: thinking, text, calls. Two interfaces stream it so.

use crate::generation::{Delta, Finish, Piece};
use crate::tools::Call;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Thinking,
    Text,
}

/// A block in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Thinking(String),
    Text(String),
    Call(Call),
}

/// What happens to a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Open(Kind),
    More(Kind, String),
    /// It is done: all of it.
    Close(Block),
    /// A call, whole at once.
    Call(Call),
}

/// Puts pieces together.
#[derive(Default)]
pub(crate) struct Blocks {
    /// Those that are done.
    pub(crate) done: Vec<Block>,
    open: Option<(Kind, String)>,
}

impl Blocks {
    /// What a piece changes, and in which block.
    pub(crate) fn take(&mut self, piece: &Piece) -> Vec<(usize, Change)> {
        let mut changes = Vec::new();
        self.grow(Kind::Thinking, &piece.reasoning, &mut changes);
        self.grow(Kind::Text, &piece.text, &mut changes);
        for call in &piece.calls {
            changes.extend(self.close());
            changes.push((self.done.len(), Change::Call(call.clone())));
            self.done.push(Block::Call(call.clone()));
        }
        changes
    }

    fn grow(&mut self, kind: Kind, text: &str, changes: &mut Vec<(usize, Change)>) {
        if text.is_empty() {
            return;
        }
        if self.open.as_ref().is_none_or(|(open, _)| *open != kind) {
            changes.extend(self.close());
            changes.push((self.done.len(), Change::Open(kind)));
            self.open = Some((kind, String::new()));
        }
        if let Some((_, whole)) = &mut self.open {
            whole.push_str(text);
        }
        changes.push((self.done.len(), Change::More(kind, text.to_owned())));
    }

    /// The end of the open block, if there is one.
    pub(crate) fn close(&mut self) -> Option<(usize, Change)> {
        let (kind, whole) = self.open.take()?;
        let block = match kind {
            Kind::Thinking => Block::Thinking(whole),
            Kind::Text => Block::Text(whole),
        };
        self.done.push(block.clone());
        Some((self.done.len() - 1, Change::Close(block)))
    }
}

/// Waits for the one sample of an answer.
pub(crate) async fn collect(
    watch: &mut crate::openai::Watch<'_>,
    mut deltas: tokio::sync::mpsc::Receiver<Delta>,
) -> crate::error::Answer<(Vec<Block>, Finish)> {
    let (mut blocks, mut end) = (Blocks::default(), Finish::Stop);
    while let Some(delta) = deltas.recv().await {
        watch.note(&delta);
        match delta {
            Delta::Begun { .. } => {}
            Delta::Piece { piece, .. } => drop(blocks.take(&piece)),
            Delta::End { finish, .. } => end = finish,
            Delta::Failed(error) => return Err(error),
        }
    }
    blocks.close();
    Ok((blocks.done, end))
}
