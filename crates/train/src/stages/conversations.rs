//! Conversations to learn from: worked problems, and files of the user's or of an earlier stage.

use std::collections::BTreeMap;

use data::{
    Conversation, DataError, Document, Records, Tokenizer, chat_len, encode_chat, fields_left_out,
    permutation,
};
use tasks::{Problem, Style};

use crate::TrainError;
use crate::context::Context;
use crate::held_out::{HELD_OUT_DOCUMENTS, HeldOut};
use crate::learner::Learner;
use crate::problems::ProblemSource;
use crate::run::metrics::{Metrics, keys};

/// Turns from which on a conversation's length is looked at before it is encoded turn by turn.
const MANY_TURNS: usize = 64;

fn all_too_long(stage: &str, tokens: usize, limit: usize) -> TrainError {
    let what = format!("every worked problem of stage `{stage}`");
    TrainError::TooLong { what, tokens, limit, remedy: "raise `seq_len`" }
}

/// The figure that counts worked problems longer than `seq_len`.
const LEFT_OUT: &str = "left_out";

/// Says how many documents were longer than `seq_len`, if any were.
pub(super) fn left_out_words(l: &Learner) -> String {
    match l.figure(LEFT_OUT) {
        0.0 => String::new(),
        n => format!(", {n} worked problems longer than `seq_len` left out"),
    }
}

/// Enough documents for a step, those of `next` from the learner's cursor on; longer ones than `limit` are left out and
/// counted.
pub(super) fn fill_batch(
    l: &mut Learner,
    stage: &str,
    batch_tokens: usize,
    limit: usize,
    next: impl Fn(&Tokenizer, u64) -> Result<Document, TrainError>,
) -> Result<Vec<Document>, TrainError> {
    let mut docs = Vec::new();
    let (mut tokens, mut too_long) = (0, 0);
    while tokens < batch_tokens {
        let doc = next(&l.tokenizer, l.cursor)?;
        l.cursor += 1;
        if doc.ids.len() <= limit {
            tokens += doc.ids.len() - 1;
            docs.push(doc);
            continue;
        }
        too_long += 1;
        l.set_figure(LEFT_OUT, l.figure(LEFT_OUT) + 1.0);
        if too_long > 1000 && docs.is_empty() {
            return Err(all_too_long(stage, doc.ids.len(), limit));
        }
    }
    Ok(docs)
}

/// The held-out problems of the recipe with careful worked solutions, as conversations; none where it has no problems.
pub(super) fn held_out_documents(
    ctx: &Context,
    tokenizer: &Tokenizer,
    seq_len: usize,
) -> Result<Vec<Document>, TrainError> {
    let problems =
        ctx.problems.iter().flat_map(|s| s.held_out().map(move |p| (s, p))).take(HELD_OUT_DOCUMENTS);
    let documents = (0..)
        .zip(problems)
        .map(|(i, (source, problem))| worked(tokenizer, source, problem, Style::Careful, i));
    let mut documents = documents.collect::<Result<Vec<Document>, TrainError>>()?;
    documents.retain(|d| (2..=seq_len + 1).contains(&d.ids.len()));
    Ok(documents)
}

/// Logs the loss on held-out documents, if there are any.
pub(super) fn log_held_out(
    l: &Learner,
    step: u64,
    documents: &[Document],
    metrics: &mut Metrics,
) -> Result<(), TrainError> {
    if !documents.is_empty() {
        let measured = HeldOut::measure(&l.model, &l.team, l.cursor, documents);
        metrics.log(step, &[(keys::EVAL_LOSS, measured.mean())])?;
    }
    Ok(())
}

/// Document `index` of an endless, in every epoch newly shuffled list.
pub(super) fn nth(all: &[Document], seed: u64, index: u64) -> &Document {
    let n = all.len() as u64;
    &all[permutation(seed, index / n, n)(index % n) as usize]
}

/// A problem with its worked solution, as a conversation.
pub(super) fn worked(
    tokenizer: &Tokenizer,
    source: &ProblemSource,
    problem: &Problem,
    style: Style,
    index: u64,
) -> Result<Document, TrainError> {
    Ok(encode_chat(tokenizer, &source.worked(problem, style, index)?)?.into())
}

/// A text outside of any chat, from the tokenizer's beginning to its end.
pub(super) fn plain_text(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TrainError> {
    let mut ids = [tokenizer.beginning(), &tokenizer.encode(text)?].concat();
    ids.extend(tokenizer.eos_id());
    Ok(ids)
}

/// The conversations of a file, of which there must be one. One that does not fit is an error that names its place.
pub(super) fn conversations(
    ctx: &Context,
    tokenizer: &Tokenizer,
    path: &std::path::Path,
    seq_len: usize,
) -> Result<Vec<Document>, TrainError> {
    let docs = conversations_if_any(ctx, tokenizer, path, seq_len)?;
    match docs.is_empty() {
        true => {
            let what = format!("{}: it holds no conversation to learn from", path.display());
            Err(TrainError::Recipe(what))
        }
        false => Ok(docs),
    }
}

/// The same of a file that may have none.
pub(super) fn conversations_if_any(
    ctx: &Context,
    tokenizer: &Tokenizer,
    path: &std::path::Path,
    seq_len: usize,
) -> Result<Vec<Document>, TrainError> {
    let mut docs = Vec::new();
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    for record in Records::<Conversation>::open(path, &[])? {
        let (place, c) = record?;
        if !c.messages.iter().any(|m| m.role == "assistant" && m.learned) {
            let what = "there is no assistant's turn to learn, whose weight is not 0";
            return Err(place.error(what).into());
        }
        let refused = |e: DataError| place.error(e.to_string());
        let too_long = |tokens| TrainError::TooLong {
            what: place.to_string(),
            tokens,
            limit: seq_len + 1,
            remedy: "raise `seq_len`, or shorten it",
        };
        if c.messages.len() > MANY_TURNS {
            let tokens = chat_len(tokenizer, &c).map_err(refused)?;
            if tokens > seq_len + 1 {
                return Err(too_long(tokens));
            }
        }
        let doc: Document = encode_chat(tokenizer, &c).map_err(refused)?.into();
        for field in fields_left_out(tokenizer, &c).map_err(refused)? {
            *left_out.entry(field).or_default() += 1;
        }
        if doc.ids.len() < 2 {
            continue;
        }
        if doc.ids.len() > seq_len + 1 {
            return Err(too_long(doc.ids.len()));
        }
        docs.push(doc);
    }
    for (field, count) in left_out {
        ctx.reporter.note(&format!(
            "note: {}: the chat template leaves `{field}` out in {count} conversations, so that it is not learnt",
            path.display()
        ));
    }
    Ok(docs)
}
